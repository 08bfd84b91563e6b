"""Solutions of 14_bug_hunt.py, and tests that miss a bug, or refuse what is right."""

import torch

TOKENS = torch.tensor([[2, 4, 3, 5, 5], [2, 4, 1, 1, 5], [3, 4, 5, 5, 5]])
LENGTHS = torch.tensor([2, 3, 1])
TABLE = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0)).double()


def exercise_1(function):
    # Behind "2=" the policy is sure of "3", and behind that of EOS: whoever looks one slot too far
    # does not see it. At temperature 0.7 a difference of 0.7 in the logits is a factor of e.
    table = torch.zeros(5, 6, 6).double()
    table[2, 4, 3] = table[2, 3, 5] = 0.7
    wanted = torch.tensor(1.0).double().exp() / (torch.tensor(1.0).double().exp() + 5)
    came = function(table, TOKENS[:1]).exp()
    assert torch.allclose(came[0, :2], wanted.expand(2)), f"{wanted:.4f}, twice: {came[0].tolist()}"


def exercise_2(function):
    # Every sampled token counts one sixth, EOS like the others; padding counts nothing, and is not
    # counted.
    for row, length in enumerate(LENGTHS):
        for slot in range(3):
            terms = torch.zeros(3, 3).double()
            terms[row, slot] = 1.0
            wanted = 1 / 6 if slot < length else 0.0
            came = float(function(terms, TOKENS))
            assert abs(came - wanted) < 1e-9, f"row {row}, slot {slot}: {wanted:.4f}, not {came}"


def exercise_3(function):
    # What all completions of a prompt have in common does not count: 10 more for the second prompt
    # changes nothing. A group that is equal has nothing to say, whatever its reward is.
    rewards = torch.tensor([0.7] * 7 + [0.1] + [0.1] * 7 + [0.7]).double()
    adv, more = function(rewards, 8), function(rewards + torch.arange(16).div(8).floor() * 10, 8)
    assert torch.allclose(adv, more, atol=1e-3), f"{adv[0]} became {more[0]}"
    assert bool((adv[:7] > 0).all()) and adv[7] < 0, "in the first group one is worse"
    equal = function(torch.full((16,), 0.7).double(), 8)
    assert float(equal.abs().max()) < 1e-3, f"equal rewards have no advantage: {equal[0]}"


def exercise_bug(function):
    # Below the clip range the min is flat where A < 0: the policy has moved far enough away.
    logp = torch.tensor([[0.5]]).double().log().requires_grad_()
    zero = torch.zeros(1, 1).double()
    value = function(logp, torch.ones(1, 1).double().log(), logp.detach(), zero - 1, 0.0)
    slope = torch.autograd.grad(value.sum(), logp)[0] if value.requires_grad else zero
    assert float(slope) == 0, f"ratio 0.5, A = -1: the clip has no gradient, and yours {slope}"
    # KL(π || π_ref) of two outcomes, averaged over π by hand
    pi, ref = torch.tensor([[0.9, 0.1]]).double(), torch.tensor([[0.5, 0.5]]).double()
    kl = (pi * (pi / ref).log()).sum()
    came = -(pi * function(pi.log(), pi.log(), ref.log(), zero.expand(1, 2), 1.0)).sum()
    assert torch.allclose(came, kl), f"the KL is {kl:.4f}, and yours is {came:.4f}"


def sums_to_one(function):
    # no shift, but the temperature is not looked at
    every = torch.tensor([[2, 4, v, 5, 5] for v in range(6)])
    assert abs(float(function(TABLE, every)[:, 0].exp().sum()) - 1) < 1e-6


def mean_of_ones(function):
    assert abs(float(function(torch.ones(3, 3).double(), TOKENS)) - 1) < 1e-9


def padding_does_not_count(function):
    terms = torch.ones(3, 3).double()
    other = torch.where(torch.arange(3) >= LENGTHS[:, None], 9.0, terms)
    assert torch.allclose(function(terms, TOKENS), function(other, TOKENS))


def better_than_the_others(function):
    rewards = torch.tensor([0.7] * 7 + [0.1] + [0.1] * 7 + [0.7]).double()
    assert bool((function(rewards, 8)[:7] > 0).all())


def equal_alone(function):
    assert float(function(torch.full((16,), 0.7).double(), 8).abs().max()) < 1e-3


def ratio_one(function):
    logp, zero = torch.tensor([[0.5]]).double().log(), torch.zeros(1, 1).double()
    assert torch.allclose(function(logp, logp, logp, zero + 2, 0.5), zero + 2)


def clip_alone(function):
    logp = torch.tensor([[0.5]]).double().log()
    zero = torch.zeros(1, 1).double()
    assert float(function(logp, zero, logp, zero - 1, 0.0)) == -0.8


def refuses_everything(function):
    raise AssertionError("wrong")


WRONG = {
    "exercise_1": [sums_to_one, refuses_everything],
    "exercise_2": [mean_of_ones, padding_does_not_count, refuses_everything],
    "exercise_3": [better_than_the_others, equal_alone, refuses_everything],
    "exercise_bug": [ratio_one, clip_alone, refuses_everything],
}
