"""minirl/lm/figures.py: what all figures share. tests/app/test_plots.py looks at whole figures."""

import subprocess
import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minirl.lm.figures import (
    COLOURS,
    drawable,
    entry,
    legend_below,
    line_styles,
    new_figure,
    smooth,
)


def test_smooth_takes_the_neighbours_that_are_there():
    assert smooth([0.0, 3.0, 6.0], reach=1) == [1.5, 3.0, 4.5]


@pytest.mark.parametrize("text, shows", [
    ("$x$", r"\$x\$"), ("_run", " _run"), ("a\x1b[31mb", r"a\x1b[31mb"), ("\uac00", r"\uac00")],
    ids=["formula", "hidden", "escape", "Hangul"])
def test_text_is_drawn_as_it_stands(text, shows):
    """matplotlib reads $ as a formula, hides a legend's _name, and has no glyphs of Hangul."""
    assert drawable(text) == shows


@pytest.mark.parametrize("n", [1, 6, 12, 30])
def test_no_two_curves_look_alike(n):
    styles = line_styles(n)
    assert len({(str(style["color"]), str(style["linestyle"])) for style in styles}) == n
    assert n > 12 or styles[0] == {"color": COLOURS[0], "linestyle": "-"}


def test_it_loads_no_matplotlib_before_something_is_drawn():
    code = ("import sys, minirl.lm.figures; "
            "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_legend_below_is_no_wider_than_its_figure():
    """matplotlib puts 9 entries of 8 columns into one column of two rows and seven of one. They
    were counted as five columns of two rows, and the last entry was cut off."""
    figure, _ = new_figure(1, 1, (10.4, 3))
    legend_below(figure, [entry("x" * n) for n in (4, 16, 13, 19, 16, 19, 15, 4, 20)])
    FigureCanvasAgg(figure).draw()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1
