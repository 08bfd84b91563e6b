"""The processes that train one model together: torch.distributed, where it is initialised.

`total` sums a number over the processes, `add_gradients` sums a model's gradients, and `finite`
says the same in all of them. Each process divides its loss by `total` of its own number of rows, or
tokens. Then the sum of the gradients is the gradient of the mean over all rows, however these are
spread over the processes.

The training pages do not spread rows yet: every process samples and trains on all of them. Each
row then counts once per process, in the totals and in the sums of gradients alike. So the update is
the same as with one process. Where torch.distributed is not initialised, there is one process:
`total(x)` is x, and `add_gradients` does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

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


def anywhere(flag: bool) -> bool:
    """Return whether the flag is true in any process. Every process must call it."""
    return total(int(flag)) > 0


def finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all of these are finite, in every process: what decides about a step, which
    all processes must take or skip together. Of a sharded tensor each process looks at its part."""
    parts = [x.to_local() if hasattr(x, "to_local") else x for x in tensors]
    fine = bool(nn.utils.get_total_norm(parts).isfinite())    # one pass, nearly always
    return not anywhere(not fine and not all(bool(x.isfinite().all()) for x in parts))


def add_gradients(model: nn.Module) -> None:
    """Replace the gradient of every parameter by its sum over all processes.

    Every process must call it, with gradients of the same parameters. Parameters that FSDP shards
    are left out: FSDP reduces their gradients itself, to the mean over the processes unless
    set_gradient_divide_factor(1.0) is called.
    """
    if size() == 1:
        return
    for p in model.parameters():
        if p.grad is not None and type(p) is nn.Parameter:    # sharded: a DTensor
            dist.all_reduce(p.grad)
