"""minirl/app/prm.py: a process reward model, smaller still; killed and resumed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minirl.app import prm
from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.lm.checkpoint import load_reward_model
from minirl.tasks.steps import load_solutions, step_truths
from minirl.train.sft import SFTConfig

FLAGS = ["--labelled-problems", "24", "--step-samples", "2", "--best-of", "2", "--eval-problems",
         "8", "--batch-size", "4", "--digits", "1", "--device", "cpu", "--checkpoint-every", "1"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirl.app.stages.plot_runs", lambda runs, out: out.touch())
        patch.setattr("minirl.train.search.EXAMPLES", 640)
        patch.setattr("minirl.train.search.POLICY_SFT", SFTConfig(lr=5e-3, warmup_steps=2))
        patch.setattr(prm, "HELD_OUT", 8)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "prm"
    assert main(["prm", "--run-dir", str(path), *FLAGS]) == 0
    return RunDir(path)


def test_the_run_holds_what_it_says(run, capsys):
    assert main(["prm", "--resume", "--run-dir", str(run.path)]) == 0
    assert "this run is complete" in capsys.readouterr().out
    for name in ("curves.png", "summary.json", "metrics.jsonl", "solutions.jsonl",
                 "held-out.jsonl", "base/final/model.safetensors", "final/model.safetensors"):
        assert (run.path / name).exists(), name
    assert len(load_solutions(run.path / "solutions.jsonl")) == 24
    load_reward_model(run.path / "final")


def test_the_summary_has_labels_model_and_choices(run):
    summary = run.summary
    assert summary["steps"] == len(run.metrics()) == 12             # 24 solutions, 4 a batch, twice
    for name in ("hard_labels", "soft_labels", "process_reward_model"):
        assert 0 <= summary[f"{name}_accuracy"] <= 1
    for name in ("one", "majority", "last", "min", "product"):
        assert 0 <= summary[f"accuracy_of_{name}"] <= summary["any_right"] + 1e-9 or name == "one"


def test_labels_come_from_completions_and_not_from_the_truth(run, monkeypatch):
    """Label 1 behind the answer where it is right, and the share of 2 before it."""
    task = prm.make_task({"name": "addition", "digits": 1})
    problems = {p.prompt: p for p in task.sample(2000, prm.random.Random(0))}
    for solution in load_solutions(run.path / "solutions.jsonl"):
        truths = step_truths(problems[solution.prompt], "".join(solution.steps))
        if solution.steps[-1].startswith("<answer>"):
            assert solution.labels[-1] == truths[-1]
        assert set(solution.labels) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("at", [1, 4])
def test_a_killed_run_goes_on_bit_for_bit(run, tmp_path, monkeypatch, at):
    path = tmp_path / "killed"
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns(
        "final", "checkpoint-*", "metrics.jsonl", "summary.json"))
    shutil.copytree(run.path / "base" / "final", path / "base" / "final")
    save = RunLog.save

    def save_and_die(log, state):
        save(log, state)
        if state.step == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "save", save_and_die)
        with pytest.raises(Killed):
            main(["prm", "--resume", "--run-dir", str(path)])
    assert main(["prm", "--resume", "--run-dir", str(path)]) == 0
    ours, theirs = (load_file(folder / "final" / "model.safetensors")
                    for folder in (run.path, path))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_hard_labels_from_the_same_policy(run, tmp_path, capsys):
    path = tmp_path / "hard"
    assert main(["prm", "--preset", "hard", "--init", str(run.path / "base" / "final"),
                 "--run-dir", str(path), *FLAGS]) == 0
    assert not (path / "base").exists()
    assert json.loads((path / "config.json").read_text())["preset"] == "hard"
    out = capsys.readouterr().out
    for words in ("first wrong step", "soft label", "majority vote", "any of them right"):
        assert words in out


def test_a_policy_without_a_mistake_can_be_shown(run):
    """No step is wrong: there is nothing to find, and no error."""
    summary = run.summary | {"soft_labels_ranked": None, "soft_labels_found": None}
    assert "-" in prm.report(summary, prm.StepSettings())
