"""minirl/tasks/environment.py: the calls of a completion, and tasks with tools."""

import asyncio
import random
import threading
import time

import pytest

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.calls import BARE, JSON, Tools
from minirl.tasks.environment import LONGEST_ANSWER, Session, ToolTask, tool_task, with_tools
from minirl.tasks.mixture import Mixture
from minirl.tasks.problem import JudgedTask, Problem, Task
from minirl.tasks.tools import calculate


def fail(text: str) -> str:
    """Fail.

    Args:
        text: Why.
    """
    raise KeyError(text)


def shout(text: str) -> str:
    """Say it many times.

    Args:
        text: What.
    """
    return text * 100_000


class Counter:
    """An environment: count up, and be paid for the total."""

    def __init__(self):
        self.total, self.answer = 0, None

    def reset(self, answer, **columns):
        self.answer = answer
        return f"up to {answer}: "

    def add(self, number: int) -> int:
        """Add to the total.

        Args:
            number: How much.
        """
        self.total += number
        return self.total

    def get_reward(self):
        return float(self.total == int(self.answer))

    def _hidden(self):
        raise AssertionError


def session(*tools, spelling=BARE, max_calls=8, **options):
    return Session(Tools(tools), spelling, max_calls, **options)


def test_calls_are_counted_and_answered():
    calls = session(calculate)
    assert calls.reply("<think>6*7 is <tool>6*7</tool>") == ["42"]
    assert calls.stop == "max_tokens"     # unless something follows
    assert calls.reply("and <tool>42-2</tool>") == ["40"]
    assert calls.reply("</think><answer>40</answer>") == []
    assert (calls.calls, calls.failures, calls.stop) == (2, 0, "completed")


def test_several_calls_in_one_turn():
    calls = session(calculate, spelling=JSON)
    text = "".join(f'<tool_call>{{"name": "calculate", "arguments": {{"expression": "{x}"}}}}'
                   "</tool_call>\n" for x in ("1+1", "2+2"))
    assert calls.reply(text) == ["2", "4"]
    assert calls.calls == 2


@pytest.mark.parametrize(("call", "answer"), [
    ("<tool>1/0</tool>", "error: division by zero"),
    ("<tool></tool>", "error: a number is missing before the end"),
    ("<tool>__import__('os')</tool>", "error: "),
])
def test_an_error_is_an_answer(call, answer):
    calls = session(calculate)
    reply, = calls.reply(call)
    assert reply.startswith(answer)
    assert (calls.calls, calls.failures, calls.stop) == (1, 1, "max_tokens")


def test_any_exception_is_an_answer_but_not_an_interrupt():
    def interrupt(text: str):
        """Stop.

        Args:
            text: Why.
        """
        raise KeyboardInterrupt

    assert session(fail).reply("<tool>x</tool>") == ["error: 'x'"]
    with pytest.raises(KeyboardInterrupt):
        session(interrupt).reply("<tool>x</tool>")


async def fail_at_length(text: str) -> str:
    """Fail.

    Args:
        text: Of what to speak.
    """
    raise ValueError(text * LONGEST_ANSWER)


@pytest.mark.parametrize("tool", [shout, fail_at_length])
def test_an_answer_is_bounded(tool):
    reply, = session(tool).reply("<tool>abc</tool>")
    assert len(reply) == LONGEST_ANSWER


@pytest.mark.parametrize("text", ["<tool>6*7", "6*7</tool>", "<tool>1</tool><tool>2",
                                  "<tool><tool>1</tool>"])
def test_half_a_call_is_a_parse_error(text):
    calls = session(calculate)
    assert calls.reply(text) == []
    assert (calls.calls, calls.stop) == (0, "parse_error")


def test_what_is_no_json_is_a_parse_error():
    calls = session(calculate, spelling=JSON)
    assert calls.reply("<tool_call>6*7</tool_call>") == []
    assert (calls.calls, calls.stop) == (0, "parse_error")


def test_calls_are_capped():
    calls = session(calculate, max_calls=2)
    assert [calls.reply(f"<tool>{i}+1</tool>") for i in range(3)] == [["1"], ["2"], []]
    assert (calls.calls, calls.stop) == (2, "max_calls")


# tasks

def test_a_task_with_tools_is_the_task_otherwise():
    task = Arithmetic(digits=2)
    tools: Task = ToolTask(task, [calculate])
    assert (tools.name, dict(tools.rewards), dict(tools.weights)) == (
        task.name, task.rewards, task.weights)
    assert tools.sample(5, random.Random(0)) == task.sample(5, random.Random(0))


def test_an_environment_is_fresh_and_adds_to_the_prompt_and_to_the_rewards():
    task = ToolTask(Arithmetic(digits=1), environment_factory=Counter)
    assert list(task.rewards) == ["accuracy", "format_reward", "Counter"]
    assert task.weights["Counter"] == 1.0
    first, text = task.begin({"prompt": "3+4=", "answer": "7"})
    second, _ = task.begin({"prompt": "1+1=", "answer": "2"})
    assert text == "up to 7: "
    assert [*first.tools.specs] == ["add"]
    assert first.reply("<tool>3</tool>") + first.reply("<tool>4</tool>") == ["3", "7"]
    assert second.reply("<tool>x</tool>") == ["error: number must be of type integer"]
    environments = [first.environment, second.environment]
    assert task.rewards["Counter"](environments=environments) == [1.0, 0.0]


def test_tools_beside_an_environment():
    task = ToolTask(Arithmetic(digits=1), [calculate], Counter)
    calls, _ = task.begin({"prompt": "3+4=", "answer": "7"})
    assert calls.reply("<tool>calculate 3+4</tool><tool>add 7</tool>") == ["7", "7"]


class NoReset:
    def add(self, number: int) -> None:
        """Args:
            number: How much."""


class NoTools:
    def reset(self, **columns):
        return None


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "there is nothing to call"),
    ({"environment_factory": NoTools}, "there is nothing to call"),
    ({"environment_factory": NoReset}, "NoReset has no reset"),
    ({"tools": [calculate], "max_calls": 0}, "max_calls is 0"),
    ({"tools": [lambda x: x]}, "has no type for x"),
])
def test_what_is_no_environment(arguments, message):
    with pytest.raises(ValueError, match=message):
        ToolTask(Arithmetic(digits=1), **arguments)


def test_with_tools_leaves_a_task_alone_without_any():
    task = Arithmetic(digits=1)
    assert with_tools(task) is task
    assert with_tools(task, []) is task
    assert isinstance(with_tools(task, [calculate]), ToolTask)


def test_a_problem_with_a_field_called_prompt_is_no_surprise():
    seen = {}

    class Seeing(Counter):
        def reset(self, **columns):
            seen.update(columns)

    ToolTask(Arithmetic(digits=1), environment_factory=Seeing).begin(
        {"prompt": "1+1=", **vars(Problem("1+1=", "2"))})
    assert seen["prompt"] == "1+1=" and seen["answer"] == "2"


def test_tools_are_not_lost_where_a_task_is_wrapped():
    """Evaluation judges by other weights. Its wrapper once hid the tools: a model that calls was
    then measured without an answer to its calls, and made up its own."""
    task = with_tools(Arithmetic(digits=1), [calculate])
    wrapped = JudgedTask(JudgedTask(task, task.rewards, {}), task.rewards, {})
    assert tool_task(wrapped) is task
    assert tool_task(Arithmetic(digits=1)) is None


def test_tools_cannot_be_given_twice_or_to_a_part_of_a_mixture():
    task = with_tools(Arithmetic(digits=1), [calculate])
    with pytest.raises(ValueError, match="has tools already"):
        with_tools(task, [calculate])
    with pytest.raises(ValueError, match="a part of the mixture has tools"):
        Mixture(task, Arithmetic(digits=1), lambda **_: [])


# async, and what hangs

async def look_up(word: str) -> str:
    """Look a word up.

    Args:
        word: Which.
    """
    await asyncio.sleep(0.01)
    if word == "nothing":
        raise KeyError(word)
    return word.upper()


async def ask_far_away(word: str) -> str:
    """Ask a server that does not answer.

    Args:
        word: What.
    """
    await asyncio.sleep(60)


def think_for_ever(word: str) -> str:
    """Think.

    Args:
        word: Of what.
    """
    while True:
        time.sleep(0.01)


def leave(word: str) -> str:
    """Leave.

    Args:
        word: A last one.
    """
    raise SystemExit(0)


def test_async_tools_are_awaited():
    """The policy once read <coroutine object look_up at 0x7f...>."""
    talk = session(look_up)
    assert talk.reply("<tool>word</tool> <tool>nothing</tool>") == ["WORD", "error: 'nothing'"]
    assert (talk.calls, talk.failures) == (2, 1)


def test_async_calls_of_one_reply_run_side_by_side():
    """They were awaited one after the other: two that need each other waited for ever, as did the
    first of three for a second that is not async."""
    rooms = [asyncio.Event(), asyncio.Event()]
    rung = threading.Event()

    async def meet(room: int) -> str:
        """Go to a room, and wait for the other.

        Args:
            room: Which.
        """
        rooms[room].set()
        await rooms[1 - room].wait()
        while not rung.is_set():
            await asyncio.sleep(0.01)
        return f"in room {room}"

    def ring() -> str:
        """Ring the bell."""
        rung.set()
        return "rung"

    talk = session(meet, ring, seconds=5.0)
    assert talk.reply("<tool>meet 0</tool><tool>meet 1</tool><tool>ring</tool>") == [
        "in room 0", "in room 1", "rung"]
    assert (talk.calls, talk.failures) == (3, 0)


def test_each_of_several_async_calls_has_the_time_limit_and_an_answer_of_its_own():
    """Two of half a second at most: together they take no longer than one."""
    talk, began = session(ask_far_away, look_up, seconds=0.5), time.monotonic()
    assert talk.reply("<tool>ask_far_away a</tool><tool>look_up b</tool>"
                      "<tool>ask_far_away c</tool><tool>look_up nothing</tool>") == [
        "error: no result within 0.5 s", "B", "error: no result within 0.5 s", "error: 'nothing'"]
    assert talk.failures == 3 and time.monotonic() - began < 0.95


@pytest.mark.parametrize("tool", [ask_far_away, think_for_ever])
def test_a_tool_that_hangs_is_answered_by_an_error(tool):
    talk, began = session(tool, seconds=0.15), time.monotonic()
    assert talk.reply("<tool>word</tool>") == ["error: no result within 0.15 s"]
    assert talk.failures == 1 and time.monotonic() - began < 5


def test_an_async_tool_has_its_limit_outside_of_the_main_thread_too():
    answers = []
    talk = session(ask_far_away, seconds=0.15)
    thread = threading.Thread(target=lambda: answers.extend(talk.reply("<tool>word</tool>")),
                              daemon=True)
    thread.start()
    thread.join(5)
    assert answers == ["error: no result within 0.15 s"]


def test_a_tool_that_exits_does_not_end_the_run():
    assert session(leave).reply("<tool>word</tool>") == ["error: 0"]


class Server:
    """An environment whose methods are async."""

    async def reset(self, answer, **columns):
        await asyncio.sleep(0.2)
        return f" {answer}?"

    async def visit(self, page: str) -> str:
        """Visit a page.

        Args:
            page: Which.
        """
        return f"this is {page}"

    async def get_reward(self):
        await asyncio.sleep(0.2)
        return 0.5


def test_an_environment_with_async_methods():
    task = ToolTask(Arithmetic(), environment_factory=Server, seconds=7.0)
    talk, prompt = task.begin({"prompt": "1+1=", "answer": "2"})
    assert prompt == " 2?" and talk.seconds == 7.0
    assert talk.reply("<tool>home</tool>") == ["this is home"]
    began = time.monotonic()
    assert task.rewards["Server"](environments=[Server() for _ in range(20)]) == [0.5] * 20
    assert time.monotonic() - began < 3, "all at once"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_time_limit_is_a_number_of_seconds(seconds):
    with pytest.raises(ValueError, match="seconds is .*: at least 0"):
        ToolTask(Arithmetic(), [calculate], seconds=seconds)
