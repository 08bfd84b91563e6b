"""What a run does at a signal, and one line on stderr about what does not stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from minirl.app.text import visible

GO_ON = "go on with --resume"              # what to do when there is room on the disk again
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def warn(text: str) -> None:
    """One line on stderr, of something that does not stop the run."""
    with contextlib.suppress(OSError, ValueError):             # stderr is closed: nobody reads
        print(f"minirl: {visible(' '.join(text.split()))}", file=sys.stderr, flush=True)


class Stopped(KeyboardInterrupt):
    """A signal ended the run, after what it had reached was saved.

    `code` is what a shell reports of a process that this signal ended.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


@contextlib.contextmanager
def catching_signals(handler: Callable) -> Iterator[None]:
    """handler(number, frame) at SIGINT, SIGTERM and SIGHUP, in the main thread alone.

    A signal that whoever started the process wants ignored (nohup) stays ignored.
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


def tell_at_once(text: str) -> None:
    """A line on stderr from a signal handler, which may have come in the middle of a print."""
    with contextlib.suppress(OSError):
        os.write(2, f"\nminirl: {visible(text)}\n".encode())
