"""What `check` asks of a function: the inputs on which each property shows itself."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirl.testing import golden
from minirl.testing.oracle import Oracle
from minirl.testing.signatures import LEARNT, PER_TOKEN, Signature, batch, signatures

Function = Callable[..., Any]

RAGGED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0],
                       [0, 0, 0, 1, 0, 0]]).bool()                            # (4, 6)
SQUARE = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0],
                       [0, 0, 0, 0, 0]]).bool()                               # (5, 5): B == T
RATIOS = 1.5, 0.5, 1.0, 0.3, 0.79, 0.9, 1.1, 1.21, 1.3, 2.5, 4.0, 6.0
ADVANTAGES = 1.0, -1.0, -2.0, 0.0, 0.5
EQUAL = 0.1, 0.3, 0.7, 1.1, 2.3        # rewards that binary fractions do not hit


class Probe(NamedTuple):
    """A call in which a property shows itself.

    visible     (B, T) where the output counts; None: everywhere
    weights     (N,) probabilities of the rows, for an expectation; None: a plain sum
    read        makes the numbers to compare of what the function returns
    ours        what is right is a choice of this library: asked for with strict=True
    changes     the argument that the function changes in place: it is compared, too
    hint        what is wrong where this property alone fails, if that can be said
    """

    property: str
    inputs: dict[str, Any]
    options: dict[str, Any] = {}
    mask: Tensor | None = None
    visible: Tensor | None = None
    weights: Tensor | None = None
    dtype: torch.dtype = torch.float64
    read: Function | None = None
    changes: str = ""
    hint: str = ""
    ours: bool = False


class Target(NamedTuple):
    """What a function can be checked against.

    probes      the calls to compare; its argument is check's `reduced`
    learnt      arguments with a gradient
    """

    function: Function
    probes: Callable[[str | None], Iterator[Probe]]
    learnt: frozenset[str] = frozenset()


def equations() -> dict[str, Target]:
    """Return every equation as a target, by name. Rules on plain numbers have golden values
    alone."""
    rows: dict[str, list[Signature]] = {}
    for row in signatures():
        rows.setdefault(row.function.__name__, []).append(row)
    tensors = {name: Target(own[0].function, functools.partial(probes, own),
                            frozenset(argument for row in own for argument, kind
                                      in zip(row.names, row.kinds, strict=True) if kind in LEARNT))
               for name, own in rows.items()}
    numbers = {name: Target(golden.function(name), functools.partial(golden_probes, name, None))
               for name in golden.rows() if name not in rows}
    return {**tensors, **numbers}


def golden_probes(name: str, own: set[str] | None, reduced: str | None) -> Iterator[Probe]:
    """Yield the golden cases. `own` are the arguments that are no options; None: all."""
    if name in golden.rows() and reduced is None:
        for case in golden.cases(name):
            mine = {key: value for key, value in case.inputs.items() if own is None or key in own}
            yield Probe("golden values", mine, {key: value for key, value in case.inputs.items()
                                                if key not in mine}, ours=case.ours)


def probes(rows: list[Signature], reduced: str | None) -> Iterator[Probe]:
    """Yield the calls to compare an equation with, golden ones first."""
    against = rows[0].function.__name__
    yield from golden_probes(against, {name for row in rows for name in row.names}, reduced)
    for row in rows:
        masked = "M" in row.kinds or reduced is not None
        if {"logp", "old_logp", "adv"} <= set(row.names):
            for ratio, adv in itertools.product(RATIOS, ADVANTAGES):
                yield Probe("clip truth table", one_token(row, ratio, adv), row.options)
        yield Probe("a batch", batch(row, RAGGED), row.options, RAGGED, RAGGED)
        yield Probe("B == T, and an empty row", batch(row, SQUARE, seed=6), row.options, SQUARE,
                    SQUARE)
        order = torch.tensor([2, 0, 3, 1])
        yield Probe("row order", {k: v[order] for k, v in batch(row, RAGGED).items()}, row.options,
                    RAGGED[order], RAGGED[order])
        if masked and set(row.kinds) & set(PER_TOKEN):
            for junk in (1e9, torch.nan):
                yield Probe("what stands under the mask never matters",
                            under_the_mask(row, batch(row, RAGGED), RAGGED, junk), row.options,
                            RAGGED, RAGGED)
            wide = torch.nn.functional.pad(RAGGED, (2, 3))
            yield Probe("padding on either side", under_the_mask(row, batch(row, wide), wide, 7.0),
                        row.options, wide, wide)
        if row.kinds[0] == "G":
            for size, value in itertools.product((3, 8), EQUAL):
                equal = batch(row, torch.ones(2, size).bool(), dtype=torch.float32)
                equal[row.names[0]] = torch.full((2, size), value)
                yield Probe("equal rewards teach nothing", equal, row.options,
                            dtype=torch.float32)
        if {"logp", "old_logp", "adv"} <= set(row.names) or against in ("k2", "k3"):
            for far in (100.0, -100.0):
                yield Probe("log-ratios of 100 make no NaN", far_away(row, far), row.options)
                single = {name: x.float() if x.is_floating_point() else x
                          for name, x in far_away(row, far).items()}
                yield Probe("log-ratios of 100 make no NaN in float32", single, row.options,
                            dtype=torch.float32, ours=True)
        for dtype in (torch.float32, torch.bfloat16):
            yield Probe(str(dtype).removeprefix("torch."), batch(row, RAGGED, dtype=dtype),
                        row.options, RAGGED, RAGGED, dtype=dtype)
        if row.names[0] == "logp" and "L" in row.kinds and not row.options:
            yield from expectations(row)


def one_token(row: Signature, ratio: float, adv: float) -> dict[str, Any]:
    """Return a single token, with a ratio below, inside or above the bounds."""
    numbers = {"logp": math.log(ratio), "adv": adv}
    return {name: torch.ones(1, 1).bool() if kind == "M" else
            torch.full((1,) if kind == "c" else (1, 1), numbers.get(name, 0.0)).double()
            for name, kind in zip(row.names, row.kinds, strict=True)}


def under_the_mask(row: Signature, inputs: dict[str, Any], mask: Tensor, junk: float
                   ) -> dict[str, Any]:
    """Return the inputs with junk wherever the mask is 0."""
    filled = dict(inputs)
    for name, kind in zip(row.names, row.kinds, strict=True):
        if kind in PER_TOKEN and filled[name].dim() == 2:
            filled[name] = filled[name].masked_fill(~mask, junk)
    return filled


def far_away(row: Signature, log_ratio: float) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for name, kind in zip(row.names, row.kinds, strict=True):
        size = (2,) if kind == "c" else (2, 2)
        if kind == "M":
            inputs[name] = torch.ones(size).bool()
        elif name == "adv":
            inputs[name] = torch.tensor([1.0, -1.0] if kind == "c" else [[1.0], [-1.0]]
                                        ).double().expand(size).clone()
        else:
            inputs[name] = torch.full(size, log_ratio if name == "logp" else 0.0).double()
    return inputs


def expectations(row: Signature) -> Iterator[Probe]:
    """Yield the mean over all completions of an oracle, where the sampler is the policy itself."""
    oracle = Oracle(3, 2)
    logp = oracle.logp(oracle.table(seed=0)).detach()
    inputs: dict[str, Any] = {}
    for i, (name, kind) in enumerate(zip(row.names, row.kinds, strict=True)):
        if kind == "M":
            inputs[name] = oracle.mask
        elif name in ("logp", "old_logp"):
            inputs[name] = logp.clone()
        elif name == "ref_logp":
            inputs[name] = oracle.logp(oracle.table(seed=1)).detach()
        else:
            inputs[name] = oracle.random(*(() if kind in "lc" else oracle.tokens.shape), seed=i)
    yield Probe("expectation over all completions", inputs, row.options, oracle.mask, oracle.mask,
                oracle.prob(logp))


def one_per_row(probe: Probe, names: Sequence[str]) -> Probe:
    """Return the probe with all tokens of a row alike in some arguments."""
    alike = dict(probe.inputs)
    for name in names:
        if name in alike and alike[name].dim() == 2:
            x = alike[name]
            mask = probe.mask if probe.mask is not None else torch.ones(x.shape).bool()
            first = x.gather(1, mask.int().argmax(1, keepdim=True))              # (B, 1)
            alike[name] = torch.where(mask.any(1, keepdim=True), first, 0).expand(x.shape).clone()
    return probe._replace(inputs=alike)
