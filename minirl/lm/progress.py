"""Long work says how far it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from tqdm import tqdm

from minirl.lm.text import visible

BAR_AFTER = 2.0           # seconds: shorter work shows nothing
LINE_EVERY = 10.0         # seconds between two lines, at least, and before the first


class Progress:
    """How far the work has got, on stderr. A thread speaks while a long step says nothing.

        with Progress("grpo", 44) as progress:
            for step in range(44):
                ...
                progress.update(note="reward 0.5")

    On a terminal it is a bar, elsewhere a line such as "grpo 3/44 steps, 41 s, 9 min left, reward
    0.5" at most every ten seconds, more seldom the longer the work goes on, and a last one at the
    end. `initial` steps of `total` were made before.
    """

    def __init__(self, title: str, total: int | None = None, *, unit: str = "step",
                 initial: int = 0):
        self._title, self._total, self._unit = visible(title), total, unit
        self._done, self._note, self._began = initial, "", time.monotonic()
        self._initial = initial
        self._written: tuple[int, str] | None = None               # what the newest line says
        self._lock, self._closed = threading.Lock(), threading.Event()
        # of the processes that torchrun started, the first speaks; lm.world would load torch
        first = os.environ.get("RANK", "0") == "0"
        self._stream, self._bar = sys.stderr if first else None, None
        if self._stream is None:                                   # or a program without a console
            return
        if self._stream.isatty():
            # smoothing 0, the mean rate: tqdm takes the newest rate since it last drew, and the
            # thread draws between two steps
            self._bar = tqdm(total=total, initial=initial, desc=self._title, unit=unit,
                             file=self._stream, leave=None, dynamic_ncols=True, delay=BAR_AFTER,
                             miniters=0, smoothing=0)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def update(self, n: int = 1, note: str = "") -> None:
        """n more steps are done; `note` is what to say beside them until the next call."""
        with self._lock:
            self._done, self._note = self._done + n, visible(note)
            if self._bar is not None:
                self._bar.set_postfix_str(self._note, refresh=False)
                self._bar.update(n)

    def expect(self, total: int) -> None:
        """Set how many steps there are in all, where that was not known at the start."""
        with self._lock:
            self._total = total
            if self._bar is not None:
                self._bar.total = total

    def close(self) -> None:
        """The end of the work. A second call does nothing."""
        if self._stream is None or self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()
        elif self._written not in (None, (self._done, self._note)):
            self._write()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _beat(self) -> None:
        while not self._closed.wait(1.0 if self._bar is not None else self._pause()):
            with self._lock:
                if self._bar is not None:
                    self._bar.update(0)                            # draws, once the delay is over
                else:
                    self._write()

    def _pause(self) -> float:
        """Seconds to the next line: ten at first, then a sixtieth of the time so far."""
        return max(LINE_EVERY, (time.monotonic() - self._began) / 60)

    def _write(self) -> None:
        self._written = self._done, self._note
        done = self._done if self._total is None else f"{self._done}/{self._total}"
        parts = (f"{self._title} {done} {self._unit}s", duration(time.monotonic() - self._began),
                 self._left(), self._note)
        with contextlib.suppress(OSError, ValueError):             # stderr is closed: nobody reads
            print(", ".join(filter(None, parts)), file=self._stream, flush=True)

    def _left(self) -> str:
        """Return how long the rest will take at the rate so far; "" where that is not known."""
        made, left = self._done - self._initial, (self._total or 0) - self._done
        if made <= 0 or left <= 0:
            return ""
        return f"{duration((time.monotonic() - self._began) / made * left)} left"


def duration(seconds: float) -> str:
    """
    >>> duration(41.2), duration(200), duration(7500)
    ('41 s', '3 min 20 s', '2 h 05 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
