"""`minirl distill`: a small model learns from what a larger one makes of its samples.

    base/            reads sums: where the teacher comes from
    teacher/         GRPO on it
    student-base/    the small model, which reads the same sums
    the run itself   the student, after distillation

A teacher that --teacher names, and a student that --init names, are used instead of new ones.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from minirl.app.looks import BeforeAndAfter
from minirl.app.preflight import Start, refuse
from minirl.app.rundir import RunDir
from minirl.app.stages import Stages
from minirl.app.sums import BaseConfig, SumsSettings, check_sums, read_sums
from minirl.app.tasks import make_task
from minirl.inference.tables import before_and_after
from minirl.lm.checkpoint import inspect_pretrained, load_pretrained
from minirl.lm.compiled import worth_compiling
from minirl.lm.model import Transformer
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.problem import Task
from minirl.train.distill import train_distill
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import PRESETS
from minirl.train.sft import SFTConfig

TEACHER = GRPOConfig()
HEAD_SIZE = 16                                                 # features of an attention head


@dataclass(frozen=True)
class DistillSettings(SumsSettings):
    """Settings of minirl distill: those of sums, and the two models."""

    teacher: str | None = None         # checkpoint folder or hub id; without it GRPO makes one
    small: int = 48                    # features of the student (a new teacher: 96)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.small % HEAD_SIZE or not self.small:
            raise ValueError(f"small is {self.small}: a multiple of {HEAD_SIZE}, the size of an "
                             "attention head, is wanted")


class WithTeacher(BeforeAndAfter):
    """The student before and after, and the teacher on the same problems."""

    def __init__(self, stages: Stages, task: Task, teacher: Transformer, **options: Any) -> None:
        super().__init__(stages, task, samples=3, **options)
        self.teacher = teacher

    def after(self, run: RunDir, model: Transformer, steps: int) -> dict[str, Any]:
        teacher = self.evaluate("measuring the teacher", self.teacher)
        return {**super().after(run, model, steps), "accuracy_teacher": teacher.accuracy,
                "mean_length_teacher": teacher.mean_length}


def distill(stages: Stages[DistillSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl distill` does -> what it prints at the end."""
    settings, config, tokenizer = stages.settings, configs["distill"], stages.tokenizer
    task = make_task(settings.task_fields)
    teacher = teacher_of(stages, configs["base"], configs["sft"])
    student = model if settings.init is not None else student_of(stages, configs)
    tokens = config.steps * config.prompts_per_step * config.max_new_tokens
    student.compiled = worth_compiling(settings.compile, student, tokens)
    look = stages.looks["distill"] = WithTeacher(
        stages, task, teacher, max_new_tokens=config.max_new_tokens, seed=settings.seed)
    variant = PRESETS["distill"][stages.run.config["preset"]].arguments(config)
    stages("distill", config, student, lambda m, **hooks: train_distill(
        m, tokenizer, task, config, teacher=teacher, **variant, seed=settings.seed, **hooks))
    run, summary = stages.run, stages.run.summary
    return (f"\nthe student ({student.num_parameters():,} weights)\n"
            f"{before_and_after(look.first, look.last)}\n\n"
            f"its teacher ({teacher.num_parameters():,} weights): "
            f"accuracy {summary['accuracy_teacher']:.3f}, "
            f"mean response length {summary['mean_length_teacher']:.1f} tokens\n"
            f"{stages.seconds:.0f} s. {run.path}/ holds curves.png, samples.md, summary.json, "
            "metrics.jsonl\nand final/, a checkpoint in Hugging Face layout.\n"
            "Next: minirl distill --preset exact --teacher "
            f"{shlex.quote(settings.teacher or str(run.path / 'teacher' / 'final'))}")


def teacher_of(stages: Stages[DistillSettings], base: BaseConfig, sft: SFTConfig) -> Transformer:
    """Return the teacher that --teacher names, or train one: a base model, and GRPO on it."""
    settings, tokenizer = stages.settings, stages.tokenizer
    if settings.teacher is not None:
        return load_pretrained(settings.teacher, dtype=torch.float32, device=stages.device)[0]
    task = make_task(settings.task_fields)
    model, _ = make_base(base, seed=settings.seed, device=stages.device, tokenizer=tokenizer)
    model = read_sums(stages, "base", model, base, sft)
    return stages("teacher", TEACHER, model, lambda m, **hooks: train_grpo(
        m, tokenizer, task, TEACHER, seed=settings.seed, **hooks))


def student_of(stages: Stages[DistillSettings], configs: Mapping[str, Any]) -> Transformer:
    """Return a small model that has read the same sums."""
    settings, base = stages.settings, configs["base"]
    model, _ = make_base(student_sizes(settings, base), seed=settings.seed, device=stages.device,
                         tokenizer=stages.tokenizer)
    return read_sums(stages, "student-base", model, base, configs["sft"])


def student_sizes(settings: DistillSettings, base: BaseConfig) -> TinySizes:
    return TinySizes(hidden_size=settings.small, num_heads=settings.small // HEAD_SIZE,
                     intermediate_size=4 * settings.small, max_seq_len=base.max_seq_len)


# before a run has a folder

def check_distill(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl distill` later."""
    settings = configs["settings"]
    check_sums(configs, flags, start)
    if settings.init is not None:
        refuse(flags, ["small"], "--init names the student, which has its size")
    if settings.teacher is not None:
        _, tokenizer = inspect_pretrained(settings.teacher)
        if not start.tokenizer.same_ids(tokenizer):
            student = settings.init or "a new student"
            raise ValueError(f"the teacher {settings.teacher} has another tokenizer than {student}:"
                             " its log-probs would be of other tokens; give a student with the "
                             "teacher's tokenizer with --init")
