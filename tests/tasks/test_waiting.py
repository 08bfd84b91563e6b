"""minirl/tasks/waiting.py: time limits, and async functions side by side."""

import asyncio
import re
import signal
import subprocess
import threading
import time

import pytest

from minirl.tasks.waiting import TimeLimitError, resolved, start, within

SHORT = 0.15        # seconds


def for_ever():
    while True:
        pass


def in_spite_of_errors():
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass


def backtracking():
    return re.match(r"(a+)+$", "a" * 40 + "b")


def locked():
    lock = threading.Lock()
    return lock.acquire() and lock.acquire()


@pytest.mark.parametrize("call", [
    for_ever, in_spite_of_errors, backtracking, locked, lambda: time.sleep(60),
    lambda: subprocess.run(["sleep", "60"], check=False)])
def test_a_call_that_hangs_is_stopped(call):
    """A thread could not stop the regular expression, which holds the interpreter all the time."""
    began = time.monotonic()
    with pytest.raises(TimeLimitError, match="no result within 0.15 s"):
        within(SHORT, call)
    assert time.monotonic() - began < 5


def test_a_call_that_catches_everything_is_stopped_again():
    def stubborn():
        try:
            time.sleep(60)
        except BaseException:
            time.sleep(60)

    with pytest.raises(TimeLimitError):
        within(SHORT, stubborn)


def test_what_a_call_returns_and_raises_goes_through():
    assert within(5, lambda: 7) == within(0, lambda: 7) == 7
    for error in (KeyError("x"), TimeoutError("its own"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            within(5, lambda error=error: throw(error))
        assert raised.value is error


def throw(error):
    raise error


def test_alarms_of_the_caller_stay_as_they_were():
    """Its handler, and what is left of its time."""
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        began = time.monotonic()
        assert within(5, lambda: time.sleep(0.1)) is None and not rang
        with pytest.raises(TimeLimitError):
            within(0.1, for_ever)
        while not rang and time.monotonic() < began + 5:
            time.sleep(0.01)
        assert 0.3 < rang[0] - began < 4
        within(5, time.monotonic)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_alarm_of_the_caller_that_fell_due_meanwhile_rings_at_once():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 50.0)
        within(5, lambda: time.sleep(0.3))
        time.sleep(0.1)
        assert rang == [1] and 40 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_shorter_of_two_limits_counts():
    for outer, inner in ((SHORT, 60), (60, SHORT)):
        began = time.monotonic()
        with pytest.raises(TimeLimitError):
            within(outer, lambda inner=inner: within(inner, for_ever))
        assert time.monotonic() - began < 5


def test_outside_the_main_thread_there_is_no_limit():
    results = []
    thread = threading.Thread(target=lambda: results.append(within(1e-3, lambda: time.sleep(0.1))))
    thread.start()
    thread.join()
    assert results == [None]


# async

async def waiting(seconds, result):
    await asyncio.sleep(seconds)
    return result


def test_async_functions_wait_side_by_side():
    began = time.monotonic()
    pending = [start(waiting(0.3, i)) for i in range(20)]
    assert [p.result() for p in pending] == [*range(20)]
    assert time.monotonic() - began < 3                    # one after the other: 6 s


def test_the_time_of_an_async_function_begins_at_its_start():
    pending = start(waiting(60, None), 0.2)
    time.sleep(0.3)
    began = time.monotonic()
    with pytest.raises(TimeLimitError, match="no result within 0.2 s"):
        pending.result()
    assert time.monotonic() - began < 0.15
    ready = start(waiting(0.01, 5), 0.2)
    time.sleep(0.3)
    assert ready.result() == 5


def test_an_async_function_that_is_late_is_cancelled():
    """A request that nobody waits for is closed, and does not go on in the background."""
    ended = threading.Event()

    async def late():
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(TimeLimitError):
        start(late(), SHORT).result()
    assert ended.wait(5)


def test_an_async_function_that_blocks_the_loop_has_a_limit_too():
    """time.sleep in the place of asyncio.sleep: the loop cannot cancel it, and the caller goes."""
    async def blocking():
        time.sleep(1)

    began = time.monotonic()
    with pytest.raises(TimeLimitError):
        start(blocking(), SHORT).result()
    assert time.monotonic() - began < 0.8
    assert start(waiting(0, "the loop goes on"), 10).result() == "the loop goes on"


@pytest.mark.parametrize("error", [KeyError("x"), TimeoutError("its own"), SystemExit(1),
                                   KeyboardInterrupt()])
def test_what_an_async_function_raises_goes_through_and_others_go_on(error):
    async def failing():
        raise error

    other = start(waiting(0.1, 3), 20)
    with pytest.raises(type(error)) as raised:
        start(failing(), 20).result()
    assert raised.value.args == error.args and other.result() == 3


def test_all_calls_share_one_loop():
    """A client that keeps its connections open belongs to the loop that it was made in."""
    async def loop():
        return asyncio.get_running_loop()

    assert start(loop()).result() is start(loop()).result()


def test_a_loop_that_runs_already_is_not_in_the_way():
    """Notebooks run one: asyncio.run raises there."""
    async def cell():
        return start(waiting(0, 4)).result()

    assert asyncio.run(cell()) == 4


def test_resolved_waits_where_there_is_something_to_wait_for():
    assert [resolved(5), resolved(waiting(0, 5)), resolved(None)] == [5, 5, None]
