"""`minirl prm`: a process reward model, on sums whose steps are known to be true or not.

    base/             a policy that works sums out, and forgets a share of the carries
    solutions.jsonl   its solutions, a label for each step; held-out.jsonl: of held-out problems
    the run itself    the process reward model

Labels come from completions alone. The truth of a step is asked afterwards, to judge labels and
model. A policy that --init names is used instead of a new one.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minirl.app.looks import watched
from minirl.app.preflight import Start, refuse
from minirl.app.rundir import RunDir
from minirl.app.stages import Look, Settings, Stages
from minirl.app.tasks import make_task
from minirl.equations.inference_time import SOLUTION_SCORES, best_of_n
from minirl.equations.process import hard_estimate
from minirl.inference.agreement import agreement
from minirl.inference.collect import check_prompts
from minirl.inference.evaluate import Evaluation, distinct_problems
from minirl.inference.steps import label_solutions, padded_steps
from minirl.lm.compiled import worth_compiling
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.progress import Progress
from minirl.lm.seeds import derive_seed
from minirl.lm.text import table
from minirl.tasks.arithmetic import SYMBOLS, demonstrations
from minirl.tasks.problem import JudgedTask, Problem
from minirl.tasks.steps import (
    Solution,
    first_wrong,
    load_solutions,
    save_solutions,
    step_truths,
)
from minirl.train.presets import PRESETS
from minirl.train.process_reward import as_reward, solution_chances, train_process_reward
from minirl.train.search import read_slips

HELD_OUT = 200                           # problems whose solutions are labelled for comparison
MAX_NEW_TOKENS = 80


@dataclass(frozen=True)
class StepSettings(Settings):
    """Settings of minirl prm: the common ones, the sums, and how steps are labelled."""

    task: str = "addition"             # addition, subtraction or multiplication (by one digit)
    digits: int = 3                    # 1 to 5
    slip_share: float = 0.4            # of the carries are forgotten in what the base model reads
    labelled_problems: int = 1000      # problems of which a solution is labelled
    step_samples: int = 8              # completions from each step
    best_of: int = 8                   # samples of which the model chooses one
    eval_problems: int = 256           # held-out problems to choose on

    @property
    def task_fields(self) -> dict[str, Any]:
        return {"name": self.task, "digits": self.digits}


Truths = list[list["float | None"]]


class StepLook(Look):
    """What labels and model know of the truth, and whether the model chooses well."""

    def __init__(self, stages: Stages[StepSettings], policy: Transformer,
                 held_out: Sequence[Solution], problems: Mapping[str, Problem]) -> None:
        self.stages, self.policy, self.held_out = stages, policy, held_out
        self.truths: Truths = [step_truths(problems[s.prompt], "".join(s.steps)) for s in held_out]

    def after(self, run: RunDir, model: ScalarModel, steps: int) -> dict[str, Any]:
        self.chances = solution_chances(model, self.stages.tokenizer, self.held_out)
        values = padded_steps([solution.labels for solution in self.held_out])  # (N, S)
        hard = [row[:len(s.steps)] for row, s in zip(hard_estimate(values).tolist(), self.held_out,
                                                     strict=True)]
        numbers = {"hard_labels": hard, "soft_labels": [s.labels for s in self.held_out],
                   "process_reward_model": self.chances}
        compared = {name: agreement(rows, self.truths) for name, rows in numbers.items()}
        return {**{f"{name}_{key}": getattr(result, key) for name, result in compared.items()
                   for key in ("accuracy", "ranked", "found")},
                "held_out_steps": compared["soft_labels"].steps, **self.choose(model)}

    def choose(self, model: ScalarModel) -> dict[str, float]:
        """Return the accuracy of one of n samples, chosen in several ways."""
        settings, tokenizer = self.stages.settings, self.stages.tokenizer
        task = make_task(settings.task_fields)
        rewards = {**task.rewards, **{how: as_reward(model, tokenizer, how=how)
                                      for how in SOLUTION_SCORES}}
        result = watched("choosing", self.policy, tokenizer, JudgedTask(task, rewards, {}),
                         n=settings.eval_problems, samples=settings.best_of,
                         max_new_tokens=MAX_NEW_TOKENS, seed=settings.seed)
        return {"accuracy_of_one": result.accuracy, "accuracy_of_majority": result.majority,
                **{f"accuracy_of_{how}": chosen(result, how) for how in SOLUTION_SCORES},
                "any_right": result.pass_at(settings.best_of)}


def chosen(result: Evaluation, how: str) -> float:
    """Return the accuracy of the samples with the best score of their problem."""
    right = [verdicts[best_of_n([float(x or 0.0) for x in scores])] for scores, verdicts in zip(
        result.verdicts[how], result.verdicts["accuracy"], strict=True)]
    return sum(verdict == 1.0 for verdict in right) / len(right)


def prm(stages: Stages[StepSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl prm` does -> what it prints at the end."""
    settings, config, tokenizer = stages.settings, configs["prm"], stages.tokenizer
    tokens = MAX_NEW_TOKENS * settings.labelled_problems * (config.epochs + settings.step_samples)
    model.compiled = worth_compiling(settings.compile, model, tokens)
    policy = model if settings.init is not None else read_slips(
        stages, model, tokenizer, [make_task(settings.task_fields)],
        random.Random(derive_seed(settings.seed, "prm", "demonstrations")),
        slip_share=settings.slip_share, seed=settings.seed)
    solutions = labelled(stages, "solutions.jsonl", policy, settings.labelled_problems, "train")
    held_out = labelled(stages, "held-out.jsonl", policy, HELD_OUT, "test")
    problems = {p.prompt: p for p in drawn(settings, HELD_OUT, "test")}
    look = stages.looks["prm"] = StepLook(stages, policy, held_out, problems)
    variant = PRESETS["prm"][stages.run.config["preset"]].arguments(config)
    stages("prm", config, policy, lambda m, **hooks: train_process_reward(
        m, tokenizer, solutions, config, **variant, seed=settings.seed, **hooks))
    run = stages.run
    return (f"\n{report(run.summary, settings)}\n\n{wrong_solution(look)}\n\n"
            f"{stages.seconds:.0f} s. {run.path}/ holds curves.png, summary.json, metrics.jsonl, "
            "solutions.jsonl and final/.\nNext: minirl prm --preset hard --init "
            f"{shlex.quote(str(settings.init or run.path / 'base' / 'final'))}")


def drawn(settings: StepSettings, n: int, split: str) -> Sequence[Problem]:
    rng = random.Random(derive_seed(settings.seed, "prm", "problems", split))
    return distinct_problems(make_task(settings.task_fields), n, rng, split=split)


def labelled(stages: Stages[StepSettings], name: str, policy: Transformer, n: int,
             split: str) -> list[Solution]:
    """Return what the file holds: solutions of n problems, with labels."""
    settings = stages.settings

    def make() -> list[Solution]:
        seed = derive_seed(settings.seed, "prm", "sample", split)
        problems = drawn(settings, n, split)
        with Progress(f"labelling {name}", len(problems), unit="solution") as progress:
            return label_solutions(
                policy, stages.tokenizer, make_task(settings.task_fields), problems,
                samples=settings.step_samples, max_new_tokens=MAX_NEW_TOKENS,
                generator=torch.Generator(policy.device).manual_seed(seed), progress=progress)

    return stages.file(name, make, load_solutions, save_solutions)


# what it prints

def report(summary: Mapping[str, Any], settings: StepSettings) -> str:
    """Return two tables: labels and model against the truth, and ways to choose a sample."""
    rows: list[tuple[str, ...]] = [("against the truth of each step", "same side of 1/2", "ranked",
                                    "first wrong step")]
    for name in ("hard_labels", "soft_labels", "process_reward_model"):
        values = [summary[f"{name}_{key}"] for key in ("accuracy", "ranked", "found")]
        rows.append((name.replace("_", " "), *("-" if x is None else f"{x:.1%}" for x in values)))
    ways = [(f"one of {settings.best_of} samples", "accuracy"),
            ("the first", f"{summary['accuracy_of_one']:.3f}"),
            ("majority vote", f"{summary['accuracy_of_majority']:.3f}")]
    ways += [(f"best by the model's {how}", f"{summary[f'accuracy_of_{how}']:.3f}")
             for how in SOLUTION_SCORES]
    ways += [("any of them right", f"{summary['any_right']:.3f}")]
    return (f"{summary['held_out_steps']} steps of held-out solutions\n{table(rows)}\n\n"
            f"{table(ways)}")


def wrong_solution(look: StepLook) -> str:
    """Return a held-out solution that goes wrong in its second step or later, step by step."""
    firsts = [first_wrong(truth) or 0 for truth in look.truths]
    i = max(range(len(firsts)), key=lambda i: (firsts[i] == 1, firsts[i]))
    solution = look.held_out[i]
    rows = [(solution.prompt, "true", "soft label", "model")]
    for step, truth, label, chance in zip(solution.steps, look.truths[i], solution.labels,
                                          look.chances[i], strict=True):
        says = "" if truth is None else "yes" if truth else "no"
        rows.append((f"  {step}", says, "" if label is None else f"{label:.2f}", f"{chance:.2f}"))
    return table(rows)


# before a run has a folder

def check_prm(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl prm` later."""
    settings: StepSettings = configs["settings"]
    if settings.task not in SYMBOLS:
        raise ValueError(f"task is {settings.task!r}: one of {', '.join(SYMBOLS)} is expected")
    if settings.init is not None:
        refuse(flags, ["slip_share"], "--init names a policy, and no base model is made")
    task = make_task(settings.task_fields)
    if settings.init is None:
        demonstrations(task, 1, random.Random(0), worked_share=1.0, slip_share=settings.slip_share)
    check_prompts(start.tokenizer, task, max_new_tokens=MAX_NEW_TOKENS,
                  context=start.config.max_seq_len)
