"""A comparison as text: accuracy and tokens, theory beside measurement, and verifiers that are
pleased for too long."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minirl.equations.inference_time import best_of_n_kl
from minirl.inference.comparison import Comparison
from minirl.inference.points import Point, mean
from minirl.lm.text import shortened, table

PRINTED = (1, 4, 16, 64, 256, 1024)         # numbers of candidates with a column of their own
TASK_WIDTH = 16                             # of a column, so that three tasks fit side by side


def comparison_report(comparisons: Sequence[Comparison]) -> str:
    """Return a table of accuracy for each task, one of theory, and one of over-optimisation."""
    parts = [accuracy_table(comparison) for comparison in comparisons]
    parts += [theory_table(comparisons)]
    if any(comparison.pleased for comparison in comparisons):
        parts += [pleased_table(comparisons)]
    return "\n\n".join(parts)


def accuracy_table(comparison: Comparison) -> str:
    """Return a row per method: accuracy for several n; at the largest, its interval, and tokens."""
    most = max(point.n for point in comparison.points)
    shown = [n for n in PRINTED if n < most] + [most]
    rows = [("right answers with n =", *map(str, shown), f"95 % at {most}", "tokens")]
    for method, points in comparison.methods.items():
        by_n = {point.n: point for point in points}
        low, high = by_n[most].interval
        rows.append((method, *(f"{by_n[n].accuracy:.3f}" for n in shown),
                     f"{low:.2f} to {high:.2f}", f"{by_n[most].tokens:.0f}"))
    return f"{comparison.task}, {comparison.problems} held-out problems\n{table(rows)}"


def choice_table(points: Sequence[Point]) -> str:
    """Return a row for each way to choose one of several samples, with its cost in tokens."""
    rows = [("one of several samples", "right", "95 % interval", "read", "drawn", "verified")]
    for point in points:
        low, high = point.interval
        rows.append((point.method, f"{point.accuracy:.3f}", f"{low:.3f} to {high:.3f}",
                     f"{point.prefill:.1f}", f"{point.decode:.1f}", f"{point.verifier:.1f}"))
    return f"{table(rows)}\n(tokens per problem)"


def theory_table(comparisons: Sequence[Comparison]) -> str:
    """Return measured minus predicted for each method that has a theory, task by task. With n = 1
    there is nothing to choose, and all methods are one: how far the two draws differ by chance."""
    tasks = [shortened(comparison.task, TASK_WIDTH) for comparison in comparisons]
    rows = [("measured - predicted", "n", *tasks)]
    for method, points in comparisons[0].methods.items():
        for i, point in enumerate(points):
            shown = point.n in PRINTED[1:] or point is points[-1] or len(rows) == 1
            if shown and point.predicted is not None:
                cells = [error(comparison.methods[method][i]) for comparison in comparisons]
                rows.append((method if point.n > 1 else "one sample", str(point.n), *cells))
    return table(rows)


def error(point: Point) -> str:
    """Return the mean over problems of measured minus predicted, and half the width of its 95 %
    interval."""
    errors, centre = point.errors, mean(point.errors)
    n = len(errors)
    variance = sum((x - centre) ** 2 for x in errors) / max(1, n - 1)
    return f"{centre:+.3f} +- {1.96 * math.sqrt(variance / n):.3f}"


def pleased_table(comparisons: Sequence[Comparison]) -> str:
    """Return for each verifier its score of the best of n, and where that is right most often."""
    n = max(rows[-1][0] for comparison in comparisons for rows in comparison.pleased.values())
    rows: list[tuple[str, ...]] = [("best of n by", "score at 1", f"at {n}", "right, most",
                                    "at n", f"at {n}")]
    for comparison in comparisons:
        for verifier, points in comparison.pleased.items():
            _, first, _ = points[0]
            best, _, most = max(points, key=lambda point: point[2])
            _, last, right = points[-1]
            rows.append((f"{verifier}, {comparison.task}", f"{first:.3f}", f"{last:.3f}",
                         f"{most:.3f}", str(best), f"{right:.3f}"))
    return f"KL to the policy at n = {n}: at most {best_of_n_kl(n):.2f} nats\n{table(rows)}"
