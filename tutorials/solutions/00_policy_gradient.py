"""Solutions of tutorials/00_policy_gradient.py, and answers that its checks must refuse."""

from __future__ import annotations

import torch

from minirl.equations.advantages import discounted_returns, leave_one_out_advantages
from minirl.equations.objectives import policy_gradient
from minirl.equations.reduce import aggregate


def exercise_1(logp, rewards):
    """Leave the sample itself out of its baseline. The minus sign makes a loss of the objective."""
    return -policy_gradient(logp, leave_one_out_advantages(rewards[None])[0]).mean()


def exercise_2(logp, rewards, mask):
    """The return of a token counts its own reward and the later ones: it cannot change the past.
    "sequence_sum" adds up each text and averages over texts."""
    return aggregate(policy_gradient(logp, discounted_returns(rewards, mask)), mask, "sequence_sum")


def exercise_bug(function):
    """The baseline is not detached, as in https://github.com/ChenRocks/fast_abs_rl/issues/49. The
    objective is also differentiated through it, which adds entropy times the gradient: at START
    (entropy 1.04) the gradient is 2.04 times too long. It points the right way, so values,
    directions and learning curves look fine. Its size has to be tested, by a sum over actions."""
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().requires_grad_()
    rewards = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    exact, = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)
    total = torch.zeros_like(exact)
    for action, probability in enumerate(logits.detach().softmax(0)):
        objective = function(logits, torch.tensor([action]), rewards)
        total += probability * torch.autograd.grad(objective, logits)[0]
    assert torch.allclose(total, exact), f"the mean gradient is {total}, and should be {exact}"


def _direction_only(function):
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().requires_grad_()
    rewards = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    actions = torch.tensor([0, 0, 1, 2])                  # as often as the policy takes each
    slope, = torch.autograd.grad(function(logits, actions, rewards), logits)
    assert slope[2] > 0 > slope[0] and abs(slope[1]) < 1e-9


def _value_only(function):
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    value = function(logits, torch.tensor([0]), torch.tensor([1.0, 2.0, 4.0]).double())
    assert abs(value.item() - 0.693147) < 1e-6            # (1 - 2) log 1/2


def _reward_rises(function):
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().requires_grad_()
    rewards = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    slope, = torch.autograd.grad(function(logits, torch.tensor([0, 0, 1, 2]), rewards), logits)
    better = (logits + 0.1 * slope).softmax(0) @ rewards
    assert better > 2


def _no_baseline(function):
    """Wants R grad log π from each sample: fails for the right function."""
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().requires_grad_()
    rewards = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    slope, = torch.autograd.grad(function(logits, torch.tensor([0]), rewards), logits)
    assert abs(slope[0].item() - 0.5) < 1e-6


WRONG = {
    "exercise_1": [
        lambda logp, rewards: -exercise_1(logp, rewards),                     # the objective
        lambda logp, rewards: -(logp * rewards).mean(),                       # no baseline
        lambda logp, rewards: -(logp * (rewards - rewards.mean())).mean(),    # the mean of all
        lambda logp, rewards: exercise_1(logp, rewards) * len(logp),          # a sum, no mean
    ],
    "exercise_2": [
        lambda logp, rewards, mask: (logp * rewards * mask).sum() / 2,        # rewards, no returns
        lambda logp, rewards, mask: aggregate(                                # the whole return
            logp * (rewards * mask).sum(1, keepdim=True), mask, "sequence_sum"),
        lambda logp, rewards, mask: aggregate(                                # mean over tokens
            logp * discounted_returns(rewards, mask), mask, "token_mean"),
        lambda logp, rewards, mask: aggregate(                                # the past as well
            logp * (rewards * mask).cumsum(1), mask, "sequence_sum"),
    ],
    "exercise_bug": [_direction_only, _value_only, _reward_rises, _no_baseline,
                     lambda function: None],
}
