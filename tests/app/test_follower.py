"""minirl/app/follower.py: two processes make one run, as torchrun starts them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from minirl.app.cli import main
from minirl.app.commands import check_processes
from minirl.lm import world
from minirl.train.grpo import GRPOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.sft import SFTConfig

FLAGS = ["--steps", "40", "--prompts-per-step", "3", "--group-size", "2", "--max-new-tokens", "8",
         "--eval-problems", "4", "--checkpoint-every", "1", "--seed", "1"]


def started(flags):
    """Two processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
             "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen(
        [sys.executable, "-m", "minirl", *flags], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"]


def ended(processes):
    """For each process what it said, on stdout and on stderr, and its exit code."""
    said = [process.communicate(timeout=120) for process in processes]
    return [(*texts, process.returncode) for texts, process in zip(said, processes, strict=True)]


def contents(run):
    """What must not depend on whether a run was cut short: weights, and metrics but for times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return ((run / "final" / "model.safetensors").read_bytes(),
            [{key: value for key, value in line.items() if key != "step_time"} for line in lines])


def test_one_process_writes_and_a_killed_one_ends_the_run_which_goes_on(base, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = ["grpo", "--init", str(base), *FLAGS]
    (out, err, code), (its_out, its_err, its_code) = ended(started([*run, "--run-dir", str(whole)]))
    assert (code, its_code) == (0, 0), err + its_err
    assert "2 processes" in out and "mean response length" in out and its_out == its_err == ""
    weights, metrics = contents(whole)
    assert [line["step"] for line in metrics] == list(range(1, 41))
    assert json.loads((whole / "config.json").read_text())["processes"] == 2

    processes = started([*run, "--run-dir", str(cut)])
    until = time.monotonic() + 60
    while not list(cut.glob("checkpoint-?")) and time.monotonic() < until:
        time.sleep(0.01)
    processes[1].kill()
    (_, err, code), _ = ended(processes)
    assert code == 2, err
    assert ("minirl grpo: another of the 2 processes has ended, so process 0 stops, too: go on with"
            f" torchrun --nproc-per-node 2 -m minirl grpo --resume --run-dir {cut}") in err
    assert not (cut / "final").exists()

    alone = shutil.copytree(cut, tmp_path / "alone")
    (_, err, code), (_, _, its_code) = ended(started(["grpo", "--resume", "--run-dir", str(cut)]))
    assert (code, its_code) == (0, 0), err
    assert contents(cut) == (weights, metrics)

    capsys.readouterr()
    assert main(["grpo", "--resume", "--run-dir", str(alone)]) == 0
    assert "goes on with processes 1 instead of 2: the bits may differ" in capsys.readouterr().err
    assert [line["step"] for line in contents(alone)[1]] == [line["step"] for line in metrics]


def test_fewer_prompts_than_processes_are_refused(monkeypatch):
    check_processes({"grpo": GRPOConfig(prompts_per_step=1)})
    monkeypatch.setattr(world, "size", lambda: 2)
    check_processes({"grpo": GRPOConfig(prompts_per_step=2), "sft": SFTConfig(batch_size=1)})
    with pytest.raises(ValueError, match="prompts_per_step is 1, and there are 2 processes: each "
                                         "wants a prompt of every step; raise --prompts-per-step"):
        check_processes({"grpo": GRPOConfig(prompts_per_step=1)})
    with pytest.raises(ValueError, match="raise --episodes, or start fewer processes"):
        check_processes({"ppo": PPOConfig(episodes=1)})
