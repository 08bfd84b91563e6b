"""What a problem is, and what a task is.

A task draws problems and names the reward functions that judge completions of them: see `Task`.
Reward functions have the signature that TRL uses, f(prompts, completions, **columns) -> one number
per completion. `columns` are the problems' fields by name ("answer", ...), each a list with one
entry per completion. Reward functions are called by keyword, so their parameters may stand in any
order. None and NaN mean "no verdict".

A task knows no model and no tokenizer: prompts and completions are text, or conversations in TRL's
format.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

RewardFunction = Callable[..., "list[float | None]"]
TEST_SHARE = 10        # one problem in ten is held out
MISSES = 10_000        # draws in a row outside a split before it counts as empty


@dataclass(frozen=True)
class Problem:
    """One question. A task may subclass it to add fields.

    `prompt` is what the model reads, `answer` what a right completion says. For demonstrations,
    where known: `worked` is one way to get there, and `written` the answer in their spelling.
    Problems are equal where their fields are, and can be put into a set.
    """

    prompt: str
    answer: str
    worked: str = ""
    written: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """What reward functions get beside prompt and completion, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name != "prompt"}


class Task(Protocol):
    """What is learnt and how it is scored. Any object with these members is a task.

    name      what a title calls it, such as "3-digit addition"
    rewards   reward functions by name; the one called "accuracy" says which completions evaluation
              counts as right: those with verdict 1
    weights   how much each verdict counts in the sum that training maximises; a reward of weight 0
              is judged and reported, one without a weight is not judged
    sample    n problems of a split ("train" or "test"), drawn with replacement
    """

    @property
    def name(self) -> str: ...

    @property
    def rewards(self) -> Mapping[str, RewardFunction]: ...

    @property
    def weights(self) -> Mapping[str, float]: ...

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> Sequence[Problem]: ...


@dataclass(frozen=True)
class JudgedTask:
    """The problems of a task, judged by other rewards or with other weights."""

    task: Task
    rewards: Mapping[str, RewardFunction]
    weights: Mapping[str, float]
    name: str = ""  # empty: the task's own name

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.task, "name", ""))

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> Sequence[Problem]:
        return self.task.sample(n, rng, split=split)


def weights_of(task: Task) -> dict[str, float]:
    """The task's weights by reward; 1 for each of its rewards where it has no `weights`.

    Raises ValueError for a weight of a reward that the task does not have.
    """
    weights = getattr(task, "weights", None)
    if weights is None:
        weights = dict.fromkeys(task.rewards, 1.0)
    for name in weights:
        if name not in task.rewards:
            raise ValueError(f"weights: there is no reward {name!r}; the task has "
                             f"{', '.join(task.rewards) or 'none'}")
    return dict(weights)


def listed(task: Any) -> Sequence[Problem]:
    """Return all problems of a task that has a list of them, behind tools and other rewards; none
    of a task that makes them as they are drawn."""
    while hasattr(task, "task"):
        task = task.task
    return getattr(task, "problems", ())


def draw(n: int, split: str, one: Callable[[], tuple[Problem, str]]) -> list[Problem]:
    """Return n problems of a split. one() makes a problem and says which split it is in.

    Raises ValueError where the split has hardly any problems.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}: train or test is wanted")
    if n < 0:
        raise ValueError(f"n is {n}: a number of problems is wanted")
    problems: list[Problem] = []
    misses = 0
    while len(problems) < n:
        problem, its_split = one()
        misses += 1
        if its_split == split:
            problems.append(problem)
            misses = 0
        elif misses == MISSES:
            raise ValueError(f"of {MISSES} problems, such as {problem.prompt!r}, none is in the "
                             f"{split} split: a task of more problems is wanted")
    return problems


def split_of(key: str) -> str:
    """Return "train" or "test", by a hash of what identifies a problem."""
    return "test" if hash_of(key) % TEST_SHARE == 0 else "train"


def hash_of(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")


def check_share(name: str, share: float) -> None:
    """Raise ValueError unless the share is in [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}: a share in [0, 1] is wanted")


def columns(problems: Sequence[Problem], *, repeat: int = 1) -> dict[str, list[Any]]:
    """Return the problems' columns by name, each entry `repeat` times in a row.

    This is what reward functions get for groups of `repeat` completions.

    Raises ValueError for problems of different classes, or with different columns.
    """
    classes = list(dict.fromkeys(map(type, problems)))
    if len(classes) > 1:
        names = " and ".join(problem_class.__name__ for problem_class in classes)
        raise ValueError(f"these problems are of the classes {names}; they must be of one class, "
                         "as their fields may differ: use a Mixture of two tasks, or one subclass "
                         "of Problem for all")
    rows = [problem.columns for problem in problems or [Problem("", "")]]
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"one of these problems has the columns {', '.join(rows[0])}, and "
                             f"another {', '.join(row)}: they must have the same")
    return {name: [row[name] for row in rows[:len(problems)] for _ in range(repeat)]
            for name in rows[0]}
