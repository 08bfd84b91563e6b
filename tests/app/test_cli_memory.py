"""Memory at the command line: what is planned and measured, and what a run that has too little of
it says."""

import pytest
import torch

from minirl.app import stages
from minirl.app.cli import main
from minirl.lm import recompute

FLAGS = ("--token-budget", "--gradient-checkpointing", "--group-size", "--prompts-per-step",
         "--dtype")


def cuda_error():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
                                 "total capacity of 79.10 GiB\nof which 1.2 GiB is free.")


def cpu_error():
    torch.empty(2 ** 50, dtype=torch.int8)


@pytest.mark.parametrize("fail", [cuda_error, cpu_error])
def test_out_of_memory_is_one_line_with_the_flags_to_change(fail, inside, capsys, monkeypatch):
    monkeypatch.setattr("minirl.app.commands.train", lambda args: fail())
    assert main(["grpo"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minirl grpo: there is not enough memory for this: take a smaller ")
    assert error.count("\n") == 1 and "Traceback" not in error
    for flag in FLAGS:
        assert flag in error


def test_a_command_that_does_not_train_names_none_of_them(inside, capsys, monkeypatch):
    monkeypatch.setattr("minirl.app.commands.command_sample", lambda args: cpu_error())
    assert main(["sample"]) == 2
    error = capsys.readouterr().err
    assert "there is not enough memory for this" in error and "--token-budget" not in error


def test_a_large_run_says_what_is_planned_and_measured_and_a_small_one_nothing(
        base, tiny_grpo, tmp_path, capsys, monkeypatch):
    run = ["--init", str(base), *tiny_grpo, "--run-dir"]
    assert main(["grpo", *run, str(tmp_path / "quiet")]) == 0
    assert "memory" not in capsys.readouterr().out
    monkeypatch.setattr(stages, "SHOWN_FROM", 0)
    seen = []
    active = recompute._active
    monkeypatch.setattr("minirl.app.stages.peak_bytes",
                        lambda device: seen.append(active.get()) or 3 * 10 ** 9)
    assert main(["grpo", *run, str(tmp_path / "loud"), "--gradient-checkpointing", "true"]) == 0
    out = capsys.readouterr().out
    assert "memory, as planned" in out and "the process, with torch" in out
    assert "GB planned, 3.00 GB measured until the second step" in out
    assert seen == [True, True], "after each of the first two steps, while blocks are recomputed"
