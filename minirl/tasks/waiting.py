"""Calls of functions that a user brings: none may take for ever, and async ones run side by side.

>>> async def double(x):
...     return 2 * x
>>> [pending.result() for pending in (start(double(1)), start(double(2)))]
[2, 4]
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, NamedTuple, TypeVar

AGAIN = 1.0      # seconds after which a call that went on in spite of its limit is stopped again
T = TypeVar("T")


class TimeLimitError(ValueError):
    """A call took longer than its time limit."""


class _Overdue(BaseException):
    """Raised inside a call that takes too long. No `except Exception` of its own may catch it."""


class Pending(NamedTuple):
    """What an async function is working on: result() waits for it."""

    result: Callable[[], Any]


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return call(). Raises TimeLimitError where it takes longer than `seconds`; 0: no limit.

    The limit is an alarm of the operating system (SIGALRM), which stops what a thread could not:
    Python code, sleeping, waiting for a socket, and a regular expression that backtracks. It cannot
    stop one long call into C before that returns (a matrix product; a list of an endless iterator),
    a thread that the call has started, or code that sets an alarm of its own. Outside the main
    thread, and on Windows, there is no limit.

    >>> within(0.05, lambda: time.sleep(10))
    Traceback (most recent call last):
    minirl.tasks.waiting.TimeLimitError: no result within 0.05 s
    """
    if not seconds or not _has_alarm():
        return call()
    began, (left, interval) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
    if 0 < left < seconds and signal.getsignal(signal.SIGALRM) is _stop:
        return call()                                      # a limit around this one comes first
    handler_before = signal.signal(signal.SIGALRM, _stop)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    except _Overdue:
        raise TimeLimitError(f"no result within {seconds:g} s") from None
    finally:
        signal.signal(signal.SIGALRM, handler_before or signal.SIG_DFL)
        if left:                                           # an alarm of the code around this
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-6),
                             interval)


def start(awaitable: Awaitable[Any], seconds: float = 0.0) -> Pending:
    """Let what an async function returned run beside the caller, and beside others of its kind.

    result() raises what the function raised, and TimeLimitError where it is not ready `seconds`
    after its start; 0: no limit. All run in one event loop in a thread of its own: a client that
    keeps its connections can be used in every call, and a notebook's loop is not in the way.
    """
    async def run() -> Any:
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(run(), _loop())
    deadline = time.monotonic() + seconds

    def result() -> Any:
        try:
            return future.result(max(0.0, deadline - time.monotonic()) if seconds else None)
        except concurrent.futures.TimeoutError:
            if future.done():                              # its own TimeoutError, from inside
                raise
            raise TimeLimitError(f"no result within {seconds:g} s") from None
        finally:
            future.cancel()                                # where it is not done

    return Pending(result)


def resolved(returned: Any, seconds: float = 0.0) -> Any:
    """Return what a function returned; what it stands for, if the function is async."""
    return start(returned, seconds).result() if inspect.isawaitable(returned) else returned


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Overdue


def _has_alarm() -> bool:
    return (hasattr(signal, "setitimer")
            and threading.current_thread() is threading.main_thread())


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all async functions. Its thread ends with the process."""
    loop = asyncio.new_event_loop()

    def serve() -> None:
        while True:
            with contextlib.suppress(SystemExit, KeyboardInterrupt):   # of one function, not of all
                loop.run_forever()

    threading.Thread(target=serve, name="minirl async", daemon=True).start()
    return loop
