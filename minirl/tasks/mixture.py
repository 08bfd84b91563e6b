"""Reasoning problems and general prompts in one batch, each judged in its own way.

    reasoning   by rules: the reasoning task's rewards
    general     by a reward model: `preference`; the general task's own rewards are watched under general/...

A reward has no verdict (None) on what it is not for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from minirl.tasks.bilingual import BilingualProblem
from minirl.tasks.problem import RewardFunction, Task, weights_of
from minirl.tasks.rewards import judge


@dataclass(frozen=True)
class MixedProblem(BilingualProblem):
    """A problem that says whether it is a general prompt. Of a general one no language is asked."""

    general: bool = False


@dataclass(frozen=True)
class Mixture:
    """Problems of two tasks: general prompts with the given chance.

    Paper      DeepSeek-R1, arXiv:2501.12948v2, eqs. 8 to 10 (there, general answers have a reward for their format, too).
    """

    reasoning: Task
    general: Task
    preference: RewardFunction
    general_share: float = 0.5

    def __post_init__(self):
        if not 0 <= self.general_share <= 1:
            raise ValueError(f"general_share is {self.general_share}: a share in [0, 1] is wanted")

    @property
    def name(self) -> str:
        return f"{self.reasoning.name} and {self.general.name}"

    @property
    def weights(self) -> dict[str, float]:
        """The reasoning task's weights, 1 for the preference, and 0 for what is only watched."""
        return {**dict.fromkeys(self.rewards, 0.0), **weights_of(self.reasoning), "preference": 1.0}

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        judged = {"preference": self.preference, **{f"general/{name}": reward for name, reward in self.general.rewards.items()}}
        rules = self.reasoning.rewards
        return ({name: judging(name, reward, general=False) for name, reward in rules.items()}
                | {name: judging(name, reward, general=True) for name, reward in judged.items()})

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[MixedProblem]:
        """n problems of a split, drawn with replacement."""
        general = [rng.random() < self.general_share for _ in range(n)]
        return [mixed(self.general.sample(1, rng, split=split)[0], language=None, general=True) if g else mixed(self.reasoning.sample(1, rng, split=split)[0])
                for g in general]


def mixed(problem, **changes) -> MixedProblem:
    return MixedProblem(**{field.name: getattr(problem, field.name) for field in fields(problem)} | changes)


def judging(name: str, reward: RewardFunction, *, general: bool) -> RewardFunction:
    """The reward, asked about general prompts alone, or about the others; None for the rest."""
    wanted = general

    def judged(prompts: Sequence[str], completions: Sequence, general: Sequence[bool], **columns) -> list[float | None]:
        rows = [i for i, is_general in enumerate(general) if is_general == wanted]
        verdicts: list[float | None] = [None] * len(completions)
        if rows:
            picked = {column: [entries[i] for i in rows] for column, entries in columns.items()}
            asked = [prompts[i] for i in rows], [completions[i] for i in rows]
            for i, verdict in zip(rows, judge({name: reward}, [name], *asked, **picked)[name]):
                verdicts[i] = verdict
        return verdicts

    return judged
