"""Process supervision against outcome supervision: GRPO from one base model that slips, paid for
the answer alone or for every step.

    python benchmarks/process.py [--runs FOLDER] [--seeds 3]

The base model works sums out and forgets seven in ten carries, as the text did that it read. GRPO's
problems have a carry in every column: three steps, each wrong in seven of ten solutions, so that an
answer is right by 0.3 ^ 3. All learn from the same base, problems, numbers and seeds:

    outcome          1 for a right answer                          DeepSeekMath, section 4.1.2
    process, truth   1 for each step that is true                  section 4.1.3
    process, model   the score that a process reward model gives each step; its labels come from
                     eight completions each of the base model (Math-Shepherd, hard)
    iterative        the same, but after every 20 steps the model learns on, from 300 solutions of
                     the policy as it is then, and 10 % of earlier ones (algorithm 1)

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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import heading, row, table_head
from minirl.equations.advantages import group_advantages
from minirl.equations.process import hard_estimate
from minirl.inference.agreement import agreement
from minirl.inference.collect import Collected, collect
from minirl.inference.evaluate import distinct_problems, evaluate
from minirl.inference.steps import label_solutions, true_steps
from minirl.lm.checkpoint import load_pretrained, load_reward_model, save_pretrained
from minirl.lm.figures import COLOURS, draw, entry, legend_below, new_figure, save, smooth, tidy
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.problem import Problem
from minirl.tasks.steps import (
    Solution,
    first_wrong,
    load_solutions,
    save_solutions,
    step_truths,
)
from minirl.train.credit import Credit, outcome_credit, process_credit
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.iterative_grpo import (
    IterativeGRPOConfig,
    train_iterative_grpo,
)
from minirl.train.process_reward import (
    ProcessRewardConfig,
    as_step_rewards,
    solution_chances,
    train_process_reward,
)
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state import Log

TASK = Arithmetic("addition", 3)
EXAMPLES, SLIP_SHARE = 12_000, 0.7
LABELLED, HELD_OUT = 1000, 200                                # problems
TARGET, OVER = 0.8, 10
# DeepSeekMath, section 4.2: β = 0.04
GRPO = GRPOConfig(steps=120, prompts_per_step=2, lr=2e-4, kl_coef=0.04)
PRM = ProcessRewardConfig()
FIGURES = Path(__file__).parent / "figures"
ARMS = ("outcome", "process, truth", "process, model", "iterative")
ITERATIONS, NEW = 6, 300


class Carrying:
    """Sums with a carry in every column, paid for the answer alone."""

    name = "3-digit addition with a carry in every column"
    rewards, weights = TASK.rewards, {"accuracy": 1.0}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        problems: list[Problem] = []
        while len(problems) < n:
            problems += [problem for problem in TASK.sample(n, rng, split=split)
                         if all("=1" in step for step in problem.worked.split(","))]
        return problems[:n]


HARD = Carrying()


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
        for arm in args.arms:
            results[arm].append(run(args.runs / f"seed-{seed}", arm, seed))
            print(f"seed {seed}, {arm}: {results[arm][-1]['accuracy']:.3f}", flush=True)
    report(results)
    plot_curves(results)
    plot_advantages(args.runs / "seed-0", args.arms)


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


def labelled(file: Path, base: Transformer, tokenizer: Tokenizer, n: int, split: str,
             seed: int) -> list[Solution]:
    """Return solutions of sums of all kinds, by the base model, with labels."""
    if not file.exists():
        generator = torch.Generator().manual_seed(derive_seed(seed, "labels", split))
        save_solutions(label_solutions(base, tokenizer, TASK, drawn(n, split, seed),
                                       max_new_tokens=GRPO.max_new_tokens, generator=generator),
                       file)
    return load_solutions(file)


def drawn(n: int, split: str, seed: int) -> Sequence[Problem]:
    return distinct_problems(TASK, n, random.Random(seed), split=split)


def process_reward_model(folder: Path, base: Transformer, tokenizer: Tokenizer,
                         seed: int) -> ScalarModel:
    """Return a process reward model for the base model, and print what it knows."""
    if not (folder / "prm").exists():
        solutions = labelled(folder / "solutions.jsonl", base, tokenizer, LABELLED, "train", seed)
        held_out = labelled(folder / "held-out.jsonl", base, tokenizer, HELD_OUT, "test", seed)
        model = train_process_reward(copy.deepcopy(base), tokenizer, solutions, PRM,
                                     estimate=hard_estimate, seed=seed)
        problems = {problem.prompt: problem for problem in drawn(HELD_OUT, "test", seed)}
        truths = [step_truths(problems[s.prompt], "".join(s.steps)) for s in held_out]
        hard = [[float(bool(label)) for label in s.labels] for s in held_out]
        print(f"seed {seed}, labels {agreement(hard, truths)}\n"
              f"        model {agreement(solution_chances(model, tokenizer, held_out), truths)}")
        save_pretrained(model, tokenizer, folder / "prm")
    return load_reward_model(folder / "prm")[0]


def credit_of(arm: str, folder: Path, base: Transformer, tokenizer: Tokenizer,
              seed: int) -> Credit:
    if arm == "outcome":
        return outcome_credit
    if arm == "process, truth":
        return process_credit(true_steps(tokenizer))
    return process_credit(as_step_rewards(process_reward_model(folder, base, tokenizer, seed),
                                          tokenizer))


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train the base model -> the share of right answers at each step, and held out at the end."""
    file = folder / f"{arm.replace(', ', '-')}.json"
    if not file.exists():
        base, tokenizer = base_model(folder / "base", seed)
        right: list[float] = []

        def log(step: int, metrics: dict[str, float]) -> None:
            if "rewards/accuracy/mean" in metrics:
                right.append(metrics["rewards/accuracy/mean"])

        if arm == "iterative":
            model = iterate(folder, base, tokenizer, seed, log)
        else:
            credit = credit_of(arm, folder, base, tokenizer, seed)
            model = train_grpo(copy.deepcopy(base), tokenizer, HARD, GRPO, credit=credit,
                               seed=seed, log=log)
        held_out = evaluate(model, tokenizer, HARD, n=512, seed=seed)
        file.write_text(json.dumps({"right": right, "accuracy": held_out.accuracy,
                                    "length": held_out.mean_length}))
    return json.loads(file.read_text())


def iterate(folder: Path, base: Transformer, tokenizer: Tokenizer, seed: int,
            log: Log) -> Transformer:
    """Iterative GRPO with as many steps in all, at a constant learning rate. It starts with the
    fixed reward model, which goes on learning at a lower rate."""
    config = IterativeGRPOConfig(
        iterations=ITERATIONS, problems=NEW, prm=replace(PRM, lr=PRM.lr / 5),
        grpo=replace(GRPO, steps=GRPO.steps // ITERATIONS, min_lr_ratio=1.0))
    reward_model = process_reward_model(folder, base, tokenizer, seed)
    return train_iterative_grpo(base, tokenizer, HARD, config, reward_model=reward_model,
                                estimate=hard_estimate, seed=seed, log=log)


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
        curves = [smooth(outcome["right"], OVER // 2) for outcome in outcomes]
        for curve in curves:
            axis.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.3, linewidth=0.8)
        mean = [statistics.mean(step) for step in zip(*curves, strict=True)]
        draw(axis, list(enumerate(mean, start=1)), {"color": colour}, exact=True)
    axis.axhline(TARGET, color="0.6", linewidth=0.8, linestyle=":")
    tidy(axis, "Right answers to new problems; thin: each seed", x="step", y="share")
    legend_below(figure, [entry(arm, color=colour, linewidth=2)
                          for arm, colour in zip(results, COLOURS, strict=False)])
    save(figure, FIGURES / "process_curves.png")


def wrong_in_the_middle(base: Transformer, tokenizer: Tokenizer) -> tuple[Collected, int]:
    """Return a group of solutions of one problem, and the row of one whose second step is the
    first wrong one."""
    for i, problem in enumerate(distinct_problems(HARD, 64, random.Random(0))):
        generator = torch.Generator().manual_seed(i)
        answers = collect(base, tokenizer, HARD, [problem], group=GRPO.group_size,
                          max_new_tokens=GRPO.max_new_tokens, generator=generator)
        for g, text in enumerate(answers.completions):
            truths = step_truths(problem, text)
            if first_wrong(truths) == 1 and len(truths) == 4 and answers.rewards.any():
                return answers, g
    raise RuntimeError("no solution goes wrong in its second step")


def plot_advantages(folder: Path, arms: Sequence[str]) -> None:
    """The advantage of each token of one wrong solution."""
    base, tokenizer = base_model(folder / "base", 0)
    ways = {arm: credit_of(arm, folder, base, tokenizer, 0) for arm in arms if arm != "iterative"}
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
