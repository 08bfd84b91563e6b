"""`minirl grpo` with no flags: the promise of the README. Slow: about a minute a seed
(python -m pytest -m slow)."""

import json

import pytest

from minirl.app.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_from_nothing_to_a_policy_that_works_it_out(seed, tmp_path):
    run = tmp_path / "run"
    assert main(["grpo", "--seed", str(seed), "--run-dir", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert 0.2 <= summary["accuracy_before"] <= 0.6
    assert summary["accuracy_after"] >= 0.95
    assert summary["mean_length_after"] >= 1.2 * summary["mean_length_before"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    differences = [m["sampling/sampling_logp_difference/mean"] for m in metrics]
    assert max(differences) < 1e-5, "sampler and learner are one policy in float32"
