"""minirl/app/search.py: methods side by side, smaller still; killed and resumed; and the choices of
minirl eval."""

import json
import re
import shutil

import pytest
import torch

from minirl.app import search
from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.search import load_comparison, open_reward
from minirl.inference.comparison import Comparison
from minirl.lm.checkpoint import load_pretrained, load_reward_model, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.text import WIDTH
from minirl.tasks.steps import load_solutions
from minirl.train.sft import SFTConfig

FLAGS = ["--labelled-problems", "8", "--step-samples", "2", "--eval-problems", "3", "--largest",
         "4", "--expansions", "2", "--digits", "1", "--device", "cpu", "--checkpoint-every", "1"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirl.app.stages.plot_runs", lambda runs, out: out.touch())
        patch.setattr(search, "plot_comparison", lambda comparisons, out: out.touch())
        patch.setattr("minirl.train.search.EXAMPLES", 960)
        patch.setattr("minirl.train.search.POLICY_SFT", SFTConfig(lr=5e-3, warmup_steps=2))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "search"
    assert main(["search", "--run-dir", str(path), *FLAGS]) == 0
    return RunDir(path)


def comparisons(path):
    return [load_comparison(path / f"comparison-{i}.json") for i in (1, 2, 3)]


def test_the_run_holds_what_it_says(run):
    for name in ("search.png", "summary.json", "solutions.jsonl", "base/final/model.safetensors"):
        assert (run.path / name).exists(), name
    assert len(load_solutions(run.path / "solutions.jsonl")) == 3 * 8
    commands = [RunDir(run.path / name).config["command"] for name in ("base", "prm", "orm")]
    assert commands == ["sft", "prm", "orm"]
    made = comparisons(run.path)
    assert [comparison.task for comparison in made] == [f"{n}-digit addition" for n in (1, 2, 3)]
    for comparison in made:
        assert comparison.problems == 3 and len(comparison.methods) == 10
        assert [point.n for point in comparison.methods["DVTS"]] == [1, 2, 4]
    last = run.summary["3-digit addition"]["beam search"]
    point = made[2].methods["beam search"][-1]
    assert last == {"n": 4, "accuracy": point.accuracy, "tokens": point.tokens}


def test_a_run_that_is_complete_shows_its_tables_again(run, capsys, monkeypatch):
    monkeypatch.setattr(search, "compare", None)               # nothing is measured again
    assert main(["search", "--resume", "--run-dir", str(run.path)]) == 0
    out = capsys.readouterr().out
    for words in ("1-digit addition, 3 held-out problems", "weighted vote, PRM min", "DVTS",
                  "measured - predicted", "at most", "Next: minirl eval"):
        assert words in out
    tables = out.split("Next:")[0].splitlines()[1:]
    assert max(len(line) for line in tables if str(run.path) not in line) <= WIDTH


@pytest.mark.parametrize("stage, at", [("prm", 2), ("orm", 3)])
def test_a_killed_run_goes_on_to_the_same_numbers(run, tmp_path, monkeypatch, stage, at):
    """Killed while a verifier learns: what was there stays, and the rest is made."""
    path = tmp_path / "killed"
    later = {"prm": ["prm", "orm"], "orm": ["orm"]}[stage]
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns(*later, "comparison-*", "*.png",
                                                                  "summary.json"))
    save = RunLog.save

    def save_and_die(log, state):
        save(log, state)
        if state.step == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "save", save_and_die)
        with pytest.raises(Killed):
            main(["search", "--resume", "--run-dir", str(path)])
    assert main(["search", "--resume", "--run-dir", str(path)]) == 0
    assert comparisons(path) == comparisons(run.path)


def test_a_run_killed_between_two_tasks_keeps_the_first(run, tmp_path, monkeypatch):
    path = tmp_path / "killed"
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns("comparison-*"))
    compare, tasks = search.compare, []

    def compare_once(policy, tokenizer, task, *args, **options):
        tasks.append(task.name)
        if len(tasks) == 2:
            raise Killed
        return compare(policy, tokenizer, task, *args, **options)

    monkeypatch.setattr(search, "compare", compare_once)
    with pytest.raises(Killed):
        main(["search", "--resume", "--run-dir", str(path)])
    assert main(["search", "--resume", "--run-dir", str(path)]) == 0
    assert tasks == [f"{n}-digit addition" for n in (1, 2, 2, 3)]
    assert comparisons(path) == comparisons(run.path)


@pytest.mark.parametrize("reward, methods", [
    ("prm", ["majority vote", "best of n, PRM last", "best of n, PRM min", "best of n, PRM product",
             "weighted vote, PRM min", "any of n is right", "beam search", "DVTS"]),
    ("orm", ["majority vote", "best of n, ORM", "weighted vote, ORM", "any of n is right"])])
def test_init_and_reward_skip_what_they_replace(run, tmp_path, monkeypatch, reward, methods):
    """The reward model is read once, by the check before the run."""
    path, opened = tmp_path / "search", []
    read = search.open_reward
    monkeypatch.setattr(search, "open_reward", lambda *names, **options: opened.append(names) or
                        read(*names, **options))
    assert main(["search", "--init", str(run.path / "base" / "final"), "--reward",
                 str(run.path / reward / "final"), "--run-dir", str(path), "--eval-problems", "2",
                 "--largest", "2", "--digits", "1", "--device", "cpu"]) == 0
    assert not any((path / name).exists() for name in ("base", "prm", "orm", "solutions.jsonl"))
    assert [list(comparison.methods) for comparison in comparisons(path)] == [methods] * 3
    assert json.loads((path / "config.json").read_text())["search"]["largest"] == 2
    assert opened == [(str(run.path / reward / "final"),)]


def test_the_seed_decides_and_a_file_keeps_every_bit(run, tmp_path):
    for made in comparisons(run.path):
        search.save_comparison(made, tmp_path / "again.json")
        assert load_comparison(tmp_path / "again.json") == made
        assert isinstance(made, Comparison)


# minirl eval

def evaluated(run, capsys, *flags, init=None):
    argv = ["eval", "--init", str(init or run.path / "base" / "final"), "--problems", "6",
            "--samples", "2", "--device", "cpu", "--max-new-tokens", "24", *flags]
    assert main(argv) == 0
    return capsys.readouterr().out


def numbers(out, name):
    """Right, the interval's ends, and the tokens read, drawn and verified."""
    row = re.search(rf"(?m)^{name} +([\d.]+) +([\d.]+) to ([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$",
                    out)
    return list(map(float, row.groups()))


def test_eval_votes_on_shared_samples(run, capsys):
    """--samples 2 becomes 4, the most that is asked for; the vote of one is the accuracy."""
    out = evaluated(run, capsys, "--voting", "4")
    assert "6 distinct held-out problems, 4 samples each" in out
    right, low, high, read, drawn, verified = numbers(out, "majority of 4")
    assert low <= right <= high and verified == 0 and read == 5 and drawn > 4
    one = evaluated(run, capsys, "--voting", "1")
    accuracy = re.search(r"(?m)^accuracy +([\d.]+)", one)[1]
    assert numbers(one, "majority of 1")[0] == float(accuracy)
    assert "majority" not in evaluated(run, capsys)


@pytest.mark.parametrize("reward, flags, name", [
    ("prm", (), "best of 4, by steps, last"), ("prm", ("--how", "min"), "best of 4, by steps, min"),
    ("orm", (), "best of 4, by outcome")])
def test_eval_chooses_by_a_reward_model(run, capsys, reward, flags, name):
    out = evaluated(run, capsys, "--voting", "2", "--best-of", "4", "--reward",
                    str(run.path / reward / "final"), *flags)
    right, low, high, read, drawn, verified = numbers(out, name)
    assert low <= right <= high and read == 5
    assert 0 < verified <= drawn + 4 * read                     # equal completions are read once
    assert numbers(out, "majority of 2")[4] == pytest.approx(drawn / 2, abs=0.1)
    any_right = float(re.search(r"(?m)^pass@4 +([\d.]+)", evaluated(
        run, capsys, "--samples", "4", "--k", "4"))[1])
    assert right <= any_right


def test_a_reward_model_by_hand_takes_what_it_likes(run, capsys, tmp_path):
    """Its score is its bias, the same for all: the first of each group is taken, whose share of
    right ones is what the same samples have as groups of one."""
    model, tokenizer = load_reward_model(run.path / "orm" / "final")
    with torch.no_grad():
        model.head.linear.weight.zero_()
    save_pretrained(model, tokenizer, tmp_path / "equal" / "final")
    out = evaluated(run, capsys, "--best-of", "1", "--reward", str(tmp_path / "equal" / "final"))
    accuracy = float(re.search(r"(?m)^accuracy +([\d.]+)", out)[1])
    assert numbers(out, "best of 1, by outcome")[0] == accuracy


@pytest.mark.parametrize("command, how, steps", [
    ("prm", None, "last"), ("prm", "product", "product"), ("rm", None, None), ("orm", None, None),
    (None, None, None), (None, "min", "min")])
def test_how_a_reward_model_is_recognised(run, tmp_path, command, how, steps):
    model, tokenizer = load_pretrained(run.path / "base" / "final")
    save_pretrained(ScalarModel(model), tokenizer, tmp_path / "final")
    if command is not None:
        (tmp_path / "config.json").write_text(json.dumps({"command": command}))
    reward = open_reward(str(tmp_path / "final"), how)
    assert reward.how == steps
    outcome, by_steps = reward.verifiers
    assert (outcome is None, by_steps is None) == (steps is not None, steps is None)
    ids = tokenizer.encode("1+1=2,2")
    assert len(reward.solutions([ids[:1]], [ids[1:]])) == 1


def test_where_no_problem_has_a_verdict(run, capsys, monkeypatch):
    monkeypatch.setattr("minirl.tasks.arithmetic.accuracy",
                        lambda prompts, completions, answer, **_: [None] * len(prompts))
    assert "no problem has a verdict" in evaluated(run, capsys, "--voting", "2")
