"""How the cost of one GRPO step grows, beside what its FLOPs predict: with the batch, the length of
completions, the parameters and the vocabulary.

    python benchmarks/scaling.py                        the tables of RESULTS.md, and a figure
    python benchmarks/scaling.py --device cuda --dtype bfloat16
    python benchmarks/scaling.py --quick --figure quick.png          a few small points

One number varies at a time; the others stay at the base size. No token ends a completion, so that
all have their full length. Sampling is what the trainer calls. Learning is log-probs with entropy,
backward and the optimizer's step, in the trainer's micro-batches. For the vocabulary the table also
has the memory that learning needs for logits: the largest tensor with a row of V numbers per token,
beside all logits at once.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch._dynamo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import (
    commit,
    heading,
    in_turn,
    processor,
    product_rate,
    row,
    table_head,
)
from minirl.lm.figures import COLOURS, tidy
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.precision import DTYPES, compute_in
from minirl.lm.rollouts import Rollouts, micro_batches
from minirl.lm.sampling import sample
from minirl.train.adamw import AdamW
from minirl.train.grpo import GRPOConfig
from minirl.train.state import make_optimizer

GROUP = 8                          # completions per prompt
HEAD = 32                          # features of an attention head
WIDER = 3                          # the feed-forward layer's width over the model's
PARTS = ("sampling", "learning")
# (width, layers)
LADDER = [(64, 2), (96, 3), (128, 4), (192, 5), (256, 6), (320, 8)]      # 0.1M to 11M parameters
LARGER = [(512, 8), (768, 12), (1024, 16)]                               # to 0.2B
PANELS = {"batch": "completions per step", "completion": "tokens per completion",
          "parameters": "parameters of the model"}
TICKS = (1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)


@dataclass(frozen=True)
class Size:
    """One step's batch and model."""

    rows: int = 64                 # completions
    completion: int = 64           # tokens
    prompt: int = 16
    width: int = 128
    layers: int = 4
    vocab: int = 64

    def model(self) -> Transformer:
        torch.manual_seed(0)
        return Transformer(ModelConfig(
            vocab_size=self.vocab, hidden_size=self.width, num_layers=self.layers,
            num_heads=self.width // HEAD, intermediate_size=WIDER * self.width,
            max_seq_len=self.prompt + self.completion))


@dataclass(frozen=True)
class Point:
    """What one size took and needed. `seconds` and `flops` are by part of the step."""

    size: Size
    parameters: int
    seconds: dict[str, float]
    flops: dict[str, float]
    largest: float | None = None   # MiB: the largest tensor of logits in learning
    peak: float | None = None      # MiB: what learning allocates on CUDA at its peak

    def at(self, axis: str) -> int:
        return {"batch": self.size.rows, "completion": self.size.completion,
                "parameters": self.parameters, "vocabulary": self.size.vocab}[axis]

    def rate(self, part: str) -> float:
        """Return the FLOPs per second of a part."""
        return self.flops[part] / self.seconds[part]


def flops(s: Size) -> dict[str, float]:
    """Return the FLOPs that sampling and learning cannot do without, two per multiply-add.

    A prompt is computed once for its group. A completion's last token is never computed, as nothing
    is predicted from it. A computed token costs two FLOPs per parameter of the blocks' matrices,
    and in each layer's attention 4 * width per key: q k^T and the sum of values. Only sampled
    tokens need logits.

    Learning does all this once forward and, at twice the cost, backward. It computes each logit
    once more, as none is kept. Embedding, norms, softmax and the optimizer are not counted.
    """
    groups = s.rows // GROUP
    matrices = s.layers * (4 + 3 * WIDER) * s.width ** 2           # q, k, v, o; gate, up, down
    tokens = groups * s.prompt + s.rows * (s.completion - 1)
    in_prompts = triangle(s.prompt)
    in_completions = triangle(s.prompt + s.completion - 1) - in_prompts
    keys = groups * in_prompts + s.rows * in_completions
    blocks = 2 * matrices * tokens + 4 * s.width * s.layers * keys
    logits = 2 * s.width * s.vocab * s.rows * s.completion
    return {"sampling": blocks + logits, "learning": 3 * blocks + 4 * logits}


def triangle(n: int) -> int:
    """Return how many keys the first n tokens of a row see: each itself and those before it."""
    return n * (n + 1) // 2


def sizes(device: str, quick: bool) -> dict[str, list[Size]]:
    """Return the points of each axis."""
    base = Size()
    batch = completion = [16, 32, 64, 128, 256, 512]
    vocab, ladder = [256, 1024, 4096, 16_384, 32_768], LADDER
    if device == "cuda":
        base = Size(rows=512, completion=128, prompt=64, width=512, layers=8, vocab=512)
        batch, vocab = [64, 128, 256, 512, 1024, 2048], [*vocab, 131_072]
        ladder = LADDER + LARGER
    if quick:
        base = Size(rows=16, completion=16)
        batch = completion = [16, 32, 64, 128]
        vocab, ladder = [256, 1024, 4096], LADDER[:4]
    return {"batch": [replace(base, rows=n) for n in batch],
            "completion": [replace(base, completion=n) for n in completion],
            "parameters": [replace(base, width=width, layers=n) for width, n in ladder],
            "vocabulary": [replace(base, vocab=n) for n in vocab]}


# measuring one size

class LargestLogits(TorchDispatchMode):
    """Record the bytes of the largest tensor that any operation makes with rows of `vocab`
    numbers."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.bytes = vocab, 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.dim() and x.shape[-1] == self.vocab:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


def measure(s: Size, *, device: str, dtype: str, compiled: bool, repeats: int,
            memory: bool) -> Point:
    # Each size is compiled for itself, as in a run of its own. This also undoes what logits_memory
    # does to the one before: it makes torch.compile give a function up.
    torch._dynamo.reset()
    model = s.model().to(device).eval()
    model.compiled = compiled
    optimizer = make_optimizer(model, GRPOConfig(lr=1e-6))
    rng = random.Random(0)
    prompts = [[rng.randrange(s.vocab) for _ in range(s.prompt)] for _ in range(s.rows // GROUP)]

    def sampling() -> Rollouts:
        return sample(model, prompts, group=GROUP, max_new_tokens=s.completion, eos_id=None,
                      pad_id=0)

    with compute_in(dtype, model.device):
        rollouts = sampling()                                      # this and the next: warm-up

        def learning() -> None:
            learn(model, optimizer, rollouts, total=s.rows * s.completion)

        learning()
        times = in_turn({"sampling": sampling, "learning": learning}, repeats=repeats, warmup=0)
        largest, peak = logits_memory(model, learning) if memory else (None, None)
    medians = {part: statistics.median(times[part]) for part in PARTS}
    return Point(s, model.num_parameters(), medians, flops(s), largest, peak)


def learn(model: Transformer, optimizer: AdamW, rollouts: Rollouts, *, total: int) -> None:
    """Do what a GRPO step does with its rollouts of `total` tokens, except for the objective."""
    for rows in micro_batches(rollouts.lengths, GRPOConfig.token_budget):
        part = rollouts.rows(rows)
        logp, _ = token_logprobs(model, part.tokens, mask=part.mask, return_entropy=True)
        (-logp.sum() / total).backward()
    optimizer.step()
    optimizer.zero_grad()


def logits_memory(model: Transformer,
                  learning: Callable[[], None]) -> tuple[float, float | None]:
    """Return the MiB of the largest tensor of logits, and on CUDA of all that learning allocates at
    its peak."""
    peak = None
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        learning()
        peak = (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    model.compiled = False             # compiled code does not show which tensors it makes
    with LargestLogits(model.config.vocab_size) as largest:
        learning()
    return largest.bytes / 2 ** 20, peak


# the tables and the figure

def slope(points: Sequence[Point], part: str) -> float:
    """Return the slope of log(seconds) over log(FLOPs) on the upper half of the points: 1 where
    time grows as the work does."""
    upper = points[len(points) // 2:]
    work, time = [log(p.flops[part]) for p in upper], [log(p.seconds[part]) for p in upper]
    return statistics.linear_regression(work, time).slope


def line(axis: str, p: Point) -> str:
    all_logits = p.size.rows * p.size.completion * p.size.vocab * 4 / 2 ** 20
    memory = (p.largest, None if p.largest is None else all_logits, p.peak)
    return row(axis, p.size.rows, p.size.completion, short(p.parameters), p.size.vocab,
               *(f"{p.seconds[part]:.3f}" for part in PARTS),
               *(f"{p.flops[part] / 1e9:.2f}" for part in PARTS),
               *(f"{p.rate(part) / 1e9:.0f}" for part in PARTS),
               *("" if value is None else f"{value:.3g}" for value in memory))


def short(n: float) -> str:
    """Return a number of parameters in millions, with two digits."""
    return f"{n / 1e6:.2g}M" if n < 1e7 else f"{n / 1e6:.0f}M"


def draw(results: Mapping[str, Sequence[Point]], text: str, out: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.4, 3.5), sharey=True,
                                layout="constrained")
    for axis, name in zip(axes, PANELS, strict=True):
        panel(axis, name, results[name])
    axes[0].set_ylabel("seconds per step", fontsize=11)
    axes[0].plot([], [], "--", color="0.4", linewidth=1.4, label="as its FLOPs grow")
    axes[0].legend(fontsize=10, frameon=False, loc="upper left")
    figure.suptitle(text, fontsize=11, x=0.01, ha="left")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def panel(axis: Any, name: str, points: Sequence[Point]) -> None:
    """Draw both parts' seconds, and dashed what the FLOPs predict from the last point."""
    x, last = [p.at(name) for p in points], points[-1]
    for part, colour, marker, size in zip(PARTS, COLOURS[:2], "os", (8, 5.5), strict=True):
        predicted = [p.flops[part] / last.rate(part) for p in points]
        axis.plot(x, predicted, "--", color=colour, linewidth=1.4, alpha=0.7)
        axis.plot(x, [p.seconds[part] for p in points], marker, color=colour, markersize=size,
                  label=part)
    axis.set(xscale="log", yscale="log")
    axis.set_xlabel(PANELS[name], fontsize=11)
    if name == "parameters":
        ticks = [n for n in TICKS if x[0] * 0.8 < n < x[-1] * 1.2]
        axis.set_xticks(ticks, [short(n) for n in ticks])
    else:
        axis.set_xticks(x, [str(n) for n in x])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    tidy(axis)
    axis.tick_params(labelsize=9.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--compile", action="store_true", help="compile the model")
    parser.add_argument("--quick", action="store_true",
                        help="few small points, and no figure unless --figure names one")
    parser.add_argument("--figure", type=Path, default=None,
                        help="where to draw (default: figures/scaling.png beside this file)")
    args = parser.parse_args()
    figure = args.figure
    if figure is None and not args.quick:
        figure = Path(__file__).parent / "figures" / "scaling.png"
    product = 512 if args.quick else 2048 if args.device == "cpu" else 8192

    compiled = "compiled" if args.compile else "not compiled"
    print(f"{heading(args.device)}, {args.dtype}, {compiled}, commit {commit()}\n")
    print(table_head("varied", "batch", "completion", "parameters", "vocabulary", "sampling, s",
                     "learning, s", "sampling, GFLOP", "learning, GFLOP", "sampling, GFLOP/s",
                     "learning, GFLOP/s", "largest tensor of logits, MiB", "all logits, MiB",
                     "peak on CUDA, MiB"))
    results: dict[str, list[Point]] = {}
    rates = []
    for axis, points in sizes(args.device, args.quick).items():
        results[axis] = []
        for s in points:
            point = measure(s, device=args.device, dtype=args.dtype, compiled=args.compile,
                            repeats=1 if args.quick else 3, memory=axis == "vocabulary")
            results[axis].append(point)
            print(line(axis, point), flush=True)
        rates.append(product_rate(product, args.device, args.dtype))

    rate = statistics.median(rates)
    print("\nSlope of log(seconds) over log(FLOPs), on the upper half of the points, and the FLOP "
          f"rate at the last point as a share of the {rate / 1e9:.0f} GFLOP/s of a {product} x "
          f"{product} matrix product:\n")
    print(table_head("varied", "slope of sampling", "of learning", "FLOPs predict",
                     "rate of sampling", "of learning"))
    for axis, measured in results.items():
        print(row(axis, *(f"{slope(measured, part):.2f}" for part in PARTS), "1.00",
                  *(f"{measured[-1].rate(part) / rate:.0%}" for part in PARTS)))
    if figure is not None:
        hardware = processor() if args.device == "cpu" else torch.cuda.get_device_name()
        draw(results, f"One GRPO step on {hardware}, {args.dtype}", figure)


if __name__ == "__main__":
    main()
