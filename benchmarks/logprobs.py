"""Log-probs of given tokens from hidden states (N, d) and the output matrix (V, d): ours, others', and the matrix products alone, in turn.

    python benchmarks/logprobs.py                     N 4,096, d 896, V 32,768, float32: the table of RESULTS.md
    python benchmarks/logprobs.py --device cuda       N 16,384, d 896, V 151,936, bfloat16

Forward is without a gradient, as old and reference log-probs are taken. Forward + backward is log-probs of the same tokens, then the gradient of
sum(weights * logp) for hidden states and matrix, the weights being a fixed random vector: a loss that gives every token its own weight, as a policy's
does. "Whole logits" makes them all, (N, V), in one product. The floor is the products and nothing else, into tensors that are there already: one
for the forward pass; three for both, and four where backward makes the logits once more to save memory.

Before timing, log-probs and both gradients are compared with log_softmax + gather. The difference is the largest of the three, each relative to the
largest magnitude in its tensor, and a way beyond TOLERANCE is not timed. A random model's probabilities are small, so that a way that leaves out the
gradient of unlikely tokens leaves out nearly all of it. TRL's function is given the rows as sequences of 64 tokens: on a CPU it takes one sequence
at a time.

Extra memory is the peak of forward + backward over what was held before, without the two gradients, which all ways return. On a CPU it is the
peak resident size of a fresh process (Linux only). The whole call runs once before, so that code loaded or compiled at the first is not counted; then
freed memory is given back and the peak is reset.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common import commit, heading, in_turn, ratio, row, spread, table_head
from torch import Tensor

from minirl.lm.logprobs import chunk_rows, linear_logprobs
from minirl.lm.precision import DTYPES

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
REFERENCE = "log_softmax + gather, whole logits"


def whole(logprobs: Callable) -> Callable:
    return lambda hidden, weight, targets: logprobs(hidden @ weight.T, targets)


def wide(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)


def gathered(z: Tensor, y: Tensor) -> Tensor:
    return F.log_softmax(z, -1, dtype=wide(z)).gather(1, y[:, None]).squeeze(1)


def subtracted(z: Tensor, y: Tensor) -> Tensor:
    z = z.to(wide(z))
    return z.gather(1, y[:, None]).squeeze(1) - z.logsumexp(-1)


def trl() -> Callable:
    from trl.trainer.utils import selective_log_softmax

    def logprobs(z, y):
        rows = (-1, math.gcd(len(y), 64))
        return selective_log_softmax(z.unflatten(0, rows), y.unflatten(0, rows)).flatten()
    return whole(logprobs)


def torch_chunked() -> Callable:
    options = torch.nn.LinearCrossEntropyOptions()         # without options it makes the whole logits: the same as F.cross_entropy
    return lambda hidden, weight, targets: -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)


def liger() -> Callable:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    return lambda hidden, weight, targets: -liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="none")


def cut(**options) -> Callable:
    from cut_cross_entropy import linear_cross_entropy
    return lambda hidden, weight, targets: -linear_cross_entropy(hidden, weight, targets, reduction="none", **options)


WAYS = {                               # each makes a function of hidden (N, d), weight (V, d) and targets (N,); it may not import here
    REFERENCE: lambda: whole(gathered),
    "minirl linear_logprobs": lambda: linear_logprobs,
    "logit - logsumexp, whole logits": lambda: whole(subtracted),
    "F.cross_entropy, whole logits": lambda: whole(lambda z, y: -F.cross_entropy(z.to(wide(z)), y, reduction="none")),
    "TRL selective_log_softmax, whole logits": trl,
    "F.linear_cross_entropy, chunked": torch_chunked,
    "Liger fused_linear_cross_entropy": liger,
    "cut_cross_entropy, filter_eps=None": lambda: cut(filter_eps=None),
    "cut_cross_entropy": cut,
}


class Case:
    """The tensors that all ways are given."""

    def __init__(self, args):
        generator, dtype = torch.Generator().manual_seed(0), DTYPES[args.dtype]
        def normal(*shape):
            return torch.randn(shape, generator=generator).to(args.device, dtype)
        self.hidden = normal(args.rows, args.width).requires_grad_()
        self.weight = normal(args.vocab, args.width).mul_(2 * args.width ** -0.5).requires_grad_()       # logits of standard deviation 2
        self.targets = torch.randint(args.vocab, (args.rows,), generator=generator).to(args.device)
        self.weights = torch.randn(args.rows, generator=generator).to(args.device)

    @torch.no_grad()
    def forward(self, way) -> Tensor:
        return way(self.hidden, self.weight, self.targets)

    def both(self, way) -> tuple[Tensor, Tensor, Tensor]:
        logp = way(self.hidden, self.weight, self.targets)
        return logp.detach(), *torch.autograd.grad((self.weights * logp).sum(), (self.hidden, self.weight))

    @torch.no_grad()
    def products(self, size: int) -> tuple[Callable, Callable]:
        """The products of the forward pass, and those of forward and backward, `size` rows at a time."""
        hidden, weight, logits = self.hidden.detach(), self.weight.detach(), self.hidden.new_empty(size, len(self.weight))
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

        def one():
            for h in hidden.split(size):
                torch.mm(h, weight.T, out=logits[:len(h)])

        def three():
            for i, (h, grad) in enumerate(zip(hidden.split(size), grad_hidden.split(size))):
                z = logits[:len(h)]
                torch.mm(h, weight.T, out=z)
                torch.mm(z, weight, out=grad)
                torch.addmm(grad_weight, z.T, h, beta=min(i, 1), out=grad_weight)      # beta 0: the first chunk overwrites
        return one, three


def difference(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip((x.float() for x in found), (x.float() for x in wanted)))


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"[:150].replace("|", "/")


def resident_peak() -> int:
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def extra_memory(case: Case, way) -> int:
    """In this process: on a CPU only a fresh one tells, see memory_of."""
    case.both(way)
    gc.collect()
    cuda = case.hidden.is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")                                  # the peak is what is resident now
        before = resident_peak()
    results = case.both(way)
    peak = torch.cuda.max_memory_allocated() if cuda else resident_peak()
    return peak - before - sum(x.nbytes for x in results[1:])


def mebibytes(size: int) -> str:
    return f"{round(size / 2 ** 20)} MiB"


def memory_of(name: str, args) -> str:
    sizes = [f"--{key}={getattr(args, key)}" for key in ("device", "rows", "width", "vocab", "dtype")]
    done = subprocess.run([sys.executable, __file__, "--memory-of", name, *sizes], capture_output=True, text=True)
    return mebibytes(int(done.stdout.split()[-1])) if done.returncode == 0 else "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=None, help="N")
    parser.add_argument("--width", type=int, default=896, help="d")
    parser.add_argument("--vocab", type=int, default=None, help="V")
    parser.add_argument("--dtype", default=None, choices=tuple(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=None, help="rows of a chunk of the products alone; default: those of linear_logprobs")
    parser.add_argument("--memory-of", default=None, metavar="WAY", help="print the extra memory of one way, in bytes, and nothing else")
    args = parser.parse_args()
    for key, default in zip(("rows", "vocab", "dtype"), (4096, 32_768, "float32") if args.device == "cpu" else (16_384, 151_936, "bfloat16")):
        if getattr(args, key) is None:
            setattr(args, key, default)
    case, tolerance = Case(args), TOLERANCE[args.dtype]
    if args.memory_of:
        return print(extra_memory(case, WAYS[args.memory_of]()))

    print(f"{heading(args.device)}, commit {commit()}\nN {args.rows}, d {args.width}, V {args.vocab}, {args.dtype}, {args.repeats} repeats; "
          f"log-probs and gradients agree within {tolerance:g}\n")
    ways, differences, memory, missing, wanted = {}, {}, {}, {}, None
    for name, make in WAYS.items():
        try:
            way = make()
            found = case.both(way)
        except Exception as error:                                                     # each package has its own
            missing[name] = f"does not install or run here: {reason(error)}"
            continue
        wanted = found if wanted is None else wanted
        differences[name] = difference(found, wanted)
        if not differences[name] <= tolerance:
            missing[name] = f"gives other numbers: {differences[name]:.1e}"
            continue
        ways[name] = way
    del wanted, found
    for name, way in ways.items():
        memory[name] = mebibytes(extra_memory(case, way)) if args.device == "cuda" else memory_of(name, args)

    size = min(args.rows, args.chunk or chunk_rows(args.rows, args.vocab, args.device))
    one, three = case.products(size)
    chunks, again = f"products alone, {size} rows at a time: one, three", f"products alone, {size} rows at a time: one, four"
    at_once = "products alone, all rows at once: one, three"
    floors = {chunks: (one, three), again: (one, lambda: (one(), three())), at_once: case.products(args.rows)}
    forward = {name: floor[0] for name, floor in floors.items()} | {name: partial(case.forward, way) for name, way in ways.items()}
    both = {name: floor[1] for name, floor in floors.items()} | {name: partial(case.both, way) for name, way in ways.items()}
    forward, both = in_turn(forward, repeats=args.repeats), in_turn(both, repeats=args.repeats)

    digits = 2 if statistics.median(forward[REFERENCE]) > 0.5 else 4
    print(table_head("way", "forward, s", "forward + backward, s", "of the four products", "extra memory", "largest difference"))
    for name in [*floors, *WAYS]:
        if name in missing:
            print(row(name, missing[name], "", "", "", ""))
        else:
            print(row(name, spread(forward[name], digits=digits), spread(both[name], digits=digits), ratio(both[name], both[again]),
                      memory.get(name, ""), f"{differences[name]:.1e}" if name in differences else ""))
    gflop = 2 * args.rows * args.width * args.vocab / 1e9
    print(f"\nOne product is {gflop:.3g} GFLOP. GFLOP/s of the products alone, forward, and forward + backward:")
    for name, count in ((chunks, 3), (again, 4), (at_once, 3)):
        print(f"{name}: {gflop / statistics.median(forward[name]):.0f}, {count * gflop / statistics.median(both[name]):.0f}")


if __name__ == "__main__":
    main()
