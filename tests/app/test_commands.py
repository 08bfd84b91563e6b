"""minirl/app/commands.py: which task is asked, and how the terminal is."""

import json
import re
import shutil

import pytest

from minirl.app import commands, preflight
from minirl.app.cli import main
from minirl.app.data import digest_of
from minirl.app.rundir import RunDir
from minirl.app.runs import newest_checkpoint
from minirl.tasks.environment import tool_task

FEW = ["--problems", "2", "--samples", "1", "--max-new-tokens", "8"]


@pytest.fixture
def older(base, tmp_path):
    """A run of before config.json named the task."""
    shutil.copytree(base.parent, tmp_path / "older")
    file = tmp_path / "older" / "config.json"
    config = json.loads(file.read_text())
    del config["task"]
    file.write_text(json.dumps(config))
    return tmp_path / "older" / "final"


def test_a_run_that_names_no_task_is_asked_the_default_and_says_so(older, capsys):
    assert main(["eval", "--init", str(older), *FEW]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("3-digit addition\n")
    assert f"no config.json says what {older} learnt: using 3-digit addition" in error
    assert main(["eval", "--init", str(older), "--digits", "2", *FEW]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("2-digit addition\n") and "using 2-digit addition" in error
    assert main(["sample", "--init", str(older), "-n", "1", "--max-new-tokens", "8"]) == 0
    out, error = capsys.readouterr()
    assert re.match(r"\d{3}\+\d{3}=\n", out) and "using 3-digit addition" in error


def test_nothing_is_said_where_the_task_or_the_prompt_is_named(older, capsys):
    assert main(["eval", "--init", str(older), "--task", "addition", *FEW]) == 0
    assert main(["sample", "1+1=", "--init", str(older), "-n", "1", "--max-new-tokens", "8"]) == 0
    assert "no config.json says" not in capsys.readouterr().err


@pytest.mark.parametrize("flags, title", [
    ([], "1-digit addition"), (["--task", "subtraction"], "1-digit subtraction"),
    (["--digits", "2"], "2-digit addition"), (["--task", "instructions"], "instructions"),
    (["--task", "bilingual", "--digits", "2"], "2-digit addition in English and Korean")])
def test_eval_asks_every_task(flags, title, base, capsys):
    """What the run's task and the one that is named have in common stays."""
    assert main(["eval", "--init", str(base), *flags, *FEW]) == 0
    assert capsys.readouterr().out.startswith(f"{title}\n")


def test_digits_are_for_tasks_that_have_them(base, capsys):
    assert main(["eval", "--init", str(base), "--task", "instructions", "--digits", "2"]) == 2
    assert "the task instructions has no digits" in capsys.readouterr().err


def test_how_often_a_completion_may_call(tmp_path):
    """As in the run, or as the flag says; also of the problems of a file that it learnt from."""
    file = tmp_path / "a.csv"
    file.write_text("prompt,answer\n1?,1\n2?,2\n")
    learnt = {"data": {"sha256": digest_of(file)}}
    called = {"tools": "calculator", "max_tool_calls": 5}
    for run, flags in (({"task": {"name": "addition", **called}}, {}),
                       ({"task": {"name": "dataset", "data": str(file), **called},
                         "files": learnt}, {"data": str(file)})):
        for changes, calls in (({}, 5), ({"max_tool_calls": 2}, 2)):
            assert tool_task(commands.asked(run, {**flags, **changes})).max_calls == calls
    with pytest.raises(ValueError, match="max_tool_calls is 2, and the task .* has no tools"):
        commands.asked({}, {"max_tool_calls": 2})


def test_without_a_checkpoint_a_base_model_is_trained_first(inside, monkeypatch, capsys):
    from minirl.app import sums
    small = sums.BaseConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32,
                            examples=64)
    monkeypatch.setattr(sums.BaseConfig, "__init__", lambda self, **changes: vars(self).update(
        vars(small)))
    assert main(["sample", "1+1=", "--max-new-tokens", "4", "-n", "1"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("1+1=\n"), "nothing but the samples"
    assert "training the base model first" in error
    assert newest_checkpoint(inside / "runs") == inside / "runs" / "sft" / "final"


def test_sample_marks_in_colours_where_the_terminal_has_some(monkeypatch):
    for tty, env, want in ((True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False),
                           (True, {"TERM": "dumb"}, False)):
        stream = type("Stream", (), {"isatty": lambda self, tty=tty: tty})()
        monkeypatch.setattr(commands.os, "environ", env)
        monkeypatch.setattr(commands.sys, "stdout", stream)
        assert commands.terminal_has_colours() is want


# whose numbers a run has

SMALL = ["--steps", "1", "--prompts-per-step", "1", "--max-new-tokens", "4", "--token-budget", "64",
         "--eval-problems", "1"]


def numbers(*flags, base, folder, capsys):
    """Start a run from a checkpoint that counts as pretrained -> its numbers, and what it said."""
    assert main(["grpo", "--init", str(base), "--run-dir", str(folder), *SMALL, *flags]) == 0
    return RunDir(folder).config["grpo"], capsys.readouterr().out


def test_a_pretrained_checkpoint_takes_other_numbers_than_the_toy(base, tmp_path, monkeypatch,
                                                                  capsys):
    monkeypatch.setattr(preflight, "PRETRAINED_SIZE", 1000)
    given = dict(base=base, capsys=capsys)
    grpo, said = numbers(folder=tmp_path / "a", **given)
    assert (grpo["lr"], grpo["max_new_tokens"]) == (1e-5, 4)
    assert "the toy's numbers give way to --lr 1e-05; flags win" in said
    grpo, said = numbers("--preset", "gspo", folder=tmp_path / "b", **given)   # 2e-4 is a toy's
    assert (grpo["lr"], grpo["minibatches"]) == (1e-5, 4)
    grpo, said = numbers("--lr", "4e-4", folder=tmp_path / "c", **given)
    assert grpo["lr"] == 4e-4 and "give way" not in said
    assert "the learning rate, 0.0004, is the toy's, and ruins pretrained weights" in said


def test_a_toy_checkpoint_keeps_the_toys_numbers(base, tmp_path, capsys):
    grpo, said = numbers(base=base, folder=tmp_path / "a", capsys=capsys)
    notes = [line for line in said.splitlines() if line.startswith("note:")]
    assert grpo["lr"] == 4e-4
    assert all("no completion got a reward" in note for note in notes), "nothing about numbers"
