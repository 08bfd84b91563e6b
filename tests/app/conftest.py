"""A finished run of the smallest kind, made once: a 16-wide model, a few steps."""

import os
import signal

import pytest

from minirl.app.cli import main

TINY_SFT = ["--digits", "1", "--eval-problems", "6", "--checkpoint-every", "1", "--device", "cpu",
            "--hidden-size", "16", "--num-layers", "1", "--num-heads", "2",
            "--intermediate-size", "32", "--examples", "64", "--batch-size", "16"]
# all answers are wrong: weight decay alone changes the model
TINY_GRPO = ["--steps", "4", "--prompts-per-step", "2", "--group-size", "3",
             "--max-new-tokens", "8", "--eval-problems", "6", "--checkpoint-every", "2",
             "--weight-decay", "1", "--device", "cpu"]


@pytest.fixture(autouse=True, scope="session")
def signals_as_in_a_terminal():
    """A shell starts what runs in its background with SIGINT ignored, and runs leave it so. Tests
    that send it failed there."""
    ignored = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
               if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT
                      else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def tiny_grpo():
    return TINY_GRPO


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """runs/base/final of a tiny SFT run on one-digit sums."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert main(["sft", "--run-dir", str(folder), *TINY_SFT]) == 0
    return folder / "final"


@pytest.fixture(scope="session")
def finished(base, tmp_path_factory):
    """A finished GRPO run on the tiny base model."""
    folder = tmp_path_factory.mktemp("grpo") / "runs" / "grpo"
    flags = ["--init", str(base), "--digits", "1", "--run-dir", str(folder)]
    assert main(["grpo", *flags, *TINY_GRPO]) == 0
    return folder


@pytest.fixture
def inside(tmp_path):
    """Work in an empty folder."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn in a test, each with its layout done."""
    from matplotlib.figure import Figure

    drawn, savefig = [], Figure.savefig

    def noting_savefig(self, *args, **kw):
        drawn.append(self)
        savefig(self, *args, **kw)

    monkeypatch.setattr(Figure, "savefig", noting_savefig)
    return drawn
