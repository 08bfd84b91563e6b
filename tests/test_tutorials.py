"""Every tutorial runs from top to bottom, its claims hold, and its exercises have answers that their checkers accept."""

import json
import runpy
from pathlib import Path

import pytest

from tutorials.make_notebooks import cells

FOLDER = Path(__file__).parent.parent / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_its_exercises_are_solved(path, monkeypatch):
    monkeypatch.setenv("MINIRL_FAST", "1")
    names = runpy.run_path(str(path))
    runpy.run_path(str(FOLDER / "solutions" / path.name))["check"](names)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_notebook_beside_it_is_the_same_text(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]] == cells(path.read_text(encoding="utf-8"))
    assert sum(bool(cell.get("outputs")) for cell in notebook["cells"] if cell["cell_type"] == "code") >= 3, "it has been run"


def test_cells_of_a_script():
    assert cells("# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n") == [("markdown", "# Title\n\ntext"), ("code", "x = 1")]
