"""minirl/app/looks.py: what runs look at before, during and after training."""

import re

from minirl.app.looks import BeforeAndAfter, say_where_nothing_pays
from minirl.app.rundir import RunDir
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.user_rewards import with_rewards
from tests.inference.evaluations import summed

ACCURATE = with_rewards(Arithmetic(), {"accuracy": 1.0}, {})


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
    look.samples, look.verdicts, look.task = 3, (), ACCURATE
    monkeypatch.setattr(look, "evaluate", lambda title, model: summed("x"))
    look.before(run, None, resumed=True)
    assert not (run.path / "samples.md").exists() and look.first.accuracy == 0.5
    look.before(run, None, resumed=False)
    assert (run.path / "samples.md").exists()


def test_a_line_says_that_nothing_is_rewarded(capsys):
    """There is nothing to learn from then, and the prompt may not say what an answer looks like."""
    say_where_nothing_pays(ACCURATE, summed("x", (0.0,) * 4))
    said = capsys.readouterr().out
    assert "no completion got a reward (accuracy)" in said and "were cut off" in said
    say_where_nothing_pays(ACCURATE, summed("x"))
    assert capsys.readouterr().out == ""
