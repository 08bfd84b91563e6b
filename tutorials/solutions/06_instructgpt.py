"""Solutions of 06_instructgpt.py, and wrong answers that its checks refuse."""

import torch


def exercise_1(score, log_ratios, kl_coef):
    # The last token pays its penalty, too. The score comes on top.
    rewards = [-kl_coef * ratio for ratio in log_ratios]
    rewards[-1] += score
    return rewards


def exercise_2(scores, log_ratios):
    # s_1 - β l_1 = s_2 - β l_2. For "12" and "13" it is 1 / log 3: above it PPO prefers "13", which
    # has become rarer, to the right answer, which has become likelier.
    return (scores[0] - scores[1]) / (log_ratios[0] - log_ratios[1])


def exercise_3(p, scores, n):
    # All n samples score at most like answer i with probability F_i^n, where F_i is the chance of
    # one. The best of them is answer i if that holds, and not all of them score less.
    at_most = torch.stack([p[scores <= s].sum() for s in scores])
    less = torch.stack([p[scores < s].sum() for s in scores])
    return at_most ** n - less ** n


def exercise_bug(function):
    # First slot + length is one slot *behind* the last token: padding, which no advantage reads.
    # So a short answer never hears of its score. In a row without padding the clamp hides it, and
    # the sum of a row is always right; the test needs a row with padding, and must look at the slot
    # of EOS. On this in TRL: https://github.com/huggingface/trl/issues/1893 and
    # https://github.com/huggingface/trl/issues/3750
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    logp = torch.full((2, 5), -1.0)
    rewards = function(torch.tensor([3.0, -2.0]), logp, logp - 1.0, mask, 0.5)
    wanted = torch.tensor([[0.0, -0.5, 2.5, 0.0, 0.0], [0.0, 0.0, -0.5, -0.5, -2.5]])
    assert torch.allclose(rewards, wanted), f"rewards {rewards.tolist()}"


def a_row_without_padding(function):
    mask, logp = torch.tensor([[0, 1, 1]]), torch.full((1, 3), -1.0)
    rewards = function(torch.tensor([1.0]), logp, logp - 1.0, mask, 0.1)
    assert torch.allclose(rewards, torch.tensor([[0.0, -0.1, 0.9]]))


def the_sum_of_a_row(function):
    mask, logp = torch.tensor([[0, 1, 1, 0, 0]]), torch.full((1, 5), -1.0)
    rewards = function(torch.tensor([3.0]), logp, logp - 1.0, mask, 0.5)
    assert abs(float(rewards.sum()) - 2.0) < 1e-6


def the_penalties_alone(function):
    mask, logp = torch.tensor([[0, 1, 1, 0, 0]]), torch.full((1, 5), -1.0)
    rewards = function(torch.tensor([0.0]), logp, logp - 1.0, mask, 0.5)
    assert torch.allclose(rewards, torch.tensor([[0.0, -0.5, -0.5, 0.0, 0.0]]))


def the_score_on_all_tokens(function):
    mask = torch.tensor([[0, 1, 1, 0, 0]])
    rewards = function(torch.tensor([3.0]), torch.zeros(1, 5), torch.zeros(1, 5), mask, 0.5)
    assert torch.allclose(rewards, 3.0 * mask), "wrong: the score belongs to the last token"


WRONG = {
    "exercise_1": [
        lambda score, ratios, beta: [-beta * ratio for ratio in ratios[:-1]] + [score],
        lambda score, ratios, beta: [score - beta * ratio for ratio in ratios],
        lambda score, ratios, beta: exercise_1(score, ratios, -beta),
        lambda score, ratios, beta: [0.0] * (len(ratios) - 1) + [score - beta * sum(ratios)],
    ],
    "exercise_2": [
        lambda scores, ratios: -exercise_2(scores, ratios),
        lambda scores, ratios: 1 / exercise_2(scores, ratios),
        lambda scores, ratios: (scores[0] - scores[1]) / (ratios[0] + ratios[1]),
    ],
    "exercise_3": [
        lambda p, scores, n: p,
        lambda p, scores, n: torch.softmax(p.log() + n * scores, 0),
        lambda p, scores, n: p ** n / (p ** n).sum(),
        lambda p, scores, n: exercise_3(p, -scores, n),
        lambda p, scores, n: exercise_3(p, scores, n + 1),
    ],
    "exercise_bug": [a_row_without_padding, the_sum_of_a_row, the_penalties_alone,
                     the_score_on_all_tokens],
}

