"""minirl/app/plots.py"""

import pytest
from matplotlib.axes import Axes

from minirl.app.plots import heading, plot_calibration, plot_epochs, plot_hacking, plot_runs, shown, smooth
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


def made(path, command, metrics, **run):
    made = RunDir.create(path, {"command": command, "run": {"seed": 0, **run}})
    for step, values in enumerate(metrics, start=1):
        made.append_metrics(step, values)
    return made


def test_a_stage_of_r1_draws_language_and_preferences_and_says_which_stage_it_is(tmp_path):
    plain = made(tmp_path / "grpo", "grpo", [{"kl": 0.1}], digits=3, task="addition")
    stage = made(tmp_path / "rl-1", "grpo", [{"kl": 0.1}], number_length=3, language="ko")
    assert "rewards/language_consistency/mean" in shown(stage) and "kl" not in shown(stage) and "kl" in shown(plain)
    assert heading([stage]) == "minirl r1, rl-1: sums and stories in two languages, seed 0" and heading([plain]) == "minirl grpo: 3-digit addition, seed 0"


def test_hacking_joins_rounds_at_their_steps_and_keeps_their_scores_apart(tmp_path, monkeypatch):
    """A step without a general prompt has no score: it leaves a gap, and shifts nothing. Scores of two reward models are two lines."""
    preference, true = "rewards/preference/mean", "rewards/general/true_reward/mean"
    lines = [{preference: 1.0, true: 0.5}, {}, {preference: 2.0, true: 0.7}]
    long, one, two = (made(tmp_path / name, "grpo", lines) for name in ("too-long", "prefer-1", "prefer-2"))
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **kw: drawn.append((tuple(x), tuple(y))) or plot(self, x, y, **kw))
    plot_hacking(long, [one, two], tmp_path / "hacking.png")
    raw = drawn[::2]                                               # the others are smoothed
    assert raw[:3] == [((1, 3), (1.0, 2.0)), ((1, 3), (1.0, 2.0)), ((4, 6), (1.0, 2.0))] and raw[3][1] == (0.5, 0.7)
    assert (tmp_path / "hacking.png").stat().st_size > 10_000
