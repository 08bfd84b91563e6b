"""minirl/app/training.py: whole runs, killed and resumed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minirl.app.cli import main
from minirl.app.rundir import RunDir, RunLog
from minirl.app.training import BaseConfig, RunConfig, make_base, run_grpo, worth_compiling
from minirl.train.grpo import GRPOConfig
from minirl.train.sft import SFTConfig


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


def final_weights(run):
    return {name: x.numpy().tobytes() for name, x in load_file(run / "final" / "model.safetensors").items()}


def timeless(run):
    return [{k: v for k, v in json.loads(line).items() if k != "step_time"} for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_files(finished):
    assert {p.name for p in finished.iterdir()} == {"config.json", "metrics.jsonl", "summary.json", "curves.png", "samples.md", "checkpoint-2", "checkpoint-4", "final"}
    summary = json.loads((finished / "summary.json").read_text())
    assert {"accuracy_before", "accuracy_after", "mean_length_before", "mean_length_after", "seconds"} <= set(summary)
    assert [m["step"] for m in RunDir(finished).metrics()] == [1, 2, 3, 4]
    samples = (finished / "samples.md").read_text()
    assert [samples.count(f"## step {n}: {when}") for n, when in ((0, "before"), (2, "halfway"), (4, "after"))] == [1, 1, 1]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("moment", ["after the metrics line", "within the metrics line", "within the checkpoint", "after the checkpoint"])
def test_killed_at_any_step_it_resumes_bit_for_bit(moment, step, base, finished, tiny_grpo, tmp_path, monkeypatch):
    run, log, save = tmp_path / "run", RunLog.log, RunDir.save_checkpoint
    saved_at = 2 if step < 3 else 4

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if n == step and moment == "after the metrics line":
            raise Killed
        if n == step and moment == "within the metrics line":
            with open(run / "metrics.jsonl", "a") as f:
                f.write('{"step": 9, "rew')
            raise Killed

    def dying_save(self, state, tokenizer, seconds):
        if state.step == saved_at and moment == "within the checkpoint":
            (run / f"checkpoint-{saved_at}.partial").mkdir()
            (run / f"checkpoint-{saved_at}.partial" / "model.safetensors").write_bytes(b"half")
            raise Killed
        save(self, state, tokenizer, seconds)
        if state.step == saved_at and moment == "after the checkpoint":
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)
    monkeypatch.setattr(RunDir, "save_checkpoint", dying_save)
    with pytest.raises(Killed):
        main(["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(run), *tiny_grpo])
    monkeypatch.undo()
    assert not (run / "final").exists()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0
    assert final_weights(run) == final_weights(finished) and timeless(run) == timeless(finished)
    assert (run / "samples.md").read_text() == (finished / "samples.md").read_text() and not list(run.glob("*.partial"))


def test_a_kill_while_the_base_model_is_made(tmp_path, monkeypatch):
    """The cold start is a run of its own, in base/: it goes on too, and is not made twice."""
    common = RunConfig(digits=1, eval_problems=4, checkpoint_every=1, device="cpu")
    sizes, sft = BaseConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, examples=128), SFTConfig(batch_size=16)
    grpo = GRPOConfig(steps=2, prompts_per_step=2, group_size=2, max_new_tokens=4)

    def start(folder):
        run_grpo(RunDir.create(folder, {"command": "grpo", "run": {}}), sizes, sft, grpo, common, device=torch.device("cpu"))

    start(tmp_path / "whole")
    log = RunLog.log

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if n == 7:                                       # the base model's checkpoints are at 5 and 8
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)
    with pytest.raises(Killed):
        start(tmp_path / "cut")
    monkeypatch.undo()
    run_grpo(RunDir.resume(tmp_path / "cut"), sizes, sft, grpo, common, device=torch.device("cpu"))
    assert final_weights(tmp_path / "cut") == final_weights(tmp_path / "whole")
    assert timeless(tmp_path / "cut" / "base") == timeless(tmp_path / "whole" / "base")


def test_a_damaged_training_state_is_refused_and_named(base, finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "final")
    (run / "checkpoint-4" / "training_state.pt").write_bytes(b"not a state")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 2
    assert "delete its folder" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoint-4")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and final_weights(run) == final_weights(finished)


def test_a_training_state_that_would_run_code_is_refused(finished, tmp_path, capsys):
    """Pickles run code when they are read. A checkpoint from elsewhere may not."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "final")
    (run / "checkpoint-4" / "training_state.pt").write_bytes(pickle.dumps(Bomb()))
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 2 and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("choice, tokens, want", [("on", 1, True), ("off", 10 ** 12, False), ("auto", 10 ** 6, False), ("auto", 10 ** 10, True)])
def test_compiling_is_decided_from_the_numbers_of_the_run(choice, tokens, want):
    """By its numbers and never by a clock, so that a resumed run computes as the first part did. 6 * parameters * tokens at 1e11 a second, above 300 s."""
    model, _ = make_base(BaseConfig(), seed=0, device="cpu")               # 0.27 million parameters: 3e13 / 1.6e6 = 1.8e7 tokens
    assert worth_compiling(choice, model, tokens) is want


def test_an_unknown_choice_to_compile_raises():
    with pytest.raises(ValueError, match="compile is 'yes': one of auto, on, off is wanted"):
        worth_compiling("yes", make_base(BaseConfig(), seed=0, device="cpu")[0], 1)
