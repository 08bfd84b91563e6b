r"""Whether two formulas are the same, such as \frac{1}{\sqrt{2}} and \frac{\sqrt{2}}{2}.

An optional package says so, math-verify: python -m pip install math-verify.

What a model wrote can keep it busy for ever, or eat the memory. So it runs in a process of its own,
which ends where a question takes too much time of the processor. `python -m minirl.tasks.latex` is
that process: a question per line, [gold, claim] in JSON, and for each an answer, true or false.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import weakref

SECONDS = 3.0          # of processor time for one question: a busy machine changes no verdict
WAITING = 120.0        # for the import of sympy from a slow disk, and for an answer, at most
LONGEST = 300          # characters: a formula that is longer is no short answer
MEMORY = 4 * 2 ** 30   # bytes that the process may have


def is_installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


class MathVerify:
    """Asks math-verify whether a claim is the gold answer, once for each pair.

    Raises ValueError where math-verify is not installed. The answer to a question that takes more
    than `seconds` of processor time, or that math-verify cannot read, is False.

    MathVerify()(gold, claim) -> bool
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        if not is_installed():
            raise ValueError("formulas are compared by math-verify, which is not installed: python "
                             "-m pip install math-verify")
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.same = functools.lru_cache(2 ** 16)(self._ask)

    def __call__(self, gold: str, claim: str) -> bool:
        return max(len(gold), len(claim)) <= LONGEST and self.same(gold, claim)

    def _ask(self, gold: str, claim: str) -> bool:
        if self.process is None or self.process.poll() is not None:
            self.process = self._started()
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps([gold, claim]).encode() + b"\n")
            self.process.stdin.flush()
            answer = _line(self.process)
        except BrokenPipeError:
            answer = b""
        if not answer:                                    # too late, or out of memory
            _end(self.process)
            self.process = None
        return answer == b"true\n"

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "minirl.tasks.latex", str(self.seconds)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        weakref.finalize(self, _end, process)
        if _line(process) != b"ready\n":
            raise ValueError("math-verify does not start: try python -c 'import math_verify'")
        return process


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of a process; b"" where it has ended, or says nothing for long."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], WAITING)
    return process.stdout.readline() if ready else b""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(BrokenPipeError):
        process.communicate()


def answer_questions(seconds: float) -> None:
    """Be the process that MathVerify asks. SIGPROF ends it, code in C included."""
    import resource

    from math_verify import parse, verify

    with contextlib.suppress(ValueError, OSError):        # a lower limit is there already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr              # what a library prints is no answer
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            gold, claim = (parse(f"${formula}$", parsing_timeout=None)
                           for formula in json.loads(line))
            same = bool(gold) and bool(claim) and verify(gold, claim, timeout_seconds=None)
        except Exception:
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(same)), file=out, flush=True)


if __name__ == "__main__":
    answer_questions(float(sys.argv[1]))
