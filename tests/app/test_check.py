"""minirl/app/check.py: the command `minirl check`."""

import pytest

from minirl.app.cli import main

RIGHT = """
import torch

def loss(logp, old_logp, adv, mask):
    ratio = (logp - old_logp).exp()
    terms = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
    terms = torch.where(mask, terms, 0)
    return -(terms.sum(1) / mask.sum(1).clamp(min=1)).mean()

def wrong(logp, old_logp, adv, mask):
    return loss(old_logp, logp, adv, mask)

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "their_losses.py").write_text(RIGHT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_loss_that_is_right_ends_with_0(capsys):
    assert main(["check", "their_losses:loss", "--against", "grpo", "--sign", "minimise"]) == 0
    assert "holds     clip truth table" in capsys.readouterr().out


def test_a_loss_that_is_wrong_ends_with_1_and_hears_why(capsys):
    assert main(["check", "their_losses:wrong", "--against", "grpo", "--sign", "minimise"]) == 1
    out = capsys.readouterr().out
    assert "turned over" in out and "right is" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_numbers_that_are_built_in(capsys):
    arguments = ["check", "their_losses:loss", "--against", "clipped_surrogate", "--sign",
                 "minimise", "--reduced", "sequence_mean", "--fixed"]
    assert main([*arguments, "clip_low=0.2", "clip_high=0.2"]) == 0
    assert main([*arguments, "clip_high=0.3"]) == 1


def test_the_list_has_losses_and_functions(capsys):
    assert main(["check", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("grpo", "k3", "completion_mask", "sample", "accuracy"))


@pytest.mark.parametrize("arguments, words", [
    ([], "--list"), (["their_losses:loss"], "--list"),
    (["their_losses", "--against", "k3"], "module:function"),
    (["nosuch:loss", "--against", "k3"], "No module named 'nosuch'"),
    (["their_losses:nosuch", "--against", "k3"], "nosuch"),
    (["their_losses:number", "--against", "k3"], "no function"),
    (["their_losses:loss", "--against", "k4"], "k3"),
    (["their_losses:loss", "--against", "grpo", "--fixed", "clip"], "NAME=VALUE"),
    (["their_losses:loss", "--against", "grpo", "--fixed", "beta=1"], "no option"),
    (["their_losses:loss", "--against", "k3", "--reduced", "max"], "sequence_mean")])
def test_a_wrong_command_says_what_to_do(arguments, words, capsys):
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
