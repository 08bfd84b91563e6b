"""minirl/app/looks.py: what runs look at before, during and after training."""

import re

import pytest

from minirl.app.looks import BeforeAndAfter, markdown, verdict
from minirl.app.rundir import RunDir
from tests.app.evaluations import instructed, summed

ATTACK = "\x1b[31mred\x1b]0;title\x07\u202e `a` ``` \n\n## step 99: forged\n\n- `x`\x9b2J"


@pytest.mark.parametrize("evaluation, rewards", [
    (instructed(ATTACK), ("true_reward", "reward_model")), (summed(ATTACK), ())],
    ids=["instructions", "sums"])
def test_samples_in_markdown_forge_no_heading_and_end_no_code(evaluation, rewards):
    """Backticks and newlines broke out: "## step 99" became a section, where --resume cuts."""
    lines = markdown(evaluation, 3, rewards).splitlines()
    assert len(lines) == 6 and all(line.isprintable() for line in lines)
    assert all(line.startswith(("- ````", "  - ")[i % 2]) for i, line in enumerate(lines))
    for line in lines:           # runs of four backticks are ours: two to a piece of code
        assert len(re.findall("`{4,}", line)) == (4 if line.startswith("- ") else 2)
        assert not re.search("`{5,}", line)


def test_what_stands_beside_a_completion():
    lines = markdown(instructed("x"), 2, ("true_reward", "reward_model")).splitlines()
    assert lines == ["- `sort x0:` (right: `abcx`)",
                     "  - right, true reward 1.00, reward model 123.46: `x`",
                     "- `sort x1:` (right: `abcx`)",
                     "  - wrong, true reward 2.00, reward model 123.46: `x`"]


def test_verdicts():
    evaluation = summed("x", [1.0, 0.0, None, 0.5])
    assert [verdict(evaluation, i) for i in range(4)] == ["right", "wrong", "no verdict", "wrong"]


def test_samples_are_of_the_start_halfway_and_the_end(finished):
    text = (finished / "samples.md").read_text()
    sections = re.split(r"(?m)^## ", text)[1:]
    assert [s.split("\n")[0] for s in sections] == ["step 0: before", "step 2: halfway",
                                                    "step 4: after"]
    prompts = [re.findall(r"(?m)^- (\S+) ", section) for section in sections]
    assert prompts[0] == prompts[1] == prompts[2] and len(prompts[0]) == 3


def test_a_resumed_run_does_not_write_its_first_samples_again(tmp_path, monkeypatch):
    """They are there, and what was written later stands behind them."""
    run = RunDir.create(tmp_path / "run", {})
    look = BeforeAndAfter.__new__(BeforeAndAfter)
    look.samples, look.verdicts = 3, ()
    monkeypatch.setattr(look, "evaluate", lambda title, model: summed("x"))
    look.before(run, None, resumed=True)
    assert not (run.path / "samples.md").exists() and look.first.accuracy == 0.5
    look.before(run, None, resumed=False)
    assert (run.path / "samples.md").exists()
