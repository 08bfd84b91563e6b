"""Problem, and what a task is.

A task is any object with

    sample(n, rng, *, split="train") -> list[Problem]      n problems of a split ("train" or "test"), drawn with a random.Random
    rewards: dict[str, RewardFunction]                     named reward functions, each f(prompts, completions, **columns) -> list[float | None];
                                                           the one called "accuracy" says what counts as right in evaluation

Reward functions have the signature TRL uses: `columns` are the problems' fields by name ("answer", ...), each a list with one entry per
completion. They are called by keyword, so that parameters may stand in any order. None and NaN mean
"no verdict". A task knows no model and no tokenizer: prompts and completions are text, or
conversations in TRL's form. Problems are equal where their fields are, and can be put into a set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

RewardFunction = Callable[..., "list[float | None]"]
MISSES = 10_000        # in a row: no matter of chance where one problem in ten is held out


@dataclass(frozen=True)
class Problem:
    """One question.

    `prompt` is what the model reads, `answer` what a right completion says. For demonstrations, where known: `worked` is one way to get there,
    and `written` the answer in their spelling.
    """

    prompt: str
    answer: str
    worked: str = ""
    written: str = ""


def draw(n: int, split: str, one: Callable[[], tuple[Problem, str]]) -> list[Problem]:
    """n problems of a split. one() makes a problem and says which split it is in. Raises ValueError
    where the split has hardly any."""
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}: train or test is wanted")
    if n < 0:
        raise ValueError(f"n is {n}: a number of problems is wanted")
    problems, misses = [], 0
    while len(problems) < n:
        problem, where = one()
        misses += 1
        if where == split:
            problems.append(problem)
            misses = 0
        elif misses == MISSES:
            raise ValueError(f"of {MISSES} problems, such as {problem.prompt!r}, none is in the "
                             f"{split} split: a task of more problems is wanted")
    return problems


def columns(problems: Sequence[Problem], *, repeat: int = 1) -> dict[str, list]:
    """The problems' fields by name, each entry `repeat` times in a row: what reward functions get for groups of `repeat` completions.

    A task may subclass Problem to add fields; all problems of one call are of one class.
    """
    names = [field.name for field in fields(problems[0] if problems else Problem) if field.name != "prompt"]
    return {name: [getattr(p, name) for p in problems for _ in range(repeat)] for name in names}
