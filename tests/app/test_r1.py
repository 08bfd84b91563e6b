"""minirl/app/r1.py: the stages as runs, killed and resumed."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from minirl.app import r1
from minirl.app.cli import main
from minirl.app.evaluate import Evaluation
from minirl.app.rundir import RunLog
from minirl.tasks.problem import Problem
from minirl.train.grpo import GRPOConfig
from minirl.train.r1 import R1Config
from minirl.train.sft import SFTConfig

SMALL = ["--number-length", "1", "--examples", "2000", "--cold-start-examples", "64", "--eval-problems", "8", "--samples", "4", "--device", "cpu", "--checkpoint-every", "2"]
RL = GRPOConfig(steps=4, prompts_per_step=2, group_size=4, max_new_tokens=20, lr=1e-4)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirl.app.commands.R1Config", lambda: R1Config(zero=RL, cold_start=SFTConfig(batch_size=16, lr=1e-3), reasoning=RL,
                                                                       sft=SFTConfig(batch_size=8, lr=1e-3), final=RL, kept_problems=24))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r1") / "runs" / "r1"
    assert main(["r1", "--run-dir", str(folder), *SMALL]) == 0
    return folder


def test_r1_leaves_a_folder_per_stage_and_a_table(whole, tmp_path, capsys):
    assert {"base", "r1-zero", "cold-start", "rl-1", "sft", "rl-2", "final", "stages.json", "stages.png", "summary.json"} <= {p.name for p in whole.iterdir()}
    stages = json.loads((whole / "stages.json").read_text())["stages"]
    assert [s["stage"] for s in stages] == ["base", "r1-zero", "cold-start", "rl-1", "sft", "rl-2"]
    for s in stages:
        assert 0 <= s["accuracy"] <= s["pass"] <= 1 and 0 <= s["language"] <= 1 and s["length"] > 0
    assert load_file(whole / "final" / "model.safetensors").keys() == load_file(whole / "rl-2" / "final" / "model.safetensors").keys()
    assert main(["r1", "--resume", "--run-dir", str(whole)]) == 0 and "complete" in capsys.readouterr().out
    assert main(["sample", "--init", str(whole / "rl-1" / "final"), "-n", "1", "--max-new-tokens", "8"]) == 0
    assert any(word in capsys.readouterr().out for word in (" plus ", " 더하기 "))


@pytest.mark.parametrize("title, step", [("base", 14), ("rl-1", 3), ("sft", 1), ("rl-2", 4)])
def test_killed_in_any_stage_it_goes_on_bit_for_bit(title, step, whole, tmp_path, monkeypatch):
    run, log = tmp_path / "r1", RunLog.log

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if self.title == title and n == step:
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)
    start = ["r1", "--run-dir", str(run), *SMALL]
    if title != "base":                                  # a run in which the base model has been made
        run.mkdir()
        shutil.copy(whole / "config.json", run)
        shutil.copytree(whole / "base", run / "base")
        start = ["r1", "--resume", "--run-dir", str(run)]
    with pytest.raises(Killed):
        main(start)
    monkeypatch.setattr(RunLog, "log", log)
    assert not (run / "final").exists()
    assert main(["r1", "--resume", "--run-dir", str(run)]) == 0
    for stage in ("r1-zero", "cold-start", "rl-1", "sft", "rl-2"):
        assert (run / stage / "final" / "model.safetensors").read_bytes() == (whole / stage / "final" / "model.safetensors").read_bytes(), stage
    timeless = [[{k: v for k, v in s.items() if k != "seconds"} for s in json.loads((r / "stages.json").read_text())["stages"]] for r in (run, whole)]
    assert timeless[0] == timeless[1]


def test_reasoning_in_korean_alone_from_a_base_model_that_is_there(whole, tmp_path):
    run = tmp_path / "ko"
    assert main(["r1", "--run-dir", str(run), "--language", "ko", "--init", str(whole / "base" / "final"), *SMALL]) == 0
    assert not (run / "base").exists()
    told, korean = (json.loads((r / "stages.json").read_text())["stages"][0] for r in (whole, run))
    assert told["accuracy"] == korean["accuracy"] and told["language"] != korean["language"], "one base model, held against another language"
    assert r1.R1RunConfig(language="ko").task.reason_in == "ko" and r1.R1RunConfig().task.reason_in is None


def test_the_majority_of_samples():
    found = Evaluation([Problem("", answer) for answer in "789"], [["<answer>7</answer>", "<answer>7</answer>", "<answer>1</answer>"],
                          ["<answer>1</answer>", "<answer>1</answer>", "<answer>8</answer>"], ["none", "none", "<answer>9</answer>"]], [2, 1, 1], 3, {}, 0.0, 0.0)
    assert r1.majority(found) == pytest.approx(2 / 3)


@pytest.mark.parametrize("argv, said", [(["--language", "fr"], "language is 'fr': en, ko or prompt"), (["--number-length", "9"], "digits is 9"), (["--samples", "0"], "samples is 0")])
def test_wrong_inputs_end_in_one_line(argv, said, tmp_path, capsys):
    assert main(["r1", "--run-dir", str(tmp_path / "never"), *argv]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "never").exists()
