"""The house: imports go down, never up and never sideways between the rooms of a floor."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "minirl"
FLOORS = {
    "equations": 0,
    "lm": 1,
    "tasks": 1,
    "corpus": 1,
    "inference": 2,
    "testing": 2,
    "train": 3,
    "app": 4,
}
# In train, pages stand alone: they import these modules, and no other page.
HELPERS = {
    "adamw",
    "checkpoints",
    "checks",
    "credit",
    "encoding",
    "groups",
    "metrics",
    "metrics_file",
    "objectives",
    "options",
    "precision_lab",
    "presets",
    "pretraining",
    "profiling",
    "regularisers",
    "stage",
    "state",
    "state_files",
    "step_trace",
    "weights",
    "verifiers",
    "worth",
}
PIPELINES = {"r1", "instructgpt", "iterative_grpo", "search"}       # pages whose lines are pages
NAMES_PAGES = {"presets", "__init__"}   # the table of the pages' numbers, and what the room offers
FILES = sorted(ROOT.rglob("*.py"))
# Rooms that must stay light; other rooms may use what setup.py declares.
THIRD_PARTY = {"equations": {"torch"}, "tasks": set(), "corpus": {"numpy", "torch"}}
# Extras that a function imports where it needs them, and names in its error where they are missing.
OPTIONAL = {"pyarrow", "math_verify", "reasoning_gym"}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where a name comes from"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(file):
    parts = file.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else None


def violation(own, own_file, imported):
    """Why a module of room `own` may not import `imported`, or None."""
    parts = imported.split(".")
    if parts[0] != "minirl" or len(parts) < 2 or parts[1] not in FLOORS:
        return None
    other = parts[1]
    if FLOORS[other] > FLOORS[own]:
        return f"{other} is above {own}"
    if FLOORS[other] == FLOORS[own] and other != own:
        return f"{other} is on the same floor as {own}"
    if own == other == "train" and len(parts) > 2:
        may_call_pages = own_file.stem in PIPELINES | NAMES_PAGES
        if not may_call_pages and parts[2] not in HELPERS:
            return "a training page stands alone: only pipelines call other pages"
    return None


@pytest.mark.parametrize(
    "file", [f for f in FILES if room(f)], ids=lambda f: str(f.relative_to(ROOT))
)
def test_imports_go_down(file):
    wrong = {name: why for name in imports(file) if (why := violation(room(file), file, name))}
    assert not wrong


@pytest.mark.parametrize(
    "own, imported, allowed",
    [
        ("equations", "minirl.lm.model", False),
        ("lm", "minirl.tasks.problem", False),
        ("tasks", "minirl.lm.tokenizer", False),
        ("lm", "minirl.equations.kl", True),
        ("inference", "minirl.tasks.problem", True),
        ("inference", "minirl.testing.oracle", False),
        ("inference", "minirl.train.sft", False),
        ("testing", "minirl.inference.collect", False),
        ("tasks", "minirl.inference.collect", False),
        ("train", "minirl.lm.model", True),
        ("train", "minirl.inference.collect", True),
        ("train", "minirl.app.cli", False),
        ("train", "minirl.train.sft", False),
        ("train", "minirl.train.state", True),
        ("app", "minirl.train.grpo", True),
    ],
)
def test_the_rule_itself_tells_right_from_wrong(own, imported, allowed):
    assert (violation(own, ROOT / own / "page.py", imported) is None) == allowed


@pytest.mark.parametrize("name, allowed", [
    ("r1", True), ("instructgpt", True), ("presets", True), ("grpo", False), ("state", False),
])
def test_pipelines_alone_call_pages(name, allowed):
    file = ROOT / "train" / f"{name}.py"
    assert (violation("train", file, "minirl.train.sft") is None) == allowed


def test_the_helpers_and_pipelines_of_train_exist():
    modules = {file.stem for file in (ROOT / "train").glob("*.py")}
    assert HELPERS | PIPELINES <= modules


@pytest.mark.parametrize("folder", ["tutorials", "benchmarks"])
def test_what_teaches_and_measures_uses_the_library_and_not_the_command_line(folder):
    """Of app they import the readers of run directories alone: what is worth calling from a
    tutorial stands below."""
    wrong = {
        str(file.relative_to(ROOT.parent)): name
        for file in (ROOT.parent / folder).rglob("*.py")
        for name in imports(file)
        if name.split(".")[:2] == ["minirl", "app"]
        and name.split(".")[2:3] not in ([], ["rundir"])
    }
    assert not wrong


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_light_rooms_import_nothing_heavy(name):
    at_hand = set(sys.stdlib_module_names) | {"minirl", "__future__"}
    for file in (ROOT / name).glob("*.py"):
        outside = {imported.split(".")[0] for imported in imports(file)} - at_hand
        assert outside - OPTIONAL <= THIRD_PARTY[name], f"{file} imports {outside}"
        at_once = re.findall(r"^(?:import|from) (\w+)", file.read_text(encoding="utf-8"), re.M)
        assert not OPTIONAL & set(at_once), f"{file} needs an extra"


def test_every_folder_has_its_paragraph():
    for init in ROOT.rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))
        assert docstring, f"{init} does not say what belongs there"


def test_the_shift_by_one_lives_in_logprobs_alone():
    """Mixed widths force `[:, 1:]` everywhere, and each is a chance to be off by one. Ours are all
    (B, T)."""
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        for shift in ("[:, 1:]", "[:, :-1]", "[..., 1:]"):
            assert shift not in source, f"{file} shifts by one"


def test_tests_mirror_the_tree():
    """tests/parity is about other people's code, and what stands above is about the whole."""
    tests = ROOT.parent / "tests"
    for file in tests.rglob("test_*.py"):
        if file.parent in (tests, tests / "parity"):
            continue
        folder, name = ROOT / file.parent.relative_to(tests), file.stem.removeprefix("test_")
        modules = [module.stem for module in folder.glob("*.py")]
        assert any(name == module or name.startswith(module + "_") for module in modules), (
            f"{file} is about no module of {folder}"
        )
