"""Every tutorial runs from top to bottom, its claims hold, and its exercises have solutions that
their checkers accept."""

import json
import runpy
from pathlib import Path

import pytest

from tutorials.make_notebooks import cells

FOLDER = Path(__file__).parent.parent / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


@pytest.mark.slow
@every_tutorial
def test_a_tutorial_runs_and_its_exercises_are_solved(path, monkeypatch):
    monkeypatch.setenv("MINIRL_FAST", "1")
    names = runpy.run_path(str(path))
    solutions = runpy.run_path(str(FOLDER / "solutions" / path.name))
    solutions["check"](names)


@every_tutorial
def test_the_notebook_beside_it_is_the_same_text_and_has_been_run(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    texts = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert texts == cells(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(cell.get("outputs")) for cell in code) >= 3


def test_cells_of_a_script():
    script = "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n"
    assert cells(script) == [("markdown", "# Title\n\ntext"), ("code", "x = 1")]
