"""minirl/app/plots.py"""

import pytest

from minirl.app.plots import plot_runs, smooth
from minirl.app.rundir import RunDir


def test_smooth_takes_the_neighbours_that_are_there():
    assert smooth([0.0, 3.0, 6.0], reach=1) == [1.5, 3.0, 4.5]


def test_runs_without_metrics_are_named(tmp_path):
    run = RunDir.create(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="empty has no metrics yet"):
        plot_runs([run], tmp_path / "x.png")


def test_runs_of_different_lengths_and_kinds_share_axes(tmp_path):
    runs = [RunDir.create(tmp_path / name, {}) for name in ("a", "b")]
    for step in range(5):
        runs[0].append_metrics(step, {"loss": 1.0 / (step + 1)})
    runs[1].append_metrics(1, {"kl": 0.1, "rewards/accuracy/mean": 0.5})
    plot_runs(runs, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
