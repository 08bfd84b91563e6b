"""Solutions of 03_reward_model.py, and wrong answers that its checks refuse."""

import math

import torch
import torch.nn.functional as F


def exercise_1(scores):
    # Each pair once, the better one first; then the mean over the pairs, for each prompt alone.
    K = scores.shape[1]
    losses = []
    for i in range(K):
        for j in range(i + 1, K):
            losses.append(-F.logsigmoid(scores[:, i] - scores[:, j]))
    return torch.stack(losses).mean(0)


def exercise_2(wins, losses):
    # The log odds: there the predicted probability is the observed share. Without a loss the
    # odds are infinite, so a reward model that sees each comparison once has no natural scale.
    if losses == 0:
        return math.inf
    return math.log(wins / losses)


def exercise_3(agreement):
    # a = p² + (1 - p)² = 1 - 2p + 2p², solved for the p of at least 1/2.
    return (1 + math.sqrt(2 * agreement - 1)) / 2


def exercise_bug(function):
    # Padding with <eos>: the search for the first padding token finds the row's own <eos>, so the
    # number is read one token too early. Id 0 is <eos> and padding.
    tokens = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 0]])
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    came = function(values, tokens, torch.tensor([3, 4]), 0)
    assert torch.equal(came, torch.tensor([0.3, 0.8])), f"{came} was read, not behind the <eos>"


def _sum_over_pairs(scores):
    return 6 * exercise_1(scores)


def _mean_over_all_ordered_pairs(scores):
    K = scores.shape[1]
    i, j = torch.triu_indices(K, K, offset=1)
    return -F.logsigmoid(scores[:, i] - scores[:, j]).sum(1) / (K * (K - 1))


def _neighbours_only(scores):
    return -F.logsigmoid(scores[:, :-1] - scores[:, 1:]).mean(1)


def _distinct_padding(function):
    tokens = torch.tensor([[5, 6, 1, 0], [5, 6, 7, 1]])
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    came = function(values, tokens, torch.tensor([3, 4]), 0)
    assert torch.equal(came, torch.tensor([0.3, 0.8]))


def _shapes_only(function):
    values, tokens = torch.rand(2, 4), torch.zeros(2, 4, dtype=torch.long)
    tokens[:, :3] = 5
    assert function(values, tokens, torch.tensor([3, 3]), 0).shape == (2,)


def _never_satisfied(function):
    raise AssertionError("fails for every function")


WRONG = {
    "exercise_1": [_sum_over_pairs, _mean_over_all_ordered_pairs, _neighbours_only,
                   lambda scores: exercise_1(scores.flip(1)),
                   lambda scores: exercise_1(scores).mean()],
    "exercise_2": [lambda wins, losses: wins / (wins + losses),
                   lambda wins, losses: math.log((wins + 1) / (losses + 1)),
                   lambda wins, losses: float(wins - losses)],
    "exercise_3": [lambda agreement: agreement,
                   lambda agreement: math.sqrt(agreement),
                   lambda agreement: (1 - math.sqrt(2 * agreement - 1)) / 2],
    "exercise_bug": [_distinct_padding, _shapes_only, _never_satisfied],
}
