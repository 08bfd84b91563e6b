"""Solutions of 08_grpo.py, and wrong answers that its checks refuse."""

import torch

from minirl.equations.advantages import group_advantages


def exercise_1(completions_per_device, devices, accumulation_steps, group_size, prompts, epochs):
    # The batch counts completions. Each prompt needs group_size of them.
    per_step = completions_per_device * devices * accumulation_steps // group_size
    return per_step, prompts * epochs // per_step


def exercise_2(p, group_size, wanted):
    # A group has no spread if all answers are right or all are wrong. Draws until a success with
    # chance q: 1/q on average, for each of the wanted groups.
    return wanted / (1 - p ** group_size - (1 - p) ** group_size)


def exercise_3(rewards, mask):
    # The value of every token is the mean reward of the group's other answers. It does not depend
    # on the token, so GAE telescopes to R - V wherever the token stands.
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)    # (P, G)
    return others.flatten()[:, None] * mask                                      # (B, T)


def exercise_bug(function):
    # repeat(G) writes the means as mean_1 mean_2 ... mean_1 mean_2 ..., and repeat_interleave(G)
    # would write each G times in a row. With one prompt, or with equal ones, that is the same.
    # But if two prompts change places, their advantages must change places, too.
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    one_way, other_way = function(torch.cat([a, b]), 3), function(torch.cat([b, a]), 3)
    assert torch.allclose(one_way, other_way.roll(3), atol=1e-6), "the prompts' order matters"
    assert torch.allclose(one_way.view(2, 3).sum(1), torch.zeros(2), atol=1e-5), \
        "the advantages of a group do not sum to 0"


def one_group_alone(function):
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    wanted = group_advantages(rewards[None])[0]
    assert torch.allclose(function(rewards, 4), wanted, atol=1e-5)


def two_equal_groups(function):
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(2)
    assert torch.allclose(function(rewards, 4).view(2, 4).sum(1), torch.zeros(2), atol=1e-5)


def sum_of_the_batch(function):
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])       # the two deviations are equal
    assert abs(float(function(rewards, 3).sum())) < 1e-5


def refuses_everything(function):
    raise AssertionError("wrong")


WRONG = {
    "exercise_1": [
        lambda per_device, devices, accumulation, group, prompts, epochs: (
            per_device * devices * accumulation,
            prompts * epochs // (per_device * devices * accumulation)),
        lambda per_device, devices, accumulation, group, prompts, epochs: (
            per_device * devices // group, prompts * epochs * group // (per_device * devices)),
    ],
    "exercise_2": [
        lambda p, group, wanted: wanted / (1 - p ** group),
        lambda p, group, wanted: wanted / (1 - (1 - p) ** group),
        lambda p, group, wanted: wanted * (1 - p ** group - (1 - p) ** group),
    ],
    "exercise_3": [
        lambda rewards, mask: rewards.mean(1).repeat_interleave(rewards.shape[1])[:, None] * mask,
        lambda rewards, mask: (rewards.sum(1, keepdim=True) - rewards).flatten()[:, None] * mask,
        lambda rewards, mask: ((rewards.sum(1, keepdim=True) - rewards)
                               / (rewards.shape[1] - 1)).flatten(),
    ],
    "exercise_bug": [one_group_alone, two_equal_groups, sum_of_the_batch, refuses_everything],
}
