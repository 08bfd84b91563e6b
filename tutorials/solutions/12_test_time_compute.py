"""Solutions of 12_test_time_compute.py, and wrong answers that its checks refuse."""

import torch

from minirl.equations.inference_time import best_of_n, expected_best_of_n


def exercise_1(chances, opinions, n):
    # The best of n is at most this good if all n are: the n-th power of the chance of one.
    order = opinions.argsort()
    at_most = chances[order].cumsum(0) ** n
    best = torch.diff(at_most, prepend=torch.zeros(1, dtype=chances.dtype))
    return torch.zeros_like(chances).scatter(0, order, best)


def exercise_2(scores, right, n):
    return expected_best_of_n(scores, right, n)


def exercise_bug(function):
    assert function([None, None, None, "12", "13", "12"]) == "12", "silence has no vote"


def of_one_sample(chances, opinions, n):
    return chances


def the_best_opinion_always(chances, opinions, n):
    return torch.nn.functional.one_hot(opinions.argmax(), len(chances)).double()


def the_first_n(scores, right, n):
    return right[best_of_n(scores[:n])]


def as_if_with_replacement(scores, right, n):
    shares = torch.full((len(scores),), 1 / len(scores)).double()
    return (exercise_1(shares, scores.double(), n) * right).sum()


def all_answered(function):
    assert function(["12", "13", "12"]) == "12"


def nobody_answered(function):
    assert function([None, None]) is None


def refuses_everything(function):
    raise AssertionError("wrong")


WRONG = {
    "exercise_1": [of_one_sample, the_best_opinion_always],
    "exercise_2": [the_first_n, as_if_with_replacement],
    "exercise_bug": [all_answered, nobody_answered, refuses_everything],
}
