"""minirl/app/plots.py"""

import pytest

from minirl.app.plots import plot_calibration, plot_epochs, plot_runs, smooth
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


@pytest.mark.parametrize("margins", [[2.0] * 48, [-1.0] * 7, [1.0, -1.0] * 50, [0.0], [100.0, -100.0]])
def test_calibration_is_drawn_of_any_margins(margins, tmp_path):
    """A reward model that is always right, or always wrong, or of one mind, is a figure too: once the whole run ended here."""
    plot_calibration(margins, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5_000


def test_epochs_are_drawn(tmp_path):
    epochs = [{"epoch": i, "validation_loss": 1.0 / i, "score": i / 3, "true_reward": i / 4, "chosen": i == 2} for i in (1, 2, 3)]
    plot_epochs(epochs, tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 5_000


def test_every_command_draws_its_own_panels(tmp_path):
    run = RunDir.create(tmp_path / "ppo", {"command": "ppo", "run": {"seed": 0}})
    for step in range(3):
        run.append_metrics(step, {"rewards/reward_model/mean": step, "objective/kl": step, "learning_rate": 0.1, "kl": -step})
    plot_runs([run], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
