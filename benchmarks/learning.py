"""From a new model to a policy that works its sums out: `minirl grpo` on several seeds, one after
the other.

    python benchmarks/learning.py [--seeds 5]
    python benchmarks/learning.py --against-trl        and TRL from the same base models

Prints a row per seed: held-out accuracy and mean response length before and after GRPO, and the
seconds of the whole command. Each seed is a process of its own, so that the time includes imports,
the training of the base model, evaluation and figures.

With --against-trl (which needs the extra `parity`) a second table follows. After each of our runs
TRL, also in a process of its own, starts from that run's base model and trains on the same problems
in the same order, with the same rewards, schedule and numbers. The table compares GRPO alone: the
seconds of its steps, from before the first prompt is read until after the weights have changed, and
the tokens that it sampled; both until the accuracy on training problems, a mean over 5 steps,
reaches 0.95, and in all. It also has the accuracy of both policies on the same held-out problems.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import commit, heading, ratio, row, run_minirl, table_head
from minirl.app.rundir import RunDir
from minirl.inference.evaluate import evaluate
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.seeds import derive_seed
from minirl.tasks.arithmetic import Arithmetic
from minirl.train.grpo import GRPOConfig
from trl_side import make_trainer

TARGET, OVER = 0.95, 5         # the accuracy that counts as learnt, as a mean over so many steps
# rows in TRL's micro-batches: on a CPU the fastest of 32, 64 and 128
# (grpo_step.py --only real --their-rows)
THEIR_ROWS = 32
FORMS = {"accuracy_before": ".3f", "accuracy_after": ".3f", "mean_length_before": ".1f",
         "mean_length_after": ".1f", "seconds": ".0f"}

Side = dict[str, float]        # what one side needed, and what its policy is worth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--against-trl", action="store_true",
                        help="train TRL's GRPOTrainer from each base model, too")
    parser.add_argument("--steps", type=int, default=GRPOConfig.steps,
                        help="GRPO's steps, of both sides (default %(default)s)")
    args = parser.parse_args()
    print(heading() + "\n")
    print(table_head("seed", "accuracy before", "after", "length before", "after", "seconds"))
    results: list[Side] = []
    sides: list[tuple[Side, Side]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            run, result = our_run(Path(folder) / f"seed-{seed}", seed, args.steps,
                                  # where TRL's side runs
                                  *["--device", "cpu"] * args.against_trl)
            results.append(result)
            print(result_row(seed, result), flush=True)
            if args.against_trl:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    theirs = fresh.submit(their_side, run.path, seed, args.steps).result()
                sides.append((our_side(run), theirs))
    print(result_row("median", median(results)))
    if sides:
        print(f"\n{heading()}, commit {commit()}; seconds and tokens of GRPO alone, {args.steps} "
              "steps, TRL's / ours\n")
        print(table_head("seed", f"seconds to {TARGET}", "times ours", f"tokens to {TARGET}",
                         "seconds in all", "times ours", "tokens in all",
                         "held-out accuracy after"))
        for seed, (ours, theirs) in enumerate(sides):
            print(against(seed, ours, theirs))
        print(against("median", *(median(side) for side in zip(*sides, strict=True))))


def our_run(folder: Path, seed: int, steps: int, *flags: str) -> tuple[RunDir, Side]:
    """Run `minirl grpo` -> its run directory, and its row of the table."""
    began = time.perf_counter()
    run = run_minirl("grpo", folder, "--seed", seed, "--steps", steps, *flags)
    duration = time.perf_counter() - began
    summary = run.summary
    return run, {name: summary[name] for name in FORMS} | {"seconds": duration}


def result_row(name: object, result: Side) -> str:
    return row(name, *(f"{result[key]:{form}}" for key, form in FORMS.items()))


def median(results: Sequence[Side]) -> Side:
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


# against TRL

def our_side(run: RunDir) -> Side:
    steps = run.metrics()
    return outcome([step["step_time"] for step in steps], steps, run.summary["accuracy_after"])


def their_side(run: Path, seed: int, steps: int) -> Side:
    """Train TRL's GRPOTrainer with the numbers of GRPOConfig, from the run's base model."""
    config, folder = GRPOConfig(steps=steps), run / "trl"
    task = Arithmetic("addition", 3)
    shutil.copytree(run / "base" / "final", folder)
    seconds: list[float] = []
    metrics: list[dict[str, Any]] = []
    began = 0.0

    def begin() -> None:
        nonlocal began
        began = time.perf_counter()

    def end() -> None:
        seconds.append(time.perf_counter() - began)

    problems = [problem for step in range(steps)
                for problem in task.sample(config.prompts_per_step, random.Random(
                    derive_seed(seed, "grpo", step, "problems")))]
    trainer = make_trainer(folder, problems, list(task.rewards.values()), config,
                           micro_batch=THEIR_ROWS, begin=begin, end=end, log=metrics.append,
                           seed=seed)
    trainer.train()
    _, tokenizer = load_pretrained(run / "base" / "final")
    trainer.model.save_pretrained(folder / "final")
    tokenizer.save(folder / "final")
    policy, _ = load_pretrained(folder / "final")
    held_out = evaluate(policy, tokenizer, task, max_new_tokens=config.max_new_tokens, seed=seed,
                        n=RunDir(run).config["settings"]["eval_problems"])
    return outcome(seconds, metrics, held_out.accuracy)


def outcome(seconds: Sequence[float], steps: Sequence[dict[str, Any]], accuracy: float) -> Side:
    """Return what a side needed until it had the target accuracy (infinity: never), and in all."""
    rows = GRPOConfig.prompts_per_step * GRPOConfig.group_size
    tokens = [step["completions/mean_length"] * rows for step in steps]
    right = [step["rewards/accuracy/mean"] for step in steps]
    seconds_to = tokens_to = math.inf
    for n in range(OVER, len(steps) + 1):
        if statistics.mean(right[n - OVER:n]) >= TARGET:
            seconds_to, tokens_to = sum(seconds[:n]), sum(tokens[:n])
            break
    return {"seconds_to": seconds_to, "tokens_to": tokens_to, "seconds": sum(seconds),
            "tokens": sum(tokens), "accuracy": accuracy}


def against(name: object, ours: Side, theirs: Side) -> str:
    """Return a row: TRL's numbers / ours."""
    def both(key: str, form: str) -> str:
        return " / ".join("not reached" if side[key] == math.inf else f"{side[key]:{form}}"
                          for side in (theirs, ours))

    def times(key: str) -> str:
        return "" if math.inf in (theirs[key], ours[key]) else ratio([theirs[key]], [ours[key]])

    return row(name, both("seconds_to", ".1f"), times("seconds_to"), both("tokens_to", ",.0f"),
               both("seconds", ".1f"), times("seconds"), both("tokens", ",.0f"),
               both("accuracy", ".3f"))


if __name__ == "__main__":
    main()
