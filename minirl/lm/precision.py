"""Which device and which arithmetic. Weights and optimizer stay in float32; lower precision is for the matrix products alone (autocast)."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """"auto" (CUDA where there is one), "cpu" or "cuda". Raises ValueError where the device is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}: auto, cpu or cuda is wanted")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no CUDA device: use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def compute_in(dtype: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products are done in `dtype` (float32 or bfloat16)."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: one of {', '.join(DTYPES)} is wanted")
    # No cache: autocast would keep its low-precision copy of the weights past the optimizer step, and the run would train on old ones.
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=DTYPES[dtype] is not torch.float32, cache_enabled=False)


def compute_dtype(model) -> torch.dtype:
    """What the model's matrix products give: the autocast dtype where that is on, its own otherwise."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def slowdown(dtype: str, size: int = 128, repeats: int = 5) -> float:
    """How many times as long a matrix product takes on this CPU in `dtype` as in float32, measured now.

    A processor without instructions for bfloat16 makes each product out of conversions to float32.
    """
    def seconds(x: torch.Tensor) -> float:
        x @ x                                                       # the first also plans
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - began)
        return min(times)

    x = torch.ones(size, size)
    return seconds(x.to(DTYPES[dtype])) / seconds(x)
