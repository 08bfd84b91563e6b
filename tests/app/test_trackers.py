"""minirl/app/trackers.py: --log tensorboard,wandb"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

from minirl.app import trackers
from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.trackers import TRACKERS, Trackers, tracker_names


class Noting:
    """A tracker that keeps what it gets; it breaks at a step, if it is told one."""

    made: list = []
    breaks_at = None

    def __init__(self, run, step):
        self.first, self.lines, self.closed = step, [], False
        Noting.made.append(self)

    def log(self, step, metrics):
        if step == Noting.breaks_at:
            raise OSError("no route to host")
        self.lines.append((step, metrics))

    def close(self):
        self.closed = True


@pytest.fixture
def noting(monkeypatch):
    """Both trackers, as if their packages were there."""
    monkeypatch.setattr(Noting, "made", [])
    monkeypatch.setattr(Noting, "breaks_at", None)
    monkeypatch.setattr(trackers, "TRACKERS", dict.fromkeys(TRACKERS, Noting))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return Noting.made


def run_grpo(base, tiny_grpo, *flags):
    return main(["grpo", "--init", str(base), "--digits", "1", "--run-dir", "run", *tiny_grpo,
                 *flags])


def test_every_step_goes_to_each_tracker(base, tiny_grpo, inside, noting):
    assert run_grpo(base, tiny_grpo, "--log", "tensorboard,wandb") == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(noting) == 2 and len(lines) == 4
    for tracker in noting:
        assert tracker.closed and tracker.first == 0
        assert [{"step": step, **metrics} for step, metrics in tracker.lines] == lines


def test_a_tracker_that_fails_ends_no_run(base, tiny_grpo, inside, noting, monkeypatch, capsys):
    monkeypatch.setattr(Noting, "breaks_at", 2)
    assert run_grpo(base, tiny_grpo, "--log", "wandb") == 0
    error = capsys.readouterr().err
    assert error.count("wandb failed") == 1 and "no route to host" in error
    assert [step for step, _ in noting[0].lines] == [1] and not noting[0].closed
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 4


def test_a_resumed_run_goes_on_where_it_was(inside, noting, tmp_path):
    run = RunDir.create("run", {})
    Trackers("tensorboard", run, 20)
    assert noting[0].first == 20


def test_names_that_are_none(monkeypatch):
    assert tracker_names(None) == []
    with pytest.raises(ValueError, match="--log 'mlflow': one of tensorboard, wandb"):
        tracker_names("mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="python -m pip install wandb"):
        tracker_names("wandb")


def test_wandb_gets_the_configuration_and_one_id_for_all_processes(inside, monkeypatch):
    calls, logged = [], []

    class Run:
        def log(self, metrics, step):
            logged.append((step, metrics))

        def finish(self):
            logged.append("finished")

    module = types.ModuleType("wandb")
    module.init = lambda **arguments: calls.append(arguments) or Run()
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    run = RunDir.create("mine", {"command": "grpo"})
    for step in (0, 3):
        opened = Trackers("wandb", run, step)
        opened.log(step + 1, {"loss": 0.5})
        opened.close()
    assert calls[0] == calls[1] and calls[0]["resume"] == "allow"
    assert calls[0]["name"] == "mine" and calls[0]["config"] == {"command": "grpo"}
    assert calls[0]["id"] == Path("mine/wandb-id").read_text()
    assert logged == [(1, {"train/loss": 0.5}), "finished", (4, {"train/loss": 0.5}), "finished"]


def test_tensorboard_reads_what_was_written(inside):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = RunDir.create("run", {})
    for first, last in ((0, 3), (2, 4)):       # cut short after step 3, whose checkpoint is step 2
        opened = Trackers("tensorboard", run, first)
        for step in range(first + 1, last + 1):
            opened.log(step, {"loss": 10.0 * first + step})
        opened.close()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [
        (1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]
