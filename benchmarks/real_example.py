"""A real model learns on a laptop: SmolLM2-135M-Instruct and short sums in chat form, by `minirl
grpo`, on several seeds.

    python benchmarks/real_example.py --init HuggingFaceTB/SmolLM2-135M-Instruct --out FOLDER

Prints a row per seed: right answers on the held-out sums, sampled as in training and at temperature
0, before and after; and what became of the others: a wrong sum, or no answer in the asked form. So
it can be told whether the model learnt to add or to answer in a form. Draws
benchmarks/figures/real_model.png.

A sum and its mirror image (3+4 and 4+3) are in the same split. A prompt shows one solved sum, as
turns of a conversation, and so the form of an answer: the sum itself, then "#### 8".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from common import commit, heading, row, run_minirl, spread, table_head
from minirl.app.rundir import RunDir
from minirl.app.tasks import make_task
from minirl.inference.evaluate import Evaluation, evaluate
from minirl.lm.chat import Chat
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.figures import COLOURS, circle, draw, new_figure, save, tidy, whole_steps
from minirl.tasks.answers import claims

LARGEST = 15
SYSTEM = "Add."
FLAGS = ("--system-prompt", SYSTEM, "--max-new-tokens", 16, "--kl-coef", 0, "--lr", 3e-5)
KINDS = "right", "wrong sum", "no answer"
FIGURE = Path(__file__).parent / "figures" / "real_model.png"

Counts = dict[str, float]              # share of the held-out sums, by KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    problems = args.out / "sums.jsonl"
    problems.write_text("".join(json.dumps(line) + "\n" for line in sums()), encoding="utf-8")
    print(f"{heading()}, commit {commit()}, {args.dtype}\n")
    print(table_head("seed", "temperature", *(f"{kind}, {when}" for when in ("before", "after")
                                              for kind in KINDS), "seconds of the steps"))
    runs, tables = [], []
    for seed in range(args.seeds):
        run = run_minirl("grpo", args.out / f"seed-{seed}", "--init", args.init, "--data", problems,
                         "--seed", seed, "--steps", args.steps, "--dtype", args.dtype, *FLAGS)
        runs.append(run)
        tables.append(outcomes(args.init, run, problems))
        for temperature, (before, after) in tables[-1].items():
            print(row(seed, temperature, *(f"{when[kind]:.2f}" for when in (before, after)
                                           for kind in KINDS),
                      f"{sum(step['step_time'] for step in run.metrics()):.0f}"), flush=True)
    for temperature in (1.0, 0.0):
        print(row("median (range)", temperature,
                  *(spread([table[temperature][when][kind] for table in tables])
                    for when in (0, 1) for kind in KINDS), ""))
    picture(runs, [table[1.0] for table in tables], args.figure)


def sums() -> list[dict[str, Any]]:
    """Return all sums of 1 to LARGEST as problems, a quarter of them held out."""
    shown = [{"role": "user", "content": "2 + 6 = ?"},
             {"role": "assistant", "content": "2 + 6 = 8\n#### 8"}]
    numbers = range(1, LARGEST + 1)
    return [{"prompt": [*shown, {"role": "user", "content": f"{a} + {b} = ?"}], "answer": a + b,
             "split": "test" if Random(min(a, b) * 100 + max(a, b)).random() < 0.25 else "train"}
            for a in numbers for b in numbers]


def outcomes(init: str, run: RunDir, problems: Path) -> dict[float, tuple[Counts, Counts]]:
    """Return what became of the held-out sums, before and after, by temperature. Kept in the run's
    folder."""
    file = run.path / "outcomes.json"
    if not file.exists():
        task = make_task({"name": "dataset", "data": str(problems)})
        found: dict[str, list[Counts]] = {"1.0": [], "0.0": []}
        for checkpoint in (init, run.path / "final"):
            model, tokenizer = load_pretrained(checkpoint)
            for temperature, both in found.items():
                both.append(shares(evaluate(
                    model, tokenizer.with_chat(Chat(SYSTEM)), task, n=LARGEST ** 2,
                    max_new_tokens=16, temperature=float(temperature), seed=1)))
        file.write_text(json.dumps(found), encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    return {float(temperature): (before, after) for temperature, (before, after) in found.items()}


def shares(evaluation: Evaluation) -> Counts:
    """Return the share of completions that are right, give another number, and give none."""
    counts = dict.fromkeys(KINDS, 0)
    for texts, verdicts in zip(evaluation.completions, evaluation.verdicts["accuracy"],
                               strict=True):
        for text, verdict in zip(texts, verdicts, strict=True):
            counts[kind_of(text, verdict)] += 1
    return {kind: count / sum(counts.values()) for kind, count in counts.items()}


def kind_of(text: str, verdict: float | None) -> str:
    if verdict == 1.0:
        return "right"
    return "wrong sum" if any(place.strip().isdigit() for place in claims(text)) else "no answer"


# the figure

def picture(runs: Sequence[RunDir], tables: Sequence[tuple[Counts, Counts]], out: Path) -> None:
    """Draw accuracy and length by step, a curve per seed, and what became of the held-out sums."""
    figure, (accuracy, length, kinds) = new_figure(1, 3, (11.5, 3.5))
    for i, run in enumerate(runs):
        steps, style = run.metrics(), {"color": COLOURS[i]}
        for axis, name in ((accuracy, "rewards/accuracy/mean"),
                           (length, "completions/mean_length")):
            draw(axis, [(step["step"], step[name]) for step in steps], style)
        for step, counts in zip((0, steps[-1]["step"]), tables[i], strict=True):
            accuracy.plot(step, counts["right"], linestyle="none", clip_on=False, zorder=5,
                          **circle(COLOURS[i]))
    accuracy.set_ylim(0, 1)
    length.set_ylim(bottom=0)
    tidy(accuracy, "Right answers: it learns to add", x="GRPO step", y="share right")
    tidy(length, "Mean response length", x="GRPO step", y="tokens")
    accuracy.text(0.97, 0.06, f"curves: training sums, {len(runs)} seeds\ncircles: held-out sums",
                  transform=accuracy.transAxes, fontsize=8, ha="right")
    for axis in (accuracy, length):
        whole_steps(axis)
    bars(kinds, tables)
    save(figure, out)


def bars(axis: Any, tables: Sequence[tuple[Counts, Counts]]) -> None:
    """Draw the held-out sums before and after, as parts of 1; a mean over seeds."""
    bottom = [0.0, 0.0]
    for kind, colour in zip(KINDS, (COLOURS[2], COLOURS[1], "#b8bec8"), strict=True):
        heights = [sum(table[when][kind] for table in tables) / len(tables) for when in (0, 1)]
        axis.bar(["before", "after"], heights, bottom=bottom, color=colour, width=0.6)
        for x, (low, height) in enumerate(zip(bottom, heights, strict=True)):
            if height > 0.05:
                axis.text(x, low + height / 2, f"{kind} {height:.2f}", ha="center", va="center",
                          fontsize=8, color="white" if kind != "no answer" else "black")
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set_ylim(0, 1)
    tidy(axis, "Held-out sums", y="share")


if __name__ == "__main__":
    main()
