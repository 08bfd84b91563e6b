"""minirl/tasks/user_rollouts.py: tasks whose completions a function of the user's makes."""

import random

import pytest

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.environment import tool_task, with_tools
from minirl.tasks.problem import JudgedTask
from minirl.tasks.tools import calculate
from minirl.tasks.user_rollouts import RolloutError, guarded, rollout_of, with_rollouts


def nothing(prompts, sampler):
    return {}


def test_it_is_the_same_task_with_a_function():
    plain = Arithmetic(digits=2)
    task = with_rollouts(plain, nothing)
    assert (task.name, task.rewards, task.weights) == (plain.name, plain.rewards, plain.weights)
    assert task.sample(3, random.Random(0)) == plain.sample(3, random.Random(0))
    assert tool_task(task) is None


def test_the_function_is_that_of_the_task_inside():
    task = with_rollouts(Arithmetic(), nothing)
    assert rollout_of(JudgedTask(JudgedTask(task, {}, {}), {}, {})) is nothing
    assert rollout_of(Arithmetic()) is rollout_of(JudgedTask(Arithmetic(), {}, {})) is None


def test_a_task_with_tools_is_refused():
    with pytest.raises(ValueError, match="addition has tools, and a rollout function: .* leave"):
        with_rollouts(with_tools(Arithmetic(), [calculate]), nothing)


@pytest.mark.parametrize("rollout", [lambda prompts: {}, lambda: {}, lambda a, b, c: {}])
def test_a_function_that_cannot_be_called_is_refused(rollout):
    with pytest.raises(ValueError, match="cannot be called .*: it takes the prompts and a sampler"):
        with_rollouts(Arithmetic(), rollout)


def failing(prompts, sampler):
    return {}["turns"]


def leaving(prompts, sampler):
    raise SystemExit(0)


def stopped(prompts, sampler):
    raise KeyboardInterrupt


def test_what_it_raises_is_one_line_that_names_the_place():
    assert guarded(nothing, "nothing")([], None) == {}
    line = failing.__code__.co_firstlineno + 1
    with pytest.raises(RolloutError, match=r"^the rollout function 'f' raised KeyError: 'turns' "
                                           rf"\(test_user_rollouts.py, line {line}\)$"):
        guarded(failing, "f")([], None)
    with pytest.raises(RolloutError, match="'f' raised SystemExit: 0"):
        guarded(leaving, "f")([], None)
    with pytest.raises(KeyboardInterrupt):
        guarded(stopped, "f")([], None)
