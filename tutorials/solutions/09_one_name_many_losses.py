"""Solutions of 09_one_name_many_losses.py, and wrong answers that its checks refuse."""

import torch

from minirl.equations.advantages import group_advantages, spread
from minirl.equations.objectives import clipped_surrogate, policy_gradient
from minirl.equations.reduce import aggregate, normaliser


def exercise_1(logp, old_logp, rewards, mask):
    # std with n - 1, a clip of 0.2 for each token, no KL, and one mean over all tokens
    adv = spread(group_advantages(rewards, ddof=1).flatten(), mask)
    return aggregate(clipped_surrogate(logp, old_logp, adv), mask, "token_mean")


def exercise_2(x, mask, parts, how):
    # The number of tokens (or of sequences) is known before the first part is looked at.
    total = normaliser(mask, how)
    return sum(aggregate(x[rows], mask[rows], how, total=total) for rows in parts)


def exercise_bug(function):
    # The others of the only right answer are all wrong: they have no spread, although the answer
    # differs from them. So the one sample to learn from gets 0. What matters is the spread of the
    # group with the answer in it.
    adv = function(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]))
    assert adv[0, 0] > 0, f"the only right answer must be reinforced: {adv[0].tolist()}"
    assert adv[1, 0] < 0, f"the only wrong answer must be discouraged: {adv[1].tolist()}"


def other_advantages(**changes):
    def answer(logp, old_logp, rewards, mask):
        adv = spread(group_advantages(rewards, **changes).flatten(), mask)
        return aggregate(clipped_surrogate(logp, old_logp, adv), mask, "token_mean")

    return answer


def other_mean(logp, old_logp, rewards, mask):
    adv = spread(group_advantages(rewards).flatten(), mask)
    return aggregate(clipped_surrogate(logp, old_logp, adv), mask, "sequence_mean")


def no_ratio(logp, old_logp, rewards, mask):
    return aggregate(policy_gradient(logp, spread(group_advantages(rewards).flatten(), mask)), mask,
                     "token_mean")


def mean_of_means(x, mask, parts, how):
    return sum(aggregate(x[rows], mask[rows], how) for rows in parts) / len(parts)


def half_and_half(function):
    adv = function(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert bool((adv[0, :2] > 0).all()) and bool((adv[0, 2:] < 0).all())


def equal_rewards(function):
    assert bool((function(torch.full((1, 4), 0.7)) == 0).all())


def no_nan(function):
    assert bool(function(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).isfinite().all())


def refuses_everything(function):
    raise AssertionError("wrong")


WRONG = {
    "exercise_1": [other_advantages(ddof=0), other_advantages(scale="none"), other_mean, no_ratio],
    "exercise_2": [
        mean_of_means,
        lambda *given: len(given[2]) * mean_of_means(*given),
        lambda x, mask, parts, how: exercise_2(x, mask, parts, "token_mean"),
    ],
    "exercise_bug": [half_and_half, equal_rewards, no_nan, refuses_everything],
}
