"""Matrix products of a few rows, at the speed of memory.

A step of sampling multiplies a few rows by every weight of the model. On a CPU, F.linear reads a
large matrix for 8 rows well below the speed of memory, as a dot product walks along both operands.
In panels, (n, d) as (n / p, d, p), one number of a row meets p weights that stand side by side.

Making panels costs as much as a few steps, and the sums are added in another order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minirl.lm import batch_invariant
from minirl.lm.config import ModelConfig

WIDTHS = 192, 128, 64     # of a panel: the first that divides n
ROWS = range(3, 33)       # for fewer F.linear is as fast, for more its products are
STEPS = 16                # from so many on the panels are worth their making
FEATURES = 512            # a smaller model stays in the processor's cache


def worth_panels(config: ModelConfig, rows: int, steps: int, device: torch.device,
                 dtype: torch.dtype) -> bool:
    """Return whether a sampler of so many rows and steps should keep its weights in panels."""
    return (device.type == "cpu" and dtype is torch.float32 and rows in ROWS and steps >= STEPS
            and config.hidden_size >= FEATURES and not batch_invariant.active())


def panels(weight: Tensor) -> Tensor:
    """Return a copy of a matrix (n, d) in panels, (n / p, d, p); itself where no width divides n.
    """
    n, d = weight.shape
    width = next((width for width in WIDTHS if n % width == 0), None)
    return weight if width is None else weight.view(-1, width, d).transpose(1, 2).contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return F.linear(x, weight, bias), (N, n), where the weight may be in panels: x (N, d)."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    y = torch.matmul(x, weight).transpose(0, 1).reshape(len(x), -1)
    return y if bias is None else y + bias
