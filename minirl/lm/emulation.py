"""Matrix products in a lower precision on a CPU that has no instructions for it.

A product of two matrices in bfloat16 or float16 multiplies rounded numbers, adds in float32 and
rounds each sum once. float32 arithmetic does the same:

    A B in float16  =  round(round(A) round(B) in float32)

as the products of two 11-bit (or 8-bit) numbers are exact in float32. Only the order of the sums
may differ, and with it now and then the last bit of a result. torch does without the detour through
float32's fast kernels, and takes tens to hundreds of times as long on such a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LOWER = (torch.bfloat16, torch.float16)
aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_)


def has_instructions(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether products in this dtype are fast: always, but for lower ones on a plain CPU."""
    if device.type != "cpu" or dtype not in LOWER:
        return True
    name = "bf16" if dtype is torch.bfloat16 else "fp16"
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return supported is None or bool(supported())


class Emulated(TorchDispatchMode):
    """While it is active, products in a lower precision are computed in float32, and rounded."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        lower = getattr(args[-1], "dtype", None) if args else None
        if function.overloadpacket not in PRODUCTS or lower not in LOWER:
            return function(*args, **kwargs)
        into = kwargs.get("out", args[0] if function.overloadpacket.__name__[-1] == "_" else None)
        plain = getattr(aten, function.overloadpacket.__name__.rstrip("_")).default
        numbers = {name: value for name, value in kwargs.items() if name != "out"}
        result = plain(*(x.float() if isinstance(x, Tensor) else x for x in args), **numbers)
        return result.to(lower) if into is None else into.copy_(result)
