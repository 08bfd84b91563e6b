"""minirl/app/ppo.py: PPO on a task's problems. InstructGPT's pipeline is test_instructgpt.py's."""

import pytest

from minirl.app.cli import main
from minirl.app.ppo import PPOSettings
from minirl.app.rundir import RunDir
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.tasks.instructions import WORDS

TINY_PPO = ["--steps", "2", "--episodes", "8", "--minibatch-size", "4", "--max-new-tokens", "6",
            "--eval-problems", "4", "--device", "cpu"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,answer\n1+1=,2\n1+2=,3\n")
    return path


def test_which_task_it_is():
    assert PPOSettings().task_fields == {"name": "instructions"} and PPOSettings().words == WORDS
    assert PPOSettings(task="subtraction").task_fields == {"name": "subtraction", "digits": 3}
    assert PPOSettings(data="a.csv").task_fields["name"] == "dataset"
    assert PPOSettings(task="products").words and not PPOSettings(data="a.csv").words


def test_by_rules(base, file, tmp_path, capsys):
    run = RunDir(tmp_path / "run")
    assert main(["ppo", "--data", str(file), "--init", str(base), "--run-dir", str(run.path),
                 *TINY_PPO]) == 0
    said = capsys.readouterr().out
    assert said.startswith("minirl ppo: mine.csv, 1 problems and 1 held out, from ")
    assert "accuracy (95 % interval)" in said and "Next: minirl sample  |" in said
    last = run.metrics()[-1]
    assert {"rewards/accuracy/mean", "rewards/format_reward/mean", "objective/scores"} <= set(last)
    assert set(run.config) >= {"base", "sft", "ppo", "files"}


def test_by_a_reward_model_and_a_rule(base, file, tmp_path):
    model, tokenizer = load_pretrained(base)
    save_pretrained(ScalarModel(model), tokenizer, tmp_path / "rm")
    run = RunDir(tmp_path / "run")
    flags = ["--data", str(file), "--init", str(base), "--reward-model", str(tmp_path / "rm")]
    assert main(["ppo", *flags, "--run-dir", str(run.path), *TINY_PPO, "--reward", "reward_model",
                 "accuracy", "--reward-weights", "1", "0.5"]) == 0
    last = run.metrics()[-1]
    assert last["rewards/reward_model/mean"] != 0.0 and last["rewards/accuracy/mean"] == 0.0
