"""Reasoning problems and general prompts in one batch, each judged in its own way.

    reasoning   by rules: the reasoning task's rewards
    general     by a reward model, `preference`; the general task's own rewards are reported as
                general/... and do not count

A reward gives no verdict (None) on the other task's problems.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minirl.tasks.problem import Problem, RewardFunction, Task, columns, weights_of
from minirl.tasks.rewards import judge


@dataclass(frozen=True)
class MixedProblem(Problem):
    """A problem of one of the two tasks: `source` is that task's own problem."""

    source: Problem = Problem("", "")
    general: bool = False


@dataclass(frozen=True)
class Mixture:
    """Problems of two tasks: with probability `general_share` a general prompt.

    Paper      DeepSeek-R1, arXiv:2501.12948v2, eqs. 8 to 10 (there, general answers have a reward
               for their format, too).
    """

    reasoning: Task
    general: Task
    preference: RewardFunction
    general_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.general_share <= 1:
            raise ValueError(f"general_share is {self.general_share}: a share in [0, 1] is wanted")

    @property
    def name(self) -> str:
        return f"{self.reasoning.name} and {self.general.name}"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        rules = {name: restricted(name, reward, general=False)
                 for name, reward in self.reasoning.rewards.items()}
        watched = {f"general/{name}": reward for name, reward in self.general.rewards.items()}
        return rules | {name: restricted(name, reward, general=True)
                        for name, reward in {"preference": self.preference, **watched}.items()}

    @property
    def weights(self) -> dict[str, float]:
        """The reasoning task's weights, 1 for the preference, and 0 for what is only reported."""
        return {**dict.fromkeys(self.rewards, 0.0), **weights_of(self.reasoning), "preference": 1.0}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[MixedProblem]:
        """Draw n problems of a split, with replacement."""
        problems = []
        for general in [rng.random() < self.general_share for _ in range(n)]:
            task = self.general if general else self.reasoning
            problem, = task.sample(1, rng, split=split)
            problems.append(MixedProblem(problem.prompt, problem.answer, source=problem,
                                         general=general))
        return problems


def restricted(name: str, reward: RewardFunction, *, general: bool) -> RewardFunction:
    """The reward, asked about the general prompts alone, or about the others alone.

    It gets the columns of its own task's problems, and says None about the other task's.
    """
    asked_about = general

    def verdicts(prompts: Sequence[str], completions: Sequence[Any], general: Sequence[bool],
                 source: Sequence[Problem], **others: Sequence[Any]) -> list[float | None]:
        rows = [i for i, is_general in enumerate(general) if is_general == asked_about]
        answers: list[float | None] = [None] * len(completions)
        if rows:
            def at_rows(column: Sequence[Any]) -> list[Any]:
                return [column[i] for i in rows]

            own = {key: at_rows(column) for key, column in others.items()}
            own |= columns(at_rows(source))
            judged = judge({name: reward}, [name], at_rows(prompts), at_rows(completions), **own)
            for i, verdict in zip(rows, judged[name], strict=True):
                answers[i] = verdict
        return answers

    return verdicts
