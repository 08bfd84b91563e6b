"""A finished run of the smallest kind, made once: a 16-wide model, a few steps."""

import dataclasses
import os

import pytest
import torch

from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.training import BaseConfig, RunConfig, run_sft
from minirl.train.sft import SFTConfig

TINY_GRPO = ["--steps", "4", "--prompts-per-step", "2", "--group-size", "3", "--max-new-tokens", "8", "--eval-problems", "6", "--checkpoint-every", "2",
             "--weight-decay", "1", "--device", "cpu"]   # all answers are wrong: only decay changes it


@pytest.fixture(scope="session")
def tiny_grpo():
    return TINY_GRPO


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """runs/base/final of a tiny SFT run on one-digit sums."""
    folder = tmp_path_factory.mktemp("base") / "run"
    common = RunConfig(digits=1, eval_problems=6, checkpoint_every=1, device="cpu")
    sizes, sft = BaseConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, examples=64), SFTConfig(batch_size=16)
    run = RunDir.create(folder, {"command": "sft", "run": dataclasses.asdict(common), "base": dataclasses.asdict(sizes), "sft": dataclasses.asdict(sft)})
    run_sft(run, sizes, sft, common, device=torch.device("cpu"))
    return folder / "final"


@pytest.fixture(scope="session")
def finished(base, tmp_path_factory):
    """A finished GRPO run on the tiny base model."""
    folder = tmp_path_factory.mktemp("grpo") / "runs" / "grpo"
    assert main(["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(folder), *TINY_GRPO]) == 0
    return folder


@pytest.fixture
def inside(tmp_path):
    """Work in an empty folder."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)
