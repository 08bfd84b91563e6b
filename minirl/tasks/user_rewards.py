"""Rewards that a user brings to a task: functions that may raise, hang, or return anything.

    task = with_rewards(Arithmetic(), {"accuracy": 1.0, "short": 0.5}, {"short": short})

A reward of the library is called directly. One of a user's is `guarded`: what goes wrong in it
becomes a RewardError, one line that names the reward and shows a completion.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import math
import traceback
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any

from minirl.tasks.conversations import Conversation
from minirl.tasks.problem import JudgedTask, RewardFunction, Task
from minirl.tasks.rewards import text
from minirl.tasks.verdicts import VerdictError, read_verdicts
from minirl.tasks.waiting import Pending, TimeLimitError, start, within

SECONDS = 60.0      # for one call, unless the user says otherwise
SEARCH = 10.0       # seconds to find the completion for which a reward raises
SHOWN = 200         # characters of a completion in an error
BETWEEN = tuple(str(Path(file).parent) for file in        # what calls a user's function
                (Path(__file__).parent, asyncio.__file__, concurrent.futures.__file__))


class RewardError(ValueError):
    """A user's reward raised, took too long, or did not give a verdict for each completion."""


def with_rewards(task: Task, weights: Mapping[str, float],
                 rewards: Mapping[str, RewardFunction], *, seconds: float = SECONDS) -> Task:
    """Return the task, judged by the rewards that `weights` names: its own, and a user's.

    Raises     ValueError for a name that is neither, or is both, for a user's reward that has no
               weight, and for weights that are not finite, or all 0.

    The task's own rewards that have no weight here are watched with weight 0, so that the accuracy
    of a policy stays known. A user's reward may take `seconds` for one call; 0: no limit.

    >>> from minirl.tasks.arithmetic import Arithmetic
    >>> def short(completions, **_):
    ...     return [-len(completion) / 100 for completion in completions]
    >>> with_rewards(Arithmetic(), {"accuracy": 1.0, "short": 0.5}, {"short": short}).weights
    {'accuracy': 1.0, 'format_reward': 0.0, 'short': 0.5}
    """
    for name in rewards:
        if name in task.rewards:
            raise ValueError(f"the task has a reward of its own that is called {name}: name that "
                             "one, without a module, or give yours another name")
        if name not in weights:
            raise ValueError(f"the reward {name} has no weight: give it one")
    for name, weight in weights.items():
        if name not in task.rewards and name not in rewards:
            raise ValueError(f"there is no reward {name!r}: the task has "
                             f"{', '.join(task.rewards)}; a function of yours is given as "
                             "module:function")
        if not math.isfinite(weight):
            raise ValueError(f"the weight of the reward {name} is {weight}: a finite number is "
                             "wanted")
    if not any(weights.values()):
        raise ValueError("the weight of every reward is 0: nothing would be learnt")
    own = {name: guarded(reward, name, seconds=seconds) for name, reward in rewards.items()}
    return JudgedTask(task, {**task.rewards, **own}, {**dict.fromkeys(task.rewards, 0.0),
                                                      **weights})


def guarded(reward: RewardFunction, name: str, *, seconds: float = SECONDS) -> RewardFunction:
    """Return a user's reward so that whatever goes wrong in it is a RewardError.

    Its lists are copies: what it does to them reaches nobody. Where the prompts are conversations,
    it gets messages, and completions as one message each, as TRL hands them over. A call may take
    `seconds`; 0: no limit (waiting.within says what that cannot stop). KeyboardInterrupt goes
    through.
    """
    @wraps(reward)
    def asked(**arguments: Any) -> Any:
        n = len(arguments["completions"])

        def call() -> Any:
            returned = reward(**_copies(arguments))
            return returned if inspect.isawaitable(returned) else read_verdicts(name, returned, n)

        explain = partial(_explained, name, reward, arguments)
        returned = explain(lambda: within(seconds, call))
        if not inspect.isawaitable(returned):
            return returned
        pending = start(returned, seconds)
        return Pending(lambda: explain(lambda: read_verdicts(name, pending.result(), n)))

    return asked


def _explained(name: str, reward: RewardFunction, arguments: Mapping[str, Any],
               step: Callable[[], Any]) -> Any:
    """step(), a part of a call of the reward; a RewardError where that goes wrong."""
    completions = arguments["completions"]
    try:
        return step()
    except VerdictError as error:
        raise RewardError(f"{error}; {_shown(completions, error.row)}") from error
    except TimeLimitError as error:
        raise RewardError(f"the reward {name!r} gave {error} for {len(completions)} completions; "
                          f"{_shown(completions)}") from error
    except (Exception, SystemExit) as error:           # SystemExit(0) would look like a good end
        row = _raising(reward, arguments, type(error))
        raise RewardError(f"the reward {name!r} raised {type(error).__name__}: {error}"
                          f"{place_of(error)}; {_shown(completions, row)}") from error


def _raising(reward: RewardFunction, arguments: Mapping[str, Any],
             error: type[BaseException]) -> int | None:
    """The first completion for which a reward raises this error when it is asked about it alone;
    None where it raises for none, or is async."""
    def search() -> int | None:
        for row in range(len(arguments["completions"])):
            alone = {key: column[row:row + 1] for key, column in arguments.items()}
            try:
                returned = reward(**_copies(alone))
                if inspect.iscoroutine(returned):
                    returned.close()
                    return None
            except error:
                return row
        return None

    try:
        return within(SEARCH, search)
    except (Exception, SystemExit):                    # this time it raised something else
        return None


def place_of(error: BaseException) -> str:
    """Where in the user's code an error comes from: the first line that is not of this library."""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith(BETWEEN):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _shown(completions: list[Any], row: int | None = None) -> str:
    """The completion in this row, for an error; the first one, if it is about none of them."""
    if not completions:
        return "there was no completion"
    content = text(completions[row or 0])
    cut = f"{content[:SHOWN]}…" if len(content) > SHOWN else content
    return f"the completion was {cut!r}" if row is not None else f"the first completion was {cut!r}"


def _copies(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a reward gets: copies, and of conversations messages, as TRL hands them over."""
    copies: dict[str, Any] = {name: [list(x) if isinstance(x, list) else x for x in column]
                              for name, column in arguments.items()}
    if all(isinstance(prompt, Conversation) for prompt in copies["prompts"]):
        copies["prompts"] = [list(prompt.messages) for prompt in copies["prompts"]]
        copies["completions"] = [[{"role": "assistant", "content": completion}]
                                 for completion in copies["completions"]]
    return copies
