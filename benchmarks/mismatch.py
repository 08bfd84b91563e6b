"""Sampler against learner: by the size of the model and the length of a completion, and what
batch-invariant arithmetic costs, in which the two agree to the bit.

    python benchmarks/mismatch.py --out FILE --init FOLDER                a checkpoint, on sums
    python benchmarks/mismatch.py --out FILE --init FOLDER --data GSM8K   on questions
    python benchmarks/mismatch.py --out FILE --cost                       tokens per second
    python benchmarks/mismatch.py --out FILE --draw                       tables and figure

What is measured is added to FILE; --only names what to measure of a checkpoint. Each dtype samples
with seed 0; the same tokens are scored in the same dtype, and in float32. bfloat16 is measured in
batch-invariant arithmetic, too. The cost is in seconds of the processor: the sampler as it is and
batch-invariant, and a forward and a backward pass of the learner over what was sampled, in turn,
for completions of fixed lengths. The table has medians, of several --cost over all of them.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common import commit, heading, in_turn, make_model, row, spread, table_head
from minirl.inference.evaluate import distinct_problems
from minirl.inference.mismatch import Mismatch, measure_mismatch, short
from minirl.lm.chat import Chat
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.figures import (
    COLOURS,
    DASHES,
    circle,
    entry,
    legend_below,
    log_scale,
    new_figure,
    save,
    tidy,
)
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import DTYPES, compute_in
from minirl.lm.rollouts import Rollouts, micro_batches
from minirl.lm.sampling import sample
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.gsm8k import load_gsm8k
from study import FIGURES, Record, add_record, records

CPU = torch.device("cpu")
WAYS = {**{dtype: (dtype, False) for dtype in DTYPES}, "batch-invariant": ("bfloat16", True)}
USUAL, EXACT = "usual", "batch-invariant"
LEAST = 16                          # completions of a length, for a point of the spreads
BLUE, RED, _, _, _, GREY = COLOURS
COLOUR = {"float32": GREY, "bfloat16": RED, "float16": BLUE}
LOOKS: tuple[dict[str, Any], ...] = (
    {"linestyle": "-"}, {"linestyle": DASHES}, {"linestyle": ":"}, {"linestyle": "-."})
COSTS = (("0.86M", 1, 8, 64), ("10M", 1, 8, 64), ("0.86M", 16, 8, 128), ("0.86M", 4, 8, 384),
         ("10M", 8, 4, 128))        # model, prompts, group, new tokens
MODELS = sorted({model for model, *_ in COSTS})
REPEATS = 3                         # of the cost, after one to warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON per measurement")
    parser.add_argument("--init", type=Path, default=None, help="a checkpoint's folder")
    parser.add_argument("--data", type=Path, default=None, help="GSM8K (default: sums of 3 digits)")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS),
                        help="dtypes of the sampler, or bfloat16 in batch-invariant arithmetic")
    parser.add_argument("--cost", nargs="*", choices=MODELS,
                        help="measure what it costs, in these models (default: all)")
    parser.add_argument("--draw", action="store_true", help="tables, and the figure")
    parser.add_argument("--figure", type=Path, default=FIGURES / "mismatch.png")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{heading()}, commit {commit()}\n", flush=True)
    if args.init is not None:
        measure(args)
    for model, prompts, group, length in COSTS if args.cost is not None else ():
        if model in (args.cost or MODELS):
            for dtype in ("float32", "bfloat16"):
                add_record(args.out, cost(model, prompts, group, length, dtype))
    if args.draw:
        lines = records(args.out)
        pairs = [line for line in lines if line["what"] == "mismatch"]
        mismatch_table(pairs)
        cost_table([line for line in lines if line["what"] == "cost"])
        draw(pairs, args.figure)


# the mismatch

def measure(args: argparse.Namespace) -> None:
    """Measure a checkpoint in each dtype, and in bfloat16 once more where it is batch-invariant: or
    in what --only names."""
    model, tokenizer = load_pretrained(args.init, dtype=torch.float32, device=CPU)
    if tokenizer.named_templates:
        tokenizer = tokenizer.with_chat(Chat())
    task: Any = Arithmetic("addition", 3) if args.data is None else load_gsm8k(args.data)
    problems = distinct_problems(task, args.problems, random.Random(0), split="test")
    for dtype, invariant in (WAYS[name] for name in args.only):
        began = time.process_time()
        with compute_in("float32", CPU, batch_invariant=invariant):
            pairs = measure_mismatch(
                model, tokenizer, task, problems, sampler=dtype, group=args.samples,
                learners=[dtype] if invariant else list(dict.fromkeys([dtype, "float32"])),
                max_new_tokens=args.max_new_tokens)
        for pair in pairs:
            line = {"what": "mismatch", "parameters": model.num_parameters(), "task": task.name,
                    "invariant": invariant, **numbers(pair),
                    "seconds": round(time.process_time() - began, 1)}
            add_record(args.out, line)
            print(", ".join(f"{name} {value}" for name, value in line.items()
                            if name != "spreads"), flush=True)


def numbers(pair: Mismatch) -> Record:
    differences = pair.differences
    return {"sampler": pair.sampler, "learner": pair.learner, "completions": len(pair.mask),
            "tokens": len(differences), "entropy": -float(pair.behavior_logp[pair.mask].mean()),
            "mean": float(differences.mean()), "largest": float(differences.max()),
            "far": pair.share_far, "sequence": float(pair.sequence_log_ratios.std()),
            "ess": pair.sample_share, "k1": pair.k1, "k3": pair.k3,
            "spreads": pair.spreads(LEAST)}


def size(line: Record) -> str:
    millions = line["parameters"] / 1e6
    return f"{millions:.1f}M" if millions < 100 else f"{millions:.0f}M"


def policies(lines: Sequence[Record]) -> list[tuple[int, str]]:
    return sorted({(line["parameters"], line["task"]) for line in lines})


def mismatch_table(lines: Sequence[Record]) -> None:
    print(table_head("model", "problems", "sampler", "learner", "mean abs Δ log p", "largest",
                     "far", "std Σ", "tokens", "ESS", "k1", "k3", "−log μ"))
    for policy in policies(lines):
        for line in (x for x in lines if (x["parameters"], x["task"]) == policy):
            learner = line["learner"] + (", batch-invariant" if line["invariant"] else "")
            print(row(size(line), line["task"], line["sampler"], learner, short(line["mean"]),
                      short(line["largest"]), f"{line['far']:.2%}", short(line["sequence"]),
                      f"{line['tokens'] / line['completions']:.0f}", f"{line['ess']:.1%}",
                      short(line["k1"]), short(line["k3"]), f"{line['entropy']:.2f}"))
    print("\nbfloat16 over float16, same dtype on both sides, and against float32:")
    for parameters, task in policies(lines):
        both = [of(lines, (parameters, task), "bfloat16", learners[0])["mean"]
                / of(lines, (parameters, task), "float16", learners[1])["mean"]
                for learners in (("bfloat16", "float16"), ("float32", "float32"))]
        print(f"{parameters / 1e6:.1f}M, {task}: {both[0]:.1f} and {both[1]:.1f}")


def of(lines: Sequence[Record], policy: tuple[int, str], sampler: str, learner: str) -> Record:
    """Return the line of a pair, as usual arithmetic computes it: the last one measured."""
    return [x for x in lines if (x["parameters"], x["task"], x["sampler"], x["learner"],
                                 x["invariant"]) == (*policy, sampler, learner, False)][-1]


# the cost

def cost(name: str, prompts: int, group: int, length: int, dtype: str) -> Record:
    """Return the seconds of sampler and learner, as they are and batch-invariant."""
    model, rng = make_model(name, context=512), random.Random(0)
    texts = [[rng.randrange(2, 60) for _ in range(16)] for _ in range(prompts)]
    rollouts: dict[bool, Rollouts] = {}

    def grow(invariant: bool) -> None:
        with compute_in(dtype, CPU, batch_invariant=invariant):
            rollouts[invariant] = sample(model, texts, group=group, eos_id=None, pad_id=0,
                                         max_new_tokens=length,
                                         generator=torch.Generator().manual_seed(0))

    def learn_from(invariant: bool) -> None:
        with compute_in(dtype, CPU, batch_invariant=invariant):
            learn(model, rollouts[invariant], exact=invariant)

    times = in_turn({f"{who}, {how}": partial(work, how == EXACT) for how in (USUAL, EXACT)
                     for who, work in (("sampler", grow), ("learner", learn_from))},
                    repeats=REPEATS, clock=time.process_time)
    line = {"what": "cost", "model": name, "rows": prompts * group, "length": length,
            "dtype": dtype, "seconds": times}
    print(line, flush=True)
    return line


def learn(model: Any, rollouts: Rollouts, *, exact: bool) -> None:
    """Compute the gradient of the log-probs of what was sampled; they are the sampler's to the bit
    if `exact`."""
    model.zero_grad()
    for rows in micro_batches(rollouts.lengths):
        part = rollouts.rows(rows)
        logp = token_logprobs(model, part.tokens, mask=part.mask)
        logp.sum().backward()
        assert not exact or torch.equal(logp.detach(), part.behavior_logp)


def cost_table(lines: Sequence[Record]) -> None:
    if not lines:
        return
    print("\n" + table_head("model", "rows", "new tokens", "dtype", "sampler, tokens/s",
                            "batch-invariant", "times as slow", "learner, tokens/s",
                            "batch-invariant", "times as slow"))
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for line in lines:
        key = tuple(line[name] for name in ("model", "rows", "length", "dtype"))
        groups.setdefault(key, []).append(line["seconds"])
    for key, measured in groups.items():
        print(row(*key, *slowdown_cells(measured, "sampler", key[1] * key[2]),
                  *slowdown_cells(measured, "learner", key[1] * key[2])))


def slowdown_cells(measured: Sequence[Record], who: str, tokens: int) -> tuple[str, str, str]:
    """Return tokens per second, usual and batch-invariant, and how many times as slow the second
    is: medians, with the spread of the last."""
    usual, exact = ([seconds for times in measured for seconds in times[f"{who}, {how}"]]
                    for how in (USUAL, EXACT))
    return (f"{tokens / median(usual):,.0f}", f"{tokens / median(exact):,.0f}",
            spread([b / a for a, b in zip(usual, exact, strict=True)]))


# the figure

def draw(lines: Sequence[Record], out: Path) -> None:
    figure, axes = new_figure(1, 3, (14.4, 4.4))
    every = policies(lines)
    for axis, value, text in ((axes[0], "mean", "Mean |Δ log p| of a token (nats)"),
                              (axes[1], "far", "Share of ratios outside [0.9, 1.1]")):
        bars(axis, lines, every, value, text)
    for look, policy in zip(LOOKS, every, strict=False):
        for dtype in ("bfloat16", "float16"):
            spreads = of(lines, policy, dtype, dtype)["spreads"]
            axes[2].plot(range(1, len(spreads) + 1), spreads, color=COLOUR[dtype], linewidth=1.8,
                         **look)
    ends = [axes[2].get_xlim()[1]]
    roots = [1, 4, 16, 64]
    axes[2].plot(roots, [1e-1 * math.sqrt(n / 64) for n in roots], color=GREY, linewidth=1)
    axes[2].annotate("√n", (roots[-1], 1e-1), fontsize=8, color=GREY, xytext=(3, 2),
                     textcoords="offset points")
    axes[2].set_xscale("log")
    axes[2].set_yscale("log")
    axes[2].set_xlim(right=max(*ends, 1.4 * roots[-1]))
    axes[2].set_xticks(roots, [str(n) for n in roots])
    axes[2].minorticks_off()
    tidy(axes[2], "Spread of the first n tokens' log-ratio", x="n",
         y="standard deviation of Σ log π/μ (nats)")
    names = [f"{parameters / 1e6:.1f}M, {task}" for parameters, task in every]
    legend_below(figure, [
        *(entry(dtype, color=colour, linewidth=5) for dtype, colour in COLOUR.items()),
        *(entry(name, color="black", linewidth=1.8, **look)
          for name, look in zip(names, LOOKS, strict=False))])
    save(figure, out)


def bars(axis: Any, lines: Sequence[Record], every: Sequence[tuple[int, str]], value: str,
         text: str) -> None:
    """A point for each dtype on both sides, policy after policy."""
    for dtype, colour in COLOUR.items():
        values = [of(lines, policy, dtype, dtype)[value] for policy in every]
        axis.plot(range(len(every)), values, linewidth=1, **circle(colour))
        for i, y in enumerate(values):
            axis.annotate(f"{y:.2%}" if value == "far" else short(y), (i, y), fontsize=7,
                          color=colour, xytext=(6, 4), textcoords="offset points")
    if value == "mean":
        log_scale(axis, 1e6)
    axis.set_xticks(range(len(every)),
                    [f"{parameters / 1e6:.1f}M\n{task}" for parameters, task in every])
    axis.set_xlim(-0.3, len(every) - 0.4)
    tidy(axis, text)


if __name__ == "__main__":
    main()
