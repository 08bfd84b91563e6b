"""minirl/app/precision.py, and runs whose sampler and learner compute in dtypes of their own"""

import json
import re
from pathlib import Path

import pytest
import torch

from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.text import WIDTH
from minirl.train import precision_lab

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def quick(monkeypatch):
    product_mismatches = precision_lab.product_mismatches
    monkeypatch.setattr(precision_lab, "product_mismatches",
                        lambda seed: product_mismatches(seed, 2, 8))


def test_a_table_five_sentences_and_a_picture(base, inside, capsys, quick):
    flags = ["--problems", "3", "--samples", "2", "--steps", "3", "--max-new-tokens", "6"]
    assert main(["precision", "--init", str(base), *flags]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "1-digit addition, 3 problems, 2 samples each"
    pairs = [tuple(line.split()[:2]) for line in lines[2:11]]
    dtypes = "float32", "bfloat16", "float16"
    assert pairs == [(sampler, learner) for sampler in dtypes for learner in dtypes]
    assert "0.9 in float32, 1 in bfloat16, 0.9023 in float16" in printed.out
    assert "In 3 steps the scale went from 65,536" in printed.out
    assert lines[-1] == "precision.png shows them" and str(base) in printed.err
    assert all(len(line) <= WIDTH + 20 for line in lines) and len(lines[1]) <= WIDTH
    assert (inside / "precision.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in inside.iterdir()] == ["precision.png"]


def test_other_problems_and_batch_invariant_arithmetic(base, inside, capsys, quick):
    """Any checkpoint on questions of one's own; in batch-invariant arithmetic each dtype differs
    from the others and not from itself. A checkpoint in bfloat16 is measured in float32 as well."""
    (inside / "questions.jsonl").write_text("".join(
        json.dumps({"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"}) + "\n"
        for i in range(20)))
    model, tokenizer = load_pretrained(base, dtype=torch.bfloat16)
    save_pretrained(model, tokenizer, inside / "half")
    assert main(["precision", "--init", "half", "--task", "gsm8k", "--data", "questions.jsonl",
                 "--batch-invariant", "--problems", "2", "--samples", "2", "--steps", "1",
                 "--max-new-tokens", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("GSM8K") and "agree to the bit" in "".join(lines)
    for line in lines[2:11]:
        sampler, learner, mean, largest = line.split()[:4]
        assert (mean == largest == "0.0") == (sampler == learner)


def grpo(base, folder, tiny_grpo, *flags):
    assert main(["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(folder),
                 *tiny_grpo, *flags]) == 0
    return RunDir(folder)


def test_a_run_in_float16_reports_its_scale(base, tmp_path, tiny_grpo):
    run = grpo(base, tmp_path / "run", tiny_grpo, "--dtype", "float16")
    metrics = run.metrics()
    assert all(step["frac_skipped_steps"] in (0.0, 1.0) for step in metrics)
    assert metrics[0]["loss_scale"] == 2.0 ** 16


def test_sampler_and_learner_compute_in_their_own_dtypes(base, tmp_path, tiny_grpo):
    """The metric sampling_logp_difference sees it: 1e-3 or so, and 1e-6 without."""
    mixed = grpo(base, tmp_path / "mixed", tiny_grpo, "--sampler-dtype", "bfloat16")
    plain = grpo(base, tmp_path / "plain", tiny_grpo)
    name = "sampling/sampling_logp_difference/mean"
    assert plain.metrics()[0][name] < 1e-5 < 1e-4 < mixed.metrics()[0][name]
    settings = json.loads((mixed.path / "config.json").read_text())["settings"]
    assert settings["dtype"] == "float32" and settings["sampler_dtype"] == "bfloat16"
    assert "loss_scale" not in mixed.metrics()[0]


def repairs(readme):
    """The flags of each row of a README's table of repairs."""
    rows = [line.split("|") for line in readme.read_text(encoding="utf-8").splitlines()
            if re.match(r"\| [^|]+ \| `--[^|`]+` \|", line)]
    return [row[2].strip().strip("`") for row in rows]


def test_both_readmes_list_the_same_repairs():
    english, korean = (repairs(ROOT / name) for name in ("README.md", "README.ko.md"))
    assert english == korean and len(english) == 13


@pytest.mark.parametrize("flags", repairs(ROOT / "README.md"))
def test_a_repair_is_one_command_away(base, tmp_path, tiny_grpo, flags):
    run = grpo(base, tmp_path / "run", tiny_grpo, *flags.split())
    assert run.finished and run.metrics()[-1]["drift/logp_difference/mean"] >= 0
