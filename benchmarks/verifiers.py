"""What fools a verifier: which mistakes are left in the best of n, where n grows.

    python benchmarks/verifiers.py runs/search [--problems 64] [--figure FILE]

Takes policy and reward models of a run of `minirl search`. A wrong solution either forgets carries
and is sound otherwise, as half of the texts did that the policy learnt from, or it makes another
mistake: it copies a digit wrongly, or answers something else than it worked out. The latter are
rare, and verifiers have seen few of them. The last lines compare the first half of the samples with
the second: how far two draws of one policy differ by chance. --figure draws the run's search.png
anew.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from pathlib import Path

import torch

from common import heading, row, table_head
from minirl.app.rundir import RunDir
from minirl.inference.candidates import best_index, solution_verifier
from minirl.inference.comparison import Comparison
from minirl.inference.comparison_figure import plot_comparison
from minirl.inference.evaluate import distinct_problems
from minirl.inference.intervals import mean_interval
from minirl.inference.points import Samples, draw_samples, mean
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.files import read_json
from minirl.lm.seeds import derive_seed
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem
from minirl.train.verifiers import outcome_verifier, step_verifier

SAMPLES, SIZES = 128, (1, 4, 16, 64, 128)
KINDS = ("right", "forgotten carries alone", "another mistake")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--problems", type=int, default=64, help="of each task (default 64)")
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    if args.figure is not None:
        files = sorted(args.run.glob("comparison-*.json"))
        plot_comparison([Comparison.from_dict(read_json(file)) for file in files], args.figure)
    settings = RunDir(args.run).config["settings"]
    policy, tokenizer = load_pretrained(args.run / "base" / "final")
    prm, orm = (load_reward_model(args.run / name / "final")[0] for name in ("prm", "orm"))
    steps = step_verifier(prm, tokenizer)
    verifiers = {"ORM": outcome_verifier(orm, tokenizer),
                 "PRM last": solution_verifier(steps, "last"),
                 "PRM min": solution_verifier(steps, "min")}
    print(heading(), "\n")
    print(table_head("task", "best of n by", *(f"n = {n}" for n in SIZES)))
    halves = []
    for digits in range(settings["digits"], settings["digits"] + 3):
        task = Arithmetic(settings["task"], digits)
        seed = derive_seed(settings["seed"], "verifiers", digits)
        problems = distinct_problems(task, args.problems, random.Random(seed))
        samples = draw_samples(policy, tokenizer, task, problems, verifiers, n=SAMPLES,
                               max_new_tokens=80, generator=torch.Generator().manual_seed(seed))
        kinds = [[kind(problem, tokenizer.decode_completion(ids), right)
                  for ids, right in zip(*pair, strict=True)]
                 for problem, *pair in zip(problems, samples.completions, samples.right,
                                           strict=True)]
        differences = [mean(right[:SAMPLES // 2]) - mean(right[SAMPLES // 2:])
                       for right in samples.right]
        halves.append(f"{task.name}: {mean_interval(differences)}")
        for name in verifiers:
            shares = [chosen(samples, kinds, name, n) for n in SIZES]
            print(row(task.name, name, *(" / ".join(f"{share:.1%}" for share in of_n)
                                         for of_n in shares)))
    print("\nshare right in the first half of the samples minus that in the second:", *halves,
          sep="\n")


def chosen(samples: Samples, kinds: list[list[str]], verifier: str, n: int) -> list[float]:
    """The share of each kind in what the verifier chooses of groups of n."""
    counts = Counter(row[start + best_index(scores[start:start + n])]
                     for row, scores in zip(kinds, samples.scores[verifier], strict=True)
                     for start in range(0, SAMPLES, n))
    return [counts[name] / sum(counts.values()) for name in KINDS]


def kind(problem: Problem, completion: str, right: float) -> str:
    """Return which of KINDS a completion of a sum is."""
    if right:
        return KINDS[0]
    numbers = re.fullmatch(r"(\d+)\+(\d+)=", problem.prompt)
    parts = re.fullmatch(r"<think>(.*)</think><answer>(\d+)</answer>", completion)
    if numbers is None or parts is None:
        return KINDS[2]
    carry, digits = 0, ""
    columns = list(zip(numbers[1][::-1], numbers[2][::-1], strict=True))
    steps = parts[1].split(",")
    for step, (x, y) in zip(steps, columns, strict=False):
        total = int(x) + int(y) + carry
        sound = [t for t in (total, total % 10) if step == f"{x}+{y}+{carry}={t:02}{digits}"]
        if not sound:
            return KINDS[2]
        carry, digits = sound[0] // 10, f"{sound[0] % 10}{digits}"
    told = parts[2] == steps[-1].partition("=")[2] and len(steps) == len(columns)
    return KINDS[1] if told else KINDS[2]


if __name__ == "__main__":
    main()
