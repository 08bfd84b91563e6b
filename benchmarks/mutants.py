"""Do the tests notice a wrong equation? One small change at a time, and who kills it.

    python benchmarks/mutants.py                        # minirl/equations, by `check` and by tests
    python benchmarks/mutants.py --only objectives      # one file
    python benchmarks/mutants.py --files tasks/rewards.py lm/rollouts.py lm/logprobs.py

A mutant is a source file with one change:

    comparison   < for <=, > for >=, == for !=, and back
    arithmetic   + for -, * for /, ** for *, and back
    logic        and for or, & for |, without a not, an ~ or a minus
    number       n + 1, 0 for 1, 1 for 0; True for False
    name         minimum for maximum, amin for amax, mean for sum, any for all, and back
    call         without a clamp, a detach, a square

It is killed when something fails. First by minirl.testing.check alone, which sees the mutant's
functions as it would see anybody's; code that only raises errors is left out there, as a loss need
not refuse bad input. What survives goes to the tests of that file. What survives these, too, is
printed, with its line: read it, and either write the test, or say in EQUIVALENT why it is none.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import inspect
import io
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
SECONDS = 120                          # a mutant that runs longer hangs: it is killed

COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
           ast.NotEq: ast.Eq}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
              ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
LOGIC = {ast.And: ast.Or, ast.Or: ast.And}
NAMES = {"minimum": "maximum", "amin": "amax", "min": "max", "mean": "sum", "any": "all",
         "triu_indices": "tril_indices", "expm1": "exp", "logsigmoid": "tanh"}
NAMES |= {new: old for old, new in NAMES.items()}
DROPPED = {"clamp", "detach", "square", "flip", "abs", "sqrt"}

# Survivors that change no result: "file function: change" -> why.
TWO_D = "the tensor is 2-D, and its last dimension is the second"
ONE = "these differ with at most one verdict, where equal rewards give 0 anyway"
EQUIVALENT: dict[str, str] = {
    "equations/advantages.py _mean: -1 -> 1": TWO_D,
    "equations/advantages.py _mean: 1 -> 0": ONE,
    "equations/advantages.py _mean: judged.sum(-1, keepdim=True).clamp(min=1) "
    "-> judged.sum(-1, keepdim=True)":
        ONE,
    "equations/advantages.py _std: (count - ddof).clamp(min=1) -> count - ddof": ONE,
    "equations/advantages.py _std: -1 -> 1": TWO_D,
    "equations/advantages.py _std: 1 -> 0": ONE,
    "equations/advantages.py discounted_returns: 0 -> 1": "returns are advantages over values of 0",
    "equations/advantages.py dynamic_sampling: -1 -> 1": TWO_D,
    "equations/advantages.py group_advantages: -1 -> 1": TWO_D,
    "equations/advantages.py leave_one_out_advantages: (count - 1).clamp(min=1) -> count - 1": ONE,
    "equations/advantages.py leave_one_out_advantages: -1 -> 1": TWO_D,
    "equations/advantages.py leave_one_out_advantages: 1 -> 0": ONE,
    "equations/advantages.py maxrl_advantages: 1 -> 0":
        "a mean of 0 means rewards of 0, which are equal",
    "equations/advantages.py maxrl_advantages: mean > 0 -> mean >= 0":
        "a mean of 0 means rewards of 0, which are equal",
    "equations/advantages.py optimal_baseline: -1 -> 1": TWO_D,
    "equations/advantages.py optimal_baseline: 0.0 -> 1": "its weight is 0 already",
    "equations/advantages.py zero_spread: -1 -> 1": TWO_D,
    "equations/inference_time.py pass_at_k: n - c -> n + c":
        "the product has the factor 1 - k/k without the early return",
    "equations/inference_time.py weighted_vote: True -> False": "the lengths are checked above",
    "equations/kl.py exact_kl: 0 -> 1": "it is multiplied by p = 0",
    "equations/kl.py kl_shaped_rewards: 0 -> 1":
        "what is under the mask is taken out again at the end",
    "equations/objectives.py dual_clipped_surrogate: adv < 0 -> adv <= 0":
        "at A = 0 both sides are 0",
    "equations/objectives.py entropy: 0 -> 1": "it is multiplied by p = 0",
    "equations/objectives.py gspo_token: 0 -> 1": "the constant is subtracted from itself",
    "equations/objectives.py sapo: adv > 0 -> adv >= 0": "at A = 0 value and gradient are 0",
    "equations/reduce.py aggregate: 1 -> 0": "the sum of column sums is the sum of row sums",
    "equations/reduce.py explained_variance: 1 -> 0": "the outer where hides the quotient",
    "equations/reduce.py within_rounding: high.abs() -> high":
        "if high is negative, low is larger in size",
    "equations/schedules.py cosine_to_floor: step < warmup -> step <= warmup":
        "at step = warmup both branches give 1",
}


class Mutant(NamedTuple):
    """A changed file. `raises`: the change is in code that only raises an error."""

    file: str
    line: int
    function: str
    change: str
    source: str
    raises: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.change}"

    @property
    def equivalent(self) -> bool:
        return f"{self.file} {self.function}: {self.change}" in EQUIVALENT


# making them

def mutants(file: str) -> Iterator[Mutant]:
    """Yield every mutant of a file below minirl/."""
    tree = ast.parse((ROOT / "minirl" / file).read_text(encoding="utf-8"))
    places = list(walk(tree))
    for index, (place, function, raises) in enumerate(places):
        for number in range(len(list(changes(place)))):
            mutated = copy.deepcopy(tree)
            node = list(walk(mutated))[index][0]
            before = ast.unparse(node)
            replacement = list(changes(node))[number](node)
            swap(mutated, node, replacement)
            source = ast.unparse(ast.fix_missing_locations(mutated))
            yield Mutant(file, node.lineno, function, f"{before} -> {ast.unparse(replacement)}",
                         source, raises)


def walk(tree: ast.AST) -> Iterator[tuple[Any, str, bool]]:
    """Yield expressions with the function around them, and whether they only lead to a raise."""
    def visit(node: ast.AST, function: str, raises: bool) -> Iterator[tuple[Any, str, bool]]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            function = node.name if function == "<module>" else function
        only_raises = isinstance(node, ast.If) and all(
            isinstance(line, ast.Raise) for line in node.body) and not node.orelse
        raises = raises or only_raises or isinstance(node, ast.Raise)
        if isinstance(node, ast.expr):
            yield node, function, raises
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr) or not is_text(node, child):
                yield from visit(child, function, raises)

    def is_text(parent: ast.AST, child: ast.expr) -> bool:
        """Docstrings, annotations and texts stay."""
        annotation = child in (getattr(parent, "annotation", None),
                               getattr(parent, "returns", None))
        return annotation or isinstance(child, ast.JoinedStr) or (
            isinstance(child, ast.Constant) and isinstance(child.value, str))

    yield from visit(tree, "<module>", False)


def changes(node: ast.expr) -> Iterator[Callable[[Any], ast.expr]]:
    """Yield what can be done to an expression: functions that return the new one."""
    def with_op(kinds: dict[Any, Any]) -> Callable[[Any], ast.expr]:
        def change(node: Any) -> ast.expr:
            new = copy.copy(node)
            if isinstance(node, ast.Compare):
                new.ops = [kinds[type(node.ops[0])](), *node.ops[1:]]
            else:
                new.op = kinds[type(node.op)]()
            return new

        return change

    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        yield with_op(COMPARE)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield with_op(ARITHMETIC)
    elif isinstance(node, ast.BoolOp):
        yield with_op(LOGIC)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert, ast.USub)):
        yield lambda node: node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        value = node.value
        new: Any = not value if isinstance(value, bool) else {0: 1, 1: 0}.get(value, value + 1)
        yield lambda node: ast.Constant(new)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in DROPPED and not module(node.func.value):
            yield lambda node: node.func.value
        if name in NAMES:
            def renamed(node: Any) -> ast.expr:
                new = copy.copy(node)
                new.func = copy.copy(node.func)
                new.func.attr = NAMES[name]
                return new

            yield renamed
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
        def other(node: Any) -> ast.expr:
            new = copy.copy(node)
            new.func = ast.Name(NAMES[node.func.id], ast.Load())
            return new

        yield other


def module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "F", "math", "itertools")


def swap(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return
            if isinstance(value, list) and any(item is old for item in value):
                setattr(parent, name, [new if item is old else item for item in value])
                return


# killing them

def killed_by_check(mutant: Mutant) -> bool:
    """Whether minirl.testing.check refuses a function of the changed file."""
    from minirl.testing.conformance import check, targets
    name = dotted(mutant.file)
    changed = types.ModuleType(name + "_mutant")
    changed.__dict__["__file__"] = str(ROOT / "minirl" / mutant.file)
    sys.modules[changed.__name__] = changed
    exec(compile(mutant.source, "mutant", "exec"), changed.__dict__)
    for target_name, target in targets().items():
        if target.function.__module__ == name and uses(changed, target_name, mutant.function):
            if not check(getattr(changed, target_name), target_name, strict=True).ok:
                return True
    return False


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
        if code is not None:
            todo += [used for used in code.co_names if inspect.isfunction(getattr(
                changed, used, None))]
    return other in seen or other == "<module>"


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        spec = importlib.util.spec_from_loader(name, self)
        assert spec is not None
        spec.origin = str(ROOT / (name.replace(".", "/") + ".py"))
        spec.has_location = True
        return spec

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self.source, module.__file__ or "mutant", "exec"), module.__dict__)


def killed_by_tests(mutant: Mutant) -> bool:
    """Whether a test of the changed file fails. Needs a process that has not imported minirl."""
    import pytest
    sys.meta_path.insert(0, Mutated(dotted(mutant.file), mutant.source))
    os.chdir(ROOT)
    return pytest.main([*tests_of(mutant.file), "-x", "-q", "-p", "no:cacheprovider", "-p",
                        "no:xdist", "-p", "no:randomly"]) != 0


def tests_of(file: str) -> list[str]:
    """Return the tests of a file, quick ones first."""
    own = f"tests/{Path(file).parent}/test_{Path(file).name}"
    shared = []
    if file.startswith("equations/"):
        shared = ["tests/test_invariance.py", "tests/test_conventions.py",
                  "tests/test_ground_truth.py", "tests/test_equivalences.py",
                  f"minirl/{file}"]
    return [test for test in (own, *shared) if (ROOT / test).exists()]


def dotted(file: str) -> str:
    return "minirl." + file.removesuffix(".py").replace("/", ".")


def in_a_child(question: Callable[[Mutant], bool], mutant: Mutant) -> bool:
    """Ask in a forked process. A crash and a hang are deaths, too."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        code = 1
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, 1)
                os.dup2(devnull, 2)
                code = int(question(mutant))
        except BaseException:
            code = 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status != 0


def survivors(question: Callable[[Mutant], bool], alive: list[Mutant], title: str, jobs: int
              ) -> list[Mutant]:
    began, left = time.time(), []
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, dead in zip(alive, pool.map(lambda m: in_a_child(question, m), alive),
                                strict=True):
            if not dead:
                left.append(mutant)
    same = sum(mutant.equivalent for mutant in left)
    killed, count = len(alive) - len(left), len(alive) - same
    print(f"  {title:12} {killed:4} of {count:4} killed ({killed / max(1, count):.1%}), "
          f"{same} more change nothing, {time.time() - began:.0f} s", flush=True)
    return [mutant for mutant in left if not mutant.equivalent]


def main() -> None:
    parser = argparse.ArgumentParser(description="Change the source, and see who notices.")
    parser.add_argument("--files", nargs="*", default=None, help="below minirl/")
    parser.add_argument("--only", default=None, help="one file of equations, such as kl")
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
        every = list(mutants(name))
        print(f"{name}: {len(every)} mutants", flush=True)
        alive = every
        if name.startswith("equations/"):
            asked = [mutant for mutant in every if not mutant.raises]
            unseen = survivors(killed_by_check, asked, "check alone", args.jobs)
            alive = [mutant for mutant in every if mutant.raises] + unseen
            if args.check_only:
                print(*(f"    {mutant}" for mutant in unseen), sep="\n", flush=True)
        if not args.check_only:
            left += survivors(killed_by_tests, alive, "tests", args.jobs)
    print(*left, sep="\n")


if __name__ == "__main__":
    main()
