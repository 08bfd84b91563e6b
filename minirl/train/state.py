"""What training pages share and no equation needs: the state that a run resumes from, seeds, metrics and the checks that stop a broken run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minirl.equations.reduce import masked_mean
from minirl.lm.rollouts import Rollouts
from minirl.train.adamw import AdamW

LARGEST = torch.finfo(torch.float32).max ** 0.5            # a larger weight's square is infinite


class NonFiniteError(ValueError):
    """A loss, gradient or weight is NaN or infinite. The run stops, and nothing broken is saved."""


@dataclass
class TrainState:
    """All that changes while a page runs. Random numbers do not: each step makes its own from (seed, step), so a step can be replayed alone."""

    model: nn.Module
    optimizer: AdamW
    parts: dict[str, nn.Module | AdamW] = field(default_factory=dict)      # what changes beside the model: a reference, a value function, ...
    numbers: dict[str, float] = field(default_factory=dict)                                # and numbers: a KL coefficient under control
    step: int = 0
    num_tokens: int = 0

    def state_dict(self) -> dict:
        """Tensors and numbers only, the model's weights too, so that it is enough by itself."""
        return {"step": self.step, "num_tokens": self.num_tokens, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "parts": {name: part.state_dict() for name, part in self.parts.items()}, "numbers": dict(self.numbers)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what state_dict() gave. Raises ValueError where it is not of this model."""
        check_state(state)
        for name in ("parts", "numbers"):
            came, wanted = state[name].keys(), getattr(self, name).keys()
            if came != wanted:
                raise ValueError(f"the training state has the {name} {sorted(came)}, and this page "
                                 f"wants {sorted(wanted)}: it is of another configuration")
        whole = {"model": self.model, "optimizer": self.optimizer, **self.parts}
        for name, part in whole.items():
            saved = state[name] if name in ("model", "optimizer") else state["parts"][name]
            try:
                part.load_state_dict(saved)
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                why = " ".join(str(error).split())         # torch names every weight, a line each
                raise ValueError(f"the {name} of the training state does not fit ({why:.200}): it "
                                 "is of another model or configuration") from error
        self.step, self.num_tokens = state["step"], state["num_tokens"]
        self.numbers.update(state["numbers"])


def check_state(state: dict) -> None:
    """Raise ValueError, naming what is wrong, unless this is what TrainState.state_dict() gives."""
    kinds = {"step": int, "num_tokens": int, "model": dict, "optimizer": dict, "parts": dict,
             "numbers": dict}
    for key, kind in kinds.items():
        value = state.get(key) if isinstance(state, dict) else None
        if not isinstance(value, kind) or kind is int and (isinstance(value, bool) or value < 0):
            what = f"{key} {value!r:.40}" if isinstance(value, (int, float, str)) else f"no {key}"
            raise ValueError(f"the training state has {what}: it is damaged, or of another version")
    for name, number in state["numbers"].items():
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"the training state has {name} {number!r:.40}: a finite number is "
                             "wanted")


def make_optimizer(model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> AdamW:
    """AdamW; weight decay on matrices alone, not on norms and biases."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return AdamW([{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                 lr=lr, betas=betas)


def clip_gradient(model: nn.Module, max_norm: float, *, step: int) -> float:
    """Scale the gradient down to max_norm where it is longer; return the length it had. Raises NonFiniteError instead of stepping on NaN."""
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    if norm != norm or norm == float("inf"):
        raise NonFiniteError(f"step {step}: the gradient norm is {norm}. The weights are still those before this update. Lower lr or max_grad_norm, "
                             "or look for a reward or log-ratio that exploded")
    return norm


@torch.no_grad()
def check_weights(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError where the update left a weight that is NaN, infinite, or beyond LARGEST.

    A loss and a gradient are looked at before the step, and a step of an absurd size comes after.
    """
    weights = dict(model.named_parameters())
    if torch.isfinite(nn.utils.get_total_norm(list(weights.values()))):    # one pass, mostly all
        return
    for name, weight in weights.items():
        size = float(weight.abs().max())
        if not size <= LARGEST:
            raise NonFiniteError(f"step {step}: the update made {name} as large as {size:g}. "
                                 "These weights are lost, and only what was saved before is good. "
                                 "Lower lr or weight_decay")


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


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode, no gradients: a reference."""
    return model.eval().requires_grad_(False)


def set_lr(optimizer: AdamW, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def to_tensor(rewards: Sequence[float | None]) -> Tensor:
    """Reward functions' numbers as float32, None as NaN."""
    return torch.tensor([float("nan") if reward is None else float(reward) for reward in rewards])


def check_judged(rewards: Tensor) -> None:
    if bool(rewards.isnan().all()):
        raise ValueError(f"none of the {rewards.numel()} completions got a reward: every verdict was None or NaN; check the reward functions and the "
                         "problems' answers")


def mean_judged(rewards: Tensor) -> float:
    return float(masked_mean(rewards, ~rewards.isnan()))


def check_finite(loss: Tensor, step: int, rows: Tensor, completions: Sequence[str]) -> None:
    if not torch.isfinite(loss):
        first = int(rows[0])
        raise NonFiniteError(f"step {step}: the loss is {loss.item()} on rows {rows.tolist()[:8]}. The weights are still those before this mini-batch. "
                             f"Row {first} reads {completions[first]!r}")


def watch(sums: Sums, surrogate: Tensor, logp: Tensor, old_logp: Tensor, batch: Rollouts, adv: Tensor, entropy: Tensor) -> None:
    """Per-token metrics of one micro-batch, in TRL's names; all (b, T), adv also (b, 1). A token is clipped where the objective has lost its gradient though A is not 0."""
    slope, = torch.autograd.grad(surrogate.sum(), logp, retain_graph=True)
    sums.add("clip_ratio/low_mean", (slope == 0) & (adv < 0), batch.mask)
    sums.add("clip_ratio/high_mean", (slope == 0) & (adv > 0), batch.mask)
    sums.add("entropy", entropy, batch.mask)
    sums.add("sampling/sampling_logp_difference/mean", (old_logp - batch.behavior_logp).abs(), batch.mask)


def describe(rewards: Tensor, rollouts: Rollouts) -> dict[str, float]:
    """Metrics of one batch of rollouts, in TRL's names."""
    judged, lengths = ~rewards.isnan(), rollouts.completion_lengths.float()
    return {"reward": mean_judged(rewards), "reward_std": float(rewards[judged].std()) if judged.sum() > 1 else 0.0, "frac_reward_none": float((~judged).float().mean()),
            "completions/mean_length": float(lengths.mean()), "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()), "completions/clipped_ratio": float(rollouts.truncated.float().mean())}
