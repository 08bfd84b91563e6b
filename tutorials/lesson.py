"""What all tutorials share: the fast mode, figures, the source of functions, and exercises.

Start a notebook from this folder, as Jupyter does when you open the file there.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

FAST = os.environ.get("MINIRL_FAST") == "1"            # fewer steps, for a quick test of it all
HERE = Path(__file__).parent
FIGURES = Path(tempfile.mkdtemp()) if FAST else HERE / "figures"

# Colours of different lightness, each with its own dashes, so that they survive a grey printer.
BLUE, RED, AMBER, GREEN, GREY = "#1f4e8c", "#c8553d", "#e0a030", "#5aa469", "#6b7280"
plt.rcParams.update({
    "axes.prop_cycle": (plt.cycler("color", [BLUE, RED, AMBER, GREEN, GREY])
                        + plt.cycler("linestyle", ["-", "--", "-.", ":", (0, (5, 1, 1, 1))])),
    "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlelocation": "left", "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.labelsize": 9, "figure.constrained_layout.use": True, "grid.alpha": 0.25,
    "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.8, "savefig.dpi": 130,
    "xtick.labelsize": 8, "ytick.labelsize": 8})
torch.set_printoptions(precision=4, sci_mode=False, linewidth=100)


def show(function: Callable[..., Any]) -> None:
    """Print a function's source, docstring included. So what you read is what runs."""
    print(inspect.getsource(inspect.unwrap(function)).rstrip())


def keep(figure: Figure, name: str) -> None:
    """Save a figure as figures/NAME.png, and show it."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png")
    plt.show()
    plt.close(figure)


def slider(name: str, page: Mapping[str, Any]) -> None:
    """Write figures/NAME.html, a figure with sliders, and show it in a notebook.

    `page` is explained in slider.html. All numbers of it are computed here, in Python.
    """
    FIGURES.mkdir(exist_ok=True)
    data = json.dumps(page, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    html = (HERE / "slider.html").read_text(encoding="utf-8").replace("DATA", data)
    (FIGURES / f"{name}.html").write_text(html, encoding="utf-8")
    print(f"figures/{name}.html: open it in a browser, and move the sliders")
    if "ipykernel" in sys.modules:
        from IPython.display import HTML, display
        quoted = html.replace("&", "&amp;").replace('"', "&quot;")
        display(HTML(f'<div><iframe srcdoc="{quoted}" width="760" height="520" '
                     'style="border:0"></iframe></div>'))


def near(value: Any, expected: Any, tolerance: float = 1e-9) -> bool:
    """Whether two tensors, or numbers, are equal."""
    value, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (value, expected))
    return torch.allclose(value, expected, rtol=0, atol=tolerance)


def judge(check: Callable[[Callable[..., Any]], None], answer: Callable[..., Any]) -> None:
    """Say how an exercise stands. `check` raises AssertionError at a wrong answer."""
    try:
        check(answer)
    except NotImplementedError:
        print(f"{answer.__name__}: still open")
    except AssertionError as error:
        print(f"{answer.__name__}: not yet. {error}")
    else:
        print(f"{answer.__name__}: right")


def judge_test(test: Callable[[Callable[..., Any]], None], right: Callable[..., Any],
               wrong: Callable[..., Any]) -> None:
    """Raise AssertionError unless `test` passes for `right` and fails for `wrong`.

    A test takes the function that it tests, and raises AssertionError where that is wrong.
    """
    try:
        test(right)
    except AssertionError as error:
        raise AssertionError(f"your test fails for {right.__name__}, which is right: "
                             f"{error}") from error
    try:
        test(wrong)
    except AssertionError:
        return
    raise AssertionError(f"your test passes for {wrong.__name__}, and it should fail")
