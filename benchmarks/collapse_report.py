"""What benchmarks/collapse.py prints and draws: a table and a figure.

A record is a line of its file, for one run: seed, arm, what (the arm's numbers, in words), looks at
held-out sums (step, accuracy, pass, different), steps (for each metric one number per step),
seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from common import row, table_head
from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, smooth, tidy
from study import Record

PLAIN = "plain GRPO"
LAST_LOOKS, LAST_STEPS = 3, 24     # the end of a run: means over these
BLUE, RED, GREEN, PURPLE, GOLD, GREY = COLOURS
# what helps is wide, and what is alike has one colour
LOOKS: dict[str, dict[str, Any]] = {
    PLAIN: dict(color="#111827", linewidth=3.2),
    "clip-higher": dict(color=PURPLE, linewidth=1.3),
    "entropy bonus": dict(color=RED, linewidth=1.3),
    "adaptive bonus": dict(color=GOLD, linewidth=1.3),
    "strong adaptive bonus": dict(color=GOLD, linewidth=2.0, linestyle=DASHES),
    "Clip-Cov": dict(color=GREY, linewidth=1.3),
    "KL-Cov": dict(color=GREY, linewidth=1.6, linestyle=DASHES),
    "KL to the base": dict(color=BLUE, linewidth=2.4),
    "smaller steps": dict(color=GREEN, linewidth=2.4),
    "fresh sums": dict(color=GREEN, linewidth=1.6, linestyle=DASHES)}


class Arm(Protocol):
    """What is read here of a row of collapse.ARMS."""

    @property
    def name(self) -> str: ...
    @property
    def what(self) -> str: ...


def of(runs: Sequence[Record], arm: Arm) -> list[Record]:
    """Return the runs of an arm, one per seed."""
    return [run for run in runs if (run["arm"], run["what"]) == (arm.name, arm.what)]


# the table

def outcomes(runs: Sequence[Record], arms: Sequence[Arm]) -> None:
    """Print where the runs end: means over seeds of the last looks and steps."""
    print(table_head("arm", "what it is", "entropy", "groups without spread", "reward", "Pass@16",
                     "different answers of 16", "accuracy", "by seed"))
    first = [run["looks"][0] for run in of(runs, arms[0])]
    early = [{name: values[:1] for name, values in run["steps"].items()}
             for run in of(runs, arms[0])]
    print(row("base model", "", *cells(early, [[look] for look in first])))
    for arm in arms:
        late = [{name: values[-LAST_STEPS:] for name, values in run["steps"].items()}
                for run in of(runs, arm)]
        print(row(arm.name, arm.what, *cells(late, [run["looks"][-LAST_LOOKS:]
                                                    for run in of(runs, arm)])))
    print()


def cells(steps: Sequence[dict[str, list[float]]],
          looks: Sequence[Sequence[dict[str, float]]]) -> list[str]:
    """Return means over steps, or looks, and seeds."""
    by_step = [statistics.mean(statistics.mean(seed[name]) for seed in steps)
               for name in ("entropy", "frac_reward_zero_std", "reward")]
    by_seed = {name: [statistics.mean(look[name] for look in seed) for seed in looks]
               for name in ("pass", "different", "accuracy")}
    means = [statistics.mean(values) for values in by_seed.values()]
    return [f"{by_step[0]:.3f}", f"{by_step[1]:.0%}", f"{by_step[2]:.3f}", f"{means[0]:.3f}",
            f"{means[1]:.1f}", f"{means[2]:.3f}",
            " / ".join(f"{value:.3f}" for value in by_seed["accuracy"])]


# the figure

def draw(runs: Sequence[Record], arms: Sequence[Arm], out: Path) -> None:
    """Draw four panels over steps: two of what happens to the policy, two of what it costs."""
    figure, axes = new_figure(2, 2, (10.4, 6.6))
    panels: tuple[tuple[str, str, Callable[[Record], list[tuple[float, float]]]], ...] = (
        ("Entropy of a token: collapsed, or held up", "nats, while sampling",
         step_curve("entropy")),
        ("Groups without spread, which teach nothing", "share of groups",
         step_curve("frac_reward_zero_std")),
        ("Pass@16: kept by a KL, and by new prompts", "Pass@16, held-out sums",
         look_curve("pass")),
        ("Accuracy: high entropy alone does not save it", "accuracy, held-out sums",
         look_curve("accuracy")))
    for axis, (title, label, curve) in zip(axes, panels, strict=True):
        for arm in sorted(arms, key=lambda arm: arm.name == PLAIN):  # plain on top
            axis.plot(*mean_curve([curve(run) for run in of(runs, arm)]), **LOOKS[arm.name])
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1)
        tidy(axis, title, x="step", y=label)
    axes[0].set_yscale("log")
    axes[0].set_ylim(0.008, 1)
    axes[0].set_yticks([0.01, 0.03, 0.1, 0.3, 1], ["0.01", "0.03", "0.1", "0.3", "1"])
    axes[3].set_ylim(0, 0.5)
    legend_below(figure, [entry(f"{arm.name}: {arm.what}", **LOOKS[arm.name]) for arm in arms],
                 title=f"Means of {len(of(runs, arms[0]))} seeds, the upper panels smoothed over 7 "
                       "steps")
    save(figure, out)


def mean_curve(by_seed: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """Return x, and the mean of y over seeds."""
    return ([step for step, _ in by_seed[0]],
            [statistics.mean(value for _, value in points)
             for points in zip(*by_seed, strict=True)])


def step_curve(name: str) -> Callable[[Record], list[tuple[float, float]]]:
    return lambda run: list(enumerate(smooth(run["steps"][name]), start=1))


def look_curve(name: str) -> Callable[[Record], list[tuple[float, float]]]:
    return lambda run: [(look["step"], look[name]) for look in run["looks"]]
