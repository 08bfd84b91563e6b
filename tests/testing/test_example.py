"""The four answers of the tutorials: the numbers that their texts take for granted."""

import torch

from minirl.equations.advantages import group_advantages
from minirl.equations.kl import k1
from minirl.testing.example import (
    ANSWERS,
    LENGTHS,
    MASK,
    NEW,
    OLD,
    REFERENCE,
    REWARDS,
    TOKENS,
    probabilities,
    token_logprobs,
)


def test_the_four_answers_are_all_that_can_be_said():
    for policy in (OLD, NEW, REFERENCE):
        assert torch.allclose(probabilities(policy).sum(), torch.tensor(1.0).double())
    assert ANSWERS == ("12", "13", "10+1=11", "2")
    assert LENGTHS.tolist() == [3, 3, 8, 2] == [len(tokens) for tokens in TOKENS]
    assert MASK.sum() == 16


def test_numbers_by_hand():
    # P(right) = 0.5 · 0.5, and 0.35 · 0.75 after the update
    assert torch.allclose(probabilities(OLD), torch.tensor([0.25, 0.15, 0.1, 0.5]).double())
    assert torch.allclose(probabilities(NEW)[0], torch.tensor(0.2625).double())
    ratio = (token_logprobs(NEW) - token_logprobs(OLD)).exp()
    by_hand = torch.ones(4, 8).double()
    by_hand[:, 0] = torch.tensor([0.7, 0.7, 0.7, 1.3])
    by_hand[:3, 1] = torch.tensor([1.5, 0.5, 0.5])
    assert torch.allclose(ratio, by_hand)
    # the mean is 1/4, and the deviation sqrt((9/16 + 3/16) / 3) = 1/2
    adv = group_advantages(REWARDS, eps=1e-12)
    assert torch.allclose(adv, torch.tensor([[1.5, -0.5, -0.5, -0.5]]).double())


def test_the_kl_to_the_reference_by_hand():
    # at either choice half of the mass has ln 2, and half -ln 1.5: 0.1438; the second choice is
    # made half of the time
    per_answer = k1(token_logprobs(OLD), token_logprobs(REFERENCE)).sum(1)
    kl = (probabilities(OLD) * per_answer).sum()
    assert torch.allclose(kl, torch.tensor(1.5 * 0.143841036).double())


def test_gradients_flow_to_both_choices():
    policy = tuple(logits.clone().requires_grad_() for logits in OLD)
    (probabilities(policy) * REWARDS[0]).sum().backward()
    # d P("12") / d logits = P("12") (1 - p, -p) at each choice, with p = 0.5, and 0.5, 0.3, 0.2
    assert torch.allclose(policy[0].grad, torch.tensor([0.125, -0.125]).double())
    assert torch.allclose(policy[1].grad, torch.tensor([0.125, -0.075, -0.05]).double())
