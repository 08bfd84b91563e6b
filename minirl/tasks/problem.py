"""Problem, and what a task is.

A task is any object with

    sample(n, rng, *, split="train") -> list[Problem]      n problems of a split ("train" or "test"), drawn with a random.Random
    rewards: dict[str, RewardFunction]                     named reward functions, each f(prompts, completions, **columns) -> list[float | None]

Reward functions have the signature TRL uses: `columns` are the problems' fields by name ("answer", ...), each a list with one entry per
completion. None means "no verdict". A task knows no model and no tokenizer: prompts and completions are text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

RewardFunction = Callable[..., "list[float | None]"]


@dataclass(frozen=True)
class Problem:
    """One question. `prompt` is what the model reads, `answer` what a right completion says, `worked` one way to get there (for SFT), if known."""

    prompt: str
    answer: str
    worked: str = ""


def columns(problems: Sequence[Problem], *, repeat: int = 1) -> dict[str, list]:
    """The problems' fields by name, each entry `repeat` times in a row: what reward functions get for groups of `repeat` completions."""
    return {field.name: [getattr(p, field.name) for p in problems for _ in range(repeat)] for field in fields(Problem) if field.name != "prompt"}
