"""The optimizer. Making torch's own loads the compiler, which takes seconds and is not needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minirl.lm.memory import return_freed_memory

MUCH = 2 ** 26        # bytes of weights: from here on freed memory goes back to the system


class AdamW:
    r"""Adam with decoupled weight decay: the decay is not in the gradient that the moments see.

    Equation   m = β1 m + (1 - β1) g
               v = β2 v + (1 - β2) g²
               θ = θ - lr λ θ - lr m̂ / (√v̂ + ε),   m̂ = m / (1 - β1^t),   v̂ = v / (1 - β2^t)
    Paper      AdamW, arXiv:1711.05101, algorithm 2; Adam, arXiv:1412.6980, algorithm 1.
    See        state.make_optimizer, which says which weights decay.

    One fused call moves all weights of a group, with the same bits as torch.optim.AdamW with
    fused=True. Groups, state and state_dict have torch's layout, so each reads what the other
    saved.

    >>> weight = nn.Parameter(torch.tensor([1.0])); weight.grad = torch.tensor([0.5])
    >>> AdamW([{"params": [weight], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.999)).step()
    >>> weight.data                                  # 1 - 0.01 * 0.1 * 1 - 0.01 * 0.5 / sqrt(0.25)
    tensor([0.9890])
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float],
                 eps: float = 1e-8):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        self.param_groups = [{**defaults, **group, "params": list(group["params"])}
                             for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        if sum(p.nbytes for p in self._weights()) >= MUCH:
            return_freed_memory()

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if p not in self.state:
                    self.state[p] = {"step": torch.zeros((), device=p.device),
                                     "exp_avg": torch.zeros_like(p),
                                     "exp_avg_sq": torch.zeros_like(p)}
            steps, first, second = ([self.state[p][name] for p in weights]
                                    for name in ("step", "exp_avg", "exp_avg_sq"))
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(weights, [p.grad for p in weights], first, second, [], steps,
                                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
                                eps=group["eps"], weight_decay=group["weight_decay"],
                                amsgrad=False, maximize=False)

    def zero_grad(self) -> None:
        """Drop the gradients: their memory is free until the next backward pass."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return each weight's moments, by its number, and each group's numbers."""
        numbers = {p: i for i, p in enumerate(self._weights())}
        groups = [{**group, "params": [numbers[p] for p in group["params"]]}
                  for group in self.param_groups]
        return {"state": {numbers[p]: dict(moments) for p, moments in self.state.items()},
                "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state_dict. Raise ValueError if it is of other weights."""
        weights = self._weights()
        came = [len(group["params"]) for group in state["param_groups"]]
        wanted = [len(group["params"]) for group in self.param_groups]
        if came != wanted:
            raise ValueError(f"an optimizer of {came} weights cannot go on with one of {wanted}: "
                             "the state is of another model")
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items()
                          if name in group and name != "params"})
        self.state = {}
        for number, moments in state["state"].items():
            p = weights[number]
            if moments["exp_avg"].shape != p.shape:
                raise ValueError(f"moments of shape {tuple(moments['exp_avg'].shape)} are no "
                                 f"weight's of {tuple(p.shape)}: the state is of another model")
            self.state[p] = {name: x.to(p.device, copy=True) for name, x in moments.items()}

    def _weights(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]
