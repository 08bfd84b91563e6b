"""Solutions of 11_beyond_grpo.py, and wrong answers that its checks refuse."""

import torch

from minirl.equations.advantages import group_advantages, process_advantages


def exercise_1(step_rewards):
    # All steps of a group are one group of rewards; NaN is "no verdict", and gets 0.
    return group_advantages(step_rewards.flatten(1)).view_as(step_rewards)


def exercise_2(p, luck, N):
    # The label is 0 where all N completions are wrong.
    return 1 - (1 - p) ** N, 1 - (1 - luck) ** N


def exercise_bug(function):
    # The second solution has one step. Steps that do not exist are no rewards of 0: the mean of
    # 0 1 1 | 1 is 3/4.
    nan = float("nan")
    came = function(torch.tensor([[[0.0, 1.0, 1.0], [1.0, nan, nan]]]))
    wanted = torch.tensor([[[-0.5, 1.0, 0.5], [0.5, 0.0, 0.0]]])
    assert torch.allclose(came, wanted, atol=1e-3), f"{wanted.tolist()}, not {came.tolist()}"


def over_each_solution(step_rewards):
    return group_advantages(step_rewards.flatten(0, 1)).view_as(step_rewards)


def missing_as_zero(step_rewards):
    return exercise_1(step_rewards.nan_to_num(0.0))


def the_mean(p, luck, N):
    return p, luck


def upside_down(p, luck, N):
    return (1 - p) ** N, (1 - luck) ** N


def equal_lengths(function):
    came = function(torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]]))
    assert came[0, 1].argmin() == 1


def equal_rewards(function):
    assert float(function(torch.ones(1, 2, 3)).abs().max()) == 0


def refuses_everything(function):
    raise AssertionError("wrong")


WRONG = {
    "exercise_1": [process_advantages, over_each_solution, missing_as_zero],
    "exercise_2": [the_mean, upside_down],
    "exercise_bug": [equal_lengths, equal_rewards, refuses_everything],
}
