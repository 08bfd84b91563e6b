"""Run every tutorial and write the notebook that stands beside it, with its outputs.

    python -m pip install nbclient ipykernel && python tutorials/make_notebooks.py [NAME ...]

The scripts are the source; tests/test_tutorials.py holds the notebooks against them.
"""

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def cells(script: str) -> list[tuple[str, str]]:
    """The cells of a script in percent format: (markdown or code, source)."""
    found = []
    for part in script.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        kind = "markdown" if head.strip() == "[markdown]" else "code"
        lines = [re.sub("^# ?", "", line) for line in body.splitlines()] if kind == "markdown" else body.splitlines()
        found.append((kind, "\n".join(lines).strip()))
    return found


def write_notebook(path: Path) -> Path:
    import nbformat                                            # neither is needed to read or to run a tutorial
    from nbclient import NotebookClient

    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook = nbformat.v4.new_notebook(cells=[make[kind](source) for kind, source in cells(path.read_text(encoding="utf-8"))])
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"                               # the same file for the same text
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)        # when each cell ran
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "language_info": {"name": "python"}}
    nbformat.write(notebook, path.with_suffix(".ipynb"))
    return path.with_suffix(".ipynb")


if __name__ == "__main__":
    for script in sorted(FOLDER.glob("[0-9][0-9]_*.py")):
        if len(sys.argv) == 1 or script.stem in sys.argv[1:]:
            print(write_notebook(script))
