"""How the cost of one GRPO step grows, beside what its FLOPs predict: with the batch, the completions' length, the parameters and the vocabulary.

    python benchmarks/scaling.py                                    the tables of RESULTS.md and figures/scaling.png
    python benchmarks/scaling.py --device cuda --dtype bfloat16
    python benchmarks/scaling.py --quick --figure quick.png         a few small points: does it run?

One number is varied at a time, the others stay at the base size. No token ends a completion, so that all have their full length. Sampling is what
the trainer calls; learning is log-probs with entropy, backward and the optimizer's step, in the trainer's micro-batches. Of the vocabulary it is
also asked how much memory learning gives to logits: the largest tensor with a row of V numbers per token, beside all logits at once.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch._dynamo
from common import commit, heading, in_turn, processor, row, seconds, table_head
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minirl.app.plots import COLOURS
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.precision import DTYPES, compute_in
from minirl.lm.rollouts import micro_batches
from minirl.lm.sampling import sample
from minirl.train.grpo import GRPOConfig
from minirl.train.state import make_optimizer

GROUP, HEAD, WIDER = 8, 32, 3      # completions per prompt; features per head; the feed-forward part's width over the model's
PARTS = ("sampling", "learning")
LADDER = [dict(width=width, layers=layers) for width, layers in ((64, 2), (96, 3), (128, 4), (192, 5), (256, 6), (320, 8))]        # 0.1M to 11M
LARGER = [dict(width=width, layers=layers) for width, layers in ((512, 8), (768, 12), (1024, 16))]                                # to 0.2B
PANELS = {"batch": "completions per step", "completion": "tokens per completion", "parameters": "parameters of the model"}


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
        return Transformer(ModelConfig(vocab_size=self.vocab, hidden_size=self.width, num_layers=self.layers, num_heads=self.width // HEAD,
                                       intermediate_size=WIDER * self.width, max_seq_len=self.prompt + self.completion))


@dataclass(frozen=True)
class Point:
    """What one size took and needed; by part of the step."""

    size: Size
    parameters: int
    seconds: dict[str, float]
    flops: dict[str, float]
    largest: float | None = None   # MiB: the largest tensor of logits in learning
    peak: float | None = None      # MiB: what learning allocates on CUDA at its peak

    def at(self, axis: str) -> int:
        return {"batch": self.size.rows, "completion": self.size.completion, "parameters": self.parameters, "vocabulary": self.size.vocab}[axis]


def flops(s: Size) -> dict[str, float]:
    """The FLOPs that sampling and learning cannot do without, two per multiply-add.

    A prompt is computed once for its group, a completion's last token never: nothing is predicted from it. A computed token costs two per parameter
    of the blocks' matrices, and in each layer's attention 4 * width per key: q k^T and the sum of values. Logits are wanted of sampled tokens alone.
    Learning does all this once forward and, at twice the cost, backward, and each logit once more, as none is kept. Looking ids up, norms, softmax
    and the optimizer count nothing.
    """
    groups = s.rows // GROUP
    matrices = s.layers * (4 + 3 * WIDER) * s.width ** 2                                          # q, k, v, o; gate, up, down
    tokens = groups * s.prompt + s.rows * (s.completion - 1)
    keys = groups * triangle(s.prompt) + s.rows * (triangle(s.prompt + s.completion - 1) - triangle(s.prompt))
    blocks = 2 * matrices * tokens + 4 * s.width * s.layers * keys
    logits = 2 * s.width * s.vocab * s.rows * s.completion
    return {"sampling": blocks + logits, "learning": 3 * blocks + 4 * logits}


def triangle(n: int) -> int:
    """Keys that the first n tokens of a row see, each itself and those before it."""
    return n * (n + 1) // 2


def sizes(device: str, quick: bool) -> dict[str, list[Size]]:
    base = Size() if device == "cpu" else Size(rows=512, completion=128, prompt=64, width=512, layers=8, vocab=512)
    batch, completion, vocab = [16, 32, 64, 128, 256, 512], [16, 32, 64, 128, 256, 512], [256, 1024, 4096, 16_384, 32_768]
    ladder = LADDER
    if device == "cuda":
        batch, vocab, ladder = [64, 128, 256, 512, 1024, 2048], [*vocab, 131_072], LADDER + LARGER
    if quick:
        base, batch, completion, vocab, ladder = Size(rows=16, completion=16), [16, 32, 64, 128], [16, 32, 64, 128], [256, 1024, 4096], LADDER[:4]
    return {"batch": [replace(base, rows=n) for n in batch], "completion": [replace(base, completion=n) for n in completion],
            "parameters": [replace(base, **shape) for shape in ladder], "vocabulary": [replace(base, vocab=n) for n in vocab]}


class LargestLogits(TorchDispatchMode):
    """Records how many bytes the largest tensor has that any operation makes with `vocab` numbers to a row."""

    def __init__(self, vocab: int):
        super().__init__()
        self.vocab, self.bytes = vocab, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.dim() and x.shape[-1] == self.vocab:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


def measure(s: Size, *, device: str, dtype: str, compiled: bool, repeats: int, memory: bool) -> Point:
    torch._dynamo.reset()                                      # each size is compiled for itself, as in a run of its own, and again after logits_memory,
                                                               # which makes torch.compile give a function up
    model = s.model().to(device).eval()
    model.compiled = compiled
    optimizer = make_optimizer(model, lr=1e-6, betas=(0.9, 0.999))
    draw = random.Random(0)
    prompts = [[draw.randrange(s.vocab) for _ in range(s.prompt)] for _ in range(s.rows // GROUP)]

    def sampling():
        return sample(model, prompts, group=GROUP, max_new_tokens=s.completion, eos_id=None, pad_id=0)

    def learning():
        for rows in micro_batches(rollouts.lengths, GRPOConfig.token_budget):
            part = rollouts.rows(rows)
            logp, _ = token_logprobs(model, part.tokens, mask=part.mask, return_entropy=True)
            (-logp.sum() / (s.rows * s.completion)).backward()
        optimizer.step()
        optimizer.zero_grad()

    with compute_in(dtype, model.device):
        rollouts = sampling()                                  # these two are the warm-up
        learning()
        times = in_turn({"sampling": sampling, "learning": learning}, repeats=repeats, warmup=0)
        largest, peak = logits_memory(model, learning) if memory else (None, None)
    return Point(s, model.num_parameters(), {part: statistics.median(times[part]) for part in PARTS}, flops(s), largest, peak)


def logits_memory(model: Transformer, learning: Callable) -> tuple[float, float | None]:
    """MiB: the largest tensor of logits, and on CUDA all that learning allocates at its peak."""
    peak = None
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        learning()
        peak = (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    model.compiled = False                                     # a compiled piece does not tell which tensors it makes
    with LargestLogits(model.config.vocab_size) as largest:
        learning()
    return largest.bytes / 2 ** 20, peak


def product_rate(n: int, device: str, dtype: str) -> float:
    """FLOPs per second of a product of two n x n matrices: the most that this machine may be asked for."""
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    a @ b
    return 2 * n ** 3 / statistics.median(seconds(lambda: a @ b) for _ in range(5))


def slope(points: list[Point], part: str) -> float:
    """Of log(seconds) over log(FLOPs), on the upper half of the points: 1 where time grows as the work does."""
    upper = points[len(points) // 2:]
    return statistics.linear_regression([log(p.flops[part]) for p in upper], [log(p.seconds[part]) for p in upper]).slope


def line(axis: str, p: Point) -> str:
    all_logits = p.size.rows * p.size.completion * p.size.vocab * 4 / 2 ** 20
    memory = ["" if value is None else f"{value:.3g}" for value in (p.largest, all_logits if p.largest is not None else None, p.peak)]
    return row(axis, p.size.rows, p.size.completion, short(p.parameters), p.size.vocab, *(f"{p.seconds[part]:.3f}" for part in PARTS),
               *(f"{p.flops[part] / 1e9:.2f}" for part in PARTS), *(f"{p.flops[part] / p.seconds[part] / 1e9:.0f}" for part in PARTS), *memory)


def short(n: float) -> str:
    """Two digits of a number of parameters, in millions."""
    return f"{n / 1e6:.2g}M" if n < 1e7 else f"{n / 1e6:.0f}M"


def draw(results: dict[str, list[Point]], title: str, out: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.4, 3.5), sharey=True, layout="constrained")
    for axis, name in zip(axes, PANELS):
        points = results[name]
        x = [p.at(name) for p in points]
        for part, colour, marker, bulk in zip(PARTS, COLOURS, "os", (8, 5.5)):
            last = points[-1]
            axis.plot(x, [last.seconds[part] * p.flops[part] / last.flops[part] for p in points], "--", color=colour, linewidth=1.4, alpha=0.7)
            axis.plot(x, [p.seconds[part] for p in points], marker, color=colour, markersize=bulk, label=part)
        axis.set(xscale="log", yscale="log")
        axis.set_xlabel(PANELS[name], fontsize=11)
        ticks = [n for n in (1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8) if x[0] * 0.8 < n < x[-1] * 1.2] if name == "parameters" else x
        axis.set_xticks(ticks, [short(n) if name == "parameters" else str(n) for n in ticks])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.tick_params(labelsize=9.5)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds per step", fontsize=11)
    axes[0].plot([], [], "--", color="0.4", linewidth=1.4, label="as its FLOPs grow")
    axes[0].legend(fontsize=10, frameon=False, loc="upper left")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--compile", action="store_true", help="the blocks compiled")
    parser.add_argument("--quick", action="store_true", help="few small points, and no figure unless --figure names one")
    parser.add_argument("--figure", type=Path, default=None, help="where to draw (default: figures/scaling.png beside this file)")
    args = parser.parse_args()
    figure = args.figure or (None if args.quick else Path(__file__).parent / "figures" / "scaling.png")
    product = 512 if args.quick else 2048 if args.device == "cpu" else 8192

    print(f"{heading(args.device)}, {args.dtype}, {'compiled' if args.compile else 'not compiled'}, commit {commit()}\n")
    print(table_head("varied", "batch", "completion", "parameters", "vocabulary", "sampling, s", "learning, s", "sampling, GFLOP", "learning, GFLOP",
                     "sampling, GFLOP/s", "learning, GFLOP/s", "largest tensor of logits, MiB", "all logits, MiB", "peak on CUDA, MiB"))
    results, rates = {}, []
    for axis, points in sizes(args.device, args.quick).items():
        results[axis] = []
        for s in points:
            results[axis].append(measure(s, device=args.device, dtype=args.dtype, compiled=args.compile, repeats=1 if args.quick else 3,
                                         memory=axis == "vocabulary"))
            print(line(axis, results[axis][-1]), flush=True)
        rates.append(product_rate(product, args.device, args.dtype))

    rate = statistics.median(rates)
    print(f"\nSlope of log(seconds) over log(FLOPs), on the upper half of the points, and the FLOP rate at the last point as a share of the "
          f"{rate / 1e9:.0f} GFLOP/s of a {product} x {product} matrix product:\n")
    print(table_head("varied", "slope of sampling", "of learning", "FLOPs predict", "rate of sampling", "of learning"))
    for axis, points in results.items():
        last = points[-1]
        print(row(axis, *(f"{slope(points, part):.2f}" for part in PARTS), "1.00",
                  *(f"{last.flops[part] / last.seconds[part] / rate:.0%}" for part in PARTS)))
    if figure is not None:
        draw(results, f"One GRPO step on {processor() if args.device == 'cpu' else torch.cuda.get_device_name()}, {args.dtype}", figure)


if __name__ == "__main__":
    main()
