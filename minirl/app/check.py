"""`minirl check`: does anybody's loss compute what the paper says?"""

from __future__ import annotations

import argparse
import ast
import os
from typing import Any

from minirl.app.user_code import imported
from minirl.testing.conformance import check, listing


def command_check(args: argparse.Namespace) -> int:
    """Print what `check` finds -> 0 where all properties hold, else 1."""
    if args.list:
        print(listing())
        return 0
    if args.function is None or args.against is None:
        raise ValueError("which function, and against what? For example: minirl check "
                         "my_module:my_loss --against grpo --sign minimise; minirl check --list "
                         "shows all names")
    arrays = {"torch": "", "numpy": "numpy:asarray", "jax": "jax.numpy:asarray"}[args.arrays]
    os.environ.setdefault("JAX_ENABLE_X64", "1")       # finite differences need float64
    report = check(imported(args.function), args.against, sign=args.sign, reduced=args.reduced,
                   fixed=dict(map(assignment, args.fixed)), per_sequence=args.per_sequence,
                   arrays=imported(arrays) if arrays else None)
    print(report)
    return 0 if report.ok else 1


def assignment(text: str) -> tuple[str, Any]:
    """Return NAME=VALUE as a pair: a number, True or False, or text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--fixed {text}: expected NAME=VALUE, such as clip_high=0.28")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
