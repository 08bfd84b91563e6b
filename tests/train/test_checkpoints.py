"""minirl/train/checkpoints.py: a page goes on from a checkpoint as if it had never stopped."""

import threading
from pathlib import Path

import pytest
import torch

from minirl.lm.tokenizer import build_tokenizer
from minirl.train import checkpoints
from minirl.train.checkpoints import (
    Background,
    checkpoint_steps,
    load_checkpoint,
    save_checkpoint,
)
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state import TrainState, make_optimizer
from tests.train.small import tiny, weights

CPU = torch.device("cpu")
TOKENIZER = build_tokenizer()
PAIRS = [(f"{n}+1=", str(n + 1)) for n in range(12)]
CONFIG = SFTConfig(epochs=2, batch_size=4, lr=1e-2, warmup_steps=0)     # 6 steps


class Killed(Exception):
    """The process ends here."""


def train(folder, *, until=6):
    """What a user writes who has no app: go on from the folder's checkpoint, if it has one."""
    checkpoint = load_checkpoint(folder, device=CPU)
    model, tokenizer, state = checkpoint or (tiny(), TOKENIZER, None)

    def save(state):
        save_checkpoint(state, tokenizer, folder, seconds=2.0 * state.step)
        if state.step == until:
            raise Killed

    return train_sft(model, tokenizer, PAIRS, CONFIG, save=save, resume=state)


def cut_short(folder):
    with pytest.raises(Killed):
        train(folder, until=3)
    return folder


def test_a_page_goes_on_without_the_app_to_the_same_bit(tmp_path):
    whole = train_sft(tiny(), TOKENIZER, PAIRS, CONFIG)
    folder = cut_short(tmp_path / "cut")
    assert load_checkpoint(folder, device=CPU)[2]["step"] == 3
    assert torch.equal(weights(train(folder, until=None)), weights(whole))


def test_the_newest_two_are_kept_with_their_seconds(tmp_path):
    assert checkpoint_steps(tmp_path / "run") == []
    assert load_checkpoint(tmp_path / "run", device=CPU) is None
    folder = cut_short(tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert load_checkpoint(folder, device=CPU)[2]["seconds"] == 6.0


def test_a_damaged_checkpoint_is_put_aside_with_a_warning(tmp_path):
    folder = cut_short(tmp_path / "run")
    (folder / "checkpoint-3" / "training_state.json").write_bytes(b"not a state")
    with pytest.warns(UserWarning, match="checkpoint-3 is damaged .* goes on from checkpoint-2"):
        assert load_checkpoint(folder, device=CPU)[2]["step"] == 2
    assert checkpoint_steps(folder) == [2] and (folder / "checkpoint-3.broken").is_dir()


def test_where_all_are_damaged_training_begins_again(tmp_path):
    folder, messages = cut_short(tmp_path / "run"), []
    for step in (2, 3):
        (folder / f"checkpoint-{step}" / "training_state.json").unlink()
    assert load_checkpoint(folder, device=CPU, warn=messages.append) is None
    assert "goes on from checkpoint-2" in messages[0] and "begins again" in messages[1]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept_and_the_others_deleted(keep, tmp_path):
    train_sft(tiny(), TOKENIZER, PAIRS, CONFIG,
              save=lambda state: save_checkpoint(state, TOKENIZER, tmp_path, keep=keep))
    assert checkpoint_steps(tmp_path) == list(range(7 - keep, 7))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_run_that_went_on_holds_no_file_of_the_checkpoint(tmp_path):
    """A file that is deleted takes its room on the disk until nobody has mapped it."""
    folder = cut_short(tmp_path / "run")
    model, _, state = load_checkpoint(folder, device=CPU)
    assert f"{folder}/checkpoint-3/optimizer.safetensors" in Path("/proc/self/maps").read_text()
    again = TrainState(model, make_optimizer(model, CONFIG))
    again.load_state_dict(state)
    del state
    assert f"{folder}/" not in Path("/proc/self/maps").read_text()


# in the background

class Slow:
    """In place of write_checkpoint: it waits for `go` before it writes."""

    def __init__(self, monkeypatch):
        self.go, self.began, self.write = threading.Event(), [], checkpoints.write_checkpoint
        monkeypatch.setattr(checkpoints, "write_checkpoint", self)

    def __call__(self, moment, folder, keep):
        self.began.append(moment.numbers["step"])
        assert self.go.wait(60)
        self.write(moment, folder, keep)


def test_what_is_written_in_the_background_is_the_state_of_its_own_moment(tmp_path, monkeypatch):
    """Training goes on while the first checkpoint is written, and changes every weight."""
    slow, background, states = Slow(monkeypatch), Background(), {}

    def save(state):
        if state.step == 4:
            slow.go.set()
        if state.step in (2, 5):
            save_checkpoint(state, TOKENIZER, tmp_path, background=background)
            states[state.step] = weights(state.model).clone()
        if state.step == 3:
            assert slow.began == [2] and checkpoint_steps(tmp_path) == []

    train_sft(tiny(), TOKENIZER, PAIRS, CONFIG, save=save)
    background.wait()
    assert checkpoint_steps(tmp_path) == [2, 5] and not torch.equal(states[2], states[5])
    for step in (5, 2):
        model, _, state = load_checkpoint(tmp_path, device=CPU)
        assert state["step"] == step and torch.equal(weights(model), states[step])
        (tmp_path / f"checkpoint-{step}").rename(tmp_path / "aside")
        (tmp_path / "aside").rename(tmp_path / f"{step}")


def test_without_memory_for_a_copy_a_checkpoint_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "available_bytes", lambda: 1000)
    monkeypatch.setattr(Background, "do", lambda self, work: pytest.fail("a copy was made"))
    background = Background()
    train_sft(tiny(), TOKENIZER, PAIRS, CONFIG, save=lambda state: save_checkpoint(
        state, TOKENIZER, tmp_path, background=background))
    assert checkpoint_steps(tmp_path) == [5, 6]


def test_an_error_in_the_background_ends_the_training_that_it_belongs_to(tmp_path, monkeypatch):
    """It would be lost with its thread, and hours later there would be no checkpoint."""
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(checkpoints, "write_checkpoint", fail)
    background, steps = Background(), []

    def save(state):
        steps.append(state.step)
        save_checkpoint(state, TOKENIZER, tmp_path, background=background)

    with pytest.raises(OSError, match="the disk is gone"):
        train_sft(tiny(), TOKENIZER, PAIRS, CONFIG, save=save)
    assert steps == [1, 2]
    background.wait()                                      # it is raised once
