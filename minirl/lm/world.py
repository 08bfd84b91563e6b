"""The processes that train one model together: each has its share of the rows.

A process computes the loss of its own rows, and the gradients of all processes are added. So a
mean must divide by the number of rows, or tokens, of all processes: `total` of a process's own
number. Where torch.distributed is not initialised, there is one process, and `total(x)` is x.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Number = TypeVar("Number", Tensor, float, int)


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0 to size() - 1."""
    return dist.get_rank() if size() > 1 else 0


def total(x: Number) -> Number:
    """Return the sum of x over all processes: a tensor without a gradient, or a number.

    Every process must call it, in the same order. A number comes back as the type that it was.
    """
    if size() == 1:
        return x
    if isinstance(x, Tensor):
        result = x.detach().clone()
        dist.all_reduce(result)
        return result
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    number = torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else torch.int64,
                          device=device)
    dist.all_reduce(number)
    return type(x)(number.item())
