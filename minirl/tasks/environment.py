"""What a policy can call while it writes: tools, and environments, which have a state.

A tool is a function (calls.py says of which form). An environment is an object, one for each
completion, made by a factory without arguments:

    reset(**columns) -> str | None     gets the problem's fields; what it returns is appended to the
                                       prompt
    every other public method          is a tool
    get_reward() -> float              optional: one more reward, of weight 1

Tools and these methods may be async: the async calls of one reply run side by side. A tool has a
time limit for one call; its answer is an error where it takes longer, as where it raises.

>>> from minirl.tasks.calls import BARE, Tools
>>> from minirl.tasks.tools import calculate
>>> session = Session(Tools([calculate]), BARE)
>>> session.reply("6*7 is <tool>6*7</tool>"), session.reply("<answer>42</answer>"), session.stop
(['42'], [], 'completed')
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from minirl.tasks.calls import BARE, CallError, Spelling, Tool, Tools
from minirl.tasks.problem import JudgedTask, Problem, RewardFunction, Task, weights_of
from minirl.tasks.waiting import Pending, resolved, start, within

EnvironmentFactory = Callable[[], Any]
T = TypeVar("T")

MAX_CALLS = 8            # of one completion, unless a task says otherwise
SECONDS = 60.0           # for one call, unless a task says otherwise
LONGEST_ANSWER = 10_000  # characters; the rest is left out
STOPS = ("completed", "max_calls", "max_tokens", "parse_error")


@dataclass
class Session:
    """What one completion may call, and what it has called.

    stop   "completed": it ended by itself; "max_calls": it wanted one more; "parse_error": what it
           wrote is no call; "max_tokens": it was cut off
    """

    tools: Tools
    spelling: Spelling
    max_calls: int = MAX_CALLS
    environment: Any = None
    calls: int = 0
    failures: int = 0             # calls that were answered by an error
    called: Sequence[str] = ()    # the tools that the last reply answered for, in their order
    stop: str = "max_tokens"
    seconds: float = SECONDS      # for one call; 0: no limit

    def reply(self, written: str) -> list[str]:
        """Return the answers to the calls in what was written since the last reply; none if the
        completion has ended."""
        begin, end = re.escape(self.spelling.begin), re.escape(self.spelling.end)
        texts = re.findall(f"{begin}(.*?){end}", written, re.DOTALL)
        tags = len(re.findall(f"{begin}|{end}", written))
        try:
            if tags != 2 * len(texts):
                raise CallError("a call is not closed, or was not opened")
            calls = [self.spelling.read(text, self.tools) for text in texts]
        except CallError:
            self.stop = "parse_error"
            return []
        if self.calls + len(calls) > self.max_calls:
            self.stop = "max_calls"
            return []
        if not calls:
            self.stop = "completed"
        self.calls += len(calls)
        self.called = [name for name, _ in calls]
        return self.answers(calls)

    def answers(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Call tools in their order, each by its name and arguments -> their answers as text. What
        an async tool works on goes on while the next ones are called."""
        begun = [self._tried(self._begin, *call) for call in calls]
        return [self._tried(self._end, x) for x in begun]

    def _begin(self, name: str, arguments: Mapping[str, Any]) -> str | Pending:
        returned = self.tools.call(name, arguments)
        return start(returned, self.seconds) if inspect.isawaitable(returned) else str(returned)

    def _end(self, begun: str | Pending) -> str:
        return (str(begun.result()) if isinstance(begun, Pending) else begun)[:LONGEST_ANSWER]

    def _tried(self, step: Callable[..., T], *arguments: Any) -> T | str:
        """What a step returns within the time limit; the text of what it raises is an answer, too.
        """
        try:
            return within(self.seconds, lambda: step(*arguments))
        except (Exception, SystemExit) as error:    # whatever it is, the policy should know
            self.failures += 1
            return f"error: {error}"[:LONGEST_ANSWER]


@dataclass(frozen=True)
class ToolTask:
    """A task whose completions may call tools, or the methods of an environment, or both.

    Raises ValueError for a tool that Tools cannot read, an environment without a reset, and where
    there is nothing to call.
    """

    task: Task
    tools: Sequence[Tool] = ()
    environment_factory: EnvironmentFactory | None = None
    max_calls: int = MAX_CALLS
    seconds: float = SECONDS      # for one call of a tool; 0: no limit

    def __post_init__(self) -> None:
        if self.max_calls < 1:
            raise ValueError(f"max_calls is {self.max_calls}: at least 1 is wanted")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"seconds is {self.seconds}: at least 0 is wanted (0: no limit)")
        environment = self._example
        if self.environment_factory and not callable(getattr(environment, "reset", None)):
            raise ValueError(f"{type(environment).__name__} has no reset: an environment needs one")
        if not self._tools(environment).specs:
            raise ValueError("there is nothing to call: give tools, or an environment that has "
                             "public methods beside reset")

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def rewards(self) -> Mapping[str, RewardFunction]:
        return {**self.task.rewards, **self._own_reward}

    @property
    def weights(self) -> Mapping[str, float]:
        return {**weights_of(self.task), **dict.fromkeys(self._own_reward, 1.0)}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> Sequence[Problem]:
        return self.task.sample(n, rng, split=split)

    def begin(self, columns: Mapping[str, Any], spelling: Spelling = BARE) -> tuple[Session, str]:
        """Begin a completion of the problem with these fields -> what it may call, and the text
        that the environment appends to the prompt."""
        if self.environment_factory is None:
            return self._session(None, spelling), ""
        environment = self.environment_factory()
        text = resolved(environment.reset(**columns))
        return self._session(environment, spelling), text or ""

    def _session(self, environment: Any, spelling: Spelling) -> Session:
        return Session(self._tools(environment), spelling, self.max_calls, environment,
                       seconds=self.seconds)

    @cached_property
    def _example(self) -> Any:
        return None if self.environment_factory is None else self.environment_factory()

    @property
    def _own_reward(self) -> dict[str, RewardFunction]:
        """The environment's get_reward as a reward function, under the name of its class."""
        if not hasattr(self._example, "get_reward"):
            return {}
        return {type(self._example).__name__: _get_rewards}

    def _tools(self, environment: Any) -> Tools:
        names = [] if environment is None else [
            name for name in dir(type(environment))
            if not name.startswith("_") and name not in ("reset", "get_reward")
            and callable(getattr(environment, name))]
        return Tools([*self.tools, *(getattr(environment, name) for name in names)])


def tool_task(task: Task) -> ToolTask | None:
    """Return the task with tools that a task is, or judges the completions of; None without tools.

    >>> from minirl.tasks.arithmetic import Arithmetic
    >>> from minirl.tasks.tools import calculate
    >>> task = with_tools(Arithmetic(), [calculate])
    >>> tool_task(JudgedTask(task, task.rewards, {})) is task
    True
    """
    while isinstance(task, JudgedTask):
        task = task.task
    return task if isinstance(task, ToolTask) else None


def _get_rewards(environments: Sequence[Any], **_: Any) -> list[float | None]:
    rewards = [environment.get_reward() for environment in environments]
    waiting = {i: start(x) for i, x in enumerate(rewards) if inspect.isawaitable(x)}   # all at once
    return [waiting[i].result() if i in waiting else x for i, x in enumerate(rewards)]


def with_tools(task: Task, tools: Sequence[Tool] | None = None,
               environment_factory: EnvironmentFactory | None = None, *,
               max_calls: int = MAX_CALLS) -> Task:
    """Return the task with these tools; as it is, if there are none."""
    if not tools and environment_factory is None:
        return task
    if tool_task(task) is not None:
        raise ValueError(f"the task {task.name} has tools already: give all of them at once")
    return ToolTask(task, tools or (), environment_factory, max_calls)
