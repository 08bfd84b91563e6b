"""Which token gets which advantage: that of its completion, or that of its step.

A Credit takes the advantages of all completions, (P, G), and the completions themselves, and
returns an advantage for each token, (B, T). train_grpo calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minirl.equations.advantages import gdpo_advantages, process_advantages, spread
from minirl.inference.collect import Collected, verdict_tensor
from minirl.inference.steps import StepRewards, padded_steps

Advantages = Callable[[Tensor], Tensor]  # rewards (P, G), NaN: no verdict -> (P, G)
Credit = Callable[[Tensor, Collected], Tensor]  # adv (P, G), completions -> (B, T)


def outcome_credit(adv: Tensor, answers: Collected) -> Tensor:
    """Outcome supervision: every token of a completion has its advantage.

    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.2.
    Shapes     adv (P, G) -> (B, T), on the device of the rollouts
    See        equations.advantages.spread.
    """
    mask = answers.rollouts.mask
    return spread(adv.flatten().to(mask.device), mask)


def decoupled_credit(adv: Tensor, answers: Collected) -> Tensor:
    """GDPO: the advantage of a completion, from each of its rewards by itself. `adv`, which is made
    from their sum, is not read.

    Paper      GDPO, arXiv:2601.05242; TRL's multi_objective_aggregation "normalize_then_sum".
    Shapes     adv (P, G) -> (B, T), on the device of the rollouts
    See        equations.advantages.gdpo_advantages.
    """
    by_reward = [verdict_tensor(column).view_as(adv) for column in answers.verdicts.values()]
    weights = [answers.weights[name] for name in answers.verdicts]
    return outcome_credit(gdpo_advantages(torch.stack(by_reward, -1), weights), answers)


def process_credit(rewards: StepRewards, *, outcome: float = 0.0, ddof: int = 1) -> Credit:
    """Process supervision: every token has the advantage of its step.

    Equation   A_t = Σ_{k≥j} r̃_k + w A_i,   j the step of token t of completion i, w = outcome
    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.3: w = 0. PRIME, arXiv:2502.01456, adds
               the advantages of the outcome and of the process, as w = 1 does.
    Shapes     adv (P, G) -> (B, T), on the device of the rollouts
    Raises     ValueError unless every completion has as many rewards as steps, and its last step
               ends where it does.
    See        equations.advantages.process_advantages; train.process_reward.as_step_rewards and
               inference.steps.true_steps, which are values for `rewards`.

    A step begins where the one before it ended, and the last one runs to the end: the answer, with
    its EOS, is a step like the others. So its reward reaches all tokens before it, as the sum runs
    to the end, and no token is without a step.
    """
    def credit(adv: Tensor, answers: Collected) -> Tensor:
        mask = answers.rollouts.mask
        ends, by_step = rewards(answers)
        check_steps(ends, by_step, answers)
        table = padded_steps(by_step)  # (B, S)
        steps = process_advantages(table.view(*adv.shape, -1), ddof=ddof).view_as(table)
        by_token = steps.to(mask.device).gather(1, step_of_token(ends, answers))  # (B, T)
        return torch.where(mask, by_token, 0) + outcome * outcome_credit(adv, answers)

    return credit


def step_of_token(ends: Sequence[Sequence[int]], answers: Collected) -> Tensor:
    """Return the number of each token's step: 0, 1, ...; 0 on the prompt, the last step's behind
    the end. (B, T)"""
    rollouts = answers.rollouts
    inner = padded_steps([row[:-1] for row in ends], fill=torch.inf).to(rollouts.tokens.device)
    at = torch.arange(rollouts.tokens.shape[1], device=rollouts.tokens.device)
    at = at[None] - rollouts.prompt_lengths[:, None]  # (B, T): the tokens that came before
    return torch.searchsorted(inner, at.to(inner.dtype), right=True)


def check_steps(ends: Sequence[Sequence[int]], rewards: Sequence[Sequence[float]],
                answers: Collected) -> None:
    """Raise ValueError unless steps and rewards belong to these completions."""
    rollouts = answers.rollouts
    lengths = (rollouts.lengths - rollouts.prompt_lengths).tolist()
    if not len(ends) == len(rewards) == len(lengths):
        raise ValueError(f"{len(lengths)} completions, the steps of {len(ends)} and the rewards of "
                         f"{len(rewards)}: one row for each completion is wanted")
    for i, (row, numbers, length) in enumerate(zip(ends, rewards, lengths, strict=True)):
        if len(row) != len(numbers) or not row or row[-1] != length:
            raise ValueError(f"completion {i} has {length} tokens, steps that end at {list(row)}, "
                             f"and {len(numbers)} rewards: one reward for each step, and a last "
                             "step that ends with the completion, are wanted")
