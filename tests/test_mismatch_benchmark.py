"""benchmarks/mismatch.py: what it measures of a checkpoint, and what batch-invariance costs."""

import json
import sys

import pytest

from minirl.lm.checkpoint import save_pretrained
from tests.app.states import tiny_model
from tests.benchmark_modules import imported


@pytest.fixture(scope="module")
def mismatch():
    with imported("mismatch") as modules:
        yield modules["mismatch"]


def run(mismatch, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["mismatch.py", *map(str, flags)])
    mismatch.main()


def test_a_checkpoint_is_measured_in_what_only_names(mismatch, monkeypatch, tmp_path):
    """In batch-invariant arithmetic the difference is 0, and not just small."""
    save_pretrained(*tiny_model(), tmp_path / "model")
    run(mismatch, monkeypatch, "--out", tmp_path / "out", "--init", tmp_path / "model", "--only",
        "batch-invariant", "float16", "--problems", 2, "--samples", 2, "--max-new-tokens", 4)
    exact, *half = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert exact["invariant"] and exact["sampler"] == exact["learner"] == "bfloat16"
    assert exact["mean"] == exact["largest"] == exact["k3"] == 0.0 and exact["tokens"] > 4
    assert [(line["sampler"], line["learner"]) for line in half] == [
        ("float16", "float16"), ("float16", "float32")]
    assert all(line["largest"] > 0 and not line["invariant"] for line in half)


def test_the_cost_of_a_model(mismatch, monkeypatch, tmp_path):
    monkeypatch.setattr(mismatch, "COSTS", (("0.86M", 1, 2, 2), ("10M", 1, 2, 2)))
    monkeypatch.setattr(mismatch, "REPEATS", 2)
    run(mismatch, monkeypatch, "--out", tmp_path / "out", "--cost", "0.86M")
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [(line["model"], line["dtype"]) for line in lines] == [
        ("0.86M", "float32"), ("0.86M", "bfloat16")]
    assert {len(times) for line in lines for times in line["seconds"].values()} == {2}


def test_the_costs_table_by_hand(mismatch, capsys):
    """128 tokens in 1, 2 and 4 seconds: 64 per second; batch-invariant in 2, 4 and 4: 32."""
    seconds = {"sampler, usual": [1.0, 2.0, 4.0], "sampler, batch-invariant": [2.0, 4.0, 4.0],
               "learner, usual": [8.0] * 3, "learner, batch-invariant": [4.0] * 3}
    mismatch.cost_table([{"model": "10M", "rows": 4, "length": 32, "dtype": "float32",
                          "seconds": seconds}])
    last = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == [
        "10M", "4", "32", "float32", "64", "32", "2.00 (1.00 to 2.00)",
        "16", "32", "0.50 (0.50 to 0.50)"]
