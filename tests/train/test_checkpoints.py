"""minirl/train/checkpoints.py: a page goes on from a checkpoint as if it had never stopped."""

import pytest
import torch

from minirl.lm.tokenizer import build_tokenizer
from minirl.train.checkpoints import checkpoint_steps, load_checkpoint, save_checkpoint
from minirl.train.sft import SFTConfig, train_sft
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
    (folder / "checkpoint-3" / "training_state.pt").write_bytes(b"not a state")
    with pytest.warns(UserWarning, match="checkpoint-3 is damaged .* goes on from checkpoint-2"):
        assert load_checkpoint(folder, device=CPU)[2]["step"] == 2
    assert checkpoint_steps(folder) == [2] and (folder / "checkpoint-3.broken").is_dir()


def test_where_all_are_damaged_training_begins_again(tmp_path):
    folder, messages = cut_short(tmp_path / "run"), []
    for step in (2, 3):
        (folder / f"checkpoint-{step}" / "training_state.pt").unlink()
    assert load_checkpoint(folder, device=CPU, warn=messages.append) is None
    assert "goes on from checkpoint-2" in messages[0] and "begins again" in messages[1]
