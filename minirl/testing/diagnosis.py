"""What is wrong, in words: the known slip that gives what came, or what can be said in general."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from minirl.equations.reduce import AGGREGATIONS, aggregate
from minirl.testing.measuring import agree, mask_of, mean_of, measured
from minirl.testing.probes import Function, Probe
from minirl.testing.slips import SLIPS, Slip
from minirl.testing.subject import TOLERANCE, Difference, Subject


def known_slip(subject: Subject, differences: list[Difference]) -> tuple[str, bool] | None:
    """Return the slip that gives all that came, and whether it is a choice; None for none."""
    if any(d.measure.startswith(("error", "input", "graph")) for d in differences):
        return None
    if not any(d.came is not None and bool(d.came.isfinite().any()) for d in differences):
        return None                                    # NaN alone proves no slip
    for slip in (*SLIPS.get(subject.against, ()), *other_means(subject)):
        if all(agree(difference.came, slip_gives(slip, subject, difference),
                     TOLERANCE[difference.probe.dtype]) for difference in differences):
            return slip.text, slip.choice
    return None


def diagnose(subject: Subject, differences: list[Difference]) -> tuple[str, bool]:
    """Return what is wrong with one property, as far as that can be said."""
    slip = known_slip(subject, differences)
    if slip is not None:
        return slip
    if any(d.measure.startswith(("error", "input", "graph")) for d in differences):
        return "", False
    hint = differences[0].probe.hint
    return hint or in_general(differences), False


def slip_gives(slip: Slip, subject: Subject, difference: Difference) -> Any:
    """Return what the slip gives where the function gave `difference.came`."""
    probe = difference.probe
    accepted = inspect.signature(slip.function).parameters

    def call(inputs: dict[str, Any], options: dict[str, Any], probe: Probe) -> Any:
        own = {key: value for key, value in options.items() if key in accepted}
        arguments = {key: value for key, value in inputs.items() if key in accepted}
        extra = {"mask_": mask_of(probe)} if "mask_" in accepted else {}
        value = slip.function(**arguments, **own, **extra)
        return value if slip.reduces else mean_of(value, probe, subject.reduced)

    try:
        result = measured(call, probe, probe.options | subject.fixed, subject.learnt(probe))
    except (ValueError, RuntimeError):
        return None
    return result.get(difference.measure)


def other_means(subject: Subject) -> Iterator[Slip]:
    """Yield the other ways to average, for a function that returns the mean."""
    for how in AGGREGATIONS if subject.reduced else ():
        if how != subject.reduced:
            yield Slip(f"it averages as {how!r}, and {subject.reduced!r} was asked for",
                       _averaged(subject.equation, how), choice=True, reduces=True)
    if subject.reduced:
        yield Slip("the mean counts padding: divide by the mask's sum, not by the number of slots",
                   _averaged(subject.equation, "constant"), reduces=True)


def _averaged(equation: Function, how: str) -> Function:
    def function(mask_: Tensor, **arguments: Any) -> Any:
        total = mask_.numel() if how == "constant" else None
        return aggregate(equation(**arguments), mask_, how, total=total)

    parameters = [*inspect.signature(equation).parameters.values()]
    mask = inspect.Parameter("mask_", inspect.Parameter.KEYWORD_ONLY)
    function.__signature__ = inspect.Signature([*parameters, mask])    # type: ignore[attr-defined]
    return function


def in_general(differences: list[Difference]) -> str:
    """Return what is wrong where no known slip of this equation fits."""
    def ratio_is(factor: float) -> bool:
        return all(d.came is not None and agree(d.came, factor * d.wanted, 1e-4)
                   for d in differences)

    if ratio_is(-1):
        return "the sign is the other one: negate it, or pass sign='minimise' for a loss"
    if all(d.came is not None and d.measure.startswith("gradient")
           and bool((d.came == 0).all()) for d in differences):
        return "no gradient flows: something on its way is detached"
    if any(d.came is not None and d.came.shape == d.wanted.shape
           and bool((d.came.isnan() & ~d.wanted.isnan()).any()) for d in differences):
        return "NaN: 0 * NaN is NaN, so take out what is masked by torch.where, not by a product"
    if any(bool(d.came is not None and d.wanted.abs().sum() > 0) for d in differences):
        first = next(d for d in differences if d.came is not None and d.wanted.abs().sum() > 0)
        if first.came.shape == first.wanted.shape:
            factor = float((first.came * first.wanted).sum() / first.wanted.square().sum())
            if factor and abs(factor - 1) > 0.01 and ratio_is(factor):
                return f"it is {factor:.4g} times what is right, everywhere"
    return ""
