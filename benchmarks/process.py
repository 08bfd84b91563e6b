"""Process supervision against outcome supervision: GRPO from one base model that slips, paid for
the answer alone or for every step.

    python benchmarks/process.py [--runs FOLDER] [--seeds 3]

The base model works sums out and forgets seven in ten carries, as the text did that it read.
From it GRPO learns with the same problems, numbers and seeds:

    outcome          1 for a right answer                          DeepSeekMath, section 4.1.2
    process, truth   1 for each step that is true                  section 4.1.3
    process, model   the score that a process reward model gives each step; its labels come from
                     eight completions each (Math-Shepherd, soft)

Prints, for each seed, the steps until the share of right answers, a mean over 10 steps, reaches the
target, and the held-out accuracy at the end. Two figures: process_curves.png, and
process_advantages.png, with the advantages that each gives to the tokens of one wrong solution. All
that is computed is kept under --runs, and not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import heading, row, table_head
from minirl.equations.advantages import group_advantages
from minirl.inference.agreement import agreement
from minirl.inference.collect import Collected, collect
from minirl.inference.evaluate import distinct_problems, evaluate
from minirl.inference.steps import label_solutions, true_steps
from minirl.lm.checkpoint import load_pretrained, load_reward_model, save_pretrained
from minirl.lm.figures import COLOURS, draw, entry, legend_below, new_figure, save, tidy
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.problem import JudgedTask
from minirl.tasks.steps import first_wrong, step_truths
from minirl.train.credit import Credit, outcome_credit, process_credit
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.process_reward import (
    ProcessRewardConfig,
    as_step_rewards,
    solution_chances,
    train_process_reward,
)
from minirl.train.sft import SFTConfig, train_sft

TASK = Arithmetic("addition", 3)
PAID = JudgedTask(TASK, TASK.rewards, {"accuracy": 1.0})       # for the answer alone
EXAMPLES, SLIP_SHARE = 12_000, 0.7
LABELLED, HELD_OUT = 1000, 200                                # problems
TARGET, OVER = 0.9, 10
GRPO = GRPOConfig(steps=100, prompts_per_step=4, lr=2e-4, kl_coef=0.0)
PRM = ProcessRewardConfig()
FIGURES = Path(__file__).parent / "figures"
ARMS = ("outcome", "process, truth", "process, model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/process"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    args = parser.parse_args()
    print(heading() + "\n")
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
    for seed in range(args.seeds):
        folder = args.runs / f"seed-{seed}"
        base, tokenizer = base_model(folder / "base", seed)
        reward_model = None
        if "process, model" in args.arms:
            reward_model = process_reward_model(folder / "prm", base, tokenizer, seed)
        for arm, credit in credits_of(tokenizer, reward_model, args.arms).items():
            results[arm].append(run(folder / f"{arm.replace(', ', '-')}.json", base, tokenizer,
                                    credit, seed))
    report(results)
    plot_curves(results)
    folder = args.runs / "seed-0"
    base, tokenizer = base_model(folder / "base", 0)
    reward_model = load_reward_model(folder / "prm")[0] if (folder / "prm").exists() else None
    plot_advantages(base, tokenizer, credits_of(tokenizer, reward_model, args.arms))


# models

def base_model(folder: Path, seed: int) -> tuple[Transformer, Tokenizer]:
    """Return a model that has read sums with slips."""
    if not folder.exists():
        model, tokenizer = make_base(TinySizes(), seed=seed, device="cpu")
        rng = random.Random(derive_seed(seed, "demonstrations"))
        pairs = demonstrations(TASK, EXAMPLES, rng, worked_share=1.0, slip_share=SLIP_SHARE)
        train_sft(model, tokenizer, pairs, SFTConfig(), seed=seed)
        save_pretrained(model, tokenizer, folder)
    return load_pretrained(folder)


def process_reward_model(folder: Path, base: Transformer, tokenizer: Tokenizer,
                         seed: int) -> ScalarModel:
    """Return a process reward model for the base model, and print what it knows."""
    if not folder.exists():
        solutions, held_out = (label_solutions(
            base, tokenizer, TASK, distinct_problems(TASK, n, random.Random(seed), split=split),
            max_new_tokens=GRPO.max_new_tokens,
            generator=torch.Generator().manual_seed(derive_seed(seed, "labels", split)))
            for split, n in (("train", LABELLED), ("test", HELD_OUT)))
        model = train_process_reward(copy.deepcopy(base), tokenizer, solutions, PRM, seed=seed)
        problems = {p.prompt: p for p in
                    distinct_problems(TASK, HELD_OUT, random.Random(seed), split="test")}
        truths = [step_truths(problems[s.prompt], "".join(s.steps)) for s in held_out]
        print(f"seed {seed}, labels {agreement([s.labels for s in held_out], truths)}\n"
              f"        model {agreement(solution_chances(model, tokenizer, held_out), truths)}")
        save_pretrained(model, tokenizer, folder)
    return load_reward_model(folder)[0]


def credits_of(tokenizer: Tokenizer, reward_model: ScalarModel | None,
               arms: Sequence[str]) -> dict[str, Credit]:
    ways: dict[str, Credit] = {"outcome": outcome_credit,
                               "process, truth": process_credit(true_steps(tokenizer))}
    if reward_model is not None:
        ways["process, model"] = process_credit(as_step_rewards(reward_model, tokenizer))
    return {arm: ways[arm] for arm in arms}


def run(file: Path, base: Transformer, tokenizer: Tokenizer, credit: Credit,
        seed: int) -> dict[str, Any]:
    """Train the base model -> the share of right answers at each step, and held out at the end."""
    if not file.exists():
        right: list[float] = []
        model = train_grpo(copy.deepcopy(base), tokenizer, PAID, GRPO, credit=credit, seed=seed,
                           log=lambda step, metrics: right.append(
                               metrics["rewards/accuracy/mean"]))
        held_out = evaluate(model, tokenizer, TASK, n=512, seed=seed)
        file.write_text(json.dumps({"right": right, "accuracy": held_out.accuracy,
                                    "length": held_out.mean_length}))
    return json.loads(file.read_text())


# results

def steps_to(right: Sequence[float]) -> int | None:
    """Return after how many steps the mean over OVER steps reaches the target; None: never."""
    return next((n for n in range(OVER, len(right) + 1)
                 if statistics.mean(right[n - OVER:n]) >= TARGET), None)


def report(results: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    seeds = range(len(next(iter(results.values()))))
    print(table_head("supervision", *(f"steps to {TARGET}, seed {seed}" for seed in seeds),
                     *(f"held out, seed {seed}" for seed in seeds)))
    for arm, outcomes in results.items():
        print(row(arm, *(steps_to(outcome["right"]) or "not reached" for outcome in outcomes),
                  *(f"{outcome['accuracy']:.3f}" for outcome in outcomes)))


def plot_curves(results: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """A thin line for each seed, a thick one for their mean."""
    figure, (axis,) = new_figure(1, 1, (7.0, 3.6))
    for outcomes, colour in zip(results.values(), COLOURS, strict=False):
        for outcome in outcomes:
            axis.plot(range(1, len(outcome["right"]) + 1), outcome["right"], color=colour,
                      alpha=0.25, linewidth=0.8)
        mean = [statistics.mean(step) for step in zip(*(o["right"] for o in outcomes),
                                                      strict=True)]
        draw(axis, list(enumerate(mean, start=1)), {"color": colour}, exact=True)
    axis.axhline(TARGET, color="0.6", linewidth=0.8, linestyle=":")
    tidy(axis, "Right answers to new problems, three seeds", x="step", y="share")
    legend_below(figure, [entry(arm, color=colour, linewidth=2)
                          for arm, colour in zip(results, COLOURS, strict=False)])
    save(figure, FIGURES / "process_curves.png")


def wrong_in_the_middle(base: Transformer, tokenizer: Tokenizer) -> tuple[Collected, int]:
    """Return a group of solutions of one problem, and the row of one whose second step is the
    first wrong one."""
    for i, problem in enumerate(distinct_problems(TASK, 64, random.Random(0))):
        generator = torch.Generator().manual_seed(i)
        answers = collect(base, tokenizer, PAID, [problem], group=GRPO.group_size,
                          max_new_tokens=GRPO.max_new_tokens, generator=generator)
        for g, text in enumerate(answers.completions):
            truths = step_truths(problem, text)
            if first_wrong(truths) == 1 and len(truths) == 4 and answers.rewards.sum() > 2:
                return answers, g
    raise RuntimeError("no solution goes wrong in its second step")


def plot_advantages(base: Transformer, tokenizer: Tokenizer, ways: Mapping[str, Credit]) -> None:
    """The advantage of each token of one wrong solution."""
    answers, g = wrong_in_the_middle(base, tokenizer)
    mask = answers.rollouts.mask[g]
    ids = answers.rollouts.tokens[g][mask].tolist()
    ends, truths = true_steps(tokenizer)(answers)
    figure, axes = new_figure(len(ways), 1, (9.0, 1.7 * len(ways)))
    for axis, (arm, credit), colour in zip(axes, ways.items(), COLOURS, strict=False):
        adv: Tensor = credit(group_advantages(answers.rewards.view(1, -1)), answers)[g][mask]
        axis.bar(range(len(ids)), adv.tolist(), color=colour, width=0.9)
        axis.axhline(0, color="0.4", linewidth=0.8)
        for start, end, truth in zip([0, *ends[g]], ends[g], truths[g], strict=False):
            if not truth:
                axis.axvspan(start - 0.5, end - 0.5, color="0.92", zorder=0)
        axis.set_xticks(range(len(ids)), [tokenizer.token(i) for i in ids], fontsize=6,
                        rotation=90)
        tidy(axis, arm, y="advantage")
    figure.suptitle(f"{answers.problems[0].prompt} one wrong solution of {GRPO.group_size}; steps "
                    "that are not true are shaded", fontsize=9)
    save(figure, FIGURES / "process_advantages.png")


if __name__ == "__main__":
    main()
