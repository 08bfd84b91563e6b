"""minirl/app/distill.py: a teacher, a student and distillation, all of the smallest kind."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from minirl.app import distill, sums
from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.tiny import TinySizes, make_base

FLAGS = ["--digits", "1", "--steps", "4", "--prompts-per-step", "6", "--max-new-tokens", "8",
         "--eval-problems", "6", "--checkpoint-every", "1", "--device", "cpu"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def small():
    """Base models read 64 sums, and the teacher has two steps."""
    with pytest.MonkeyPatch.context() as patch:
        few = sums.demonstrations_of
        patch.setattr(sums, "demonstrations_of",
                      lambda task, n, rng, base: few(task, 64, rng, base))
        patch.setattr("minirl.app.stages.plot_runs", lambda runs, out: out.touch())
        patch.setattr(distill, "TEACHER", replace(distill.TEACHER, steps=2, prompts_per_step=2,
                                                  group_size=2, max_new_tokens=8))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "distill"
    assert main(["distill", "--run-dir", str(path), "--small", "16", *FLAGS]) == 0
    return RunDir(path)


def test_the_run_holds_a_teacher_and_a_smaller_student(run):
    teacher, student = (load_pretrained(run.path / name / "final")[0] for name in ("teacher", "."))
    assert (teacher.config.hidden_size, student.config.hidden_size) == (96, 16)
    assert [metrics["step"] for metrics in run.metrics()] == [1, 2, 3, 4]
    assert all("teacher_kl" in metrics for metrics in run.metrics())
    for name in ("accuracy_before", "accuracy_after", "accuracy_teacher", "mean_length_teacher"):
        assert name in run.summary
    commands = {name: RunDir(run.path / name).config["command"]
                for name in ("base", "teacher", "student-base")}
    assert commands == {"base": "sft", "teacher": "grpo", "student-base": "sft"}


@pytest.mark.parametrize("stage, step", [("teacher", 1), ("student-base", 1), ("distill", 2)])
def test_a_killed_run_goes_on_bit_for_bit(run, tmp_path, monkeypatch, stage, step):
    later = {"teacher": ["teacher", "student-base"], "student-base": ["student-base"],
             "distill": []}[stage]
    path = tmp_path / "killed"
    shutil.copytree(run.path, path)
    for folder in (path, *(path / name for name in later)):
        for old in [*folder.glob("checkpoint-*"), folder / "final"]:
            shutil.rmtree(old, ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json"):
            (folder / name).unlink(missing_ok=True)
    save = RunLog.save

    def killed(self, state):
        save(self, state)
        if self.run.path.name == {"distill": "killed"}.get(stage, stage) and state.step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "save", killed)
        with pytest.raises(Killed):
            main(["distill", "--resume", "--run-dir", str(path)])
    assert main(["distill", "--resume", "--run-dir", str(path)]) == 0
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (run.path, path))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("preset", ["exact", "gkd", "supervised"])
def test_presets_and_models_of_one_s_own(base, tmp_path, capsys, preset):
    assert main(["distill", "--preset", preset, "--teacher", str(base), "--init", str(base),
                 "--run-dir", str(tmp_path / "run"), *FLAGS]) == 0
    assert "its teacher (" in capsys.readouterr().out
    assert not (tmp_path / "run" / "teacher").exists()
    assert not (tmp_path / "run" / "base").exists()


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path, capsys):
    other = tmp_path / "other"
    model, tokenizer = make_base(TinySizes(hidden_size=16, num_heads=2), seed=0, device="cpu",
                                 words=("once", "upon"))
    save_pretrained(model, tokenizer, other)
    assert main(["distill", "--teacher", str(other), "--run-dir", str(tmp_path / "run")]) == 2
    assert "has another tokenizer than a new student" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
