"""Completions that a function of the user's makes, in place of the sampler: several turns, a model
of one's own as the environment, a search.

    rollout(prompts, sampler) -> {"prompt_ids": [[...], ...], "completion_ids": [[...], ...],
                                  "logprobs": [[...], ...]}

It is TRL's `rollout_func`, whose second argument is the trainer. It gets the prompts of a batch as
text, one for each completion that is wanted (a prompt of a group comes G times in a row), and
`sampler`, which draws from the policy, ids in and ids out (inference/sampler.py). It returns lists
with an entry for each prompt, in their order:

    prompt_ids       what the completion was sampled after
    completion_ids   the completion, with what the environment wrote in it
    logprobs         a log-prob for each id of the completion, of the policy that drew it. None, or
                     without the key: the ids are scored with the policy, as if it had drawn them
    env_mask         optional: 1 where the policy drew the id, 0 where the environment wrote it,
                     which is not learnt from. Without it, all are the policy's
    anything else    a column for the rewards: a list with an entry for each prompt, or one value
                     for all. It takes the place of a field of the problem of the same name

>>> from minirl.tasks.arithmetic import Arithmetic
>>> def one_turn(prompts, sampler):
...     return sampler.sample([sampler.tokenizer.encode_prompt(prompt) for prompt in prompts])
>>> task = with_rollouts(Arithmetic(), one_turn)      # a task, as for train_grpo and evaluate
>>> rollout_of(task) is one_turn
True
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from minirl.tasks.environment import tool_task
from minirl.tasks.problem import JudgedTask, Task, weights_of
from minirl.tasks.user_rewards import place_of

RolloutFunction = Callable[[list[str], Any], Mapping[str, Any]]


class RolloutError(ValueError):
    """A user's rollout function raised, or returned something else than rollouts."""


@dataclass(frozen=True)
class RolloutTask(JudgedTask):
    """The problems and rewards of a task, whose completions a function makes."""

    rollout: RolloutFunction = field(kw_only=True)


def with_rollouts(task: Task, rollout: RolloutFunction) -> Task:
    """Return the task whose completions `rollout` makes.

    Raises ValueError for a task that has tools, as the function answers calls itself, and for a
    function that does not take two arguments.
    """
    try:
        inspect.signature(rollout).bind([], None)
    except TypeError as error:
        raise ValueError(f"the rollout function cannot be called ({error}): it takes the prompts "
                         "and a sampler") from error
    if tool_task(task) is not None:
        raise ValueError(f"the task {task.name} has tools, and a rollout function: the function "
                         "calls them itself, so leave them out here")
    return RolloutTask(task, task.rewards, weights_of(task), rollout=rollout)


def rollout_of(task: Task) -> RolloutFunction | None:
    """Return the function that makes a task's completions; None where the sampler does."""
    while isinstance(task, JudgedTask):
        if isinstance(task, RolloutTask):
            return task.rollout
        task = task.task
    return None


def guarded(rollout: RolloutFunction, name: str) -> RolloutFunction:
    """Return a rollout function so that whatever it raises is a RolloutError, in one line.
    KeyboardInterrupt goes through."""
    @wraps(rollout)
    def asked(prompts: list[str], sampler: Any) -> Mapping[str, Any]:
        try:
            return rollout(prompts, sampler)
        except (Exception, SystemExit) as error:       # SystemExit(0) would look like a good end
            raise RolloutError(f"the rollout function {name!r} raised {type(error).__name__}: "
                               f"{error}{place_of(error)}") from error

    return asked
