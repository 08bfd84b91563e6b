"""Worths in minirl/app/r1.py: what R1's policies are worth, in files."""

import pytest
import torch

from minirl.app import r1
from minirl.app.r1 import R1Settings, Worths
from minirl.app.rundir import RunDir
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.heads import ScalarModel
from minirl.train.grpo import GRPOConfig
from minirl.train.r1 import R1Config
from minirl.train.reward_model import RewardModelConfig
from tests.train.entries import entry


class Runner:
    """Stages of which one has been made: it gives back a model, and nothing is trained."""

    def __init__(self, folder, model, tokenizer):
        self.run = RunDir.create(folder, {"command": "r1"})
        self.settings = R1Settings(number_length=1, eval_problems=2, samples=2)
        self.model, self.tokenizer, self.device = model, tokenizer, torch.device("cpu")
        self.seconds = 1.5

    def __call__(self, name, config, start, page):
        return self.model


CONFIG = R1Config(max_new_tokens=8)


def test_a_policy_is_measured_once(base, tmp_path, monkeypatch):
    runner = Runner(tmp_path / "r1", *load_pretrained(base))
    Worths(runner, CONFIG).stage("rl-1", GRPOConfig(), None, None)
    monkeypatch.setattr(r1, "worth", lambda *args: pytest.fail("measured again"))
    again = Worths(runner, CONFIG)
    assert again.stage("rl-1", GRPOConfig(), None, None) is runner.model
    entry, = again.entries.values()
    assert entry["stage"] == "rl-1" and entry["problems"]["hard"] == 2 == len(entry["general"])
    assert 0 <= entry["hard"] <= entry["pass"] <= 1 and entry["seconds"] == 0.0


def test_a_reward_model_is_no_policy(base, tmp_path):
    model, tokenizer = load_pretrained(base)
    runner = Runner(tmp_path / "r1", ScalarModel(model), tokenizer)
    Worths(runner, CONFIG).stage("rm-1", RewardModelConfig(), None, None)
    assert not (runner.run.path / "stages.json").exists()


def test_what_is_left_at_the_end(base, tmp_path):
    runner = Runner(tmp_path / "r1", *load_pretrained(base))
    runner.run.write_json("stages.json", {"stages": [
        {**entry(name), "hard": share, "general": [1.0]}
        for name, share in (("base", 0.1), ("sft", 0.2), ("rl-2", 0.3), ("distilled", 0.4))]})
    entries = Worths(runner, CONFIG).finish()
    assert [e["win_rate"] for e in entries] == [0.5] * 4
    summary = runner.run.summary
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.1, 0.3)
    assert summary["seconds"] == 1.5 and (runner.run.path / "stages.png").stat().st_size > 10_000
