"""A real model learns on a laptop: SmolLM2-135M-Instruct and short sums in chat form, by `minirl
grpo`, on several seeds.

    python benchmarks/real_example.py --init HuggingFaceTB/SmolLM2-135M-Instruct --out FOLDER

Prints a row per seed: right answers on the held-out sums, sampled as in training and at temperature
0, before and after; and what became of the others: the right sum and another number behind "####",
a wrong sum, or no answer in the asked form. So it can be told whether the model learnt to add, or
to answer in a form. Draws benchmarks/figures/real_model.png.

A sum and its mirror image (3+4 and 4+3) are in the same split. A prompt shows one solved sum, as
turns of a conversation, and so the form of an answer: the sum itself, then "#### 8".
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from common import commit, heading, row, run_minirl, table_head
from minirl.app.rundir import RunDir
from minirl.inference.evaluate import Evaluation, evaluate
from minirl.lm.chat import Chat
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.figures import COLOURS, circle, entry, new_figure, save, tidy, whole_steps
from minirl.tasks.answers import claims
from minirl.tasks.dataset import load_dataset

LARGEST = 15
SYSTEM = "Add."
FLAGS = ("--system-prompt", SYSTEM, "--max-new-tokens", 16, "--kl-coef", 0, "--lr", 3e-5)
KINDS = "right", "miscopied", "wrong sum", "no answer"
TEMPERATURES = 1.0, 0.0
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
    before = outcomes(args.init, problems, args.out / "before.json")
    runs, tables = [], []
    for seed in range(args.seeds):
        run = run_minirl("grpo", args.out / f"seed-{seed}", "--init", args.init, "--data", problems,
                         "--seed", seed, "--steps", args.steps, "--dtype", args.dtype, *FLAGS)
        runs.append(run)
        after = outcomes(run.path / "final", problems, run.path / "after.json")
        tables.append(after)
        for temperature in TEMPERATURES:
            print(row(seed, temperature, *(f"{counts[temperature][kind]:.2f}"
                                           for counts in (before, after) for kind in KINDS),
                      f"{sum(step['step_time'] for step in run.metrics()):.0f}"), flush=True)
    picture(runs, before[1.0], [after[1.0] for after in tables], args.figure)


def sums() -> list[dict[str, Any]]:
    """Return all sums of 1 to LARGEST as problems, a quarter of them held out."""
    shown = [{"role": "user", "content": "2 + 6 = ?"},
             {"role": "assistant", "content": "2 + 6 = 8\n#### 8"}]
    numbers = range(1, LARGEST + 1)
    return [{"prompt": [*shown, {"role": "user", "content": f"{a} + {b} = ?"}], "answer": a + b,
             "split": "test" if Random(min(a, b) * 100 + max(a, b)).random() < 0.25 else "train"}
            for a in numbers for b in numbers]


def outcomes(checkpoint: Path | str, problems: Path, file: Path) -> dict[float, Counts]:
    """Return what becomes of the held-out sums, by temperature. Kept in a file."""
    if not file.exists():
        task = load_dataset(problems)
        model, tokenizer = load_pretrained(checkpoint)
        found = {temperature: shares(evaluate(
            model, tokenizer.with_chat(Chat(SYSTEM)), task, n=LARGEST ** 2, max_new_tokens=16,
            temperature=temperature, seed=1)) for temperature in TEMPERATURES}
        file.write_text(json.dumps(found), encoding="utf-8")
    return {float(temperature): counts
            for temperature, counts in json.loads(file.read_text(encoding="utf-8")).items()}


def shares(evaluation: Evaluation) -> Counts:
    """Return the share of completions of each kind."""
    counts = dict.fromkeys(KINDS, 0)
    for problem, texts, verdicts in zip(evaluation.problems, evaluation.completions,
                                        evaluation.verdicts["accuracy"], strict=True):
        for text, verdict in zip(texts, verdicts, strict=True):
            counts["right" if verdict == 1.0 else failure(text, problem.answer)] += 1
    return {kind: count / sum(counts.values()) for kind, count in counts.items()}


def failure(text: str, answer: str) -> str:
    r"""Return the kind of a wrong completion. In a miscopied one the sum is right, and what stands
    behind "####" is another number.

    >>> [failure(text, "8") for text in ("3 + 5 = 8\n#### 5", "3 + 5 = 9\n#### 9", "eight")]
    ['miscopied', 'wrong sum', 'no answer']
    """
    if not any(place.strip().isdigit() for place in claims(text)):
        return "no answer"
    written = re.search(r"= *(\d+)", text)
    return "miscopied" if written is not None and written[1] == answer else "wrong sum"


# the figure

def picture(runs: Sequence[RunDir], before: Counts, afters: Sequence[Counts], out: Path) -> None:
    """Draw accuracy and entropy by step, and what became of the held-out sums."""
    figure, (accuracy, entropy, kinds) = new_figure(1, 3, (11.5, 3.5))
    curve(accuracy, runs, "rewards/accuracy/mean", COLOURS[0])
    curve(entropy, runs, "entropy", COLOURS[3])
    last = runs[0].metrics()[-1]["step"]
    for step, counts in ((0, before), *((last, after) for after in afters)):
        accuracy.plot(step, counts["right"], linestyle="none", clip_on=False, zorder=5,
                      **circle(COLOURS[1]))
    accuracy.set_ylim(0, 1)
    entropy.set_ylim(bottom=0)
    accuracy.legend(handles=[
        entry("training sums, mean of the seeds", color=COLOURS[0], linewidth=2.5),
        entry("a seed", color=COLOURS[0], linewidth=1, alpha=0.4),
        entry("held-out sums, a seed", linestyle="none", **circle(COLOURS[1]))],
        loc="lower right", fontsize=8, frameon=False)
    tidy(accuracy, "Right answers", x="GRPO step (32 completions each)", y="share right")
    tidy(entropy, "Entropy of the policy", x="GRPO step", y="nats per token")
    for axis in (accuracy, entropy):
        whole_steps(axis)
    bars(kinds, before, afters)
    save(figure, out)


def curve(axis: Any, runs: Sequence[RunDir], metric: str, colour: str) -> None:
    """Draw a metric by step: each run, and their mean."""
    lines = [run.metrics() for run in runs]
    steps = [step["step"] for step in lines[0]]
    values = [[step[metric] for step in line] for line in lines]
    for one in values:
        axis.plot(steps, one, color=colour, linewidth=1, alpha=0.4)
    axis.plot(steps, [sum(column) / len(column) for column in zip(*values, strict=True)],
              color=colour, linewidth=2.5)


def bars(axis: Any, before: Counts, afters: Sequence[Counts]) -> None:
    """Draw the held-out sums before and after, as parts of 1; after: a mean over seeds."""
    bottom = [0.0, 0.0]
    for kind, colour in zip(KINDS, (COLOURS[2], "#e0a458", COLOURS[1], "#b8bec8"), strict=True):
        heights = [before[kind], sum(after[kind] for after in afters) / len(afters)]
        axis.bar(["before", "after"], heights, bottom=bottom, color=colour, width=0.6)
        for x, (low, height) in enumerate(zip(bottom, heights, strict=True)):
            if height > 0.04:
                axis.text(x, low + height / 2, f"{kind} {height:.2f}", ha="center", va="center",
                          fontsize=8, color="white" if kind in ("right", "wrong sum") else "black")
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set_ylim(0, 1)
    tidy(axis, f"Held-out sums, after: mean of {len(afters)} seeds", y="share")
    axis.grid(False)


if __name__ == "__main__":
    main()
