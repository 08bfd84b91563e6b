"""Run every tutorial, and write its notebooks with their outputs and figures.

    python -m pip install -e '.[docs]' && python tutorials/make_notebooks.py [NAME ...]

The scripts are the source: NN_name.py has code and English prose, ko/NN_name.md the Korean prose.
A notebook is run once, and its outputs stand in NN_name.ipynb and in NN_name.ko.ipynb.
README.md gets its table from the scripts' first cells. tests/test_tutorials.py checks that the
notebooks and the table have the text of the scripts.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import jupytext

FOLDER = Path(__file__).parent
SEPARATOR = "\n<!-- next cell -->\n"                    # between the cells of ko/NN_name.md
INSTALL = "%pip install"                               # the cell that is not run when it is built
QUESTION = r"^# \*(?!\*)(.+?)\*$"
TIME = r"^# - \*\*Time\*\*: ([^;,]+?)(?: on two|[;,.])"
TABLE = re.compile(r"(?s)\| \| tutorial \|.*?(?=\n\n)|<!-- table -->")


def notebook_of(script: Path) -> Any:
    """Return a tutorial as a notebook that was not run."""
    notebook = jupytext.read(script, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"               # not a random id: the same text, the same file
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return notebook


def korean_cells(script: Path) -> list[str]:
    """Return the Korean prose of a tutorial, a text for each of its Markdown cells."""
    text = (FOLDER / "ko" / f"{script.stem}.md").read_text(encoding="utf-8")
    return [cell.strip() for cell in text.split(SEPARATOR)]


def in_korean(notebook: Any, prose: list[str]) -> Any:
    """Return a notebook with Korean prose. Code and outputs stay."""
    result = copy.deepcopy(notebook)
    markdown = [cell for cell in result.cells if cell.cell_type == "markdown"]
    for cell, text in zip(markdown, prose, strict=True):
        cell.source = text
    return result


def run(notebook: Any) -> None:
    """Run a notebook's cells, and keep what they print and draw."""
    from nbclient import NotebookClient  # not needed to read a tutorial, or to check it

    install = [cell for cell in notebook.cells if cell.source.startswith(INSTALL)]
    sources = [cell.source for cell in install]
    for cell in install:
        cell.source = ""
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=None, resources=where).execute()
    for cell, source in zip(install, sources, strict=True):
        cell.source = source
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)        # the time at which each cell ran


def write_notebooks(script: Path) -> list[Path]:
    """Run a tutorial and write its notebooks -> their paths."""
    notebook = notebook_of(script)
    run(notebook)
    versions = {script.with_suffix(".ipynb"): notebook,
                script.with_suffix(".ko.ipynb"): in_korean(notebook, korean_cells(script))}
    for path, version in versions.items():
        jupytext.write(version, path, fmt="ipynb")
    return list(versions)


def scripts() -> list[Path]:
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def table() -> str:
    """Return README.md's table of the tutorials: a picture, the title, its question, the time."""
    rows = ["| | tutorial | question | time |", "|---|---|---|---|"]
    for script in scripts():
        text, name = script.read_text(encoding="utf-8"), script.stem

        def part(pattern: str, text: str = text, name: str = name) -> str:
            match = re.search(pattern, text, re.DOTALL | re.MULTILINE)
            if match is None:
                raise ValueError(f"{name}.py has nothing like {pattern}: see another tutorial")
            return " ".join(match[1].replace("\n# ", " ").split())

        picture = part(r'keep\(\w+, "([\w-]+)"\)')
        rows.append(f'| <img src="figures/{picture}.png" width="200"> '
                    f"| **[{part('^# # ([^#]+?)$')}]({name}.ipynb)**, [한국어]({name}.ko.ipynb), "
                    f"[script]({name}.py) | {part(QUESTION)} | {part(TIME)} |")
    return "\n".join(rows)


def write_table() -> None:
    readme = FOLDER / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(TABLE.sub(lambda _: table(), text, count=1), encoding="utf-8")


if __name__ == "__main__":
    for script in scripts():
        if len(sys.argv) == 1 or script.stem in sys.argv[1:]:
            print(*write_notebooks(script), sep="\n", flush=True)
    write_table()
