"""Every tutorial runs from top to bottom, and its claims hold. Its exercises have solutions that
their checks accept, and wrong answers that they refuse. The notebooks, in English and in Korean,
have the same text, and were run."""

import ast
import json
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tutorials import make_notebooks
from tutorials.make_notebooks import in_korean, korean_cells, notebook_of

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)

SECTIONS = ["The question", "By hand", "The function", "Picture", "In the loop", "Break it",
            "Exercises", "Deltas from the paper", "Find the bug"]
FIELDS = ["Paper", "Code", "Tests", "Before this", "Time", "Expect", "Sweep"]
FAST_SECONDS = 40      # of processor time: twenty on two cores


@pytest.mark.slow
@every_tutorial
def test_a_tutorial_runs_and_its_exercises_are_solved(path, monkeypatch):
    monkeypatch.setenv("MINIRL_FAST", "1")
    monkeypatch.syspath_prepend(FOLDER)
    threads, began = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)                           # two that wait for each other would count
    try:
        tutorial = runpy.run_path(str(path))
    finally:
        torch.set_num_threads(threads)
    assert time.process_time() - began < FAST_SECONDS
    solutions = runpy.run_path(str(FOLDER / "solutions" / path.name))
    checks = {name: name.replace("check_", "exercise_", 1) for name in tutorial
              if name.startswith("check_")}
    assert set(checks.values()) == set(solutions["WRONG"]) == {
        name for name in tutorial if name.startswith("exercise_")}
    assert 3 <= len(checks) <= 5 and "check_bug" in checks
    for check, exercise in checks.items():
        tutorial[check](solutions[exercise])
        with pytest.raises(NotImplementedError):
            tutorial[check](tutorial[exercise])
        assert solutions["WRONG"][exercise]
        for wrong in solutions["WRONG"][exercise]:
            with pytest.raises(AssertionError):
                tutorial[check](wrong)


@pytest.mark.slow
def test_a_debugger_stops_at_a_marked_line_and_steps_in(monkeypatch):
    """As tutorials/README.md says it."""
    script = FOLDER / "04_values.py"
    lines = script.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.endswith("# step in: gae"))
    monkeypatch.setenv("MINIRL_FAST", "1")
    commands = [f"break {number}", "continue", "step", "args", "quit"]
    shown = subprocess.run(
        [sys.executable, "-m", "pdb", *(word for command in commands for word in ("-c", command)),
         str(script)], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert "--Call--" in shown.stdout, shown.stdout[-500:]
    assert "lam = 0.95" in shown.stdout and "rewards = tensor([[0., 0., 1.]])" in shown.stdout


@every_tutorial
def test_the_text_has_the_form_of_all_tutorials(path):
    cells = notebook_of(path).cells
    assert cells[0].source == "%pip install -q -e .."
    markdown = [cell.source for cell in cells if cell.cell_type == "markdown"]
    head, text = markdown[0], "\n".join(markdown)
    assert re.match(rf"# {path.stem[:2]}\. ", head)
    assert re.findall(r"(?m)^- \*\*(.+?)\*\*:", head) == FIELDS
    assert "| what to inspect | healthy | if not |" in head
    named = re.findall(r"`((?:minirl|tests|tutorials|benchmarks)/[\w/]+\.\w+)`", text)
    assert named and all((ROOT / file).is_file() for file in named)
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    question = text.split("## The question")[1].split("\n## ")[0]
    assert re.search(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/(issues|pull|discussions)/\d+\)",
                     question), "the question links to a place where somebody asks it"


@every_tutorial
def test_functions_are_shown_and_entered_never_defined_again(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = {alias.asname or alias.name for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module.startswith("minirl")
                for alias in node.names}
    defined = {node.name for node in ast.walk(tree)
               if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    equations = {node.name for file in (ROOT / "minirl" / "equations").glob("*.py")
                 for node in ast.parse(file.read_text(encoding="utf-8")).body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert not defined & (imported | equations)
    shown = re.findall(r"(?m)^show\((\w+)\)", source)
    assert shown and set(shown) <= imported
    steps = re.findall(r"(?m)^(.*)  # step in: (\w+)$", source)
    assert steps, "a line to stop at in a debugger is marked"
    assert all(f"{name}(" in line and name in imported for line, name in steps)


@every_tutorial
def test_figures(path):
    """Two to four of them, all shown in the text of tutorials/README.md or of the tutorial."""
    names = re.findall(r'(?m)^ *keep\(\w+, "([\w-]+)"\)', path.read_text(encoding="utf-8"))
    assert 2 <= len(names) <= 4
    for name in names:
        figure = FOLDER / "figures" / f"{name}.png"
        assert name.startswith(path.stem[:2]) and figure.stat().st_size < 150_000


@every_tutorial
def test_the_korean_prose_is_complete(path):
    """A cell for each cell, with the same code, formulas and links; and it is in Korean."""
    cells = [cell for cell in notebook_of(path).cells if cell.cell_type == "markdown"]
    korean = korean_cells(path)
    assert len(korean) == len(cells)
    for cell, text in zip(cells, korean, strict=True):
        for pattern in (r"`[^`\n]+`", r"\]\([^)]+\)", r"(?m)^#+ "):
            assert sorted(re.findall(pattern, text)) == sorted(re.findall(pattern, cell.source))
        assert len(re.findall("[가-힣]", text)) > 0.1 * len(cell.source)


@every_tutorial
def test_the_notebooks_have_the_same_text_and_were_run(path):
    fresh = notebook_of(path)
    for suffix, wanted in ((".ipynb", fresh), (".ko.ipynb", in_korean(fresh, korean_cells(path)))):
        notebook = json.loads(path.with_suffix(suffix).read_text(encoding="utf-8"))
        texts = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
        assert texts == [(cell.cell_type, cell.source) for cell in wanted.cells], \
            f"stale: run python tutorials/make_notebooks.py {path.stem}"
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
        counts = [cell["execution_count"] for cell in notebook["cells"][1:] if "outputs" in cell]
        assert counts and None not in counts


def test_the_readme_has_every_tutorial_and_no_other():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert make_notebooks.table() in text, "run python tutorials/make_notebooks.py NAME"
    linked = set(re.findall(r"\]\(([\w.]+\.(?:ipynb|py|md))\)", text))
    assert all((FOLDER / name).is_file() for name in linked)
    assert {f"{path.stem}.ipynb" for path in TUTORIALS} <= linked


def test_korean_prose_that_misses_a_cell_is_refused(tmp_path, monkeypatch):
    script = tmp_path / "00_x.py"
    script.write_text("# %% [markdown]\n# # Title\n\n# %%\nx = 1\n\n# %% [markdown]\n# End\n")
    (tmp_path / "ko").mkdir()
    monkeypatch.setattr(make_notebooks, "FOLDER", tmp_path)
    prose = tmp_path / "ko" / "00_x.md"
    prose.write_text("# 제목\n\n<!-- next cell -->\n\n끝\n", encoding="utf-8")
    notebook = in_korean(notebook_of(script), korean_cells(script))
    assert [cell.source for cell in notebook.cells] == ["# 제목", "x = 1", "끝"]
    prose.write_text("# 제목\n", encoding="utf-8")
    with pytest.raises(ValueError):
        in_korean(notebook_of(script), korean_cells(script))
