"""The tests as judges of mutants: which of them fails first, in a process for each mutant."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from equivalents import EQUIVALENT
from mutations import ROOT, Mutant, Mutated, dotted, function_lines, plant, unchanged

CRASH, HANG = "(the process died)", "(ten times the CPU time)"
START = 60                             # CPU seconds to import, to plant and to collect
OPTIONS = ["-o", "addopts=", "--import-mode=importlib", "-m", "not slow", "-s", "-p",
           "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
ALSO = {"tasks/rewards.py": ["tests/tasks/test_language.py"],      # tests beside a file's own
        "lm/logprobs.py": ["tests/lm/test_heads.py"]}
REPORT = os.fdopen(os.dup(1), "w")     # the terminal, also where pytest holds the output back


class Tests:
    """A pytest plugin: it runs quick tests first, stops at a failure, and can run them for each of
    many mutants."""

    def __init__(self, many: Sequence[Mutant] = (), *, seconds: Counter[str], jobs: int = 1):
        self.many, self.seconds, self.jobs = many, Counter(seconds), jobs
        self.killer, self.verdicts = "", []
        self.lines: set[int] = set()           # first lines of the functions called just now
        self.fixtures: dict[Any, set[int]] = defaultdict(set)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before, self.lines = self.lines, self.fixtures[fixturedef]
        yield
        self.lines = before

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.killer = self.killer or report.nodeid

    def pytest_runtestloop(self, session: Any) -> bool:
        items, calls = session.items, {}
        if self.many:
            killer, seconds, calls = in_a_child(partial(self.run_unchanged, items))
            if killer:
                raise RuntimeError(f"{killer} fails without a change")
            self.seconds = Counter(seconds)
        items.sort(key=lambda item: self.seconds[item.nodeid])
        if not self.many:
            self.run_all(items)
            return True

        def verdict(mutant: Mutant) -> str:
            own = [item for item in items
                   if mutant.where == "defaults" or mutant.function in calls[item.nodeid]]
            return in_a_child(partial(self.run_all, own, mutant), START)

        self.verdicts = ask(verdict, self.many, self.jobs, last=False)
        return True

    def run_all(self, items: Sequence[Any], mutant: Mutant | None = None) -> str:
        """Run tests up to the first that fails, or hangs -> its name, or ""."""
        if mutant is not None:
            plant(mutant)
        fixtures = 3 * max(self.seconds.values(), default=0)     # any test may have to make them
        for item, following in pairs(items):
            limit = 10 + fixtures + 10 * self.seconds[item.nodeid]
            signal.setitimer(signal.ITIMER_PROF, limit)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.killer:
                break
        return self.killer

    def run_unchanged(self, items: Sequence[Any]) -> tuple[str, dict[str, float], dict[str, list]]:
        """Run all tests -> the first that fails, and the CPU seconds of each and what it calls."""
        file = self.many[0].file
        path, lines = str(ROOT / "minirl" / file), {}

        def profile(frame: types.FrameType, event: str, arg: Any) -> None:
            if event == "call" and frame.f_code.co_filename == path:
                self.lines.add(frame.f_code.co_firstlineno)

        plant(unchanged(file))
        for item, following in pairs(items):
            self.lines = lines[item] = set()
            began = time.process_time()
            sys.setprofile(profile)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            sys.setprofile(None)
            self.seconds[item.nodeid] = time.process_time() - began
        names = function_lines(file)
        calls = {}
        for item in items:
            fixtures = itertools.chain(*item._fixtureinfo.name2fixturedefs.values())
            own = [self.fixtures[fixture] for fixture in fixtures]
            calls[item.nodeid] = sorted({names[line] for line in lines[item].union(*own)
                                         if line in names})
        return self.killer, dict(self.seconds), calls


def pairs(items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each test with the next one, as pytest wants it to know which fixtures to keep."""
    return zip(items, [*items[1:], None][:len(items)], strict=True)


def many_by_tests(file: str, many: Sequence[Mutant], jobs: int
                  ) -> tuple[list[str], dict[str, float]]:
    """Return who kills each mutant, "" for nobody, and the seconds of each test without a change.

    Needs a process that has not imported minirl, as the next one does."""
    tests = Tests(many, seconds=Counter(), jobs=jobs)
    run_pytest(file, tests)
    return tests.verdicts, dict(tests.seconds)


def one_by_tests(seconds: Counter[str], mutant: Mutant) -> str:
    sys.meta_path.insert(0, Mutated(mutant))
    tests = Tests(seconds=seconds)
    code = run_pytest(mutant.file, tests)
    return tests.killer or ("" if code == 0 else "(the import)")


def run_pytest(file: str, plugin: Tests) -> int:
    os.chdir(ROOT)
    return int(pytest.main([*tests_of(file), *OPTIONS], plugins=[plugin]))


def tests_of(file: str) -> list[str]:
    """Return the files with tests of a file of minirl/, and for an equation its example."""
    path = Path(file)
    tests = sorted((ROOT / "tests" / path.parent).glob(f"test_{path.stem}*.py"))
    names = [str(test.relative_to(ROOT)) for test in tests] + ALSO.get(file, [])
    if path.parent.name == "equations":
        names += [f"tests/test_{name}.py" for name in (
            "invariance", "conventions", "ground_truth", "ground_truth_further", "equivalences")]
        names.append(f"tests/test_doctests.py::test_doctests[{dotted(file)}]")
    return names


# in processes of their own

def in_a_child(question: Callable[[], Any], seconds: int = 0) -> Any:
    """Ask in a forked process -> its answer, or CRASH, or HANG after so many CPU seconds, if any.

    CPU seconds, as the machine may be busy. A test that waits for ever needs none: it has an hour.
    """
    answers, write = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.alarm(3600 if seconds else 0)
            os.environ["PYTEST_DEBUG_TEMPROOT"] = folder     # where tests write
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    devnull = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(devnull, 1)
                    os.dup2(devnull, 2)
                    os.write(write, json.dumps(question()).encode())
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=REPORT, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(write)
        with os.fdopen(answers) as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGPROF):
        return HANG
    return json.loads(text) if status == 0 else CRASH


def ask(verdict: Callable[[Mutant], str], many: Sequence[Mutant], jobs: int, *,
        last: bool = True) -> list[str]:
    """Return who kills each mutant. Those that live are printed, if nobody else is asked later."""
    def asked(mutant: Mutant) -> str:
        killer = verdict(mutant)
        if last and not killer and mutant.name not in EQUIVALENT:
            print(f"    alive: {mutant}", file=REPORT, flush=True)
        return killer

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(asked, many))
