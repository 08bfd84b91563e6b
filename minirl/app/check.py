"""`minirl check`: does anybody's loss compute what the paper says?"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from minirl.testing.conformance import RECIPES, check, targets


def command_check(args: argparse.Namespace) -> int:
    """Print what `check` finds -> 0 where all properties hold, else 1."""
    if args.list:
        print(listing())
        return 0
    if args.function is None or args.against is None:
        raise ValueError("which function, and against what? For example: minirl check "
                         "my_module:my_loss --against grpo --sign minimise; minirl check --list "
                         "shows all names")
    report = check(function_of(args.function), args.against, sign=args.sign, reduced=args.reduced,
                   fixed=dict(map(assignment, args.fixed or ())),
                   per_sequence=args.per_sequence or (), arrays=arrays_of(args.arrays))
    print(report)
    return 0 if report.ok else 1


def listing() -> str:
    """Return what a function can be checked against."""
    lines = ["Whole losses: (logp, old_logp, adv, mask) -> the mean"]
    for name, recipe in RECIPES.items():
        numbers = "".join(f", {key} {value}" for key, value in recipe.fixed.items())
        lines.append(f"  {name:12} {recipe.equation}, {recipe.reduced}{numbers}")
    lines += ["", "Functions, with the arguments that minirl's function of this name has:"]
    rooms: dict[str, list[str]] = {}
    for name, target in targets().items():
        rooms.setdefault(target.function.__module__, []).append(name)
    for module, names in rooms.items():
        lines += [f"  {module.replace('.', '/')}.py", *(f"    {name}" for name in sorted(names))]
    return "\n".join(lines)


def function_of(text: str) -> Callable[..., Any]:
    """Import "module:function". The current folder is looked into first."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"{text!r} is no function: expected module:function, such as "
                         "my_module:my_loss for my_loss in my_module.py")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {error.name}: is {module}.py in this folder, or "
                         "installed?") from error
    except AttributeError as error:
        raise ValueError(f"{module} has no {name}") from error
    if not callable(function):
        raise ValueError(f"{text} is a {type(function).__name__}, and no function")
    return function


def assignment(text: str) -> tuple[str, Any]:
    """Return NAME=VALUE as a pair: a number, True or False, or text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--fixed {text}: expected NAME=VALUE, such as clip_high=0.28")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def arrays_of(framework: str) -> Callable[..., Any] | None:
    """Return what makes the framework's arrays; None for torch."""
    if framework == "torch":
        return None
    try:
        return importlib.import_module({"jax": "jax.numpy"}.get(framework, framework)).asarray
    except ModuleNotFoundError as error:
        raise ValueError(f"{framework} is not installed: python -m pip install {framework}"
                         ) from error
