"""What every training page shares and no equation needs: the state that a run resumes from, seeds and metric sums."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class NonFiniteError(ValueError):
    """A loss or gradient became NaN or infinite. The run stops at the last good weights instead of going on with broken ones."""


@dataclass
class TrainState:
    """All that changes while a page runs. Random numbers do not: each step makes its own from (seed, step), so a step can be replayed alone."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    reference: nn.Module | None = None
    step: int = 0
    num_tokens: int = 0

    def state_dict(self) -> dict:
        """Tensors and numbers only. The model's weights are in it, so that nothing depends on how a checkpoint rounds them."""
        return {"step": self.step, "num_tokens": self.num_tokens, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "reference": None if self.reference is None else self.reference.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.num_tokens = state["step"], state["num_tokens"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])


def make_optimizer(model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101); weight decay on matrices alone, not on norms and biases."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                             lr=lr, betas=betas, fused=True)


def derive_seed(seed: int, *names: object) -> int:
    """An independent 63-bit seed for each purpose: derive_seed(0, "grpo", step, "sample")."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def clip_gradient(model: nn.Module, max_norm: float, *, step: int) -> float:
    """Scale the gradient down to max_norm where it is longer; return the length it had. Raises NonFiniteError instead of stepping on NaN."""
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    if norm != norm or norm == float("inf"):
        raise NonFiniteError(f"step {step}: the gradient norm is {norm}. The weights are still those before the step. Lower lr or max_grad_norm, "
                             "or look for a reward or log-ratio that exploded")
    return norm


class Sums:
    """Metrics as (sum, count), so that a mean over micro-batches of different sizes is the mean over the batch."""

    def __init__(self):
        self._sums: dict[str, list] = {}

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add all values, or those under the mask."""
        values = values.detach()[mask.bool()] if mask is not None else values.detach()
        total = self._sums.setdefault(name, [0.0, 0])
        total[0] += values.double().sum()
        total[1] += values.numel()

    def means(self) -> dict[str, float]:
        return {name: float(total) / max(1, count) for name, (total, count) in self._sums.items()}
