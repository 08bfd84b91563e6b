"""The processes that train one model together: torch.distributed, where it is initialised.

    problems = world.share(task.sample(P, rng))        # each process has a part of the batch
    total = world.total(normaliser(mask, how))         # what the loss is divided by: of all parts
    advantages = world.of_all(group_advantages)        # as if one process had all rows
    for minibatch, rows in world.minibatches(...):     # as many in every process
        world.add_gradients(model)                     # the sum over the processes

Each process divides its loss by `total` of its own number of rows, or tokens. Then the sum of the
gradients is the gradient of the mean over all rows, however these are spread over the processes: a
mean of the processes' means would weight the tokens of a process with few of them too much.

What is called by one process must be called by all of them, in the same order, or they wait for
each other until torch gives up. Where torch.distributed is not initialised there is one process:
`total(x)` is x, `share(x)` is all of x, and `add_gradients` does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Number = TypeVar("Number", Tensor, float, int)
T = TypeVar("T")
M = TypeVar("M", bound=Any)   # a Transformer, which is above this module
ENDED = "gloo", "nccl", "connection"   # words of an error where another process has ended


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, for the length of a block; without torchrun, be the
    only one. On CUDA each process has the GPU of its number on this machine.

    Raises     WorldError where another process ended early.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()                              # gloo, and NCCL for what is on a GPU
    try:
        with noticing():
            yield
    finally:
        with contextlib.suppress(RuntimeError):            # the others are gone
            dist.destroy_process_group()


class WorldError(ConnectionError):
    """Another process ended early. What went wrong is in its own output."""


@contextlib.contextmanager
def noticing(advice: str = "") -> Iterator[None]:
    """Raise WorldError, with the advice, where another process ends within the block."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(x in str(error).lower() for x in ENDED)
        if size() > 1 and lost:
            raise WorldError(f"another of the {size()} processes has ended, so process {rank()} "
                             f"stops, too{advice}") from error
        raise


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
    return not anywhere(not finite_here(tensors))


def finite_here(tensors: Iterable[Tensor]) -> bool:
    """Return whether all of these are finite in this process, whatever the others have."""
    parts = [x.to_local() if hasattr(x, "to_local") else x for x in tensors]
    fine = bool(nn.utils.get_total_norm(parts).isfinite())    # one pass, nearly always
    return fine or all(bool(x.isfinite().all()) for x in parts)


# one batch, spread over the processes

def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of a batch that all processes hold: its neighbours, in order.

    The parts differ by one item at most. Some are empty where there are fewer items than processes.
    """
    n, at = len(items), rank()
    return items[n * at // size():n * (at + 1) // size()]


def place() -> tuple[int, ...]:
    """Return what makes random numbers differ between the processes, as more names of a seed: ()
    for one process, whose numbers thus stay as they were, else (rank, size)."""
    return () if size() == 1 else (rank(), size())


def gather(x: T) -> list[T]:
    """Return the x of every process, by rank. Tensors of it come back on the CPU."""
    if size() == 1:
        return [x]
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, on_cpu(x))
    return parts


def on_cpu(x: Any) -> Any:
    """Return tensors, and those in lists, tuples and dicts, on the CPU; all else as it is."""
    if isinstance(x, Tensor):
        return x.detach().cpu()
    if isinstance(x, dict):
        return {key: on_cpu(value) for key, value in x.items()}
    return type(x)(map(on_cpu, x)) if isinstance(x, (list, tuple)) else x


def together(x: Tensor) -> Tensor:
    """Return the rows of all processes, one process after the other: (n, ...) -> (N, ...)."""
    return x if size() == 1 else torch.cat(gather(x)).to(x.device)


def flat(x: Sequence[T]) -> list[T]:
    """Return the items of all processes, one process after the other."""
    return [item for part in gather(list(x)) for item in part]


def own(x: Tensor, rows: int) -> Tensor:
    """Return this process's part of what `together` put together, of which it has so many rows."""
    return x if size() == 1 else x.split(gather(rows))[rank()]


def of_all(equation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return an equation of rows that sees those of all processes, and returns this process's own:
    a mean or a standard deviation over the batch is then that of the whole batch."""
    return lambda x: own(equation(together(x)), len(x))


def mean(x: Tensor) -> float:
    """Return the mean of x over the rows of all processes."""
    return float(together(x).mean())


def over_tokens(equation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same as `of_all` for an equation of (x, ..., mask) that gives one number, or one for each
    token, and 0 off the mask."""
    if size() == 1:
        return equation

    def of_tokens(*inputs: Tensor) -> Tensor:
        mask = inputs[-1]
        values = equation(*(together(x[mask])[None] for x in inputs))  # the mask's are all 1
        if values.dim() == 0:
            return values
        result = torch.zeros(mask.shape, dtype=values.dtype, device=mask.device)
        return result.masked_scatter(mask, own(values[0], int(mask.sum())))

    return of_tokens


def split(rows: Tensor, size_of_all: int) -> Sequence[Tensor]:
    """Cut this process's rows into minibatches that have so many in all processes together, rounded
    up to a multiple of the processes."""
    return rows.split(-(-size_of_all // size()))


def minibatches(parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """Return pairs of a minibatch, the indices of this process's rows, and how many rows it has in
    all processes together. One that no process has rows for is left out.

    Every process gets as many, as all of them add their gradients after each. A process without
    rows gets an empty one.
    """
    mine = list(parts)
    sizes = gather([len(part) for part in mine])
    for i in range(max(map(len, sizes))):
        rows = sum(counts[i] for counts in sizes if i < len(counts))
        if rows:
            yield mine[i] if i < len(mine) else mine[0][:0], rows


def add_gradients(model: nn.Module) -> None:
    """Replace the gradient of every parameter by its sum over all processes.

    A process that had no rows has no gradients, and adds zeros. Parameters that FSDP shards are
    left out: FSDP adds their gradients itself (see `shard`).
    """
    if size() == 1:
        return
    for p in model.parameters():
        if p.requires_grad and type(p) is nn.Parameter:       # sharded: a DTensor
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)


def shard(model: M) -> M:
    """Leave each process a part of every parameter, of its gradient and of what an optimizer keeps
    for it, by torch's FSDP2 -> the same model. Its blocks are made whole for as long as they
    compute.

    Source     torch.distributed.fsdp.fully_shard; ZeRO, arXiv:1910.02054, stage 3.

    Gradients are summed over the processes, not averaged, as `total` wants it. Every forward and
    backward pass is made by all processes together, so all must have as many micro-batches, and
    sample as many tokens: for the pages that learn from texts alone.
    """
    from torch.distributed.device_mesh import init_device_mesh  # a second to import
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        if mesh.device_type == "cpu":                         # gloo cannot multiply while it adds
            part.set_force_sum_reduction_for_comms(True)      # torch >= 2.8
    return model


# one process writes, the others wait

def barrier() -> None:
    """Wait until every process is here."""
    anywhere(False)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """What one process writes in this block is there for all of them after it, and was not there
    for any of them before."""
    barrier()
    yield
    barrier()
