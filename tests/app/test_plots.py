"""minirl/app/plots.py"""

import subprocess
import sys

import pytest
from matplotlib.colors import to_hex

from minirl.app.plots import (
    by_seed,
    heading,
    metrics_of,
    names,
    plot_runs,
    points,
)
from minirl.app.rundir import RunDir
from tests.app.drawing import legend_texts, made


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


def test_every_command_draws_its_own_panels(tmp_path):
    metrics = {"rewards/reward_model/mean": 1, "objective/kl": 1, "learning_rate": 0.1, "kl": -1}
    run = made(tmp_path / "ppo", "ppo", [metrics] * 3)
    assert "objective/kl" in metrics_of(run) and "kl" not in metrics_of(run)
    plot_runs([run], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


SUMS = {"name": "addition", "digits": 3}
BILINGUAL = {"name": "bilingual", "digits": 3, "reason_in": "ko"}


def test_a_stage_of_r1_draws_language_and_preferences_and_says_which_stage_it_is(tmp_path):
    plain = made(tmp_path / "grpo", "grpo", [{"kl": 0.1}], task=SUMS)
    stage = made(tmp_path / "rl-1", "grpo", [{"kl": 0.1}], task=BILINGUAL, stage_of="r1")
    assert "rewards/language_consistency/mean" in metrics_of(stage)
    assert "kl" not in metrics_of(stage) and "kl" in metrics_of(plain)
    assert heading([stage]) == ("minirl r1, rl-1: 3-digit addition in English and Korean, "
                                "reasoning in Korean, seed 0")
    assert heading([plain]) == "minirl grpo: 3-digit addition, seed 0"
    assert heading([plain, stage]) == "2 runs"


def test_a_run_that_names_no_task_has_a_heading_too(tmp_path):
    """Runs of before config.json named it, and folders that somebody put together."""
    assert heading([made(tmp_path / "grpo", "grpo", [])]) == "minirl grpo, seed 0"
    assert heading([RunDir.create(tmp_path / "x", {})]) == "minirl None, seed None"


def test_nothing_is_loaded_before_something_is_drawn():
    """matplotlib took half a second of the start of every command."""
    code = "import sys, minirl.app.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_legend_names_every_run_wherever_its_metrics_are(tmp_path, figures):
    """It was the first panel's: runs without that metric had no name, and it covered the curves."""
    runs = [made(tmp_path / "a", "sft", [{"loss": 1.0}] * 3),
            made(tmp_path / "b", "grpo", [{"kl": 0.1}] * 3)]
    plot_runs(runs, tmp_path / "x.png")
    (figure,) = figures
    assert legend_texts(figure) == ["a", "b"] and not any(axis.get_legend() for axis in figure.axes)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert all(box.y1 <= axis.get_tightbbox().y0 for axis in figure.axes if axis.get_visible())
    assert box.x1 <= figure.bbox.x1 and box.y0 >= 0


@pytest.mark.parametrize("n", [2, 7, 12, 30])
def test_every_run_has_a_look_of_its_own(n, tmp_path, figures):
    runs = [made(tmp_path / f"run-{i}", "sft", [{"loss": 1.0 + i}] * 3) for i in range(n)]
    plot_runs(runs, tmp_path / "x.png")
    def looks_of(place):
        return [(to_hex(line.get_color()), line.get_linestyle()) for line in place.get_lines()]

    looks = looks_of(figures[0].legends[0])
    assert len(looks) == len(set(looks)) == n
    assert figures[0].legends[0].get_window_extent().x1 <= figures[0].bbox.x1
    assert set(looks_of(figures[0].axes[0])) == set(looks)


def test_what_is_exact_is_not_smoothed(tmp_path, figures):
    """A learning rate was drawn as the mean of seven steps: its warm-up began above 0, and its peak
    was cut off."""
    rates = [0.0, 1e-3, 0.0, 0.0]
    metrics = [{"loss": 1.0 + rate, "learning_rate": rate} for rate in rates]
    plot_runs([made(tmp_path / "a", "sft", metrics)], tmp_path / "x.png")
    loss, rate = figures[0].axes
    assert [list(line.get_ydata()) for line in rate.get_lines()] == [rates]
    assert len(loss.get_lines()) == 2


@pytest.mark.parametrize("steps", [1, 2, 3, 44, 188])
def test_steps_are_whole_numbers_and_a_single_one_is_seen(steps, tmp_path, figures):
    plot_runs([made(tmp_path / "a", "sft", [{"loss": 1.0}] * steps)], tmp_path / "x.png")
    axis = figures[0].axes[0]
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks) and len(ticks) <= 10
    labels = {text.get_text() for text in axis.get_xticklabels()}
    assert {str(round(tick)) for tick in ticks} <= labels
    assert any(line.get_marker() == "o" for line in axis.get_lines()) == (steps <= 12)


def test_a_metric_that_is_missing_or_no_number_leaves_a_gap(tmp_path, figures):
    lines = [{"loss": float("nan")}, {"loss": 2.0}, {}, {"loss": float("inf")}, {"loss": 3.0}]
    assert points([{"step": 1, "loss": None}, {"step": 2, "loss": 5}], "loss") == [(2, 5)]
    plot_runs([made(tmp_path / "a", "sft", lines)], tmp_path / "x.png")
    axis, = figures[0].axes
    assert list(axis.get_lines()[0].get_xdata()) == [2, 5]
    with pytest.raises(ValueError, match="none of the metrics"):
        plot_runs([made(tmp_path / "b", "sft", [{"loss": float("nan")}])], tmp_path / "x.png")


def test_a_summary_without_numbers_draws_no_circles(tmp_path, figures):
    run = made(tmp_path / "a", "grpo", [{"rewards/accuracy/mean": 0.5}])
    run.write_json("summary.json", {"accuracy_before": None, "accuracy_after": float("nan")})
    plot_runs([run], tmp_path / "x.png")
    assert len(figures) == 1


def test_runs_of_one_name_are_told_apart_and_long_names_are_shortened(tmp_path):
    runs = [RunDir(tmp_path / name)
            for name in ("one/grpo", "two/grpo", "two/" + "long-" * 20 + "2")]
    first, second, long = names(runs)
    assert (first, second) == ("one/grpo", "two/grpo")
    assert long.startswith("two/long-") and long.endswith("-2") and len(long) <= 36
    assert names(runs[:1]) == ["grpo"] and names([runs[0], runs[0]]) == ["grpo", "grpo"]
    middles = [RunDir(tmp_path / f"{'a' * 40}{i}{'b' * 40}") for i in (1, 2)]
    assert names(middles) == [run.path.name for run in middles], "alike if they were shortened"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name, drawn", [
    ("한글", r"\ud55c\uae00"), ("a$b$", r"a\$b\$"), ("_x", " _x"), ("$", r"\$"), ("é", "é"),
    ("a\x1bb", r"a\x1bb")])
def test_any_name_of_a_run_is_drawn(name, drawn, tmp_path, figures):
    """The font has no Hangul, $ begins a formula, and a legend leaves out what begins with _."""
    runs = [made(tmp_path / n, "sft", [{"loss": 1.0}] * 3) for n in (name, "other")]
    plot_runs(runs, tmp_path / "x.png")
    assert legend_texts(figures[0]) == [drawn, "other"]


def test_a_heading_fits_the_figure(tmp_path, figures):
    run = made(tmp_path / ("r" * 200), "sft", [{"loss": 1.0}], stage_of="r1")
    plot_runs([run], tmp_path / "x.png")
    figure, = figures
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1
    assert "..." in figure._suptitle.get_text()


@pytest.mark.parametrize("least, labels", [
    (0.1, {"0.2", "0.5", "1"}), (0.001, {"0.01", "0.1", "1"})])
def test_ticks_of_a_logarithmic_axis_are_plain_numbers(least, labels, tmp_path, figures):
    losses = [{"loss": x} for x in (2.0, 1.0, 0.9 * least)]
    plot_runs([made(tmp_path / "a", "sft", losses)], tmp_path / "x.png")
    axis = figures[0].axes[0]
    assert axis.get_yscale() == "log"
    assert labels <= {text.get_text() for text in axis.get_yticklabels()}


def seeds(tmp_path, values, **settings):
    """GRPO runs of three steps that differ in their seed; those with settings are of another."""
    return [RunDir.create(tmp_path / f"run-{seed}-{len(settings)}", {
        "command": "grpo", "grpo": {"lr": 0.1}, "torch": str(seed),
        "settings": {"seed": seed, **settings}}) for seed in values]


def test_runs_are_grouped_by_all_but_their_seed(tmp_path):
    first, other = seeds(tmp_path, (0, 1, 2)), seeds(tmp_path, (0, 3), init="x")
    assert by_seed([first[0], other[0], *first[1:], other[1]]) == [[0, 2, 3], [1, 4]]
    again = RunDir.create(tmp_path / "again", first[0].config)
    assert by_seed([first[0], again, first[1]]) == [[0, 2], [1]], "the same seed twice is no other"
    bare = [RunDir.create(tmp_path / name, {}) for name in "ab"]
    assert by_seed(bare) == [[0], [1]], "nothing says that these are of one kind"


def test_several_seeds_are_a_mean_and_a_band(tmp_path, figures):
    runs = seeds(tmp_path, (0, 1))
    for run, values in zip(runs, ([1.0, 3.0, 5.0], [3.0, 5.0]), strict=True):
        for step, value in enumerate(values, start=1):
            run.append_metrics(step, {"kl": value})
    plot_runs(runs, tmp_path / "x.png")
    axis = figures[0].axes[0]
    [line] = axis.get_lines()
    assert line.get_xdata().tolist() == [1, 2], "the steps that both have"
    assert line.get_ydata().tolist() == [3.0, 3.0], "the mean of 2 and 4, smoothed over both"
    [band] = axis.collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (2.0, 4.0)
    assert legend_texts(figures[0])[0] == "run-0-0: mean and range of 2 seeds"
