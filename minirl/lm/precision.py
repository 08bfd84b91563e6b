"""The device, and the precision of arithmetic.

Weights and optimizer stay in float32, the master weights of arXiv:1710.03740; lower precision is
for matrix products alone (autocast).

    dtype      bits of exponent, mantissa    largest    smallest normal    1 - 0.001 is
    float32    8, 23                         3.4e38     1.2e-38            0.999
    float16    5, 10                         65504      6.1e-5             0.9990
    bfloat16   8, 7                          3.4e38     1.2e-38            1: the step is lost

float16 rounds eight times as finely as bfloat16, but a gradient below 6e-8 becomes 0 in it. So the
loss is multiplied by a large number before the backward pass: LossScaler.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minirl.lm import world
from minirl.lm.batch_invariant import batch_invariant
from minirl.lm.emulation import Emulated, has_instructions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What sample() computes in, where it is not what everything else computes in.
_sampler: ContextVar[torch.dtype | None] = ContextVar("sampler", default=None)


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


# matrix products in a lower precision

def compute_in(dtype: str, device: torch.device, *, sampler: str | None = None,
               batch_invariant: bool = False) -> AbstractContextManager:
    """Return a context in which matrix products are computed in `dtype`: float32, bfloat16 or
    float16. With `sampler`, lm.sampling.sample computes in that dtype there.

    A CPU without instructions for the dtype computes as lm/emulation.py says. With
    `batch_invariant`, sampler and learner agree to the bit: lm/batch_invariant.py.
    """
    if batch_invariant and sampler not in (None, dtype):
        raise ValueError(f"batch_invariant with dtype {dtype!r} and sampler_dtype {sampler!r}: a "
                         "sampler that rounds otherwise cannot agree to the bit; leave one of the "
                         "two out")
    for what, name in (("dtype", dtype), ("sampler_dtype", sampler or dtype)):
        if name not in DTYPES:
            raise ValueError(f"{what} is {name!r}: one of {', '.join(DTYPES)} is wanted")
    return _compute_in(DTYPES[dtype], device, None if sampler is None else DTYPES[sampler],
                       batch_invariant)


@contextmanager
def _compute_in(dtype: torch.dtype, device: torch.device, sampler: torch.dtype | None,
                invariant: bool) -> Iterator[None]:
    before = _sampler.set(sampler)
    try:
        with _products_in(dtype, device), batch_invariant() if invariant else ExitStack():
            yield
    finally:
        _sampler.reset(before)


def sampling_in(device: torch.device) -> AbstractContextManager:
    """Return the context in which a sampler computes: what compute_in was told, if anything."""
    dtype = _sampler.get()
    return ExitStack() if dtype is None else _products_in(dtype, device)


@contextmanager
def _products_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        # No cache: autocast would keep its low-precision copy of the weights past the optimizer
        # step, and the run would train on old ones.
        stack.enter_context(torch.autocast(device.type, dtype=dtype, cache_enabled=False,
                                           enabled=dtype is not torch.float32))
        if not has_instructions(dtype, device):
            stack.enter_context(Emulated())
        yield


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products with weights of `dtype`: autocast's, where that is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def slowdown(dtype: str, size: int = 128, repeats: int = 5) -> float:
    """Measure how many times as long a matrix product takes on this CPU in `dtype` as in float32.

    A processor without instructions for bfloat16 or float16 converts to float32 and back.
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
    with compute_in(dtype, x.device):
        lower = seconds(x.to(DTYPES[dtype]))
    return lower / seconds(x)


# rounding

class Format(NamedTuple):
    """A floating-point format with a sign bit: how its numbers are spaced."""

    bits: int          # of precision, the leading 1 included
    least: int         # 2 ** least is the smallest normal number
    largest: float


FORMATS = {"float16": Format(11, -14, 65504.0),
           "bfloat16": Format(8, -126, (2 - 2.0 ** -7) * 2.0 ** 127)}


@torch.no_grad()
def round_to(x: Tensor, dtype: str) -> Tensor:
    r"""Round to the nearest number of a lower precision, and stay in x's dtype.

    Equation   y = q round(x / q),  q = 2^max(e, e_min) 2^(1 - p)  where 2^e ≤ |x| < 2^(e+1):
               q is the distance between neighbours in the format (p bits; p = 11, e_min = -14 in
               float16; p = 8, e_min = -126 in bfloat16). A tie goes to the even one; what is
               rounded beyond the largest number becomes infinite.
    Paper      IEEE 754-2019, section 4.3.1 (roundTiesToEven); for RL: arXiv:2510.26788.
    Shapes     x, any -> the same
    Gradient   none: the result is a constant.
    Raises     ValueError for another dtype than "float16" or "bfloat16".
    See        x.to(torch.float16).to(x.dtype), which has the same bits.

    >>> x = torch.tensor([1 + 2 ** -8, 1 - 1e-3, 65520.0])
    >>> round_to(x, "float16")             # 65504 is the largest: 65520 is halfway to the next
    tensor([1.0039, 0.9990,    inf])
    >>> round_to(x, "bfloat16")            # neighbours of 1 are 1 - 2^-8 and 1 + 2^-7
    tensor([1.0000e+00, 1.0000e+00, 6.5536e+04])
    """
    if dtype not in FORMATS:
        raise ValueError(f"dtype is {dtype!r}: one of {', '.join(FORMATS)} is wanted")
    bits, least, largest = FORMATS[dtype]
    # Through float32, as torch casts float64, then in float64, where all that follows is exact.
    wide = x.float().double()
    _, exponent = wide.frexp()    # |x| = m 2^exponent with 1/2 ≤ m < 1, so e is one less
    distance = torch.ldexp(torch.ones_like(wide), (exponent - 1).clamp(min=least) + 1 - bits)
    y = (wide / distance).round() * distance    # torch rounds ties to even
    y = torch.where(y.abs() > largest, torch.copysign(torch.full_like(y, torch.inf), y), y)
    return torch.where(wide.isfinite(), y, wide).to(x.dtype)


# loss scaling

class Optimizer(Protocol):
    """What LossScaler needs of an optimizer: torch's, and train.adamw.AdamW."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...


class LossScaler:
    r"""Keep small gradients above float16's smallest number: scale the loss up, and gradients down.

    Equation   g = ∇(s L) / s;   s ← s backoff_factor, and no step, where a gradient is NaN or
               infinite;   s ← s growth_factor after growth_interval steps in a row without one
    Paper      Mixed Precision Training, arXiv:1710.03740, section 3.2; the dynamic scale and the
               defaults are those of torch.amp.GradScaler, of which this is every step.
    Raises     ValueError for numbers that no scale can have, and for calls out of order.

    Each step: scaler.scale(loss).backward(), for each optimizer unscale (which may be left out) and
    step, then update. An optimizer is skipped where a gradient is not finite in any process.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> scaler, optimizer = LossScaler(init_scale=4.0), torch.optim.SGD([weight], lr=1.0)
    >>> scaler.scale(weight.sum() / 2).backward()
    >>> scaler.step(optimizer), weight.data                # 1 - 1/2: what float32 would have done
    (True, tensor([0.5000]))
    >>> scaler.update(); weight.grad[0] = float("inf")
    >>> scaler.step(optimizer), weight.data, scaler.update(), scaler.value
    (False, tensor([0.5000]), None, 2.0)
    """

    def __init__(self, init_scale: float = 2.0 ** 16, growth_factor: float = 2.0,
                 backoff_factor: float = 0.5, growth_interval: int = 2000) -> None:
        if not (0 < init_scale < float("inf") and growth_factor > 1 and 0 < backoff_factor < 1
                and growth_interval >= 1):
            raise ValueError(f"init_scale {init_scale}, growth_factor {growth_factor}, "
                             f"backoff_factor {backoff_factor}, growth_interval {growth_interval}: "
                             "expected a positive number, one above 1, one in (0, 1), and at "
                             "least 1")
        self.value = single(init_scale)
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval = growth_interval
        self.steps = 0                           # in a row without a skip, since the scale changed
        self._finite: dict[int, bool] = {}       # by optimizer, in this step: may it step?
        self._stepped: set[int] = set()

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale, in float32 at least."""
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * self.value

    @torch.no_grad()
    def unscale(self, optimizer: Optimizer) -> bool:
        """Divide the gradients by the scale -> whether all are finite, so that step will step."""
        if id(optimizer) in self._finite:
            raise ValueError("unscale was called twice, or after step: call update() first")
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]
                 if p.grad is not None]
        if any(grad.dtype is torch.float16 for grad in grads):
            raise ValueError("a gradient is in float16: expected float32 weights, which compute in "
                             "float16 under compute_in, as float16 loses small steps")
        inverse = single(1 / self.value) if self.value else float("inf")
        if inverse == float("inf"):
            raise ValueError(f"the scale has fallen to {self.value:g}: expected gradients that are "
                             "finite at some scale; look for a NaN in the weights or the loss")
        finite = world.finite(grads)
        for grad in grads:
            grad.mul_(inverse)
        self._finite[id(optimizer)] = finite
        return finite

    def step(self, optimizer: Optimizer) -> bool:
        """Let the optimizer step unless a gradient is NaN or infinite -> whether it stepped."""
        if id(optimizer) in self._stepped:
            raise ValueError("step was called twice: call update() first")
        if id(optimizer) not in self._finite:
            self.unscale(optimizer)
        self._stepped.add(id(optimizer))
        if self._finite[id(optimizer)]:
            optimizer.step()
        return self._finite[id(optimizer)]

    def update(self) -> None:
        """Set the scale for the next step."""
        if not self._finite:
            raise ValueError("update was called before a step: call step(optimizer) first")
        self.steps += 1
        if not all(self._finite.values()):
            self.value, self.steps = single(self.value * self.backoff_factor), 0
        elif self.steps == self.growth_interval:
            grown = single(self.value * self.growth_factor)
            self.value, self.steps = grown if grown < float("inf") else self.value, 0
        self._finite, self._stepped = {}, set()

    def state_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "steps": self.steps}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.value, self.steps = float(state["value"]), int(state["steps"])


def single(x: float) -> float:
    """Return the nearest float32."""
    return float(torch.tensor(x, dtype=torch.float32))
