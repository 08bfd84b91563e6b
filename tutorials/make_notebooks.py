"""Run every tutorial and write the notebook that stands beside it, with its outputs.

    python -m pip install nbclient ipykernel && python tutorials/make_notebooks.py [NAME ...]

The scripts are the source. tests/test_tutorials.py checks that the notebooks have the same text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def cells(script: str) -> list[tuple[str, str]]:
    """Return the cells of a script in percent format: (markdown or code, source)."""
    result = []
    for part in script.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        kind, lines = "code", body.splitlines()
        if head.strip() == "[markdown]":
            kind, lines = "markdown", [re.sub("^# ?", "", line) for line in lines]
        result.append((kind, "\n".join(lines).strip()))
    return result


def write_notebook(path: Path) -> Path:
    """Run a script's cells and write its notebook -> the notebook's path."""
    import nbformat  # neither is needed to read or to run a tutorial
    from nbclient import NotebookClient

    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    script = path.read_text(encoding="utf-8")
    notebook = nbformat.v4.new_notebook(cells=[make[kind](text) for kind, text in cells(script)])
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"               # not a random id: the same text, the same file
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=None, resources=where).execute()
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)        # the time at which each cell ran
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path.with_suffix(".ipynb"))
    return path.with_suffix(".ipynb")


if __name__ == "__main__":
    for script in sorted(FOLDER.glob("[0-9][0-9]_*.py")):
        if len(sys.argv) == 1 or script.stem in sys.argv[1:]:
            print(write_notebook(script))
