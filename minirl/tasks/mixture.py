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

from minirl.tasks.environment import tool_task
from minirl.tasks.problem import Problem, RewardFunction, Task, check_share, columns, weights_of
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
        check_share("general_share", self.general_share)
        if tool_task(self.reasoning) is not None or tool_task(self.general) is not None:
            raise ValueError("a part of the mixture has tools of its own: give them to the "
                             "mixture, with_tools(Mixture(...), ...)")

    @property
    def name(self) -> str:
        return f"{self.reasoning.name} and {self.general.name}"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        general = {f"general/{name}": reward for name, reward in self.general.rewards.items()}
        general = {"preference": self.preference, **general}
        return {**{name: reward_on_own_problems(name, reward, for_general=False)
                   for name, reward in self.reasoning.rewards.items()},
                **{name: reward_on_own_problems(name, reward, for_general=True)
                   for name, reward in general.items()}}

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


def reward_on_own_problems(name: str, reward: RewardFunction, *,
                           for_general: bool) -> RewardFunction:
    """Return the reward of one of the two tasks as a reward of the mixture.

    It judges its own task's problems, with their columns; all others get None.
    """
    def verdicts(prompts: Sequence[str], completions: Sequence[Any], general: Sequence[bool],
                 source: Sequence[Problem], **others: Sequence[Any]) -> list[float | None]:
        rows = [i for i, is_general in enumerate(general) if is_general == for_general]
        all_verdicts: list[float | None] = [None] * len(completions)
        if rows:
            def at_rows(column: Sequence[Any]) -> list[Any]:
                return [column[i] for i in rows]

            own_columns = {key: at_rows(column) for key, column in others.items()}
            own_columns |= columns(at_rows(source))
            own_verdicts = judge({name: reward}, [name], at_rows(prompts), at_rows(completions),
                                 **own_columns)
            for i, verdict in zip(rows, own_verdicts[name], strict=True):
                all_verdicts[i] = verdict
        return all_verdicts

    return verdicts
