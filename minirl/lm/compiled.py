"""torch.compile where a compiler works, and the plain function where none does; and for which runs
compiling pays."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minirl.lm import batch_invariant

if TYPE_CHECKING:                        # the model imports this module
    from minirl.lm.model import Transformer

# Compiled code is kept between runs, and not in /tmp, torch's choice, which is emptied.
if os.access(Path.home(), os.W_OK):
    cache = Path.home() / ".cache" / "minirl" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))

CPU_FLOPS = 1e11         # what two cores reach in float32, roughly
PAYS_FROM = 300          # seconds of matrix products: compiling takes up to a minute, and saves a
                         # tenth to a third of a step

_broken = False


def compiled(function: Callable, *, lists: tuple[int, ...] = ()) -> Callable:
    """Return a function of tensors that is compiled at its first call.

    It is compiled for any number of rows (dimension 0, unless it is 1), and for the other
    dimensions as they are: another model is compiled anew. In arguments that are lists of tensors,
    the dimensions `lists` may be any number. Where compiling fails, for example without a C++
    compiler, the plain function runs from then on, with one warning. An error of the function
    itself is raised as it is.
    """
    fast: Callable | None = None

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        nonlocal fast
        global _broken
        if _broken or batch_invariant.active():
            return function(*args)
        import torch._dynamo  # loads the compiler, 3 s: not before something is compiled
        for x in args:
            if isinstance(x, Tensor) and x.dim() > 0:
                torch._dynamo.maybe_mark_dynamic(x, 0)
            elif isinstance(x, list):
                for tensor in x:
                    torch._dynamo.maybe_mark_dynamic(tensor, lists)
        try:
            if fast is None:
                # dynamic only where marked: loops over unknown widths are several times slower
                fast = torch.compile(function, dynamic=False)
            return fast(*args)
        except Exception as error:       # dynamo, inductor and the compiler have a class each
            result = function(*args)     # raises, where the error is the function's own
            _broken = True
            lines = str(error).strip().splitlines()    # none: a bare AssertionError
            reason = ": ".join([type(error).__name__, *lines[:1]])
            warnings.warn(f"torch.compile does not work here ({reason}); going on uncompiled, "
                          "which is slower and gives the same numbers", RuntimeWarning,
                          stacklevel=2)
            return result

    return run


def worth_compiling(choice: str, model: Transformer, tokens: int) -> bool:
    """Return whether to compile a model that learns from so many tokens: "on", "off", or "auto".

    The answer depends on the run's numbers alone, so that a resumed run gets the same.
    """
    check_compile(choice)
    seconds = 6 * model.num_parameters() * tokens / CPU_FLOPS
    pays = model.device.type == "cuda" or seconds > PAYS_FROM
    return choice == "on" or choice == "auto" and pays


def check_compile(choice: str) -> None:
    if choice not in ("auto", "on", "off"):
        raise ValueError(f"compile is {choice!r}: one of auto, on, off is wanted")
