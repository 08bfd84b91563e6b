"""minirl/app/sums.py: what minirl sft and minirl grpo do, and what they print."""

import re

import pytest
import torch

from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.tasks.environment import STOPS
from minirl.tasks.tools import calculate


def test_sft_says_how_good_it_is_and_what_comes_next(base, tmp_path, capsys):
    flags = ["--init", str(base), "--digits", "1", "--examples", "16", "--eval-problems", "4"]
    assert main(["sft", "--run-dir", str(tmp_path / "my sft"), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"minirl sft: 1-digit addition, from {base}, seed 0, ")
    assert re.fullmatch(r"accuracy [\d.]+, mean response length [\d.]+ tokens on held-out "
                        r"problems; \d+ s", lines[1])
    assert lines[2].endswith(f"Next: minirl grpo --init '{tmp_path}/my sft/final'")
    summary = RunDir(tmp_path / "my sft").summary
    assert list(summary) == ["steps", "loss", "accuracy", "mean_length", "seconds"]


def test_grpo_ends_with_what_changed(base, tiny_grpo, tmp_path, capsys):
    flags = ["--init", str(base), "--digits", "1", "--run-dir", str(tmp_path / "run")]
    assert main(["grpo", *flags, *tiny_grpo]) == 0
    said = capsys.readouterr().out
    for line in ("accuracy (95 % interval)", "mean response length, tokens", "  before: wrong",
                 "  after: wrong",
                 "metrics.jsonl\nand final/, a checkpoint in Hugging Face layout.",
                 "Next: minirl sample '123+456='  |  minirl eval  |  minirl plot"):
        assert line in said, line


def test_products_with_a_calculator(tiny_grpo, tmp_path, capsys):
    """A model that has read a few calls; its calls are answered in training, evaluation and sample.
    """
    run, reader = tmp_path / "run", tmp_path / "reader"
    flags = ["--task", "products", "--digits", "1", "--tools", "calculator"]
    assert main(["sft", *flags, "--run-dir", str(reader), "--examples", "1200", "--batch-size", "8",
                 "--tool-share", "1", "--hidden-size", "32", "--num-heads", "2", "--num-layers",
                 "1", "--eval-problems", "4"]) == 0
    capsys.readouterr()
    assert main(["grpo", *flags, "--init", str(reader / "final"), "--run-dir", str(run),
                 *tiny_grpo, "--max-new-tokens", "40", "--max-tool-calls", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"minirl grpo: 1-digit products and easy sums, from {reader}/final")
    assert re.search(r"\ncall cost +-?[\d.]+ +-?[\d.]+\n", said)
    task = RunDir(run).config["task"]
    assert task == {"name": "products", "digits": 1, "easy_share": 0.5, "tools": "calculator",
                    "max_tool_calls": 3}
    metrics = RunDir(run).metrics()[-1]
    assert metrics["tools/call_frequency"] > 0.2
    assert sum(metrics[f"stops/{why}"] for why in STOPS) == pytest.approx(1.0)

    assert main(["sample", "7*8=", "-n", "12", "--init", str(run / "final")]) == 0
    lines = "".join(line.strip() for line in capsys.readouterr().out.splitlines())
    calls = re.findall(r"<tool>([0-9*+]+)</tool><result>([^<]*)</result>",
                       re.sub("[~^]", "", lines))
    assert calls and all(calculate(call) == result for call, result in calls
                         if not result.startswith("error"))


@pytest.mark.parametrize("name, advantage, ratio_of_four", [
    ("grpo", 1.4997, 1.2), ("dr_grpo", 0.75, 1.2), ("dapo", 1.4997, 1.28),
    ("gspo", 1.4997, 1.0004), ("rloo", 1.0, 1.2), ("maxrl", 3.0, 1.386294)])
def test_what_preset_names_reaches_the_page(
        name, advantage, ratio_of_four, base, tmp_path, monkeypatch):
    """The advantage of one right answer in four, and the objective of a ratio of 4 at A = 1
    (log 4 = 1.386294)."""
    arguments = {}

    def page(model, *args, advantages, objective, **hooks):
        arguments.update(advantages=advantages, objective=objective)
        return model

    monkeypatch.setattr("minirl.app.sums.train_grpo", page)
    flags = ["--max-new-tokens", "17", "--eval-problems", "4", "--run-dir", str(tmp_path / name)]
    with pytest.raises(ValueError, match="no metrics yet"):
        monkeypatch.setenv("MINIRL_TRACEBACK", "1")
        main(["grpo", "--preset", name, "--init", str(base), *flags])
    one = torch.ones(1, 1)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert arguments["advantages"](rewards)[0, 0].item() == pytest.approx(advantage, abs=1e-4)
    value = arguments["objective"]((4 * one).log(), 0 * one, one, one)
    assert value.item() == pytest.approx(ratio_of_four, abs=1e-4)
