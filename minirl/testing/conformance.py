"""Check anybody's loss against ground truth, and say in words what is wrong with it.

    report = check(my_loss, "clipped_surrogate", sign="minimise")
    print(report)                                      # a line for each property
    assert report.ok

The truth is minirl's equation of that name, which the golden tables and the oracle hold to. A
property is a set of inputs on which value and gradient must agree with it. Where what came is what
a known slip gives (slips.py), the report names the slip.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirl.equations.reduce import AGGREGATIONS, aggregate
from minirl.testing import golden
from minirl.testing.oracle import Oracle
from minirl.testing.signatures import LEARNT, PER_TOKEN, Signature, batch, signatures
from minirl.testing.slips import SLIPS, Slip

Function = Callable[..., Any]

RAGGED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0],
                       [0, 0, 0, 1, 0, 0]]).bool()                            # (4, 6)
SQUARE = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0],
                       [0, 0, 0, 0, 0]]).bool()                               # (5, 5): B == T
RATIOS = torch.tensor([0.3, 0.5, 0.79, 0.9, 1.0, 1.1, 1.21, 1.3, 1.5, 2.5, 4.0, 6.0]).double()
ADVANTAGES = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0]).double()
EQUAL = 0.1, 0.3, 0.7, 1.1, 2.3        # rewards that binary fractions do not hit
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
HUGE = 1e6                             # what an exploded ratio gives: only that it is no NaN counts
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.04}


class Failure(NamedTuple):
    """A property that does not hold: on which inputs, what came, what is right, and why.

    diagnosis   the known slip that gives what came; "" where none does
    choice      that slip is no mistake but another convention, such as another ddof
    """

    property: str
    inputs: dict[str, Any]
    came: Any
    wanted: Any
    diagnosis: str = ""
    choice: bool = False


class Report(NamedTuple):
    """What `check` found: every property with its verdict, and the failures."""

    against: str
    properties: dict[str, str]         # "holds", "fails", or why it was not asked
    failures: list[Failure]

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        lines = [f"against {self.against}: {'ok' if self.ok else 'NOT ok'}"]
        lines += [f"  {name:44} {verdict}" for name, verdict in self.properties.items()]
        for failure in self.failures:
            lines += ["", f"{failure.property}",
                      *(f"  {name:10} {short(value)}" for name, value in failure.inputs.items()),
                      f"  came       {short(failure.came)}",
                      f"  right is   {short(failure.wanted)}"]
            if failure.diagnosis:
                lines.append(f"  {'by choice' if failure.choice else 'the slip':10} "
                             f"{failure.diagnosis}")
        return "\n".join(lines)


class Probe(NamedTuple):
    """A call in which a property shows itself.

    visible     (B, T) where the output counts; None: everywhere
    weights     (N,) probabilities of the rows, for an expectation; None: a plain sum
    """

    property: str
    inputs: dict[str, Any]
    options: dict[str, Any] = {}
    mask: Tensor | None = None
    visible: Tensor | None = None
    weights: Tensor | None = None
    dtype: torch.dtype = torch.float64


def check(function: Function, against: str, *, sign: str = "maximise", reduced: str | None = None,
          fixed: Mapping[str, Any] | None = None, arrays: Function | None = None,
          only: str | None = None) -> Report:
    """Compare a function with the equation called `against`, in value and gradient.

    function    has that equation's arguments, in its order. Options that it does not take keep
                their defaults, or are `fixed`
    sign        "minimise" for a loss, where the equation is an objective to maximise
    reduced     for a function that takes the mask as its last argument and returns the mean: how
                it averages, as reduce.aggregate's `how`
    fixed       options that are built into the function, such as {"clip_high": 0.28}
    arrays      makes the function's arrays from numpy's: numpy.asarray, jax.numpy.asarray. Its
                gradients are then finite differences. Without it the function takes torch tensors
    only        one property alone, of those that `properties` lists
    Raises      ValueError for an unknown equation, sign, mean, option or property

    >>> def loss(logp, old_logp, adv):                 # max where A < 0: gradients at ratio 1.5
    ...     ratio = (logp - old_logp).exp()
    ...     clipped = ratio.clamp(0.8, 1.2)
    ...     return -torch.where(adv > 0, torch.minimum(ratio * adv, clipped * adv),
    ...                         torch.maximum(ratio * adv, clipped * adv))
    >>> report = check(loss, "clipped_surrogate", sign="minimise")
    >>> report.ok, report.failures[0].diagnosis.split(":")[0]
    (False, 'for A < 0 this takes the maximum')
    """
    fixed = dict(fixed or {})
    _check_request(against, sign, reduced, fixed)
    subject = Subject(function, against, sign, reduced, fixed, arrays)
    every = list(probes(against, reduced))
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
    diagnosis, choice = diagnose(subject, differences)
    failures: dict[str, Failure] = {}
    for difference in differences:                     # the first of each property
        failures.setdefault(difference.probe.property, Failure(
            difference.probe.property, difference.probe.inputs | difference.options,
            difference.came, difference.wanted, diagnosis or difference.reason, choice))
    return Report(against, verdicts, list(failures.values()))


def properties(against: str, *, reduced: str | None = None) -> list[str]:
    """Return the properties that `check` asks for, for one test each:

        @pytest.mark.parametrize("only", properties("k3"))
        def test_my_k3(only):
            report = check(my_k3, "k3", only=only)
            assert report.ok, str(report)
    """
    _check_request(against, "maximise", reduced, {})
    return list(dict.fromkeys(probe.property for probe in probes(against, reduced)))


def names() -> list[str]:
    """Return the equations that `check` knows."""
    return sorted({signature.function.__name__ for signature in signatures()})


# what is asked

def probes(against: str, reduced: str | None) -> Iterator[Probe]:
    """Yield the calls to compare, simple ones first."""
    rows = [row for row in signatures() if row.function.__name__ == against]
    if reduced is None:
        for case in golden.cases(against) if against in golden.rows() else []:
            own = {name for row in rows for name in row.names}
            yield Probe("golden values", {k: v for k, v in case.inputs.items() if k in own},
                        {k: v for k, v in case.inputs.items() if k not in own})
    for row in rows:
        masked = "M" in row.kinds or reduced is not None
        if {"logp", "old_logp", "adv"} <= set(row.names):
            yield Probe("clip truth table", *truth_table(row), visible=None)
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
        for dtype in (torch.float32, torch.bfloat16):
            yield Probe(str(dtype).removeprefix("torch."), batch(row, RAGGED, dtype=dtype),
                        row.options, RAGGED, RAGGED, dtype=dtype)
        if row.names[0] == "logp" and "L" in row.kinds and not row.options:
            yield from expectations(row)


def truth_table(row: Signature) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ratios below, inside and above every bound, each with advantages of either sign."""
    ratio, adv = (x.flatten() for x in torch.meshgrid(RATIOS, ADVANTAGES, indexing="ij"))
    per_token = "c" not in row.kinds
    shape = (1, -1) if per_token else (-1, 1)
    inputs: dict[str, Any] = {}
    for name, kind in zip(row.names, row.kinds, strict=True):
        x = {"logp": ratio.log(), "adv": adv}.get(name, torch.zeros_like(ratio)).reshape(shape)
        inputs[name] = x.bool() | True if kind == "M" else adv if kind == "c" else x
    return inputs, row.options


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


# how it is asked

class Difference(NamedTuple):
    """One comparison that failed. `measure` is "value", "gradient NAME", or what went wrong."""

    probe: Probe
    options: dict[str, Any]
    measure: str
    came: Any
    wanted: Any
    reason: str = ""


class Subject(NamedTuple):
    """The function that is checked, with what `check` was told of it."""

    function: Function
    against: str
    sign: str
    reduced: str | None
    fixed: dict[str, Any]
    arrays: Function | None

    @property
    def equation(self) -> Function:
        return golden.function(self.against)

    @property
    def factor(self) -> float:
        """-1 for a loss beside an objective."""
        doc = (self.equation.__doc__ or "").split("\n")[0]
        return -1.0 if self.sign == "minimise" and "Maximise" in doc else 1.0

    def options_of(self, probe: Probe) -> dict[str, Any] | None:
        """Return the options to call the function with; None where it cannot be asked, because an
        option is built in, or the arrays are no torch tensors."""
        if self.arrays is not None and probe.dtype is not torch.float64:
            return None                                # too coarse for finite differences
        parameters = inspect.signature(self.function).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        defaults = inspect.signature(self.equation).parameters
        passed = {}
        for name, value in probe.options.items():
            if name in self.fixed:
                if self.fixed[name] != value and probe.property == "golden values":
                    return None
            elif anything or name in parameters:
                passed[name] = value
            elif defaults[name].default != value:
                return None
        optional = [name for name in probe.inputs if defaults[name].kind is KEYWORD_ONLY]
        return passed if anything or set(optional) <= set(parameters) else None

    def compare(self, probe: Probe, options: dict[str, Any]) -> list[Difference]:
        """Return where the function and the equation differ."""
        wanted = measured(self.truth, probe, probe.options | self.fixed, self.learnt(probe))
        try:
            came = measured(self.call, probe, options, self.learnt(probe), arrays=self.arrays)
        except Exception as error:                     # anybody's code: whatever it raises
            return [Difference(probe, options, "error", f"{type(error).__name__}: {error}",
                               wanted["value"], "it raises an error")]
        lenient = probe.property.startswith("log-ratios")
        return [Difference(probe, options, key, came.get(key), wanted.get(key),
                           f"it writes into its {key}" if key.startswith("input") else "")
                for key in {**wanted, **came}
                if key not in wanted
                or not agree(came.get(key), wanted[key], TOLERANCE[probe.dtype], lenient=lenient)]

    def learnt(self, probe: Probe) -> list[str]:
        return [name for name, kind in zip(self.row.names, self.row.kinds, strict=True)
                if kind in LEARNT and name in probe.inputs]

    @property
    def row(self) -> Signature:
        return next(row for row in signatures() if row.function is self.equation)

    def truth(self, inputs: dict[str, Any], options: dict[str, Any], probe: Probe) -> Any:
        return mean_of(self.equation(**inputs, **options), probe, self.reduced)

    def call(self, inputs: dict[str, Any], options: dict[str, Any], probe: Probe) -> Any:
        kinds = {name: parameter.kind for name, parameter
                 in inspect.signature(self.equation).parameters.items()}
        positional = [inputs[name] for name in kinds
                      if name in inputs and kinds[name] is not KEYWORD_ONLY]
        named = {name: value for name, value in inputs.items() if kinds[name] is KEYWORD_ONLY}
        if self.reduced and "mask" not in inputs:
            mask = mask_of(probe).clone()
            positional.append(mask if self.arrays is None else self.arrays(mask.numpy()))
        return times(self.function(*positional, **named, **options), self.factor)


def measured(call: Function, probe: Probe, options: dict[str, Any], learnt: list[str], *,
             arrays: Function | None = None) -> dict[str, Any]:
    """Return the values and gradients of one call, and inputs that it has changed, by name.

    The gradient is that of the sum over what is visible, or of the mean under the weights.
    """
    inputs = {key: value.clone() if isinstance(value, Tensor) else value
              for key, value in probe.inputs.items()}
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
        hidden = probe.visible is not None and gradient.shape == probe.visible.shape
        result[f"gradient {key}"] = gradient[probe.visible] if hidden else gradient
    return result


def visible_values(outputs: Any, probe: Probe) -> list[Tensor]:
    """Return what counts of each output: what is visible, or the mean under the weights."""
    values = []
    for output in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
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
    mask = mask_of(probe)
    return aggregate(value, mask, how, total=mask.numel() if how == "constant" else None)


def times(value: Any, factor: float) -> Any:
    if isinstance(value, (tuple, list)):
        return [factor * part for part in value]
    return factor * value if factor != 1 else value


def agree(a: Any, b: Any, tolerance: float, *, lenient: bool = False) -> bool:
    """Whether two results are the same up to a tolerance, NaN in the same places.

    `lenient`: where a ratio has exploded, only that it is no NaN counts.
    """
    if a is None or a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    if lenient:
        exploded = (a.abs() > HUGE) | (b.abs() > HUGE)
        a, b = a.masked_fill(exploded, 0), b.masked_fill(exploded, 0)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


# what is wrong

def diagnose(subject: Subject, differences: list[Difference]) -> tuple[str, bool]:
    """Return the slip that gives all that came, and whether it is a choice; "" for none."""
    numbers = [d for d in differences if d.measure.startswith(("value", "gradient"))]
    if not numbers or len(numbers) < len(differences):
        return "", False
    for slip in (*SLIPS.get(subject.against, ()), *other_means(subject)):
        if all(agree(difference.came, slip_gives(slip, subject, difference),
                     TOLERANCE[difference.probe.dtype], lenient=True) for difference in numbers):
            return slip.text, slip.choice
    return in_general(numbers), False


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
        return all(d.came is not None and agree(d.came, factor * d.wanted, 1e-4, lenient=True)
                   for d in differences)

    if ratio_is(-1):
        return "the sign is the other one: negate it, or pass sign='minimise' for a loss"
    if all(d.came is not None and d.measure.startswith("gradient")
           and bool((d.came == 0).all()) for d in differences):
        return "no gradient flows: something on its way is detached"
    if all(d.came is not None and bool((d.came.isnan() & ~d.wanted.isnan()).any())
           for d in differences):
        return "NaN: 0 * NaN is NaN, so take out what is masked by torch.where, not by a product"
    if any(bool(d.came is not None and d.wanted.abs().sum() > 0) for d in differences):
        first = next(d for d in differences if d.came is not None and d.wanted.abs().sum() > 0)
        if first.came.shape == first.wanted.shape:
            factor = float((first.came * first.wanted).sum() / first.wanted.square().sum())
            if factor and ratio_is(factor):
                return f"it is {factor:.4g} times what is right, everywhere"
    return ""


def short(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = value.detach().double().flatten()
        head = ", ".join(f"{x:.4g}" for x in numbers[:8].tolist())
        return f"{tuple(value.shape)}  {head}{', ...' if len(numbers) > 8 else ''}"
    return str(value)


def _check_request(against: str, sign: str, reduced: str | None, fixed: Mapping[str, Any]) -> None:
    if against not in names():
        golden.cases(against)                          # says which names are near
        raise ValueError(f"{against!r} has golden values and no check: expected one of "
                         f"{', '.join(names())}")
    if sign not in ("maximise", "minimise"):
        raise ValueError(f"sign is {sign!r}: expected 'maximise' or 'minimise'")
    if reduced is not None and reduced not in AGGREGATIONS:
        raise ValueError(f"reduced is {reduced!r}: expected one of {', '.join(AGGREGATIONS)}")
    known = inspect.signature(golden.function(against)).parameters
    for name in fixed:
        if name not in known:
            raise ValueError(f"{against} has no option {name!r}: expected one of "
                             f"{', '.join(known)}")
