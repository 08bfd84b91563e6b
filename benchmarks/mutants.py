"""Do the tests notice a wrong line? One small change at a time, and who kills it.

    python benchmarks/mutants.py                        # minirl/equations, by `check` and by tests
    python benchmarks/mutants.py --only objectives      # one file
    python benchmarks/mutants.py --check-only           # without the tests
    python benchmarks/mutants.py --only kl --match "k3: 0 -> 1"      # survivors, once more
    python benchmarks/mutants.py --files tasks/rewards.py lm/rollouts.py lm/logprobs.py

A mutant is a source file with one change; mutations.py names the kinds of change. It is killed when
something fails. First by minirl.testing.check alone, which sees the mutant's functions as it would
see anybody's; code that only raises errors is left out there, as a loss need not refuse bad input.
What survives goes to the tests of that file, quick ones first, until one fails. Survivors are
printed with their line: read it, and either write the test, or say in equivalents.py why there can
be none.

Tests are collected once, and run once without a change: that gives their times, and what each of
them calls. Each mutant is a forked process in which the functions of the file get their changed
code, and it meets the tests that call its function. Constants may have been copied to anywhere by
then, so such a mutant is imported in a process of its own; so is, once more, every survivor that is
not known to change nothing, and it meets all tests.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
import types
from collections import Counter
from collections.abc import Sequence
from functools import partial

from equivalents import EQUIVALENT
from mutant_tests import HANG, START, ask, in_a_child, many_by_tests, one_by_tests
from mutations import ROOT, Mutant, changed_module, dotted, mutants


def killed_by_check(mutant: Mutant) -> str:
    """Name what minirl.testing.check refuses of the changed file, or "" where it takes it."""
    from minirl.testing.conformance import check, targets
    name = dotted(mutant.file)
    changed = changed_module(mutant, name + "_mutant")
    sys.modules[changed.__name__] = changed
    for target_name, target in targets().items():
        if target.function.__module__ == name and uses(changed, target_name, mutant.function):
            if not check(getattr(changed, target_name), target_name, strict=True).ok:
                return target_name
    return ""


def uses(changed: types.ModuleType, function: str, other: str) -> bool:
    """Whether a function is another one of its file, or calls it, directly or not."""
    seen: set[str] = set()
    todo = [function]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        code = getattr(getattr(changed, name, None), "__code__", None)
        todo += [used for used in names_in(code) if inspect.isfunction(getattr(
            changed, used, None))]
    return other in seen or other == "<module>"


def names_in(code: types.CodeType | None) -> set[str]:
    """Return the names that code uses, in its comprehensions and inner functions too."""
    if code is None:
        return set()
    inner = [names_in(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*inner)


# all of a file

def alive_after_check(every: Sequence[Mutant], jobs: int) -> list[Mutant]:
    began = time.time()
    asked = [mutant for mutant in every if not mutant.raises]
    killers = ask(lambda mutant: in_a_child(partial(killed_by_check, mutant), 300), asked, jobs)
    summary("check alone", asked, killers, began)
    dead = {mutant.name for mutant, killer in zip(asked, killers, strict=True) if killer}
    return [mutant for mutant in every if mutant.name not in dead]


def alive_after_tests(file: str, many: Sequence[Mutant], jobs: int) -> list[Mutant]:
    began = time.time()
    planted = [mutant for mutant in many if mutant.where != "module"]
    killers, seconds = in_a_child(partial(many_by_tests, file, planted, jobs))
    dead = dict(zip(planted, killers, strict=True))
    others = [mutant for mutant in many if mutant not in dead
              or not dead[mutant] and mutant.name not in EQUIVALENT]
    seconds = Counter(seconds)
    dead |= dict(zip(others, ask(lambda mutant: in_a_child(
        partial(one_by_tests, seconds, mutant), START), others, jobs), strict=True))
    summary("tests", many, [dead[mutant] for mutant in many], began)
    return [mutant for mutant in many if not dead[mutant] and mutant.name not in EQUIVALENT]


def summary(title: str, many: Sequence[Mutant], killers: Sequence[str], began: float) -> None:
    same = sum(mutant.name in EQUIVALENT and not killer
               for mutant, killer in zip(many, killers, strict=True))
    killed, count = sum(map(bool, killers)), len(many) - same
    late = sum(killer == HANG for killer in killers)
    print(f"  {title:12} {killed:4} of {count:4} killed ({killed / max(1, count):.1%}), {late} of "
          f"them by time, {same} more change nothing, {time.time() - began:.0f} s", flush=True)
    for mutant, killer in zip(many, killers, strict=True):
        if killer and mutant.name in EQUIVALENT:
            print(f"    no equivalent: {mutant}, killed by {killer}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Change the source, and see who notices.")
    parser.add_argument("--files", nargs="*", default=None, help="below minirl/")
    parser.add_argument("--only", default=None, help="one file of equations, such as kl")
    parser.add_argument("--match", nargs="*", default=[""], help="mutants with these in their name")
    parser.add_argument("--check-only", action="store_true", help="do not run the tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    names = args.files or sorted(f"equations/{path.name}" for path
                                 in (ROOT / "minirl" / "equations").glob("[a-z]*.py"))
    if args.only:
        names = [f"equations/{args.only}.py"]
    sys.path.insert(0, str(ROOT))
    import torch
    torch.set_num_threads(1)
    left: list[Mutant] = []
    for name in names:
        many = [mutant for mutant in mutants(name)
                if any(text in mutant.name for text in args.match)]
        print(f"{name}: {len(many)} mutants", flush=True)
        if name.startswith("equations/"):
            many = alive_after_check(many, args.jobs)
        if not args.check_only:
            left += alive_after_tests(name, many, args.jobs)
    print(f"{len(left)} survive")


if __name__ == "__main__":
    main()
