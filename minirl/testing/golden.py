"""Golden values: inputs, values and gradients of every equation, worked out by hand.

    for case in cases("clipped_surrogate"):
        value = clipped_surrogate(**case.inputs)       # is case.value; case.why says why

golden.json beside this file has the same numbers for everybody else: numpy, JAX, another language.
It is made from the tables by `python -m minirl.testing.golden`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirl.equations import kl
from minirl.testing.tables import Row

JSON = Path(__file__).with_name("golden.json")
VERSION = 1                            # of the layout of golden.json
TABLES = sorted(file.stem for file in (Path(__file__).parent / "tables").glob("[a-z]*.py"))
EQUATIONS = sorted(file.stem for file in Path(kl.__file__).parent.glob("[a-z]*.py"))


class Case(NamedTuple):
    """One call of an equation, and what must come out.

    inputs      arguments by name, tensors in float64 (masks: bool; counts: int64)
    value       the result; a tensor where the function returns one, a tuple where it returns two
    gradient    of the sum of the value with respect to some of the inputs, by their names
    why         the arithmetic
    ours        the number is a choice of this library, which others need not share
    """

    inputs: dict[str, Any]
    value: Any
    gradient: dict[str, Tensor]
    why: str
    ours: bool = False


def cases(name: str) -> list[Case]:
    """Return the golden cases of an equation, by the function's name, such as "k3".

    Raises     ValueError for a name that is none, with the nearest ones.

    >>> case = cases("k1")[0]
    >>> case.why
    'ln(1/2) - ln(1/4) = ln 2'
    >>> case.inputs["logp"].exp(), case.value
    (tensor([0.5000], dtype=torch.float64), tensor([0.6931], dtype=torch.float64))
    """
    tables = rows()
    if name not in tables:
        near = difflib.get_close_matches(name, tables, n=3) or sorted(tables)
        raise ValueError(f"{name!r} is the name of no equation: expected one such as "
                         f"{', '.join(near)}")
    scalars = {key for key, kind in function(name).__annotations__.items() if kind == "Tensor"}
    return [Case(inputs={key: as_part(value) if key in scalars else as_input(value)
                         for key, value in row.inputs.items()},
                 value=as_tensor(row.value),
                 gradient={key: as_part(value) for key, value in row.gradient.items()},
                 why=row.why, ours=is_ours(row)) for row in tables[name]]


def is_ours(row: Row) -> bool:
    """Whether a row holds what is a choice of this library.

    Besides those that say so, these are groups with a NaN reward, which is no verdict here, and
    groups of one, which learn nothing.
    """
    rewards = row.inputs.get("rewards")
    if row.ours or rewards is None or {"mask", "ref_logp"} & set(row.inputs):
        return row.ours
    return len(rewards[0]) == 1 or any(x != x for x in flat(rewards))


def rows() -> dict[str, list[Row]]:
    """Return all golden cases as plain numbers, by the function's name."""
    tables: dict[str, list[Row]] = {}
    for module in TABLES:
        tables |= importlib.import_module(f"minirl.testing.tables.{module}").TABLE
    return tables


def function(name: str) -> Any:
    """Return the equation that has this name."""
    for module in EQUATIONS:
        equations = importlib.import_module(f"minirl.equations.{module}")
        if getattr(getattr(equations, name, None), "__module__", "") == equations.__name__:
            return getattr(equations, name)
    raise ValueError(f"{name!r} is the name of no equation")


def as_input(value: Any) -> Any:
    """Return an argument: lists of numbers as a tensor, an estimator's name as the function."""
    if isinstance(value, str) and value in ("k1", "k2", "k3"):
        return getattr(kl, value)
    return as_tensor(value)


def as_tensor(value: Any) -> Any:
    """Return lists of numbers as a tensor: of bools, of ints, or of floats in float64. A tuple of
    lists becomes a tuple of tensors."""
    if isinstance(value, tuple):
        return tuple(as_part(part) for part in value)
    if not isinstance(value, list):
        return value
    kinds = {type(number) for number in flat(value)}
    if not kinds <= {bool, int, float}:
        return value
    return torch.tensor(value, dtype=torch.float64 if float in kinds else None)


def as_part(value: Any) -> Any:
    """Return as as_tensor does, but a single number, too, where a tensor is wanted: a scalar."""
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    return as_tensor(value)


def flat(value: Any) -> list[Any]:
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


def to_json() -> str:
    """Return the text of golden.json."""
    blocks = []
    for name, table in rows().items():
        doc = function(name).__doc__ or ""
        paper = re.search(r"(?m)^ *Paper +(.+?)(?=\n *[A-Z][a-z]+  |\n *\n|\Z)", doc, re.S)
        head = {"module": function(name).__module__,
                "paper": " ".join(paper[1].split()) if paper else ""}
        lines = [line({"why": row.why, "inputs": row.inputs, "value": row.value,
                       "gradient": row.gradient, "ours": is_ours(row)}) for row in table]
        blocks.append(f'{line(name)}: {line(head)[:-1]}, "cases": [\n'
                      + ",\n".join(lines) + "\n]}")
    note = line('float64; "nan", "inf" and "-inf" are text')
    return (f'{{"version": {VERSION},\n"numbers": {note},\n"equations": {{\n'
            + ",\n".join(blocks) + "\n}}\n")


def line(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return numbers that JSON has: NaN and infinities as text."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    JSON.write_text(to_json(), encoding="utf-8")
    print(f"wrote {JSON.name}: {len(rows())} equations, {sum(map(len, rows().values()))} cases")
