"""minirl/app/runs.py: the next free name, the newest run, the newest policy."""

import multiprocessing
import os

import pytest

from minirl.app.rundir import RunDir
from minirl.app.runs import free_name, new_run, newest_checkpoint, newest_run


def test_names(tmp_path):
    assert free_name(tmp_path, "grpo").name == "grpo"
    with pytest.raises(ValueError, match="no run grpo"):
        newest_run(tmp_path, "grpo")
    for i, name in enumerate(("grpo", "grpo-2", "grpo-base")):
        RunDir.create(tmp_path / name, {})
        os.utime(tmp_path / name / "config.json", (i, i))
    assert free_name(tmp_path, "grpo").name == "grpo-3"
    assert newest_run(tmp_path, "grpo").name == "grpo-2"
    assert newest_checkpoint(tmp_path) is None


def test_names_that_are_taken_by_anything(tmp_path):
    (tmp_path / "grpo").symlink_to("nowhere")
    (tmp_path / "grpo-2").write_text("a file")
    assert new_run(tmp_path, "grpo", {"command": "grpo"}).path == tmp_path / "grpo-3"
    assert new_run(tmp_path / "new", "sft", {}).path == tmp_path / "new" / "sft"


def start_one(root, barrier, number):
    barrier.wait()
    new_run(root, "grpo", {"number": number})


def test_runs_that_start_at_once_get_a_folder_each(tmp_path):
    """The name was looked for first and taken later; another run may have come in between."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(6)
    processes = [fork.Process(target=start_one, args=(tmp_path / "runs", barrier, n))
                 for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    names = ["grpo", *[f"grpo-{n}" for n in range(2, 7)]]
    configs = [RunDir(tmp_path / "runs" / name).config for name in names]
    assert sorted(config["number"] for config in configs) == list(range(6))


def with_weights(folder, time):
    """A folder that looks like a checkpoint."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
        os.utime(folder / name, (time, time))


def test_the_newest_run_is_one_that_got_somewhere(tmp_path):
    """An hour of training was left for a run that had died in its first second."""
    for time, name in enumerate(("grpo", "grpo-2", "grpo-3", "grpo-4", "grpo-base")):
        path = RunDir.create(tmp_path / name, {}).path
        os.utime(path / "config.json", (time, time))
    assert newest_run(tmp_path, "grpo").name == "grpo-4", "none got anywhere"
    with_weights(tmp_path / "grpo" / "final", 9)
    with_weights(tmp_path / "grpo-2" / "checkpoint-5", 9)
    assert newest_run(tmp_path, "grpo").name == "grpo-2"
    with_weights(tmp_path / "grpo-3" / "base" / "checkpoint-5", 9)
    assert newest_run(tmp_path, "grpo").name == "grpo-3", "its stage has a checkpoint"


def test_what_is_no_run_is_passed_over(tmp_path):
    (tmp_path / "grpo").symlink_to("nowhere")
    (tmp_path / "grpo-2").write_text("a file")
    (tmp_path / "grpo-3").symlink_to("grpo-3")
    (tmp_path / "grpo-4" / "final").mkdir(parents=True)
    (tmp_path / "grpo-4" / "final" / "config.json").symlink_to("nowhere")
    with pytest.raises(ValueError, match="no run grpo"):
        newest_run(tmp_path, "grpo")
    assert newest_checkpoint(tmp_path) is None


def test_the_newest_checkpoint_is_one_that_is_whole(tmp_path):
    for time, name in enumerate(("a", "b", "c", "d")):
        with_weights(tmp_path / name / "final", time)
    (tmp_path / "c" / "final" / "score.safetensors").write_text("a reward model")
    (tmp_path / "d" / "final" / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "b" / "final"
