"""What a user brings to the command line: functions of theirs, as module:function."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from minirl.app.rundir import RunDir
from minirl.tasks.problem import Task
from minirl.tasks.user_rewards import RewardError, with_rewards
from minirl.tasks.user_rollouts import RolloutError, guarded, with_rollouts


def imported(name: str) -> Callable[..., Any]:
    """Import "module:function". The current folder is looked into first."""
    module, separator, _ = name.partition(":")
    if not separator or module.endswith(".py"):
        raise ValueError(f"{name!r} is no function: expected module:function, such as "
                         "my_module:my_function for my_function in my_module.py")
    if os.getcwd() not in sys.path[:1]:
        sys.path.insert(0, os.getcwd())
    try:
        function = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:               # the module runs: it may raise anything
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}; is the "
                         "module in this folder, or installed?") from error
    if not callable(function):
        raise ValueError(f"{name} is a {type(function).__name__}, and no function")
    return function


def rewarded(task: Task, rewards: Sequence[str], weights: Sequence[float], *,
             seconds: float) -> Task:
    """Return the task judged by what --reward names: rewards of its own, and module:function. As it
    is without any."""
    if not rewards:
        return task
    names = [reward.rpartition(":")[2] for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two rewards are called {name}: give one of them another name")
    theirs = {name: imported(reward) for name, reward in zip(names, rewards, strict=True)
              if ":" in reward}
    return with_rewards(task, dict(zip(names, weights or [1.0] * len(names), strict=True)),
                        theirs, seconds=seconds)


def rolled_out(task: Task, rollout: str | None) -> Task:
    """Return the task whose completions --rollout's module:function makes. As it is without one."""
    if rollout is None:
        return task
    return with_rollouts(task, guarded(imported(rollout), rollout.rpartition(":")[2]))


@contextlib.contextmanager
def saying_how_to_go_on(run: RunDir, steps: int) -> Iterator[None]:
    """Add to an error of a user's function how far the run got, and how it goes on."""
    try:
        yield
    except (RewardError, RolloutError) as error:
        done = next((line["step"] for line in reversed(run.metrics())), 0)
        raise type(error)(f"after step {done} of {steps}: {error}. Repair it, and go on with "
                          f"{run.resume_command}") from error
