"""One step of a training page, token by token: what the page itself computed.

The page has these numbers in variables: logp, old, adv, kl, ... While it runs, Python's trace
function reads them before each backward pass and each update, as a debugger would. No page contains
a word about it.
"""

from __future__ import annotations

import ast
import copy
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from minirl.equations.kl import k3
from minirl.inference.collect import Collected
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.rollouts import Rollouts

EPSILON = 1e-4    # how far, along the gradient, log-probs are compared: in float64, so no noise


@dataclass
class Update:
    """One optimizer step.

    rows        completion -> its numbers by name, each with one entry per token after the prompt;
                None where the policy did not sample the token
    loss        of the minibatch
    grad_norm   of the policy's gradient, before clipping
    """

    rows: dict[int, dict[str, list[float | None]]] = field(default_factory=dict)
    loss: float = 0.0
    grad_norm: float = 0.0


@dataclass
class StepTrace:
    """A step: its completions and their verdicts, the page's configuration, and its updates."""

    answers: Collected
    config: Any
    updates: list[Update]


@dataclass
class Part:
    """A micro-batch between its backward pass and the end of the update."""

    rows: list[int]
    batch: Rollouts
    numbers: dict[str, Tensor]         # by name, (b, T) each


class StepTracer:
    """Reads the variables of one call of `page` in its step number `step`, counted from 0."""

    def __init__(self, page: Callable, step: int) -> None:
        self.code, self.step = page.__code__, step
        self.statements = statements_of(page)
        self.at = ""                   # the statement that runs: "backward", "update" or another
        self.parts: list[Part] = []
        self.update = Update()
        self.trace: StepTrace | None = None

    def call(self, frame: FrameType, event: str, arg: Any) -> Callable | None:
        """What Python calls when a function starts."""
        return self.line if frame.f_code is self.code else None

    def line(self, frame: FrameType, event: str, arg: Any) -> Callable:
        """What Python calls before each line of the page."""
        now, before = self.statements.get(frame.f_lineno, ""), self.at
        if event == "line" and now != before:
            self.at = now
            variables = frame.f_locals
            if "state" in variables and variables["state"].step == self.step:
                self.look(before, now, variables)
        return self.line

    def look(self, before: str, now: str, variables: Mapping[str, Any]) -> None:
        if now == "backward":
            self.parts.append(read_part(variables))
            self.update.loss += float(variables["loss"].detach())
        elif now == "update":
            self.add_gradient(variables)
        elif before == "update" and self.parts:
            self.close(variables)

    def add_gradient(self, variables: Mapping[str, Any]) -> None:
        """Add to each token its share of the gradient that the update is about to take."""
        model, scaler = variables["model"], variables["state"].scaler
        scale = 1.0 if scaler is None else scaler.value
        gradient = [None if p.grad is None else p.grad.double() / scale
                    for p in model.parameters()]
        norm = float(torch.stack([g.norm() for g in gradient if g is not None]).norm())
        self.update.grad_norm = norm
        for part, slope in zip(self.parts, slopes(
                model, gradient, norm, [part.batch for part in self.parts],
                variables["config"].temperature), strict=True):
            part.numbers["gradient_share"] = part.numbers["coefficient"] * slope / (norm or 1.0)

    def close(self, variables: Mapping[str, Any]) -> None:
        """Add what the update made of each token's log-prob, and keep the update."""
        config = variables["config"]
        for part in self.parts:
            with torch.no_grad():
                part.numbers["logp_after"] = token_logprobs(
                    variables["model"], part.batch.tokens, mask=part.batch.mask,
                    temperature=config.temperature)
            for b, row in enumerate(part.rows):
                start, end = int(part.batch.prompt_lengths[b]), int(part.batch.lengths[b])
                mask = part.batch.mask[b, start:end].tolist()
                self.update.rows[row] = {
                    name: [float(x) if on else None
                           for x, on in zip(values[b, start:end].tolist(), mask, strict=True)]
                    for name, values in part.numbers.items()}
        if self.trace is None:
            self.trace = StepTrace(variables["answers"], config, [])
        self.trace.updates.append(self.update)
        self.parts, self.update = [], Update()


def statements_of(page: Callable) -> dict[int, str]:
    """Return which of a page's lines belong to its backward pass, and which to its update.

    Raises ValueError for a function that has no such statements.
    """
    source, first = inspect.getsourcelines(page)
    lines: dict[int, str] = {}
    for node in ast.walk(ast.parse(textwrap.dedent("".join(source)))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            name = {"state.backward": "backward", "apply_update": "update"}.get(called)
            if name is not None:
                end = node.end_lineno or node.lineno
                lines |= dict.fromkeys(range(first + node.lineno - 1, first + end), name)
    if set(lines.values()) != {"backward", "update"}:
        raise ValueError(f"{page.__name__} does not call state.backward and apply_update: a "
                         "training page such as train_grpo or train_ppo is wanted")
    return lines


def read_part(variables: Mapping[str, Any]) -> Part:
    """Read a micro-batch out of the page's variables, just before its backward pass."""
    batch, rows, logp, old = (variables[name] for name in ("batch", "rows", "logp", "old"))
    T = batch.tokens.shape[1]
    adv = variables["adv"][rows, :T]  # (b, T)
    loss, surrogate, mask = variables["loss"], variables["surrogate"], batch.mask
    with torch.enable_grad():
        objective = variables["objective"](logp, old, adv, mask)  # (b, T)
        slope, = torch.autograd.grad(objective.sum(), logp, retain_graph=True)
        coefficient, = torch.autograd.grad(loss, logp, retain_graph=True)
        weight, = torch.autograd.grad(loss, surrogate, retain_graph=True)
    numbers = {
        "behavior_logp": batch.behavior_logp, "old_logp": old, "logp": logp,
        "ratio": (logp - old).exp(), "adv": adv, "objective": objective,
        "clipped": (slope == 0) & (adv != 0), "entropy": variables["entropy"],
        "loss": surrogate * weight, "coefficient": coefficient}
    if variables.get("ref_logp") is not None:
        ref = numbers["ref_logp"] = variables["ref_logp"][rows, :T]
        kl = variables["kl"]               # PPO's is a number: there the KL is in the rewards
        numbers["kl"] = kl if isinstance(kl, Tensor) else k3(logp, ref)
    for name, variable in (("weight", "weight"), ("value", "values"), ("value_loss", "vf")):
        if isinstance(variables.get(variable), Tensor):
            numbers[name] = variables[variable]
    for name, variable in (("return", "returns"), ("reward", "shaped"),
                           ("old_value", "old_values")):
        if isinstance(variables.get(variable), Tensor):
            numbers[name] = variables[variable][rows, :T]
    numbers = {name: x.detach().clone() for name, x in numbers.items()}
    return Part(variables["chosen"][rows].tolist(), batch, numbers)


def slopes(model: Transformer, gradient: list[Tensor | None], norm: float,
           batches: list[Rollouts], temperature: float) -> list[Tensor]:
    """Return how fast each log-prob changes along the gradient's direction, (b, T) for each batch.

    Equation   d_t = ⟨∇ log π_t, g / |g|⟩, by a central difference in float64. As g is the sum of
               c_t ∇ log π_t, the sum of c_t d_t is |g|.
    """
    precise = copy.deepcopy(model).double().requires_grad_(False)
    ends = []
    with torch.no_grad(), compute_in("float32", model.device):
        for move in (EPSILON, -2 * EPSILON):       # to the one side, then to the other
            for p, g in zip(precise.parameters(), gradient, strict=True):
                if g is not None and norm:
                    p.add_(g, alpha=move / norm)
            ends.append([token_logprobs(precise, batch.tokens, mask=batch.mask,
                                        temperature=temperature) for batch in batches])
    return [(plus - minus) / (2 * EPSILON) for plus, minus in zip(*ends, strict=True)]


@contextmanager
def traced(page: Callable, step: int = 0) -> Iterator[StepTracer]:
    """Trace one step of a page that runs inside; its `trace` is None where no update was made."""
    tracer, before = StepTracer(page, step), sys.gettrace()
    sys.settrace(tracer.call)
    try:
        yield tracer
    finally:
        sys.settrace(before)
