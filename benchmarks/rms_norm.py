"""RMSNorm, forward and backward: by hand (lm/kernels.py) against the plain formula and torch's F.rms_norm, in turn.

    python benchmarks/rms_norm.py
"""

import platform
import statistics
import time

import torch
import torch.nn.functional as F

from minirl.lm.kernels import rms_norm


def plain(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def main() -> None:
    ways = {"by hand": rms_norm, "plain": plain, "F.rms_norm": lambda x, weight, eps: F.rms_norm(x, (x.shape[-1],), weight, eps)}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}; medians of 200, microseconds")
    print("| shape | " + " | ".join(ways) + " |\n|---|" + "---|" * len(ways))
    for shape in ((16, 45, 64), (16, 45, 4, 16), (128, 45, 64), (128, 45, 4, 16)):
        x, weight, grad = torch.randn(shape, requires_grad=True), torch.ones(shape[-1], requires_grad=True), torch.randn(shape)
        times = {name: [] for name in ways}
        for _ in range(200):
            for name, way in ways.items():
                began = time.perf_counter()
                torch.autograd.grad(way(x, weight, 1e-6), (x, weight), grad)
                times[name].append(time.perf_counter() - began)
        print(f"| {shape} | " + " | ".join(f"{statistics.median(t) * 1e6:.0f}" for t in times.values()) + " |")


if __name__ == "__main__":
    main()
