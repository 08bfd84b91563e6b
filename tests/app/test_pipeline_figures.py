"""minirl/app/pipeline_figures.py"""

import pytest
from matplotlib.axes import Axes

from minirl.app.pipeline_figures import plot_calibration, plot_epochs, plot_hacking, plot_stages
from tests.app.drawing import legend_texts, made


@pytest.mark.parametrize("margins", [[2.0] * 48, [-1.0] * 7, [1.0, -1.0] * 50, [0.0],
                                     [100.0, -100.0]])
def test_calibration_is_drawn_of_any_margins(margins, tmp_path):
    """A reward model that is always right, or always wrong, or of one mind, is a figure too: once
    the whole run ended here."""
    plot_calibration(margins, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5_000


def test_epochs_are_drawn(tmp_path):
    epochs = [{"epoch": i, "validation_loss": 1.0 / i, "score": i / 3, "true_reward": i / 4,
               "chosen": i == 2} for i in (1, 2, 3)]
    plot_epochs(epochs, tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 5_000


def test_hacking_joins_rounds_at_their_steps_and_keeps_their_scores_apart(tmp_path, monkeypatch):
    """A step without a general prompt has no score: it leaves a gap, and shifts nothing. Scores of
    two reward models are two lines."""
    preference, true = "rewards/preference/mean", "rewards/general/true_reward/mean"
    lines = [{preference: 1.0, true: 0.5}, {}, {preference: 2.0, true: 0.7}]
    long, one, two = (made(tmp_path / name, "grpo", lines)
                      for name in ("too-long", "prefer-1", "prefer-2"))
    drawn, plot = [], Axes.plot

    def noting_plot(self, x, y, **look):
        drawn.append((tuple(x), tuple(y)))
        return plot(self, x, y, **look)

    monkeypatch.setattr(Axes, "plot", noting_plot)
    plot_hacking(long, [one, two], tmp_path / "hacking.png")
    raw = drawn[::2]                                               # the others are smoothed
    scores = (1.0, 2.0)
    assert raw[:3] == [((1, 3), scores), ((1, 3), scores), ((4, 6), scores)]
    assert raw[3][1] == (0.5, 0.7)
    assert (tmp_path / "hacking.png").stat().st_size > 10_000


def test_calibration_shows_a_reward_model_that_is_always_wrong(tmp_path, figures):
    """Shares below 0.3 were under the axis."""
    plot_calibration([-1.0, float("nan"), -2.0], tmp_path / "c.png")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 0 and high > 1
    assert legend_texts(figures[0])[1].startswith("2 held-out comparisons")


def test_stages_are_drawn(tmp_path, figures):
    shares = "easy", "hard", "majority", "pass", "language", "win_rate"
    stages = [{"stage": f"stage-{i}", **dict.fromkeys(shares, i / 9), "length": 20 + i}
              for i in range(9)]
    plot_stages(stages, tmp_path / "s.png")
    labels = [text.get_text() for text in figures[0].axes[0].get_xticklabels()]
    assert labels == [entry["stage"] for entry in stages]
    assert legend_texts(figures[0]) == ["easy", "hard", "hard, majority of samples",
                                        "hard, any of the samples"]
