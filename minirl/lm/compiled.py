"""torch.compile where a compiler works, and the same function as it stands where none does."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

# Compiled code is kept between runs, and not in /tmp, where torch puts it and which is emptied.
if os.access(Path.home(), os.W_OK):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "minirl" / "inductor"))

_broken = False


def compiled(function: Callable, *, lists: tuple[int, ...] = ()) -> Callable:
    """`function` of tensors, compiled at its first call, for any number of rows (dimension 0) and one of the others: other models are compiled anew.

    In arguments that are lists of tensors the dimensions `lists` may be any. A dimension of 1 is compiled for itself.
    Where compiling fails, for want of a C++ compiler for instance, the function itself runs from then on, with one warning. An error of the function's
    own is raised as it is.
    """
    fast = None

    @functools.wraps(function)
    def run(*args):
        nonlocal fast
        global _broken
        if _broken:
            return function(*args)
        import torch._dynamo      # loads the compiler, 3 s: not before something is compiled
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
        except Exception as error:                                   # dynamo, inductor and the compiler have a class each
            result = function(*args)                                 # raises, where the error is the function's own
            _broken = True
            warnings.warn(f"torch.compile does not work here ({type(error).__name__}: {str(error).strip().splitlines()[0]}); going on uncompiled, "
                          "which is slower and gives the same numbers", RuntimeWarning, stacklevel=2)
            return result

    return run
