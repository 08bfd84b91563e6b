"""Check anybody's loss against ground truth, and say in words what is wrong with it.

    report = check(my_loss, "clipped_surrogate", sign="minimise")
    print(report)                                      # a line for each property
    assert report.ok

The truth is minirl's equation of that name, which the golden tables and the oracle hold to. A
property is a set of inputs on which value and gradient must agree with it. Where what came is what
a known slip gives (slips.py), the report names the slip.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
from torch import Tensor

from minirl.equations.reduce import AGGREGATIONS
from minirl.testing.diagnosis import diagnose, known_slip
from minirl.testing.measuring import mask_of
from minirl.testing.others import OTHERS
from minirl.testing.probes import Function, Target, equations, one_per_row
from minirl.testing.subject import Difference, Subject

WIDTH = 80                             # columns of a report


class Recipe(NamedTuple):
    """A whole objective: an equation, its mean and its numbers."""

    equation: str
    reduced: str
    fixed: dict[str, Any] = {}


RECIPES = {
    "ppo": Recipe("clipped_surrogate", "token_mean"),
    "grpo": Recipe("clipped_surrogate", "sequence_mean"),
    "dapo": Recipe("clipped_surrogate", "token_mean", {"clip_high": 0.28}),
    "dr_grpo": Recipe("clipped_surrogate", "constant"),
    "gspo": Recipe("sequence_clipped_surrogate", "sequence_mean",
                   {"clip_low": 3e-4, "clip_high": 4e-4, "length_normalised": True}),
}


class Failure(NamedTuple):
    """A property that does not hold: on which inputs, what came, what is right, and why.

    diagnosis   the known slip that gives what came; "" where none does
    choice      that slip is no mistake but another convention, such as another ddof
    measure     what came: the value, the gradient of an argument, an error, a changed input
    """

    property: str
    inputs: dict[str, Any]
    came: Any
    wanted: Any
    diagnosis: str = ""
    choice: bool = False
    measure: str = "value"


class Report(NamedTuple):
    """What `check` found: every property with its verdict, and the failures."""

    against: str
    properties: dict[str, str]         # "holds", "fails", or why it was not asked
    failures: list[Failure]

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        left_out = sum(verdict == "not asked" for verdict in self.properties.values())
        lines = [f"against {self.against}: {'ok' if self.ok else 'NOT ok'}"
                 + (f", {left_out} properties not asked" if left_out else "")]
        lines += [f"  {verdict:9} {name}" for name, verdict in self.properties.items()]
        for diagnosis in dict.fromkeys(failure.diagnosis for failure in self.failures):
            same = [failure for failure in self.failures if failure.diagnosis == diagnosis]
            first = same[0]
            cause = "another convention: " if first.choice else ""
            lines += ["", *textwrap.wrap(cause + (diagnosis or "no known slip gives what came"),
                                         WIDTH)]
            others = f" (and {len(same) - 1} more)" if len(same) > 1 else ""
            lines += [f"  {first.property}{others}, for example where",
                      *(f"    {name:14} {short(value)}" for name, value in first.inputs.items()),
                      f"  the {first.measure} came as", f"    {short(first.came)}",
                      "  and right is", f"    {short(first.wanted)}"]
        return "\n".join(lines)


def check(function: Function, against: str, *, sign: str = "maximise", reduced: str | None = None,
          fixed: Mapping[str, Any] | None = None, per_sequence: Sequence[str] = (),
          arrays: Function | None = None, only: str | None = None, strict: bool = False
          ) -> Report:
    """Compare a function with the equation called `against`, in value and gradient.

    against     a name that `targets` has, or one of RECIPES, such as "grpo": the function then
                takes (logp, old_logp, adv, mask) and returns the mean
    function    has that equation's arguments, in its order. Options that it does not take keep
                their defaults, or are `fixed`
    sign        "minimise" for a loss, where the equation is an objective to maximise
    reduced     for a function that takes the mask as its last argument and returns the mean: how
                it averages, as reduce.aggregate's `how`
    fixed       options that are built into the function, such as {"clip_high": 0.28}
    per_sequence  per-token arguments of which the function takes one per sequence, (B,), such as
                ["adv"]
    arrays      makes the function's arrays from numpy's: numpy.asarray, jax.numpy.asarray. Its
                gradients are then finite differences. Without it the function takes torch tensors
    only        one property alone, of those that `properties` lists
    strict      ask also for what is a choice of this library: that a NaN reward is no verdict,
                that a group of one learns nothing, where an exploded ratio is capped, and
                that constants carry no gradient
    Raises      ValueError for an unknown equation, sign, mean, option or property

    >>> import torch
    >>> def loss(logp, old_logp, adv):                 # max where A < 0: gradients at ratio 1.5
    ...     ratio = (logp - old_logp).exp()
    ...     clipped = ratio.clamp(0.8, 1.2)
    ...     return -torch.where(adv > 0, torch.minimum(ratio * adv, clipped * adv),
    ...                         torch.maximum(ratio * adv, clipped * adv))
    >>> report = check(loss, "clipped_surrogate", sign="minimise")
    >>> report.ok, report.failures[0].diagnosis.split(":")[0]
    (False, 'for A < 0 this takes the maximum')
    """
    name = against
    against, reduced, fixed = resolve(against, reduced, fixed)
    _check_request(against, sign, reduced, fixed)
    if arrays is not None and "64" not in str(arrays(numpy.zeros(1)).dtype):
        raise ValueError("arrays does not keep float64, which finite differences need; with JAX: "
                         'jax.config.update("jax_enable_x64", True)')
    target = targets()[against]
    subject = Subject(function, against, target, sign, reduced, fixed, tuple(per_sequence), arrays,
                      strict)
    every = [one_per_row(probe, per_sequence) for probe in target.probes(reduced)
             if strict or not probe.ours]
    if only is not None and only not in {probe.property for probe in every}:
        raise ValueError(f"{only!r} is no property of {against}: expected one of "
                         f"{', '.join(properties(against, reduced=reduced))}")
    verdicts: dict[str, str] = {}
    differences: list[Difference] = []
    for probe in every:
        if only not in (None, probe.property):
            continue
        options = subject.options_of(probe)
        if options is None:
            verdicts.setdefault(probe.property, "not asked")
            continue
        found = subject.compare(probe, options)
        differences += found
        if found or verdicts.get(probe.property) != "fails":
            verdicts[probe.property] = "fails" if found else "holds"
    everywhere = known_slip(subject, differences)
    failures = []
    for property_name in dict.fromkeys(d.probe.property for d in differences):
        own = [d for d in differences if d.probe.property == property_name]
        diagnosis, choice = everywhere or diagnose(subject, own)
        first = own[0]
        inputs = first.probe.inputs | first.options
        if reduced is not None:
            inputs.setdefault("mask", mask_of(first.probe))
        failures.append(Failure(property_name, inputs, first.came, first.wanted,
                                diagnosis or first.reason, choice, first.measure))
    return Report(name, verdicts, failures)


def properties(against: str, *, reduced: str | None = None, strict: bool = False) -> list[str]:
    """Return the properties that `check` asks for, for one test each:

        @pytest.mark.parametrize("only", properties("k3"))
        def test_my_k3(only):
            report = check(my_k3, "k3", only=only)
            assert report.ok, str(report)
    """
    against, reduced, fixed = resolve(against, reduced, None)
    _check_request(against, "maximise", reduced, fixed)
    return list(dict.fromkeys(probe.property for probe in targets()[against].probes(reduced)
                              if strict or not probe.ours))


def resolve(against: str, reduced: str | None, fixed: Mapping[str, Any] | None
            ) -> tuple[str, str | None, dict[str, Any]]:
    """Return equation, mean and numbers of a recipe; what is asked for besides wins."""
    recipe = RECIPES.get(against)
    if recipe is None:
        return against, reduced, dict(fixed or {})
    return recipe.equation, reduced or recipe.reduced, {**recipe.fixed, **(fixed or {})}


@functools.cache
def targets() -> dict[str, Target]:
    """Return all that a function can be checked against, by name."""
    return {**equations(), **OTHERS}


def short(value: Any) -> str:
    """Return numbers in a line."""
    if not isinstance(value, Tensor):
        text = " ".join(str(value).split())
        return text if len(text) <= WIDTH else f"{text[:WIDTH - 4]} ..."
    numbers = value.detach().double().flatten()
    head = "  ".join(f"{x:.4g}" for x in numbers[:6].tolist())
    if value.dim() == 0 or len(numbers) == 1:
        return head
    return f"{head}{'  ...' if len(numbers) > 6 else ''}   {tuple(value.shape)}"


def listing() -> str:
    """Return what a function can be checked against, as text."""
    lines = ["Whole losses: (logp, old_logp, adv, mask) -> the mean"]
    for name, recipe in RECIPES.items():
        numbers = "".join(f", {key} {value}" for key, value in recipe.fixed.items())
        lines.append(f"  {name:8} {recipe.equation}, {recipe.reduced}{numbers}")
    lines += ["", "Functions, with the arguments that minirl's function of this name has:"]
    rooms: dict[str, list[str]] = {}
    for name, target in targets().items():
        rooms.setdefault(target.function.__module__, []).append(name)
    for module, names in rooms.items():
        lines += [f"  {module.replace('.', '/')}.py",
                  *textwrap.wrap(", ".join(sorted(names)), WIDTH, initial_indent=4 * " ",
                                 subsequent_indent=4 * " ")]
    return "\n".join(lines)


def _check_request(against: str, sign: str, reduced: str | None, fixed: Mapping[str, Any]) -> None:
    if against not in targets():
        known = [*targets(), *RECIPES]
        near = difflib.get_close_matches(against, known, n=3) or sorted(known)
        raise ValueError(f"against is {against!r}: expected a name such as {', '.join(near)}")
    if sign not in ("maximise", "minimise"):
        raise ValueError(f"sign is {sign!r}: expected 'maximise' or 'minimise'")
    if reduced is not None and reduced not in AGGREGATIONS:
        raise ValueError(f"reduced is {reduced!r}: expected one of {', '.join(AGGREGATIONS)}")
    options = inspect.signature(targets()[against].function).parameters
    for name in fixed:
        if name not in options:
            raise ValueError(f"{against} has no option {name!r}: expected one of "
                             f"{', '.join(options)}")
