"""RMSNorm, forward and backward: by hand (lm/kernels.py) against the plain formula and torch's
F.rms_norm, in turn.

    python benchmarks/rms_norm.py [--repeats 200]
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common import in_turn, row, table_head
from minirl.lm.kernels import rms_norm

EPS = 1e-6


def plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


WAYS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "by hand": rms_norm, "plain": plain,
    "F.rms_norm": lambda x, weight, eps: F.rms_norm(x, (x.shape[-1],), weight, eps)}


def gradients(way: Callable[[Tensor, Tensor, float], Tensor], x: Tensor, weight: Tensor,
              grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(way(x, weight, EPS), (x, weight), grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python "
          f"{platform.python_version()}; medians of {repeats}, microseconds")
    print(table_head("shape", *WAYS))
    for shape in ((16, 45, 64), (16, 45, 4, 16), (128, 45, 64), (128, 45, 4, 16)):
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        weight = torch.ones(shape[-1], requires_grad=True)
        calls = {name: partial(gradients, way, x, weight, grad) for name, way in WAYS.items()}
        times = in_turn(calls, repeats=repeats)
        print(row(shape, *(f"{statistics.median(t) * 1e6:.0f}" for t in times.values())))


if __name__ == "__main__":
    main()
