"""minirl/lm/progress.py"""

import io
import re
import sys
import time

import pytest

from minirl.lm import progress
from minirl.lm.progress import Progress, duration


class Stream(io.StringIO):
    terminal = False

    def isatty(self):
        return self.terminal


class Terminal(Stream):
    terminal = True


def until(condition):
    """Wait for a thread, half a minute at most."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [Stream, Terminal])
def test_short_work_says_nothing(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    with Progress("grpo", 3) as work:
        for _ in range(3):
            work.update(note="reward 0.5")
    assert sys.stderr.getvalue().strip() == ""


def test_a_single_long_step_is_seen_and_the_end_too(monkeypatch):
    """Where stderr is no terminal, a real model on a CPU was silent for minutes: in its first step.
    """
    monkeypatch.setattr(sys, "stderr", Stream())
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    with Progress("grpo", 44, initial=3) as work:
        until(sys.stderr.getvalue)
        assert re.fullmatch(r"(grpo 3/44 steps, \d s\n)+", sys.stderr.getvalue())
        work.update(2, "reward 0.5")
    said = sys.stderr.getvalue()
    assert re.search(r"grpo 5/44 steps, \d s, \d+ s left, reward 0\.5\n\Z", said), said
    work.close()
    assert sys.stderr.getvalue() == said, "closed is closed"


def test_lines_are_ten_seconds_apart_and_further_in_long_runs(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream())
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    work = Progress("grpo", 2)
    pauses = []
    for now[0] in (0.0, 599.0, 3600.0):
        pauses.append(work._pause())
    now[0] = 0.0
    work.close()
    assert pauses == [10.0, 10.0, 60.0] and progress.BAR_AFTER == 2.0


def test_it_says_how_long_the_rest_will_take(monkeypatch):
    """At the rate of this process: steps that another one made before took none of its time."""
    monkeypatch.setattr(sys, "stderr", Stream())
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    work = Progress("grpo", 44, initial=4)
    now[0] = 50.0
    assert work._left() == "", "nothing is known before the first step"
    work.update(10)
    assert work._left() == "2 min 30 s left", "30 steps at 5 seconds"
    work.update(30)
    assert work._left() == ""
    now[0] = 0.0
    work.close()


def test_without_a_total_it_counts(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream())
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    with Progress("measuring\nx\x1b[2J", unit="row") as work:
        work.update(5, "a\rb")
        until(sys.stderr.getvalue)
    assert sys.stderr.getvalue().splitlines()[0] == r"measuring\nx\x1b[2J 5 rows, 0 s, a\rb"


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "BAR_AFTER", 0.0)
    with Progress("grpo", 4, initial=1) as work:
        work.update(note="reward 0.5")
    drawn = sys.stderr.getvalue().split("\r")[-1]
    assert drawn.startswith("grpo:  50%|") and drawn.endswith("\n")
    assert "2/4 [" in drawn and "reward 0.5]" in drawn


@pytest.mark.parametrize("stream, says", [(Stream, "sft 2/6 steps"), (Terminal, "2/6 [")])
def test_a_total_that_is_learnt_later(stream, says, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(progress, "BAR_AFTER", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    with Progress("sft") as work:
        work.update()
        work.expect(6)
        work.update()
        until(lambda: says in sys.stderr.getvalue())


def test_a_bar_moves_while_one_step_takes_long(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "BAR_AFTER", 0.5)
    with Progress("grpo", 1):
        until(lambda: "grpo:   0%|" in sys.stderr.getvalue())


@pytest.mark.parametrize("closed", [True, False])
def test_a_run_goes_on_when_nobody_can_read_it(closed, monkeypatch):
    stream = Stream() if closed else io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    with Progress("측정", 2) as work:
        if closed:
            stream.close()
        until(lambda: work._written is not None)
        work.update()


def test_a_program_without_a_console(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress("grpo", 2) as work:
        work.update()


def test_an_error_ends_the_thread(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream())
    with pytest.raises(KeyboardInterrupt), Progress("grpo", 2) as work:
        raise KeyboardInterrupt
    assert not work._thread.is_alive()


@pytest.mark.parametrize("seconds, said", [
    (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said
