"""minirl/app/looks.py: what runs look at before, during and after training."""

import re

from minirl.app.looks import BeforeAndAfter
from minirl.app.rundir import RunDir
from tests.inference.evaluations import summed


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
