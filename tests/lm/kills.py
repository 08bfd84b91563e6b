"""Kills a piece of work before each call that changes a name or waits for the disk; locks a folder
in another process."""

import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and nothing is cleaned up."""


CALLS = "replace", "rename", "unlink", "rmdir", "link", "mkdir", "fsync"


def kill_before(monkeypatch, n):
    """Raise Killed in place of the n-th call that changes a name or waits for the disk."""
    numbers = itertools.count(1)

    def counted(real):
        def call(*args, **kwargs):
            if next(numbers) == n:
                raise Killed
            return real(*args, **kwargs)
        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def moments(monkeypatch, begin, work):
    """Yield begin() after work(begin()) was killed before its first call, its second, and so on."""
    for n in itertools.count(1):
        started = begin()
        with monkeypatch.context() as patch:
            kill_before(patch, n)
            try:
                work(started)
            except Killed:
                pass
            else:
                assert n > 1
                return
        yield started

HOLD = """
import sys, pathlib
from minirl.lm.files import Lock
lock = Lock.of(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def process_that_locks(folder):
    """Another process that has the lock of a folder until the block ends; then it is killed."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
