"""minirl/app/rundir.py"""

import os

import pytest

from minirl.app.rundir import RunDir, free_name, newest_checkpoint, newest_run


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
    assert text.count("## step") == 2 and "text of 10" not in text and text.index("text of 0") < text.index("text of 5")


def test_names(tmp_path):
    assert free_name(tmp_path, "grpo").name == "grpo"
    with pytest.raises(ValueError, match="no run grpo"):
        newest_run(tmp_path, "grpo")
    for i, name in enumerate(("grpo", "grpo-2", "grpo-base")):
        RunDir.create(tmp_path / name, {})
        os.utime(tmp_path / name / "config.json", (i, i))
    assert free_name(tmp_path, "grpo").name == "grpo-3" and newest_run(tmp_path, "grpo").name == "grpo-2"
    assert newest_checkpoint(tmp_path) is None
