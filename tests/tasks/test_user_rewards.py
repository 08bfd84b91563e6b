"""minirl/tasks/user_rewards.py: whatever a user's reward does, the run says which, and on what."""

import asyncio
import gc
import random
import sys
import time
import warnings
from functools import partial

import numpy
import pytest
import torch

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.environment import tool_task, with_tools
from minirl.tasks.problem import JudgedTask, weights_of
from minirl.tasks.rewards import accuracy, combine, conversational, judge
from minirl.tasks.tools import calculate
from minirl.tasks.user_rewards import RewardError, guarded, with_rewards

PROMPTS, COMPLETIONS = ["1+1=", "1+2=", "1+3="], ["two", "three", "four"]
COLUMNS = {"answer": ["2", "3", "4"], "completion_ids": [[1, 2], [3], [4, 5]]}


def ask(*rewards, seconds=5.0, columns=COLUMNS, completions=COMPLETIONS):
    own = {f"r{i}": guarded(reward, f"r{i}", seconds=seconds) for i, reward in enumerate(rewards)}
    return [*judge(own, own, PROMPTS, completions, **columns).values()]


def refused(*rewards, **options):
    with pytest.raises(RewardError) as error:
        ask(*rewards, **options)
    return str(error.value)


# what works

@pytest.mark.parametrize("reward", [
    lambda completions, **_: [1, 0.5, None],
    lambda prompts, completions, answer, completion_ids: (True, 0.5, float("nan")),
    lambda **columns: numpy.array([1, 0.5, numpy.nan]),
    lambda **columns: torch.tensor([1, 0.5, torch.nan]),
    lambda **columns: (x for x in (1.0, 0.5, None)),
    partial(lambda weight, completions, **_: [weight, weight / 2, None], 1.0)])
def test_a_reward_that_judges(reward):
    assert ask(reward) == [[1.0, 0.5, None]]


def test_async_rewards_are_awaited_all_at_once():
    async def slow(completions, **_):
        await asyncio.sleep(0.3)
        return [1.0, 0.0, None]

    class Judge:
        async def __call__(self, completions, answer, **_):
            await asyncio.sleep(0.3)
            return [float(len(a)) for a in answer]

    began = time.monotonic()
    first, *others = ask(slow, *[Judge()] * 8, lambda **_: [0, 0, 1])
    assert time.monotonic() - began < 1.5                  # one after the other: 2.7 s
    assert first == [1.0, 0.0, None] and others[:-1] == [[1.0] * 3] * 8
    assert others[-1] == [0.0, 0.0, 1.0]
    began = time.monotonic()
    total = combine([slow, *[Judge()] * 7], [1.0, 2.0, *[0.5] * 6])       # without a guard, too
    assert total(PROMPTS, COMPLETIONS, **COLUMNS) == [6.0, 5.0, 5.0]
    assert time.monotonic() - began < 1.5                  # one after the other: 2.4 s


def test_conversations():
    def length(prompts, completions, **_):
        return [len(messages[-1]["content"]) for messages in completions]

    assert ask(conversational(length)) == [[3.0, 5.0, 4.0]]
    messages = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    assert ask(length, completions=messages) == [[3.0, 5.0, 4.0]]
    assert "completion was 'three'" in refused(
        lambda completions, **_: [1 / (len(m[0]["content"]) - 5) for m in completions],
        completions=messages)


def test_what_a_reward_does_to_its_lists_reaches_nobody():
    def thief(prompts, completions, answer, completion_ids):
        completion_ids[0].clear()
        for column in (prompts, completions, answer, completion_ids):
            column.clear()
        return [1, 1, 1]

    columns = {name: [list(x) if isinstance(x, list) else x for x in column]
               for name, column in COLUMNS.items()}
    assert ask(thief, lambda completion_ids, **_: map(len, completion_ids),
               columns=columns) == [[1.0] * 3, [2.0, 1.0, 2.0]]
    assert columns == COLUMNS and PROMPTS == ["1+1=", "1+2=", "1+3="] and len(COMPLETIONS) == 3


def test_what_a_reward_prints_is_printed(capsys):
    assert ask(lambda **_: print("here") or [1, 2, 3]) == [[1.0, 2.0, 3.0]]
    assert capsys.readouterr().out == "here\n"


# what does not

@pytest.mark.parametrize("returned, came, shown", [
    (None, "gave None", "first completion was 'two'"), (1.0, "gave 1.0", "first completion"),
    ("abc", "gave 'abc'", "first completion"), ([1.0], "gave 1 of them", "first completion"),
    ({1: 1, 2: 2, 3: 3}, "gave {1: 1", "first"), ([1, 2, 3, 4], "gave 4 of them", "first"),
    ([1, "0.5", 1], "gave '0.5'", "the completion was 'three'"),
    ([1, 1, [1, 2]], r"gave [1, 2]", "the completion was 'four'"),
    ([float("inf"), 1, 1], "gave inf, which is not finite", "the completion was 'two'")])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_no_verdicts(returned, came, shown, is_async):
    async def later(**_):
        return returned

    message = refused(later if is_async else lambda **_: returned)
    assert f"the reward 'r0' {came}" in message and shown in message
    assert "one number (or None) for each of the 3 completions is wanted" in message


@pytest.mark.parametrize("error, says", [
    (KeyError("solution"), "raised KeyError: 'solution'"), (ValueError("no"), "ValueError: no"),
    (RecursionError("deep"), "RecursionError: deep"), (MemoryError(), "raised MemoryError"),
    (StopIteration(), "StopIteration"), (TimeoutError("mine"), "raised TimeoutError: mine"),
    (SystemExit(0), "raised SystemExit: 0")])
def test_a_reward_that_raises_is_named_with_the_completion(error, says):
    def right_but_for_three(completions, **_):
        if "three" in completions:
            raise error
        return [1.0] * len(completions)

    message = refused(right_but_for_three)
    assert says in message and message.endswith("; the completion was 'three'")


def test_a_reward_that_raises_for_no_completion_alone():
    def too_many(completions, **_):
        raise IndexError(len(completions)) if len(completions) > 1 else KeyError

    line = too_many.__code__.co_firstlineno + 1
    assert refused(too_many).endswith(f"raised IndexError: 3 (test_user_rewards.py, line {line}); "
                                      "the first completion was 'two'")


def test_the_search_for_the_completion_has_an_end(monkeypatch):
    monkeypatch.setattr("minirl.tasks.user_rewards.SEARCH", 0.2)

    def slow_alone(completions, **_):
        if len(completions) == 1:
            time.sleep(60)
        raise KeyError("x")

    began = time.monotonic()
    assert "the first completion was 'two'" in refused(slow_alone)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("error, says", [
    (KeyError("key"), "raised KeyError: 'key'"), (SystemExit(0), "raised SystemExit: 0")])
def test_an_async_reward_that_raises(error, says):
    async def judge(**_):
        raise error

    async def other(completions, **_):
        return [1, 1, 1]

    with warnings.catch_warnings(record=True) as left:     # "coroutine was never awaited"
        warnings.simplefilter("always")
        message, line = refused(other, judge), judge.__code__.co_firstlineno + 1
        gc.collect()
    assert not left
    assert says in message and f"(test_user_rewards.py, line {line})" in message
    assert ask(other) == [[1.0] * 3]


def test_exit_and_quit_do_not_end_the_run_as_if_all_were_well():
    assert "raised SystemExit: 0" in refused(lambda **_: sys.exit(0))


def test_ctrl_c_goes_through():
    def interrupted(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(interrupted)


def endless():
    while True:
        yield 1.0
        time.sleep(10)


async def asleep(**_):
    await asyncio.sleep(60)


async def blocking(**_):
    time.sleep(1)


@pytest.mark.parametrize("reward", [lambda **_: time.sleep(60), lambda **_: endless(), asleep,
                                    blocking], ids=["sync", "generator", "async", "blocking"])
def test_a_reward_that_hangs(reward):
    began = time.monotonic()
    message = refused(reward, seconds=0.15)
    assert time.monotonic() - began < 5
    assert message == ("the reward 'r0' gave no result within 0.15 s for 3 completions; the first "
                       "completion was 'two'")


def test_a_long_completion_is_cut_in_the_message():
    message = refused(lambda **_: None, completions=["x" * 5000, "", ""])
    assert len(message) < 500 and message.endswith("x…'")


def test_a_signature_that_does_not_fit_is_no_fault_of_the_reward_s_body():
    with pytest.raises(ValueError, match="'r0' cannot be called .*'solution'"):
        ask(lambda completions, solution, **_: [1, 1, 1])


# on a task

def short(completions, **_):
    return [-len(completion) / 100 for completion in completions]


def total(task, completions):
    """What training maximises."""
    weights = weights_of(task)
    verdicts = judge(task.rewards, weights, PROMPTS, completions, **COLUMNS)
    return [sum(weights[name] * column[i] for name, column in verdicts.items()) for i in range(3)]


def test_given_rewards_replace_the_task_s_which_stay_watched():
    task = with_rewards(Arithmetic(), {"short": 2.0}, {"short": short})
    assert isinstance(task, JudgedTask) and task.name == "3-digit addition"
    assert task.weights == {"accuracy": 0.0, "format_reward": 0.0, "short": 2.0}
    right = [f"<think></think><answer>{n}</answer>" for n in "234"]
    assert total(task, right) == [pytest.approx(-2 * len(right[0]) / 100)] * 3
    verdicts = judge(task.rewards, task.weights, PROMPTS, right, **COLUMNS)
    assert verdicts["accuracy"] == [1.0] * 3
    assert task.sample(3, random.Random(1)) == Arithmetic().sample(3, random.Random(1))


def test_the_task_s_own_rewards_by_name():
    task = with_rewards(Arithmetic(), {"accuracy": 1.0, "short": 0.5}, {"short": short})
    assert task.weights == {"accuracy": 1.0, "format_reward": 0.0, "short": 0.5}
    assert task.rewards["accuracy"] is accuracy, "the library's own are called directly"
    alone = with_rewards(Arithmetic(), {"format_reward": -1.0}, {})
    assert alone.weights == {"accuracy": 0.0, "format_reward": -1.0}


def test_tools_stay():
    task = with_tools(Arithmetic(), [calculate])
    assert tool_task(with_rewards(task, {"short": 1.0}, {"short": short})) is task


@pytest.mark.parametrize("weights, rewards, message", [
    ({"short": 1.0}, {}, "no reward 'short': the task has accuracy, format_reward; .*module:func"),
    ({"accuracy": 1.0}, {"accuracy": short}, "reward of its own that is called accuracy"),
    ({"accuracy": 1.0}, {"short": short}, "short has no weight"),
    ({"short": float("nan")}, {"short": short}, "weight of the reward short is nan"),
    ({"short": float("inf")}, {"short": short}, "weight of the reward short is inf"),
    ({"short": 0.0, "accuracy": 0.0}, {"short": short}, "weight of every reward is 0"),
    ({}, {}, "weight of every reward is 0")])
def test_weights_and_names_that_do_not_fit(weights, rewards, message):
    with pytest.raises(ValueError, match=message):
        with_rewards(Arithmetic(), weights, rewards)


def test_a_weight_of_0_is_watched():
    task = with_rewards(Arithmetic(), {"accuracy": 1.0, "short": 0.0}, {"short": short})
    assert total(task, ["<answer>2</answer>"] * 3) == [1.0, 0.0, 0.0]


def test_the_limit_of_a_call_is_the_task_s():
    task = with_rewards(Arithmetic(), {"asleep": 1.0}, {"asleep": asleep}, seconds=0.1)
    with pytest.raises(RewardError, match="'asleep' gave no result within 0.1 s"):
        total(task, COMPLETIONS)
