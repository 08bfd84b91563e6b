"""minirl/app/sums.py: what minirl sft and minirl grpo do, and what they print."""

import re

import pytest
import torch

from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.sums import before_and_after
from minirl.lm.text import columns_of
from tests.app.evaluations import summed

ATTACK = "\x1b[31mred\x1b]0;title\x07\u202e `a` ``` \n\n## step 99: forged\n\n- `x`\x9b2J"


@pytest.mark.parametrize("text", [ATTACK, "한글" * 50], ids=["attack", "Hangul"])
def test_what_models_say_steers_no_terminal_and_the_table_fits_it(text):
    lines = before_and_after(summed(text), summed(text)).split("\n")
    assert lines[0] == "4 distinct held-out problems, temperature 1"
    assert all(line.isprintable() for line in lines) and max(map(columns_of, lines)) <= 80
    assert not any(line.strip().startswith(("## ", "- ")) for line in lines)


def test_intervals_count_the_problems_with_a_verdict():
    """Wilson's interval of 2 right in 4 is 0.15 to 0.85. Of 2 in 3 with a verdict it is another."""
    whole, some, none = (summed("x", accuracy) for accuracy in (
        (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, None, 1.0), (None,) * 4))
    assert "0.500 (0.150 to 0.850)" in before_and_after(whole, whole)
    table = before_and_after(whole, some)
    assert "0.667 (0.208 to 0.939)" in table
    assert re.search(r"(?m)^problems with a verdict +4 +3$", table)
    assert "no verdict" in before_and_after(whole, none)


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
