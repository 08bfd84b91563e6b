"""minirl/app/runlog.py: what a page reports to, and what a signal does to it."""

import errno
import signal

import pytest

from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.survival import Stopped
from tests.app.states import send, state_at, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model()[1]


def log_of(run, tokenizer):
    return RunLog(run, tokenizer, title="x", steps=9, state=None, every=5, bar={})


def test_between_a_checkpoint_and_the_next_step_a_signal_does_not_wait(tokenizer, tmp_path):
    """There is nothing to save, and a step may take minutes."""
    run = RunDir.create(tmp_path / "run", {"command": "sft"})
    with pytest.raises(Stopped, match="by SIGTERM; nothing is saved yet"), log_of(run, tokenizer):
        send(signal.SIGTERM)
        pytest.fail("went on")
    with pytest.raises(Stopped, match="by SIGINT; step 5 is saved"), log_of(run, tokenizer) as log:
        log.log(5, {})
        log.save(state_at(5))
        send(signal.SIGINT)
        pytest.fail("went on")


def test_a_signal_after_the_last_save_still_stops(tokenizer, tmp_path):
    """The page has ended without another save: what called it must not go on."""
    run = RunDir.create(tmp_path / "run", {"command": "sft"})
    with pytest.raises(Stopped) as stopped, log_of(run, tokenizer) as log:
        log.log(1, {})
        send(signal.SIGTERM)
    assert stopped.value.code == 143


def test_a_terminal_that_is_gone_does_not_keep_a_step_from_being_saved(tokenizer, tmp_path):
    """SIGHUP comes when a terminal closes. Whatever writes to it from then on fails."""
    run = RunDir.create(tmp_path / "run", {"command": "sft"})

    def closed(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(Stopped), log_of(run, tokenizer) as log:
        log._progress.update = closed
        log.log(1, {})
        send(signal.SIGHUP)
        log.save(state_at(1))
    assert run.checkpoints() == [1]


def test_metrics_on_the_bar_have_their_labels(tokenizer, tmp_path):
    run = RunDir.create(tmp_path / "run", {"command": "sft"})
    notes = []
    log = RunLog(run, tokenizer, title="x", steps=9, state=None, every=5,
                 bar={"loss": "loss", "kl": "KL", "reward": "reward"})
    with log:
        log._progress.update = lambda note: notes.append(note)
        log.log(1, {"kl": 0.123456, "loss": 2.0, "entropy": 3.0})
    assert notes == ["loss 2, KL 0.123"] and log.step == 1


def test_the_bar_says_how_fast_tokens_are_learnt_from(tokenizer, tmp_path):
    """Those of one step in the seconds that it took; a resumed run had some before."""
    run = RunDir.create(tmp_path / "run", {"command": "grpo"})
    notes = []
    log = RunLog(run, tokenizer, title="x", steps=9, every=5, bar={},
                 state={"step": 1, "seconds": 7.0, "num_tokens": 10_000})
    with log:
        log._progress.update = lambda note: notes.append(note)
        for step, tokens in ((2, 13_000), (3, 14_000)):
            log.log(step, {"num_tokens": tokens, "step_time": 0.5})
    assert notes == ["6,000 tokens/s", "2,000 tokens/s"]


def test_steps_follow_from_the_epochs(tokenizer, tmp_path):
    """Step 3 of 12 an epoch is epoch 0.25: two epochs have 24 steps."""
    run = RunDir.create(tmp_path / "run", {"command": "sft"})
    log = RunLog(run, tokenizer, title="x", steps=None, epochs=2, state=None, every=5, bar={})
    with log:
        log.log(3, {"epoch": 3 / 12})
    assert log.steps == 24
