"""The function that is checked: how it is called, and where it differs from the equation."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch

from minirl.testing.measuring import agree, huge, mask_of, mean_of, measured, times
from minirl.testing.probes import Function, Probe, Target

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.04}


class Difference(NamedTuple):
    """One comparison that failed. `measure` is "value", "gradient NAME", or what went wrong.

    everything   all that came from this call, also what agrees
    """

    probe: Probe
    options: dict[str, Any]
    measure: str
    came: Any
    wanted: Any
    reason: str = ""
    everything: dict[str, Any] = {}


class Subject(NamedTuple):
    """The function that is checked, with what `check` was told of it."""

    function: Function
    against: str
    target: Target
    sign: str
    reduced: str | None
    fixed: dict[str, Any]
    per_sequence: tuple[str, ...]
    arrays: Function | None
    strict: bool = False

    @property
    def equation(self) -> Function:
        return self.target.function

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
        everywhere = self.strict and (self.reduced is not None or "mask" in probe.inputs)
        wanted = measured(self.truth, probe, probe.options | self.fixed, self.learnt(probe),
                          everywhere=everywhere)
        try:
            came = measured(self.call, probe, options, self.learnt(probe), arrays=self.arrays,
                            everywhere=everywhere)
        except Exception as error:                     # anybody's code: whatever it raises
            return [Difference(probe, options, "error", f"{type(error).__name__}: {error}",
                               wanted["value"], "it raises an error")]
        if (self.strict and self.arrays is None and carries(self.call, probe, options)
                and not carries(self.truth, probe, probe.options | self.fixed)):
            return [Difference(probe, options, "graph", "a gradient path through a constant",
                               "none", "detach what is a constant")]
        found = [Difference(probe, options, key, came.get(key), value, everything=came)
                 for key, value in wanted.items()
                 if not agree(came.get(key), value, TOLERANCE[probe.dtype],
                              exploded=explosions(key, wanted, probe))]
        return found + [Difference(probe, options, key, came[key], probe.inputs[key[6:]],
                                   f"it writes into its {key}")
                        for key in came if key.startswith("input ")]

    def learnt(self, probe: Probe) -> list[str]:
        return [name for name in probe.inputs if name in self.target.learnt]

    def truth(self, inputs: dict[str, Any], options: dict[str, Any], probe: Probe) -> Any:
        return mean_of(self.equation(**inputs, **options), probe, self.reduced)

    def call(self, inputs: dict[str, Any], options: dict[str, Any], probe: Probe) -> Any:
        kinds = {name: parameter.kind for name, parameter
                 in inspect.signature(self.equation).parameters.items()}
        positional = [inputs[name][:, 0] if name in self.per_sequence else inputs[name]
                      for name in kinds if name in inputs and kinds[name] is not KEYWORD_ONLY]
        named = {name: value for name, value in inputs.items() if kinds[name] is KEYWORD_ONLY}
        if self.reduced and "mask" not in inputs:
            mask = mask_of(probe).clone()
            positional.append(mask if self.arrays is None else self.arrays(mask.numpy()))
        return times(self.function(*positional, **named, **options), self.factor)


def explosions(key: str, wanted: dict[str, Any], probe: Probe) -> tuple[str, ...]:
    """Return which of what came and what is wanted may explode: where a ratio is capped is not
    compared, unless the cap is ours. Behind a cap the equation's gradient is 0."""
    if probe.ours:
        return ()
    value = any(bool(huge(x).any()) for name, x in wanted.items() if name.startswith("value"))
    return ("came", "wanted") if value and key.startswith("gradient") else ("wanted",)


def carries(call: Function, probe: Probe, options: dict[str, Any]) -> bool:
    """Whether the result has a gradient if all inputs ask for one. Where that is refused it has
    none."""
    inputs = {key: value.clone().requires_grad_() if isinstance(value, torch.Tensor)
              and value.is_floating_point() else value for key, value in probe.inputs.items()}
    try:
        output = call(inputs, options, probe)
    except Exception:                                  # anybody's code: whatever it raises
        return False
    outputs = output if isinstance(output, (tuple, list)) else [output]
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in outputs)
