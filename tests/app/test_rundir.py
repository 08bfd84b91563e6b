"""minirl/app/rundir.py"""

import dataclasses
import json
import os
import re
import shutil

import pytest
import torch

from minirl.app.rundir import RunDir
from minirl.app.sums import SumsSettings
from minirl.train.grpo import GRPOConfig


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    run = RunDir.create(tmp_path / "run", {"command": "x"})
    with pytest.raises(RuntimeError), run.replacing("config.json") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert run.config == {"command": "x"}


def test_a_folder_that_fails_half_way_does_not_appear(tmp_path):
    run = RunDir.create(tmp_path / "run", {})
    with pytest.raises(RuntimeError), run.replacing_folder("checkpoint-1") as partial:
        (partial / "model.safetensors").write_text("half")
        raise RuntimeError
    assert run.checkpoints() == [] and not (run.path / "checkpoint-1").exists()
    RunDir.resume(run.path)
    assert not list(run.path.glob("*.partial"))


def test_metrics_stop_at_a_broken_line(tmp_path):
    run = RunDir.create(tmp_path / "run", {})
    run.append_metrics(1, {"reward": 0.5})
    with open(run.path / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "rew')
    assert run.metrics() == [{"step": 1, "reward": 0.5}]


def test_samples_of_a_later_step_go_when_an_earlier_one_is_written_again(tmp_path):
    run = RunDir.create(tmp_path / "run", {})
    for step in (0, 5, 10, 5):
        run.write_samples(step, "x", f"text of {step}")
    text = (run.path / "samples.md").read_text()
    assert text.count("## step") == 2 and "text of 10" not in text
    assert text.index("text of 0") < text.index("text of 5")


# a new run

@pytest.mark.parametrize("path", ["", "."])
def test_the_current_folder_is_no_run(path, inside):
    """--run-dir "" filled it."""
    with pytest.raises(ValueError, match="name a folder, such as runs/mine"):
        RunDir.create(path, {})
    assert os.listdir(inside) == []


def test_nothing_to_resume(tmp_path, inside):
    with pytest.raises(ValueError, match="'' holds no run to resume: there is no config.json"):
        RunDir.resume("")
    with pytest.raises(ValueError, match="holds no run to resume"):
        RunDir.resume(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["checkpoint-4", "metrics.jsonl", "final"])
def test_a_new_run_does_not_go_on_from_what_another_left(name, tmp_path):
    """Without its config.json a folder counted as free: a run with another seed went on from the
    checkpoints of the old one, behind the old one's metrics."""
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"run holds {name} of a run whose config.json is gone"):
        RunDir.create(tmp_path / "run", {})
    assert os.listdir(tmp_path / "run") == [name]


def test_notes_in_the_folder_are_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDir.create(tmp_path, {"command": "x"})
    with pytest.raises(ValueError, match="already holds a run: go on with it"):
        RunDir.create(tmp_path, {})
    assert (tmp_path / "notes.txt").exists() and RunDir(tmp_path).config == {"command": "x"}


# which command goes on

def test_a_stage_says_which_command_goes_on_with_it(tmp_path):
    """A stage has a page's command, but not all sections that this command reads: TypeError."""
    task = {"name": "bilingual", "digits": 3}
    config = {"command": "r1", "task": task, "settings": {"seed": 3}}
    run = RunDir.create(tmp_path / "my r1", config)
    stage = run.stage("rl-1", "grpo", grpo=GRPOConfig(steps=7))
    assert stage.config["settings"] == {"seed": 3} and stage.config["task"] == task
    assert stage.config["grpo"]["steps"] == 7
    wanted = f"rl-1 is a stage of {run.path}: go on with minirl r1 --resume --run-dir '{run.path}'"
    with pytest.raises(ValueError, match=wanted):
        RunDir.resume(stage.path, command="grpo")
    assert run.stage("rl-1", "grpo").path == stage.path, "the pipeline itself goes on with it"
    shutil.copytree(stage.path, tmp_path / "moved")
    with pytest.raises(ValueError, match="moved was a stage of minirl r1, whose run is not"):
        RunDir.resume(tmp_path / "moved", command="grpo")


def test_another_command_is_named(tmp_path):
    path = RunDir.create(tmp_path / "run", {"command": "dpo"}).path
    with pytest.raises(ValueError, match=f"is a run of minirl dpo: go on with minirl dpo --resume "
                                         f"--run-dir {path}"):
        RunDir.resume(path, command="ppo")
    assert RunDir.resume(path, command="dpo").path == path


@pytest.mark.parametrize("content, says", [
    ("", "not valid JSON"), ('{"command": "gr', "not valid JSON"), ("\0" * 100, "not valid JSON"),
    ("[]", "a JSON object is wanted")])
def test_a_config_that_is_not_whole_is_one_line(content, says, tmp_path):
    run = RunDir.create(tmp_path / "run", {"command": "grpo"})
    (run.path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"config\.json.*{says}"):
        RunDir.resume(run.path, command="grpo")


# config.json

def written(tmp_path, change):
    section = dataclasses.asdict(SumsSettings(seed=5, init="x"))
    config = {"command": "grpo", "settings": section}
    change(config)
    return RunDir.create(tmp_path / "run", config)


def test_a_section_is_what_ran(tmp_path):
    settings = written(tmp_path, dict).read_config("settings", SumsSettings)
    assert settings == SumsSettings(seed=5, init="x")


@pytest.mark.parametrize("change, says", [
    (lambda c: c.pop("settings"), "has no section settings"),
    (lambda c: c.update(settings=[1]), "has no section settings"),
    (lambda c: c["settings"].update(sead=1), "settings.sead is unknown"),
    (lambda c: c["settings"].pop("digits"), "settings.digits is missing"),
    (lambda c: c["settings"].update(digits="3"), "settings.digits is '3'"),
    (lambda c: c["settings"].update(digits=0.5), "settings.digits is 0.5"),
    (lambda c: c["settings"].update(digits=True), "settings.digits is True"),
    (lambda c: c["settings"].update(digits=None), "settings.digits is None"),
    (lambda c: c["settings"].update(init=3), "settings.init is 3"),
    (lambda c: c["settings"].update(eval_problems=0), "settings.eval_problems is 0")])
def test_a_section_of_another_version_is_one_line(change, says, tmp_path):
    """Each was a TypeError or a KeyError, and a traceback; or it was taken as it was."""
    run = written(tmp_path, change)
    with pytest.raises(ValueError, match=rf"config\.json.*{says}.*start a new run"):
        run.read_config("settings", SumsSettings)


# metrics

def with_metrics(tmp_path, *lines):
    run = RunDir.create(tmp_path / "run", {})
    (run.path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    return run


LINES = [json.dumps({"step": n, "loss": n / 2}).encode() for n in range(1, 10)]
SPOILT = {"blank": b"", "zeroed": b"\0" * 60, "torn": LINES[3][:9], "no text": b"\xff\xfe\xfd",
          "too deep": b"[" * 100_000}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_follows_a_spoilt_line_is_kept(spoilt, tmp_path, monkeypatch, capsys):
    """A blank line, and zeroes as power loss leaves them, took all that came after along."""
    run = with_metrics(tmp_path, *LINES[:3], SPOILT[spoilt], *LINES[4:8], LINES[8][:7])
    (run.path / "checkpoint-6").mkdir()
    assert [m["step"] for m in run.metrics()] == [1, 2, 3, 5, 6, 7, 8]
    monkeypatch.setattr("minirl.train.state_files.read", lambda *args: {"step": 6})
    run.load_checkpoint(device="cpu", load=lambda folder, device: (torch.nn.Module(), None))
    assert (run.path / "metrics.jsonl").read_bytes().split(b"\n") == [
        *LINES[:3], SPOILT[spoilt], *LINES[4:6], b""]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "line 4 cannot be read, step 4 is missing" in said


def test_the_beginning_of_a_line_that_a_kill_left_goes_without_a_word(tmp_path, capsys):
    """It is of a step that the checkpoint does not have, and is made again."""
    run = with_metrics(tmp_path, *LINES[:2], LINES[2][:9])
    assert run.load_checkpoint(device="cpu") is None
    assert (run.path / "metrics.jsonl").read_bytes() == b"" == capsys.readouterr().err.encode()


@pytest.mark.parametrize("lines, says", [
    ([], "step 1 \\(and 2 more\\) is missing"),
    ([0, 1, 1, 2], "steps are repeated or out of order"), ([0, 2], "step 2 is missing")])
def test_steps_that_are_missing_or_repeated_are_said(lines, says, tmp_path, monkeypatch, capsys):
    """Two processes in one run left each step twice; an emptied file was taken as it was."""
    run = with_metrics(tmp_path, *[LINES[n] for n in lines])
    (run.path / "checkpoint-3").mkdir()
    monkeypatch.setattr("minirl.train.state_files.read", lambda *args: {"step": 3})
    run.load_checkpoint(device="cpu", load=lambda folder, device: (torch.nn.Module(), None))
    assert re.search(says, capsys.readouterr().err)
    assert len(run.metrics()) == len(lines)


@pytest.mark.parametrize("line", [b'{"loss": 0.5}', b'{"step": "2"}', b'{"step": 1.5}', b"[]", b"3",
                                  b'{"step": true}', b'{"step": 2, "loss": "low"}'])
def test_json_that_is_no_metrics_is_one_line_with_its_number(line, tmp_path):
    """It was a KeyError on --resume and in plots, and a traceback."""
    run = with_metrics(tmp_path, LINES[0], line, LINES[2])
    for read in (run.metrics, lambda: run.load_checkpoint(device="cpu")):
        with pytest.raises(ValueError, match="metrics.jsonl, line 2: an object of numbers with a"):
            read()


def test_only_folders_are_checkpoints(tmp_path):
    run = RunDir.create(tmp_path / "run", {})
    (run.path / "checkpoint-2").mkdir()
    for name in ("checkpoint-07", "checkpoint-3.broken", "checkpoint-x"):
        (run.path / name).mkdir()
    (run.path / "checkpoint-9").write_text("a file")
    assert run.checkpoints() == [2]
