"""Samples and comparisons made by hand, for what is measured on them and made of them."""

from minirl.inference.comparison import Comparison
from minirl.inference.points import Point, Samples


def samples(answers, right="r", scores=None, ids=None, prompts=None):
    """Each problem's samples by their answers, a letter each: "." is none. A completion is its
    letter's number and 0."""
    rows = [[None if letter == "." else letter for letter in row] for row in answers]
    completions = ids or [[[ord(letter), 0] for letter in row] for row in answers]
    return Samples(prompts or [[1, 2, 3]] * len(answers), completions, rows,
                   [[float(answer is not None and answer in right) for answer in row]
                    for row in rows], scores or {})


def comparison(task="2-digit addition", sizes=(1, 2, 4), verifiers=("ORM", "PRM last"),
               problems=2):
    """Two problems; beam search has no theory."""
    def point(method, n, gap):
        return Point(method, n, [0.5, 0.5 + gap] * (problems // 2), 4.0, 10.0 * n, 12.0 * n,
                     None if method == "beam search" else [0.5, 0.25] * (problems // 2), 0.5)

    methods = ("majority vote", *(f"best of n, {name}" for name in verifiers), "any of n is right",
               "beam search")
    points = [point(method, n, 0.1 * i) for n in sizes for i, method in enumerate(methods)]
    pleased = {name: [(n, 0.5 + 0.1 * i, 0.4 + 0.1 * (i % 2)) for i, n in enumerate(sizes)]
               for name in verifiers}
    return Comparison(task, problems, points, pleased)
