"""What is wrong, in words: the known slip that gives what came, or what can be said in general."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from minirl.equations.reduce import AGGREGATIONS
from minirl.testing.measuring import agree, averaged, mask_of, mean_of, measured
from minirl.testing.probes import Function, Probe
from minirl.testing.slips import SLIPS, Slip
from minirl.testing.subject import TOLERANCE, Difference, Subject

NO_NUMBERS = "error", "input", "graph"                 # measures that name their own cause


def known_slip(subject: Subject, differences: list[Difference]) -> tuple[str, bool] | None:
    """Return the slip that gives all that came, and whether it is a choice; None for none."""
    if any(d.measure.startswith(NO_NUMBERS) for d in differences):
        return None
    if not any(d.came is not None and bool(d.came.isfinite().any()) for d in differences):
        return None                                    # NaN alone proves no slip
    for slip in (*SLIPS.get(subject.against, ()), *other_means(subject)):
        if all(gives_the_same(slip, subject, difference) for difference in differences):
            return slip.text, slip.choice
    return None


def diagnose(subject: Subject, differences: list[Difference]) -> tuple[str, bool]:
    """Return what is wrong with one property, as far as that can be said."""
    slip = known_slip(subject, differences)
    if slip is not None:
        return slip
    if any(d.measure.startswith(NO_NUMBERS) for d in differences):
        return "", False
    hint = differences[0].probe.hint
    return hint or in_general(differences), False


def gives_the_same(slip: Slip, subject: Subject, difference: Difference) -> bool:
    """Whether a slip gives all that came from a call, what agrees with the equation included."""
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
        return False
    # what came may have exploded; a slip must not match by its own size
    return all(agree(came, result.get(measure), TOLERANCE[probe.dtype], exploded=["came"])
               for measure, came in difference.everything.items())


def other_means(subject: Subject) -> Iterator[Slip]:
    """Yield the other ways to average, for a function that returns the mean."""
    for how in AGGREGATIONS if subject.reduced else ():
        if how == "constant" != subject.reduced:
            yield Slip("it divides by all slots, padding included: Dr. GRPO's constant does so on "
                       "purpose, a mean over tokens or sequences must not",
                       _averaged(subject.equation, how), reduces=True)
        elif how != subject.reduced:
            yield Slip(f"it averages as {how!r}, and {subject.reduced!r} was asked for",
                       _averaged(subject.equation, how), choice=True, reduces=True)


def _averaged(equation: Function, how: str) -> Function:
    def function(mask_: Tensor, **arguments: Any) -> Any:
        return averaged(equation(**arguments), mask_, how)

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
        if "empty row" in differences[0].probe.property:
            return "NaN: a row without tokens is 0 / 0, so take a count of at least 1"
        return "NaN: 0 * NaN is NaN, so take out what is masked by torch.where, not by a product"
    first = next((d for d in differences if d.came is not None and d.wanted.is_floating_point()
                  and d.wanted.abs().sum() > 0), None)      # a mask has no factor
    if first is not None and first.came.shape == first.wanted.shape:
        factor = float((first.came * first.wanted).sum() / first.wanted.square().sum())
        if factor and abs(factor - 1) > 0.01 and ratio_is(factor):
            return f"it is {factor:.4g} times what is right, everywhere"
    return ""
