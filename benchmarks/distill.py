"""Distillation against reinforcement learning and SFT, at equal tokens, on R1's toy.

    python benchmarks/distill.py --out FILE [--seeds 3]     train what FILE does not hold yet
    python benchmarks/distill.py --out FILE --draw          table and figure of what it holds

    Paper      DeepSeek-R1, arXiv:2501.12948v2: a small model learns more from a large one's samples
               than by RL on its own. GKD, arXiv:2306.13649, and Thinking Machines 2025, "On-policy
               distillation": more still from the large one's log-probs of its own samples.

The toy is that of `minirl r1`: sums and word problems, in English and Korean. Per seed a teacher
(96 features) reads and learns by GRPO. A small model (48 features) reads the same, and then learns
in several ways, each in STEPS batches of ROWS completions: a row of METHODS. The x axis is what the
student has read and learnt from: tokens of prompts and completions. In a quarter of what the models
read, the prompt is worked out in front of it: so a model given that is a teacher of itself.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import row, table_head
from minirl.equations.kl import exact_kl
from minirl.inference.evaluate import evaluate
from minirl.lm.figures import COLOURS, entry, legend_below, new_figure, save, tidy
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.bilingual import WORDS, Bilingual, demonstrations
from minirl.tasks.problem import Problem
from minirl.train.distill import DistillConfig, train_distill
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import DISTILL_PRESETS
from minirl.train.r1 import R1Config, by_rules, rejection_sample
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state import Log
from study import add_record, records, study

TASK = Bilingual((2,))
READ: dict[str, Any] = dict(worked_share=0.5, brief_share=0.25, mixed_share=0.5, slip_share=0.5)
EXAMPLES, HELPED = 32_000, 0.25    # what a model reads, and the share with help in the prompt
LARGE, SMALL = 96, 48              # features
LENGTH = 48                        # tokens of a completion, at most
STEPS, ROWS = 40, 128
TEACHER = GRPOConfig(steps=60, prompts_per_step=16, group_size=8, max_new_tokens=LENGTH)
RL = replace(TEACHER, steps=STEPS, lr=1e-3)
DISTILL = DistillConfig(steps=STEPS, prompts_per_step=ROWS, max_new_tokens=LENGTH)
SFT = SFTConfig(batch_size=ROWS, lr=2e-3, warmup_steps=3, min_lr_ratio=0.1, beta2=0.999)
KEPT = R1Config(kept_problems=STEPS * ROWS * 3 // 2, kept_samples=1, max_new_tokens=LENGTH)
LOOK_EVERY, LOOK_AT, HELD_OUT = 5, 256, 512
BASE, TAUGHT = "the small model", "its teacher"


def helped(problem: Problem) -> str:
    """Return a prompt that has its solution in front."""
    return f"{problem.worked} {problem.answer}\n{problem.prompt}"


@dataclass(frozen=True)
class Run:
    """What a method starts from: the student, which it trains in place, and its teacher."""

    model: Transformer
    teacher: Transformer
    tokenizer: Tokenizer
    seed: int
    log: Log


# one function per method

def sft(run: Run) -> None:
    pairs = rejection_sample(run.teacher, run.tokenizer, TASK, KEPT, seed=run.seed)
    train_sft(run.model, run.tokenizer, pairs[:STEPS * ROWS], SFT, seed=run.seed, log=run.log)


def rl(run: Run) -> None:
    train_grpo(run.model, run.tokenizer, by_rules(TASK), RL, seed=run.seed, log=run.log)


def preset(name: str) -> Callable[[Run], None]:
    def train(run: Run) -> None:
        chosen = DISTILL_PRESETS[name]
        config = replace(DISTILL, **chosen.numbers)
        train_distill(run.model, run.tokenizer, by_rules(TASK), config, teacher=run.teacher,
                      **chosen.arguments(config), seed=run.seed, log=run.log)

    return train


def itself(run: Run) -> None:
    train_distill(run.model, run.tokenizer, by_rules(TASK), DISTILL, teacher_prompt=helped,
                  divergence=exact_kl, seed=run.seed, log=run.log)


# name -> who samples, what is learnt, how
METHODS: dict[str, tuple[str, str, Callable[[Run], None]]] = {
    "SFT": ("the teacher", "its right completions", sft),
    "supervised": ("the teacher", "KL(π_T || π), exact", preset("supervised")),
    "GKD": ("half and half", "JSD, β = 1/2, exact", preset("gkd")),
    "sampled": ("the student", "KL(π || π_T), sampled tokens", preset("sampled")),
    "exact": ("the student", "KL(π || π_T), exact", preset("exact")),
    "self": ("the student", "KL to itself with help, exact", itself),
    "GRPO": ("the student", "rewards", rl),
}


# running them

def main() -> None:
    runs, figures = study(__doc__, one_seed)
    print_table(runs)
    draw(runs, figures / "distill.png")


def one_seed(seed: int, out: Path) -> None:
    """Train and measure what the file does not have, and add a line for each."""
    finished = {run["method"] for run in records(out) if run["seed"] == seed}
    if finished >= {*METHODS, BASE, TAUGHT}:
        return
    teacher, tokenizer = reader(LARGE, seed)
    train_grpo(teacher, tokenizer, by_rules(TASK), TEACHER, seed=seed)
    student, _ = reader(SMALL, seed)

    def keep(name: str, model: Transformer, curve: Sequence[Any], seconds: float) -> None:
        result = evaluate(model, tokenizer, TASK, n=HELD_OUT, max_new_tokens=LENGTH,
                          seed=derive_seed(seed, "worth"))
        line = {"seed": seed, "method": name, "curve": curve, "accuracy": result.accuracy,
                "language": result.rewards["language_consistency"], "length": result.mean_length,
                "weights": model.num_parameters(), "seconds": seconds}
        add_record(out, line)
        print(f"seed {seed}, {name}: {result.accuracy:.3f}, {seconds:.0f} s", flush=True)

    for name, model in ((BASE, student), (TAUGHT, teacher)):
        if name not in finished:
            keep(name, model, [], 0.0)
    for name, (_, _, train) in METHODS.items():
        if name in finished:
            continue
        model, began = copy.deepcopy(student), time.perf_counter()
        curve = [(0, look(model, tokenizer, seed))]

        def watch(step: int, metrics: dict[str, float], *, model: Transformer = model,
                  curve: list[Any] = curve) -> None:
            if step % LOOK_EVERY == 0:
                curve.append((metrics["num_tokens"], look(model, tokenizer, seed)))

        train(Run(model, teacher, tokenizer, seed, watch))
        keep(name, model, curve, time.perf_counter() - began)


def reader(features: int, seed: int) -> tuple[Transformer, Tokenizer]:
    """Return a model that has read sums, a part of them with help in the prompt."""
    sizes = TinySizes(hidden_size=features, num_heads=features // 16,
                      intermediate_size=4 * features, max_seq_len=192)
    model, tokenizer = make_base(sizes, seed=seed, device="cpu", words=WORDS)
    rng = random.Random(derive_seed(seed, "reading"))
    texts = demonstrations(TASK, round(EXAMPLES * (1 - HELPED)), rng, **READ)
    problems = TASK.sample(round(EXAMPLES * HELPED), rng)
    texts += [(helped(problem), f"<think>{problem.worked}</think><answer>{problem.answer}</answer>")
              for problem in problems]
    return train_sft(model, tokenizer, texts, SFTConfig(), seed=seed), tokenizer


def look(model: Transformer, tokenizer: Tokenizer, seed: int) -> float:
    return evaluate(model, tokenizer, TASK, n=LOOK_AT, max_new_tokens=LENGTH, seed=seed).accuracy


# what it prints and draws

def of(runs: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["method"] == name]


def print_table(runs: Sequence[dict[str, Any]]) -> None:
    print(table_head("method", "who samples", "what is learnt", "accuracy", "by seed",
                     "one language", "tokens"))
    for name in (BASE, TAUGHT, *METHODS):
        source, aim, _ = METHODS.get(name, ("", "", None))
        if rows := of(runs, name):
            tokens = statistics.mean(run["curve"][-1][0] if run["curve"] else 0 for run in rows)
            print(row(name, source, aim, f"{statistics.mean(r['accuracy'] for r in rows):.3f}",
                      " / ".join(f"{run['accuracy']:.3f}" for run in rows),
                      f"{statistics.mean(run['language'] for run in rows):.3f}",
                      f"{tokens / 1000:.0f}k" if tokens else ""))
    print()


def draw(runs: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw held-out accuracy over what the student has read, a panel for each source."""
    panels = {"The teacher samples": ("SFT", "supervised", "GKD"),
              "The student samples": ("sampled", "exact", "self", "GRPO")}
    figure, axes = new_figure(1, 2, (10.4, 3.8))
    colours = dict(zip(METHODS, (*COLOURS, "#111827"), strict=True))
    teacher = statistics.mean(run["accuracy"] for run in of(runs, TAUGHT))
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        axis.axhline(teacher, color="#9ca3af", linestyle="--", linewidth=1)
        for name in names:
            curves = [run["curve"] for run in of(runs, name)]
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=colours[name], linewidth=0.8, alpha=0.35)
            if curves:
                points = [tuple(map(statistics.mean, zip(*several, strict=True)))
                          for several in zip(*curves, strict=False)]
                axis.plot(*zip(*points, strict=True), color=colours[name], linewidth=2.2)
        axis.set_ylim(0.35, 1.0)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        tidy(axis, title, x="tokens that the student has learnt from", y="held-out accuracy")
    legend_below(figure, [entry(name, color=colours[name], linewidth=2.2) for name in METHODS]
                 + [entry("the teacher", color="#9ca3af", linestyle="--", linewidth=1)])
    save(figure, out)


if __name__ == "__main__":
    main()
