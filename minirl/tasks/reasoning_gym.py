"""A data set of reasoning-gym as a task: over a hundred kinds of problems, made as they are needed.

    ReasoningGym("chain_sum", {"max_terms": 3})

reasoning-gym is optional: python -m pip install reasoning-gym. Its `score_answer(answer, entry)` is
the reward, from 0 to 1; evaluation counts a completion as right where it is 1.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from minirl.tasks.answers import claims
from minirl.tasks.problem import Problem, RewardFunction, draw, split_of
from minirl.tasks.rewards import Completion, Verdicts, format_reward, text
from minirl.tasks.waiting import within

SIZE = 10_000       # problems of a data set whose config does not say
SECONDS = 5.0       # for the score of one answer


@dataclass(frozen=True)
class Entry(Problem):
    """A problem, and the entry of reasoning-gym that it is made of."""

    entry: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ReasoningGym:
    """Problems of one data set. `config` holds the fields of its configuration, such as seed and
    size; a tenth of the questions is held out, by a hash.

    Raises ValueError for a data set or a field that does not exist, and without the package.
    """

    dataset: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _ = self.entries

    @cached_property
    def entries(self) -> Any:
        try:
            from reasoning_gym import create_dataset
        except ImportError as error:
            raise ValueError("reasoning_gym is not installed: python -m pip install reasoning-gym"
                             ) from error
        try:
            return create_dataset(self.dataset, **{"seed": 0, "size": SIZE, **self.config})
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"reasoning_gym:{self.dataset} cannot be made from "
                             f"{dict(self.config)}: {error}") from error

    @cached_property
    def made(self) -> dict[int, Mapping[str, Any]]:
        """Entries by index: some take a tenth of a second to make, and nine in ten are not of the
        test split."""
        return {}

    @property
    def name(self) -> str:
        return f"reasoning_gym:{self.dataset}"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": self.accuracy, "format_reward": format_reward}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        """Draw n problems of a split, evenly and with replacement."""
        def one() -> tuple[Problem, str]:
            i = rng.randrange(len(self.entries))
            if i not in self.made:
                self.made[i] = self.entries[i]
            entry = self.made[i]
            question = entry["question"]
            return Entry(question, str(entry["answer"] or ""), entry=entry), split_of(question)

        return draw(n, split, one)

    def accuracy(self, prompts: Sequence[Any], completions: Sequence[Completion],
                 entry: Sequence[Mapping[str, Any]], **_: Any) -> Verdicts:
        return [self._score(text(completion), one)
                for completion, one in zip(completions, entry, strict=True)]

    def _score(self, completion: str, entry: Mapping[str, Any]) -> float:
        """The score of the one answer that a completion gives; 0 for none, or for several."""
        places = {place.strip() for place in claims(completion)}
        if len(places) != 1:
            return 0.0
        try:
            return float(within(SECONDS, lambda: self.entries.score_answer(places.pop(), entry)))
        except Exception:                   # whatever a model wrote, it is wrong and no error
            return 0.0
