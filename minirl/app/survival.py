"""What a run does at a signal, and lines on stderr about what does not stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from minirl.lm.text import visible

GO_ON = "go on with --resume"    # what to do when there is room on the disk again
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def warn(text: str) -> None:
    """Print one line on stderr, about something that does not stop the run."""
    with contextlib.suppress(OSError, ValueError):    # stderr is closed: nobody reads it
        print(f"minirl: {visible(' '.join(text.split()))}", file=sys.stderr, flush=True)


def tell_at_once(text: str) -> None:
    """Write a line on stderr from a signal handler, which may interrupt a print."""
    with contextlib.suppress(OSError):
        os.write(2, f"\nminirl: {visible(text)}\n".encode())


class Stopped(KeyboardInterrupt):
    """A signal ended the run, after its last step was saved.

    `code` is the exit code that a shell reports for a process that this signal ended.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


@contextlib.contextmanager
def catching_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call handler(number, frame) at SIGINT, SIGTERM and SIGHUP, in the main thread alone.

    A signal stays ignored where the process was started so, as by nohup.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: old for number in SIGNALS
                  if (old := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
