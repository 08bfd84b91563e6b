"""minirl/inference/comparison_figure.py"""

import pytest

from minirl.inference.comparison_figure import fall, plot_comparison
from tests.inference.comparisons import comparison


@pytest.mark.parametrize("comparisons", [
    [comparison(), comparison("3-digit addition"), comparison("4-digit addition")],
    [comparison()], [comparison(verifiers=())], [comparison(sizes=(1,))]])
def test_a_picture_of_one_task_or_several_with_and_without_verifiers(comparisons, tmp_path):
    plot_comparison(comparisons, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes()[:4] == b"\x89PNG"


def test_the_fall_of_the_worst_verifier():
    assert fall(comparison()) == pytest.approx(0.1) and fall(comparison(verifiers=())) == 0
