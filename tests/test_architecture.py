"""The house: imports go down, never up and never sideways between the rooms of a floor."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "minirl"
FLOORS = {"equations": 0, "lm": 1, "tasks": 1, "corpus": 1, "search": 2, "train": 3, "app": 4}
FILES = sorted(ROOT.rglob("*.py"))
THIRD_PARTY = {"equations": {"torch"}, "tasks": set()}      # rooms that must stay light; other rooms may use what setup.py declares


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
    helper = len(parts) > 2 and parts[2] in ("state", "encoding", "checks", "seeding", "adamw")
    if own == other == "train" and own_file.name not in ("r1.py", "__init__.py") and len(parts) > 2 and not helper:
        return "a training page stands alone: only r1.py calls other pages"
    return None


@pytest.mark.parametrize("file", [f for f in FILES if room(f)], ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file):
    wrong = {name: why for name in imports(file) if (why := violation(room(file), file, name))}
    assert not wrong


@pytest.mark.parametrize("own, imported, allowed", [
    ("equations", "minirl.lm.model", False), ("lm", "minirl.tasks.problem", False), ("tasks", "minirl.lm.tokenizer", False),
    ("lm", "minirl.equations.kl", True), ("train", "minirl.lm.model", True), ("train", "minirl.app.cli", False), ("app", "minirl.train.grpo", True),
    ("train", "minirl.train.sft", False), ("train", "minirl.train.state", True), ("search", "minirl.train.sft", False)])
def test_the_rule_itself_tells_right_from_wrong(own, imported, allowed):
    assert (violation(own, ROOT / own / "page.py", imported) is None) == allowed


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_light_rooms_import_nothing_heavy(name):
    import sys
    for file in (ROOT / name).glob("*.py"):
        outside = {i.split(".")[0] for i in imports(file)} - set(sys.stdlib_module_names) - {"minirl", "__future__"}
        assert outside <= THIRD_PARTY[name], f"{file} imports {outside}"


def test_every_folder_has_its_paragraph():
    for init in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{init} does not say what belongs there"


def test_the_shift_by_one_lives_in_logprobs_alone():
    """Mixed widths force `[:, 1:]` everywhere, and each is a chance to be off by one. Ours are all (B, T)."""
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        assert "[:, 1:]" not in source and "[:, :-1]" not in source and "[..., 1:]" not in source, f"{file} shifts by one"


def test_tests_mirror_the_tree():
    tests = ROOT.parent / "tests"
    for file in tests.rglob("test_*.py"):
        if file.parent not in (tests, tests / "parity"):                 # parity is about other people's code, what stands above about the whole
            folder, name = ROOT / file.parent.relative_to(tests), file.stem.removeprefix("test_")
            assert any(name == module.stem or name.startswith(module.stem + "_") for module in folder.glob("*.py")), f"{file} is about no module of {folder}"
