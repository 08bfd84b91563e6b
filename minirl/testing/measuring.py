"""How `check` calls a function: its values, its gradients, and what it does to its inputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from minirl.equations.reduce import aggregate
from minirl.testing.probes import Function, Probe

HUGE = 1e6                             # what an exploded ratio gives: only that it is no NaN counts


def measured(call: Function, probe: Probe, options: dict[str, Any], learnt: list[str], *,
             arrays: Function | None = None, everywhere: bool = False) -> dict[str, Any]:
    """Return the values and gradients of one call, and inputs that it has changed, by name.

    The gradient is that of the sum over what is visible, or of the mean under the weights. It is
    returned where tokens are visible, or `everywhere`: under a mask it must be 0.
    """
    inputs = {key: copied(value) for key, value in probe.inputs.items()}
    result: dict[str, Any] = {}
    if arrays is not None:
        def values(inputs: dict[str, Any]) -> list[Tensor]:
            made = {key: arrays(value.numpy()) if isinstance(value, Tensor) else value
                    for key, value in inputs.items()}
            return visible_values(call(made, options, probe), probe)

        outputs = values(inputs)
        gradients = [central_differences(values, inputs, key) for key in learnt]
    else:
        for key in learnt:
            inputs[key].requires_grad_()
        outputs = visible_values(call(inputs, options, probe), probe)
        if probe.changes:
            outputs = [torch.cat([x.flatten() for x in inputs[probe.changes]])]
        total = sum(x.sum() for x in outputs)
        leaves = [inputs[key] for key in learnt]
        found: Any = [None] * len(leaves)
        if leaves and isinstance(total, Tensor) and total.requires_grad:
            found = torch.autograd.grad(total, leaves, allow_unused=True)
        gradients = [torch.zeros_like(leaf) if gradient is None else gradient
                     for leaf, gradient in zip(leaves, found, strict=True)]
        for key, value in probe.inputs.items():
            if isinstance(value, Tensor) and not agree(inputs[key].detach(), value, 0.0):
                result[f"input {key}"] = inputs[key].detach()
    for i, value in enumerate(outputs):
        result["value" if i == 0 else f"value {i + 1}"] = value.detach()
    for key, gradient in zip(learnt, gradients, strict=True):
        cut = (probe.visible is not None and gradient.shape == probe.visible.shape
               and not everywhere)
        result[f"gradient {key}"] = gradient[probe.visible] if cut else gradient
    return result


def copied(value: Any) -> Any:
    """Return tensors, and lists of tensors, that may be changed."""
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [x.clone() for x in value]
    return value.clone() if isinstance(value, Tensor) else value


def visible_values(outputs: Any, probe: Probe) -> list[Tensor]:
    """Return what counts of each output: what is visible, or the mean under the weights."""
    values = []
    if probe.read is not None:
        outputs = probe.read(outputs)
    for output in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
        if output is None:
            continue
        x = output if isinstance(output, Tensor) else torch.as_tensor(output)
        per_token = probe.visible is not None and x.shape == probe.visible.shape
        if probe.weights is not None:
            rows = torch.where(mask_of(probe), x, 0).sum(1) if per_token else x
            values.append((probe.weights * rows).sum())
        else:
            values.append(x[probe.visible] if per_token else x)
    return values


def central_differences(values: Function, inputs: dict[str, Any], key: str) -> Tensor:
    """Return the gradient of the sum of a function's values, from its values alone."""
    step, x = 1e-5, inputs[key]
    gradient = torch.zeros_like(x, dtype=torch.float64)
    for i in range(x.numel()):
        ends = []
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[i] += sign * step
            ends.append(float(sum(v.double().sum() for v in values({**inputs, key: moved}))))
        gradient.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def mask_of(probe: Probe) -> Tensor:
    if probe.mask is not None:
        return probe.mask
    rows = next(x for x in probe.inputs.values() if isinstance(x, Tensor) and x.dim() == 2)
    return torch.ones(rows.shape).bool()


def mean_of(value: Any, probe: Probe, how: str | None) -> Any:
    """Return a value per token or per sequence as the mean that a reduced function returns."""
    if how is None:
        return value
    if value.dim() < 2:
        return value.mean()
    return averaged(value, mask_of(probe), how)


def averaged(x: Tensor, mask: Tensor, how: str) -> Tensor:
    """Return reduce.aggregate; what "constant" divides by are all slots."""
    return aggregate(x, mask, how, total=mask.numel() if how == "constant" else None)


def times(value: Any, factor: float) -> Any:
    if factor == 1:
        return value
    return [factor * part for part in value] if isinstance(value, (tuple, list)) else factor * value


def agree(came: Any, wanted: Any, tolerance: float, *, exploded: Collection[str] = ()) -> bool:
    """Whether two results are the same up to a tolerance, NaN in the same places.

    exploded   "came", "wanted" or both: where these are huge, only that they are no NaN counts, as
               a cap far away is everybody's choice
    """
    if came is None or wanted is None or came.shape != wanted.shape:
        return False
    pair = {"came": came.double(), "wanted": wanted.double()}
    hidden = torch.zeros_like(pair["came"]).bool()
    for name in exploded:
        hidden |= huge(pair[name])
    one, other = (x.masked_fill(hidden, 0) for x in pair.values())
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def huge(x: Tensor) -> Tensor:
    """Return where a ratio has exploded."""
    return x.double().abs() > HUGE
