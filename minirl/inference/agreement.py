"""How far labels or scores of steps agree with the truth, where a problem knows how it is worked
out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minirl.tasks.steps import first_wrong

Steps = Sequence[Sequence["float | None"]]  # for each solution a number per step, None: no verdict


@dataclass(frozen=True)
class Agreement:
    """Numbers of steps against the truth.

    steps        that were compared
    accuracy     share of steps whose number is on the truth's side of 1/2
    ranked       chance that a step on a right way has a greater number than one on a wrong way:
                 the area under the ROC curve, 1/2 for numbers that know nothing; None where all
                 steps are on one way
    found        share of the wrong solutions whose first number below 1/2 is that of the first
                 wrong step; None where no solution is wrong
    """

    steps: int
    accuracy: float
    ranked: float | None
    found: float | None


def agreement(numbers: Steps, truths: Steps) -> Agreement:
    """Compare a number per step, such as a label or a model's probability, with the truth.

    A number behind step j predicts whether the answer will be right. So it is compared with whether
    all steps up to j are true: a true step after a wrong one does not mend it.

    Raises     ValueError unless both have the same steps, and one of them a number and a truth.

    >>> agreement([[0.9, 0.2], [0.8, 0.3]], [[1.0, 0.0], [1.0, 1.0]]).ranked  # 2/3 and 0.9 > 0.2
    1.0
    >>> agreement([[0.9, 0.2], [0.8, 0.3]], [[1.0, 0.0], [1.0, 1.0]]).accuracy  # all but the last
    0.75
    """
    pairs: list[tuple[float, bool]] = []
    wrong = hits = 0
    for row, truth in zip(numbers, truths, strict=True):
        if len(row) != len(truth):
            raise ValueError(f"{len(row)} numbers for {len(truth)} steps: one for each is wanted")
        first = first_wrong(truth)
        wrong += first is not None
        hits += first is not None and first_wrong(row) == first
        pairs += [(number, first is None or j < first) for j, number in enumerate(row)
                  if number is not None and truth[j] is not None]
    if not pairs:
        raise ValueError("no step has both a number and a truth: there is nothing to compare")
    ranked = area_under_curve([number for number, good in pairs if good],
                              [number for number, good in pairs if not good])
    right = sum((number > 0.5) == good for number, good in pairs)
    return Agreement(len(pairs), right / len(pairs), ranked, hits / wrong if wrong else None)


def area_under_curve(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """Return the chance that one of `good` is greater than one of `bad`; a tie counts half. None
    where there is none of one kind.

    >>> area_under_curve([0.9, 0.5], [0.5, 0.1])  # 3 of 4 pairs, and half of the tie
    0.875
    """
    if not good or not bad:
        return None
    ranks: dict[float, float] = {}
    everything = sorted([*good, *bad])
    for position, x in enumerate(everything):
        ranks.setdefault(x, position)
    counts: dict[float, int] = {}
    for x in everything:
        counts[x] = counts.get(x, 0) + 1
    total = sum(ranks[x] + (counts[x] - 1) / 2 for x in good)  # mean rank of equal numbers
    return (total - len(good) * (len(good) - 1) / 2) / (len(good) * len(bad))
