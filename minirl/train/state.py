"""What training pages share and no equation needs: the state that a run resumes from, and the
update that follows every backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minirl.lm import world
from minirl.lm.precision import LossScaler, compute_dtype
from minirl.train.adamw import AdamW
from minirl.train.metrics import NonFiniteError, Sums, check_gradients

LARGEST = torch.finfo(torch.float32).max ** 0.5            # the square of more is infinite
SMALLEST_SCALE = 1.0       # of the loss: in less, float16 loses more small gradients than float32
                           # has. DeepSpeed's min_loss_scale is 1, too


@dataclass
class TrainState:
    """All that changes while a page runs. Random numbers do not: each step makes its own from
    (seed, step), so any step can be replayed alone."""

    model: nn.Module
    optimizer: AdamW
    parts: dict[str, Any] = field(default_factory=dict)       # a reference, a value function, ...
    numbers: dict[str, float] = field(default_factory=dict)   # an adaptive KL coefficient, ...
    step: int = 0
    num_tokens: int = 0
    scaler: LossScaler | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        if compute_dtype(torch.float32, device) is torch.float16:
            self.scaler = LossScaler()
            self.parts = {**self.parts, "loss_scaler": self.scaler}

    def backward(self, loss: Tensor, rows: Tensor | Sequence[int], texts: Sequence[object]) -> None:
        """Add the gradient of a loss on these rows; in float16 that of the scaled loss.

        Raises NonFiniteError, showing the first text, where it is not finite; in float16 where it
        is not at the smallest scale.
        """
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
            if self.scaler.value > SMALLEST_SCALE:     # apply_update can go lower
                return
        parts = [part for part in self.parts.values() if isinstance(part, nn.Module)]
        check_gradients([self.model, *parts], self.step + 1, rows, texts,
                        scaled=self.scaler is not None)

    def state_dict(self) -> dict:
        """Return tensors and numbers only, with the model's weights: a run can resume from this."""
        return {"step": self.step, "num_tokens": self.num_tokens, "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "numbers": dict(self.numbers)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from what state_dict() returned. Raise ValueError if it is another model's: some
        parts may have been loaded by then."""
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


Log = Callable[[int, dict[str, float]], None]               # log(step, metrics)
Save = Callable[[TrainState], None]                         # save(state)


class OptimizerConfig(Protocol):
    """The fields of a page's configuration that make_optimizer reads."""

    @property
    def lr(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, lr: float | None = None) -> AdamW:
    """Return AdamW with weight decay on matrices alone, not on norms and biases."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return AdamW([{"params": matrices, "weight_decay": config.weight_decay},
                  {"params": vectors, "weight_decay": 0.0}],
                 lr=config.lr if lr is None else lr, betas=(config.beta1, config.beta2))


def apply_update(state: TrainState, lr: float, max_grad_norm: float, sums: Sums,
                 *others: tuple[nn.Module, AdamW, float]) -> None:
    """Add the processes' gradients, clip the sum, step and clear it, for the state's model and
    `others` (model, optimizer, lr), such as a value function.

    Adds grad_norm to the sums: of the model's gradient, before clipping. In float16 a gradient that
    is NaN or infinite skips its step and lowers the scale of the loss, and the sums get the scale
    that this step had, and the share of skipped steps. Otherwise NonFiniteError is raised before
    any step if a gradient is NaN or infinite, and in either case after it if a weight is.
    """
    step, scaler = state.step + 1, state.scaler
    trained = [(state.model, state.optimizer, lr), *others]
    for model, _, _ in trained:
        world.add_gradients(model)
    finite = [scaler is None or scaler.unscale(optimizer) for _, optimizer, _ in trained]
    norms = [clip_gradient(model, max_grad_norm, step=step)
             for (model, _, _), good in zip(trained, finite, strict=True) if good]
    if finite[0]:
        sums.add("grad_norm", norms[0])
    for _, optimizer, rate in trained:
        for group in optimizer.param_groups:
            group["lr"] = rate
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        optimizer.zero_grad()
    for model, _, _ in trained:
        check_weights(model, step)
    if scaler is not None:
        sums.add("loss_scale", scaler.value)
        sums.add("frac_skipped_steps", float(not all(finite)))
        scaler.update()


def clip_gradient(model: nn.Module, max_norm: float, *, step: int) -> float:
    """Scale the gradient down to max_norm if it is longer -> the norm it had. Raise NonFiniteError
    if that is NaN or infinite."""
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    if not math.isfinite(norm):
        raise NonFiniteError(f"step {step}: the gradient norm is {norm}. The weights are still "
                             "those before this update. Lower lr or max_grad_norm, or look for a "
                             "reward or log-ratio that exploded")
    return norm


@torch.no_grad()
def check_weights(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError if the update left a weight that is NaN, infinite, or beyond LARGEST.

    Loss and gradient are checked before the step; a step of an absurd size shows only afterwards.
    """
    weights = dict(model.named_parameters())
    if torch.isfinite(nn.utils.get_total_norm(list(weights.values()))):    # one pass, nearly always
        return
    for name, weight in weights.items():
        size = float(weight.abs().max())
        if not size <= LARGEST:
            raise NonFiniteError(f"step {step}: the update made {name} as large as {size:g}. "
                                 "These weights are lost, and only what was saved before is good. "
                                 "Lower lr or weight_decay")


def check_state(state: dict) -> None:
    """Raise ValueError, naming what is wrong, unless TrainState.state_dict() returned this."""
    kinds: dict[str, type] = {"step": int, "num_tokens": int, "model": dict, "optimizer": dict,
                              "parts": dict, "numbers": dict}
    for key, kind in kinds.items():
        value = state.get(key) if isinstance(state, dict) else None
        right = isinstance(value, kind) and not isinstance(value, bool)
        if not right or isinstance(value, int) and value < 0:
            what = f"{key} {value!r:.40}" if isinstance(value, (int, float, str)) else f"no {key}"
            raise ValueError(f"the training state has {what}: it is damaged, or of another version")
    for name, number in state["numbers"].items():
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"the training state has {name} {number!r:.40}: a finite number is "
                             "wanted")


def freeze(model: nn.Module) -> Any:
    """Return the model in eval mode and without gradients: a reference."""
    return model.eval().requires_grad_(False)
