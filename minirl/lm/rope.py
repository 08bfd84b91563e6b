"""Rotary positions: queries and keys are turned by an angle that grows with their position.

So their product depends on the distance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

MAX_POSITIONS = 2 ** 22      # the tables of such a long context take gigabytes


class Rope(nn.Module):
    """Turn the pair (x_i, x_{i + D/2}) of each head by position * theta^(-2i/D).

    Paper      RoFormer, arXiv:2104.09864, section 3.2.2.

    The pairs are (first half, second half), as in Hugging Face's weights, and not neighbours, as in
    the paper. Angles are computed in float32 whatever the model's dtype: in bfloat16, position 257
    would equal 256.
    """

    cos: Tensor  # (max_seq_len, D)
    sin: Tensor  # (max_seq_len, D)

    def __init__(self, head_dim: int, max_seq_len: int, *, theta: float, scaling: dict | None
                 ) -> None:
        super().__init__()
        device = torch.get_default_device()
        if device.type == "meta":    # where weights wait to be loaded; these never are
            device = torch.device("cpu")
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        frequencies = scale_frequencies(theta ** -powers, scaling)  # (D/2,)
        positions = torch.arange(max_seq_len, dtype=torch.float32, device=device)
        angles = positions[:, None] * frequencies  # (max_seq_len, D/2)
        cos = torch.cat([angles.cos()] * 2, dim=-1)
        sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (T,) or (B, T) -> cos and sin, ready to multiply (..., H, D)."""
        cos, sin = self.cos[positions], self.sin[positions]
        return cos.to(dtype).unsqueeze(-2), sin.to(dtype).unsqueeze(-2)

    def _apply(self, fn: Callable, recurse: bool = True) -> Rope:
        """Follow .to(device), but keep the tables in float32 when the model gets a 16-bit dtype."""
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)
        if self.cos.dtype in (torch.bfloat16, torch.float16):
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self


def scale_frequencies(frequencies: Tensor, scaling: dict | None) -> Tensor:
    """Stretch RoPE's frequencies for a long context, where `scaling` says so.

    Llama 3.1's rule slows slow turns by `factor`, keeps fast ones, and blends in between.
    """
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind != "llama3":
        raise ValueError(f"rope_scaling type {kind!r} is not supported: 'default' and 'llama3' are")
    names = {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor"}
    if lacking := names - scaling.keys():
        raise ValueError(f"rope_scaling of type 'llama3' lacks {', '.join(sorted(lacking))}: "
                         "complete it in config.json")
    # full turns within the context of the first training
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)    # 0: stretch, 1: keep
    return keep * frequencies + (1 - keep) * frequencies / scaling["factor"]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the feature pairs of x (..., H, D). The minus sign is already in `sin`."""
    other_half = torch.roll(x, x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, other_half, sin)
