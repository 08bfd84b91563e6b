"""Positions: queries and keys are turned by an angle that grows with the position, so that their product sees the distance alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_POSITIONS = 2 ** 22      # the tables of so long a context take gigabytes


class Rope(nn.Module):
    """Rotary positions: the pair (x_i, x_{i + D/2}) of each head is turned by position * theta^(-2i/D) (arXiv:2104.09864, section 3.2.2).

    The pairs are (first half, second half), as Hugging Face lays out its weights, and not neighbours, as the paper draws them.
    Angles are made in float32 whatever the model's dtype: in bfloat16 position 257 would equal 256.
    """

    def __init__(self, head_dim: int, max_seq_len: int, *, theta: float, scaling: dict | None):
        super().__init__()
        device = torch.get_default_device()
        if device.type == "meta":        # where weights that will be loaded wait; these will not be
            device = torch.device("cpu")
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        frequencies = scale_frequencies(theta ** -powers, scaling)                               # (D/2,)
        positions = torch.arange(max_seq_len, dtype=torch.float32, device=device)
        angles = positions[:, None] * frequencies                                                # (max_seq_len, D/2)
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1), persistent=False)     # (max_seq_len, D)
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (T,) or (B, T) -> cos, sin, ready to multiply (..., H, D)."""
        return self.cos[positions].to(dtype).unsqueeze(-2), self.sin[positions].to(dtype).unsqueeze(-2)

    def _apply(self, fn, recurse=True):
        """Follow .to(device), but keep the tables in float32 (or wider) when the model becomes bfloat16 or float16."""
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)
        if self.cos.dtype in (torch.bfloat16, torch.float16):
            self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self


def scale_frequencies(frequencies: Tensor, scaling: dict | None) -> Tensor:
    """RoPE frequencies stretched for long context: none, or Llama 3.1's rule (slow turns slowed by `factor`, fast ones kept, a ramp between)."""
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind != "llama3":
        raise ValueError(f"rope_scaling type {kind!r} is not supported: 'default' and 'llama3' are")
    lacking = {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor"} - scaling.keys()
    if lacking:
        raise ValueError(f"rope_scaling of type 'llama3' lacks {', '.join(sorted(lacking))}: complete it in config.json")
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)      # full turns within the first context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)                                      # 0: stretch, 1: keep
    return keep * frequencies + (1 - keep) * frequencies / scaling["factor"]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the feature pairs of x (..., H, D): x * cos + swap_halves(x) * sin, the minus sign already in `sin`."""
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, dims=-1), sin)
