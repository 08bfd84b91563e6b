"""Log-probs of given tokens from hidden states (N, d) and the output matrix (V, d): ours, others',
and the matrix products alone, in turn.

    python benchmarks/logprobs.py                     N 4,096, d 896, V 32,768, float32
    python benchmarks/logprobs.py --device cuda       N 16,384, d 896, V 151,936, bfloat16

"Forward" has no gradient, as for old and reference log-probs. "Forward + backward" is log-probs of
the same tokens, then the gradient of sum(weights * logp) with respect to hidden states and matrix.
The weights are a fixed random vector: like a policy's loss, this gives every token its own weight.
"Whole logits" computes all of them, (N, V), in one product. The floor is the products and nothing
else, into tensors that already exist: one product for the forward pass, three for both passes, and
four where backward computes the logits again to save memory.

Before timing, log-probs and both gradients are compared with log_softmax + gather. The difference
is the largest of the three, each relative to the largest magnitude in its tensor. A way whose
difference is above TOLERANCE is not timed. A random model's probabilities are small, so a way that
drops the gradient of unlikely tokens drops nearly all of it. TRL's function gets the rows as
sequences of 64 tokens: on a CPU it processes one sequence at a time.

"Extra memory" is the peak of forward + backward over what was held before, without the two
gradients, which all ways return. On a CPU it is the peak resident size of a fresh process (Linux
only). The whole call runs once before, so that code which is loaded or compiled at the first call
is not counted; then freed memory is given back and the peak is reset.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import commit, heading, in_turn, ratio, row, spread, table_head
from minirl.lm.logprobs import chunk_rows, linear_logprobs
from minirl.lm.precision import DTYPES

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
REFERENCE = "log_softmax + gather, whole logits"
SIZES = {"cpu": dict(rows=4096, vocab=32_768, dtype="float32"),
         "cuda": dict(rows=16_384, vocab=151_936, dtype="bfloat16")}

Way = Callable[[Tensor, Tensor, Tensor], Tensor]       # hidden, weight, targets -> logp (N,)


# the ways

def whole(logprobs: Callable[[Tensor, Tensor], Tensor]) -> Way:
    """Return a function of logits (N, V) and targets (N,) as one of hidden states and matrix."""
    return lambda hidden, weight, targets: logprobs(hidden @ weight.T, targets)


def wide(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)


def gathered(z: Tensor, y: Tensor) -> Tensor:
    return F.log_softmax(z, -1, dtype=wide(z)).gather(1, y[:, None]).squeeze(1)


def subtracted(z: Tensor, y: Tensor) -> Tensor:
    z = z.to(wide(z))
    return z.gather(1, y[:, None]).squeeze(1) - z.logsumexp(-1)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return -F.cross_entropy(z.to(wide(z)), y, reduction="none")


def trl() -> Way:
    from trl.trainer.utils import selective_log_softmax

    def logprobs(z: Tensor, y: Tensor) -> Tensor:
        rows = (-1, math.gcd(len(y), 64))
        return selective_log_softmax(z.unflatten(0, rows), y.unflatten(0, rows)).flatten()

    return whole(logprobs)


def torch_chunked() -> Way:
    # without options it computes the whole logits, as F.cross_entropy does
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, targets: -F.linear_cross_entropy(
        hidden, weight, targets, reduction="none", options=options)


def liger() -> Way:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    return lambda hidden, weight, targets: -liger_fused_linear_cross_entropy(
        hidden, weight, targets, reduction="none")


def cut(**options: Any) -> Way:
    from cut_cross_entropy import linear_cross_entropy
    return lambda hidden, weight, targets: -linear_cross_entropy(
        hidden, weight, targets, reduction="none", **options)


WAYS: dict[str, Callable[[], Way]] = {     # functions that make a way; the import may fail there
    REFERENCE: lambda: whole(gathered),
    "minirl linear_logprobs": lambda: linear_logprobs,
    "logit - logsumexp, whole logits": lambda: whole(subtracted),
    "F.cross_entropy, whole logits": lambda: whole(cross_entropy),
    "TRL selective_log_softmax, whole logits": trl,
    "F.linear_cross_entropy, chunked": torch_chunked,
    "Liger fused_linear_cross_entropy": liger,
    "cut_cross_entropy, filter_eps=None": lambda: cut(filter_eps=None),
    "cut_cross_entropy": cut,
}


class Case:
    """The tensors that all ways get."""

    def __init__(self, args: argparse.Namespace) -> None:
        generator, dtype = torch.Generator().manual_seed(0), DTYPES[args.dtype]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(args.device, dtype)

        scale = 2 * args.width ** -0.5         # logits have a standard deviation of 2
        self.hidden = normal(args.rows, args.width).requires_grad_()                   # (N, d)
        self.weight = normal(args.vocab, args.width).mul_(scale).requires_grad_()      # (V, d)
        self.targets = torch.randint(args.vocab, (args.rows,), generator=generator)    # (N,)
        self.targets = self.targets.to(args.device)
        self.weights = torch.randn(args.rows, generator=generator).to(args.device)     # (N,)

    @torch.no_grad()
    def forward(self, way: Way) -> Tensor:
        return way(self.hidden, self.weight, self.targets)

    def both(self, way: Way) -> tuple[Tensor, ...]:
        """Return log-probs and both gradients."""
        logp = way(self.hidden, self.weight, self.targets)
        loss = (self.weights * logp).sum()
        return logp.detach(), *torch.autograd.grad(loss, (self.hidden, self.weight))

    def products(self, size: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return the products of the forward pass, and those of both passes, `size` rows at a
        time."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        logits = hidden.new_empty(size, len(weight))
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

        def one() -> None:
            for h in hidden.split(size):
                torch.mm(h, weight.T, out=logits[:len(h)])

        def three() -> None:
            chunks = zip(hidden.split(size), grad_hidden.split(size), strict=True)
            for i, (h, grad) in enumerate(chunks):
                z = logits[:len(h)]
                torch.mm(h, weight.T, out=z)
                torch.mm(z, weight, out=grad)
                # with a beta of 0 the first chunk overwrites
                torch.addmm(grad_weight, z.T, h, beta=min(i, 1), out=grad_weight)

        return one, three


# what each gives and needs

def difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max())
               for a, b in zip(results, expected, strict=True))


def working_ways(case: Case, tolerance: float) -> tuple[
        dict[str, Way], dict[str, float], dict[str, str]]:
    """Return the ways that give the right numbers, each one's difference, and why others are
    missing."""
    ways, differences, missing = {}, {}, {}
    expected: tuple[Tensor, ...] | None = None
    for name, make in WAYS.items():
        try:
            way = make()
            results = case.both(way)
        except Exception as error:             # each package has its own
            missing[name] = f"does not install or run here: {reason(error)}"
            continue
        expected = expected or results         # the first is the reference
        differences[name] = difference(results, expected)
        if differences[name] <= tolerance:
            ways[name] = way
        else:
            missing[name] = f"gives other numbers: {differences[name]:.1e}"
    return ways, differences, missing


def reason(error: Exception) -> str:
    message = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {message}"[:150].replace("|", "/")


def resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def extra_memory(case: Case, way: Way) -> int:
    """Return the bytes that a way needs in this process. On a CPU the process must be a fresh one:
    see memory_of."""
    case.both(way)
    gc.collect()
    cuda = case.hidden.is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")      # the peak is now what is resident
        before = resident_peak()
    results = case.both(way)
    peak = torch.cuda.max_memory_allocated() if cuda else resident_peak()
    return peak - before - sum(x.nbytes for x in results[1:])


def memory_of(name: str, args: argparse.Namespace) -> str:
    """Return the extra memory of a way in a process of its own."""
    sizes = [f"--{key}={getattr(args, key)}" for key in ("device", "rows", "width", "vocab",
                                                         "dtype")]
    done = subprocess.run([sys.executable, __file__, "--memory-of", name, *sizes],
                          capture_output=True, text=True)
    return mebibytes(int(done.stdout.split()[-1])) if done.returncode == 0 else "not measured"


def mebibytes(size: int) -> str:
    return f"{round(size / 2 ** 20)} MiB"


# the command

def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=None, help="N")
    parser.add_argument("--width", type=int, default=896, help="d")
    parser.add_argument("--vocab", type=int, default=None, help="V")
    parser.add_argument("--dtype", default=None, choices=tuple(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=None,
                        help="rows of a chunk of the products alone (default: linear_logprobs's)")
    parser.add_argument("--memory-of", default=None, metavar="WAY",
                        help="print the extra memory of one way, in bytes, and nothing else")
    args = parser.parse_args()
    for key, default in SIZES[args.device].items():
        if getattr(args, key) is None:
            setattr(args, key, default)
    return args


def main() -> None:
    args = arguments()
    case, tolerance = Case(args), TOLERANCE[args.dtype]
    if args.memory_of:
        print(extra_memory(case, WAYS[args.memory_of]()))
        return

    print(f"{heading(args.device)}, commit {commit()}\nN {args.rows}, d {args.width}, V "
          f"{args.vocab}, {args.dtype}, {args.repeats} repeats; log-probs and gradients agree "
          f"within {tolerance:g}\n")
    ways, differences, missing = working_ways(case, tolerance)
    memory = {name: mebibytes(extra_memory(case, way)) if args.device == "cuda"
              else memory_of(name, args) for name, way in ways.items()}

    size = min(args.rows, args.chunk or chunk_rows(args.rows, args.vocab, args.device))
    one, three = case.products(size)
    all_one, all_three = case.products(args.rows)
    in_chunks = f"products alone, {size} rows at a time: one, three"
    again = f"products alone, {size} rows at a time: one, four"
    at_once = "products alone, all rows at once: one, three"
    forward: dict[str, Callable[[], object]] = {in_chunks: one, again: one, at_once: all_one}
    both: dict[str, Callable[[], object]] = {
        in_chunks: three, again: lambda: (one(), three()), at_once: all_three}
    counts = {in_chunks: 3, again: 4, at_once: 3}
    for name, way in ways.items():
        forward[name], both[name] = partial(case.forward, way), partial(case.both, way)
    forward_times = in_turn(forward, repeats=args.repeats)
    both_times = in_turn(both, repeats=args.repeats)

    digits = 2 if statistics.median(forward_times[REFERENCE]) > 0.5 else 4
    print(table_head("way", "forward, s", "forward + backward, s", "of the four products",
                     "extra memory", "largest difference"))
    for name in [*counts, *WAYS]:
        if name in missing:
            print(row(name, missing[name], "", "", "", ""))
            continue
        print(row(name, spread(forward_times[name], digits), spread(both_times[name], digits),
                  ratio(both_times[name], both_times[again]), memory.get(name, ""),
                  f"{differences[name]:.1e}" if name in differences else ""))
    gflop = 2 * args.rows * args.width * args.vocab / 1e9
    print(f"\nOne product is {gflop:.3g} GFLOP. GFLOP/s of the products alone, forward, and "
          "forward + backward:")
    for name, count in counts.items():
        print(f"{name}: {gflop / statistics.median(forward_times[name]):.0f}, "
              f"{count * gflop / statistics.median(both_times[name]):.0f}")


if __name__ == "__main__":
    main()
