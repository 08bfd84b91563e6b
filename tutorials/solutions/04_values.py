"""Solutions of 04_values.py, and wrong answers that its checks refuse."""

import torch


def exercise_1(rewards, values, lam):
    # From the end to the beginning. Behind the last token both V and the advantage are 0.
    advantages, next_adv, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        next_adv = reward + next_value - value + lam * next_adv
        next_value = value
        advantages.append(next_adv)
    return advantages[::-1]


def exercise_2(lam, n):
    # All differences are 0 but the last one, which is the score; it comes back with lambda n times.
    return lam ** n


def exercise_bug(function):
    # The first and the last slot are the policy's, the two between are a tool's. With V = 0 the
    # first token gets lam times the last one's advantage: one step away, not three.
    mask = torch.tensor([[1, 0, 0, 1]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    adv, _ = function(rewards, torch.zeros(1, 4), mask, gamma=1.0, lam=0.5)
    assert abs(float(adv[0, 0]) - 0.5) < 1e-6, f"{float(adv[0, 0])}, not 0.5: a gap is no step"


def _value_of_itself_behind_the_end(rewards, values, lam):
    ahead = exercise_1(rewards, values, lam)
    return [a + lam ** (len(values) - 1 - t) * values[-1] for t, a in enumerate(ahead)]


def _no_lambda(rewards, values, lam):
    return exercise_1(rewards, values, 1.0)


def _rewards_only_at_the_end(rewards, values, lam):
    return exercise_1([0.0] * (len(rewards) - 1) + rewards[-1:], values, lam)


def _without_a_gap(function):
    adv, _ = function(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]]),
                      torch.ones(1, 3), gamma=1.0, lam=0.95)
    assert torch.allclose(adv[0], torch.tensor([0.4705, 0.39, 0.2]))


def _lambda_1(function):
    mask = torch.tensor([[1, 0, 0, 1]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    adv, _ = function(rewards, torch.zeros(1, 4), mask, gamma=1.0, lam=1.0)
    assert abs(float(adv[0, 0]) - 1.0) < 1e-6


def _wants_decay(function):
    mask = torch.tensor([[1, 0, 0, 1]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    adv, _ = function(rewards, torch.zeros(1, 4), mask, gamma=1.0, lam=0.5)
    assert abs(float(adv[0, 0]) - 0.125) < 1e-6


WRONG = {
    "exercise_1": [_value_of_itself_behind_the_end, _no_lambda, _rewards_only_at_the_end,
                   lambda rewards, values, lam: exercise_1(rewards, values, lam)[::-1]],
    "exercise_2": [lambda lam, n: lam ** (n + 1), lambda lam, n: 1.0,
                   lambda lam, n: lam * n],
    "exercise_bug": [_without_a_gap, _lambda_1, _wants_decay],
}
