"""The device, and the precision of arithmetic.

Weights and optimizer stay in float32; lower precision is for matrix products alone (autocast).
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """Return the device "cpu" or "cuda"; "auto" is CUDA where there is one.

    Raises ValueError where the device does not exist.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}: auto, cpu or cuda is wanted")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no CUDA device: use --device cpu, or "
                         "install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def compute_in(dtype: str, device: torch.device) -> AbstractContextManager:
    """Return a context in which matrix products are computed in `dtype`: float32 or bfloat16."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: one of {', '.join(DTYPES)} is wanted")
    # No cache: autocast would keep its low-precision copy of the weights past the optimizer step,
    # and the run would train on old ones.
    return torch.autocast(device.type, dtype=DTYPES[dtype],
                          enabled=DTYPES[dtype] is not torch.float32, cache_enabled=False)


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products with weights of `dtype`: autocast's, where that is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def slowdown(dtype: str, size: int = 128, repeats: int = 5) -> float:
    """Measure how many times as long a matrix product takes on this CPU in `dtype` as in float32.

    A processor without instructions for bfloat16 converts to float32 and back.
    """
    def seconds(x: Tensor) -> float:
        x @ x    # the first product also plans
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - began)
        return min(times)

    x = torch.ones(size, size)
    return seconds(x.to(DTYPES[dtype])) / seconds(x)
