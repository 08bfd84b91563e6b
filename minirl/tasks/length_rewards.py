"""Rewards that look at how long a completion is, and whether it says the same again.

Each function makes a reward in TRL's signature from its numbers; `minirl grpo --reward` takes such
a reward from a module of yours:

>>> short = cosine_length(max_length=100)
>>> short(prompts=["1+1="] * 2, completions=["<answer>2</answer>", "<answer>3</answer>"],
...       answer=["2", "2"], completion_ids=[[7] * 50, [7] * 50])
[1.5, -5.0]

Lengths are in tokens: rewards get `completion_ids`, which end with EOS unless they were cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirl.equations import rewards as equations
from minirl.tasks.problem import RewardFunction
from minirl.tasks.rewards import Completion, Verdicts, accuracy

Ids = Sequence[Sequence[int]]        # of each completion
DIGITS = 6                           # equations compute in float32: 1.5, and not 1.49999997


def cosine_length(max_length: int, *, right: tuple[float, float] = (2.0, 1.0),
                  wrong: tuple[float, float] = (-10.0, 0.0), too_long: float = -10.0,
                  verdict: RewardFunction = accuracy) -> RewardFunction:
    """Return a reward that wants right answers short and wrong ones long.

    Paper      Yeo et al., arXiv:2502.03373, section 4.2, with its authors' numbers.
    Raises     ValueError for a max_length that is not positive.
    See        equations.rewards.cosine_length_reward for the formula and the arguments.

    `verdict` says which completions are right: those that it gives 1. Where it gives no verdict,
    there is none. The numbers are large beside an accuracy of 0 or 1: this reward stands for it.
    """
    def cosine_length(prompts: Sequence[Any], completions: Sequence[Completion],
                      completion_ids: Ids, **columns: Any) -> Verdicts:
        verdicts = verdict(prompts=prompts, completions=completions,
                           completion_ids=completion_ids, **columns)
        rewards = by_length([len(ids) for ids in completion_ids], [v == 1.0 for v in verdicts])
        return [None if v is None else reward for v, reward in zip(verdicts, rewards, strict=True)]

    def by_length(lengths: list[int], correct: list[bool]) -> list[float]:
        rewards = equations.cosine_length_reward(
            lengths, correct, max_length=max_length, right=right, wrong=wrong, too_long=too_long)
        return [round(reward, DIGITS) for reward in rewards.tolist()]

    by_length([], [])
    return cosine_length


def repetition_penalty(n: int = 3, *, max_penalty: float = -1.0) -> RewardFunction:
    """Return a penalty on completions that repeat their n-grams of tokens, from max_penalty to 0.

    Paper      Yeo et al., arXiv:2502.03373, appendix C.2. TRL: get_repetition_penalty_reward.
    Raises     ValueError if n is below 1, or max_penalty positive.
    See        equations.rewards.repetition_penalty.

    >>> repetition_penalty(n=2)(completion_ids=[[1, 2, 3, 4], [5, 5, 5, 5, 5]])
    [0.0, -0.75]
    """
    def repetition_penalty(completion_ids: Ids, **_: Any) -> Verdicts:
        return [equations.repetition_penalty(ids, n=n, max_penalty=max_penalty)
                for ids in completion_ids]

    repetition_penalty([[]])
    return repetition_penalty


def soft_overlong_punishment(max_length: int, cache: int) -> RewardFunction:
    """Return DAPO's penalty on long completions, 0 to -1, as a reward of its own.

    Paper      DAPO, arXiv:2503.14476, section 3.4, eq. 13. TRL: get_soft_overlong_punishment.
    Raises     ValueError unless 0 < cache ≤ max_length.
    See        equations.rewards.overlong_penalty. `minirl grpo --overlong-cache` adds the same
               penalty after dynamic sampling has looked at the rewards; this one is looked at too.

    >>> soft_overlong_punishment(100, 20)(completion_ids=[[1] * 80, [1] * 90, [1] * 101])
    [0.0, -0.5, -1.0]
    """
    def soft_overlong_punishment(completion_ids: Ids, **_: Any) -> Verdicts:
        penalties = equations.overlong_penalty([len(ids) for ids in completion_ids],
                                               max_length=max_length, cache=cache)
        return [round(penalty, DIGITS) for penalty in penalties.tolist()]

    soft_overlong_punishment([])
    return soft_overlong_punishment
