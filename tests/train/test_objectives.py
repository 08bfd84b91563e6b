"""minirl/train/objectives.py: equations in the form in which a page calls them."""

import pytest
import torch

from minirl.equations import objectives as equations
from minirl.equations.reduce import aggregate
from minirl.train.objectives import (
    bell,
    capped,
    clip_cov,
    clipped,
    geometric_mean,
    kl_cov,
    of_completion,
    per_completion,
    per_token,
    seed_of,
    sequence_ratio,
    soft_gate,
    trust_region,
    whole_sequence,
)

MASK = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]]).bool()
RATIO = torch.tensor([[1.0, 2.0, 0.5, 1.0], [1.0, 3.0, 1.0, 0.2]]).double()
OLD = torch.full((2, 4), -2.0).double()
LOGP = OLD + RATIO.log()
ADV = torch.where(MASK, torch.tensor([[1.0], [-2.0]]).double(), 0)


def test_the_advantage_of_a_completion_is_that_of_its_first_sampled_token():
    assert of_completion(ADV, MASK).tolist() == [1.0, -2.0]
    assert of_completion(torch.tensor([[5.0, 6.0, 7.0]]), torch.zeros(1, 3)).tolist() == [5.0]


@pytest.mark.parametrize("objective, equation, numbers", [
    (clipped(0.2, 0.28), equations.clipped_surrogate, dict(clip_low=0.2, clip_high=0.28)),
    (clipped(0.2, 0.28, 2.0), equations.dual_clipped_surrogate,
     dict(clip_low=0.2, clip_high=0.28, cap=2.0)),
    (capped(1.0), equations.cispo, dict(cap=2.0)),
    (soft_gate(2.0, 3.0), equations.sapo, dict(temp_pos=2.0, temp_neg=3.0)),
    (trust_region(0.1), equations.dppo, dict(delta=0.1)),
])
def test_objectives_of_tokens_are_their_equations(objective, equation, numbers):
    assert torch.equal(objective(LOGP, OLD, ADV, MASK), equation(LOGP, OLD, ADV, **numbers))


def test_a_dual_clip_of_0_is_none():
    """At ratio 3 and A = -2 the surrogate is -6, and -4 with a cap of 2."""
    assert float(clipped(0.2, 0.2, 0.0)(LOGP, OLD, ADV, MASK)[1, 1]) == pytest.approx(-6.0)
    assert float(clipped(0.2, 0.2, 2.0)(LOGP, OLD, ADV, MASK)[1, 1]) == pytest.approx(-4.0)


@pytest.mark.parametrize("objective, equation, numbers", [
    (geometric_mean(0.4), equations.gmpo, dict(clip=0.4)),
    (whole_sequence(0.2, 0.3), equations.sequence_clipped_surrogate,
     dict(clip_low=0.2, clip_high=0.3, length_normalised=False)),
])
def test_objectives_of_completions_have_their_mean_over_rows(objective, equation, numbers):
    """The value stands on every token of its row: its sequence_mean is the mean over rows, in value
    and in gradient."""
    logp = LOGP.clone().requires_grad_()
    ours = aggregate(objective(logp, OLD, ADV, MASK), MASK, "sequence_mean")
    theirs = equation(logp, OLD, torch.tensor([1.0, -2.0]).double(), MASK, **numbers).mean()
    assert ours.item() == pytest.approx(theirs.item())
    slopes = [torch.autograd.grad(x, logp)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().max() > 1e-3


def test_luspo_is_gspos_ratio_under_a_sum():
    """The preset's sequence_sum of GSPO-token is LUSPO's equation."""
    logp = LOGP.clone().requires_grad_()
    ours = aggregate(sequence_ratio(0.2, 0.3)(logp, OLD, ADV, MASK), MASK, "sequence_sum")
    theirs = equations.luspo(logp, OLD, torch.tensor([1.0, -2.0]).double(), MASK, clip_low=0.2,
                             clip_high=0.3).mean()
    assert ours.item() == pytest.approx(theirs.item())
    torch.testing.assert_close(torch.autograd.grad(ours, logp)[0],
                               torch.autograd.grad(theirs, logp)[0])


def test_vespos_numbers_go_where_they_belong():
    ours = bell(1.5, 2.5, 3.5, 4.5)(LOGP, OLD, ADV, MASK)
    theirs = equations.vespo(LOGP, OLD, ADV, MASK, k_pos=1.5, lam_pos=2.5, k_neg=3.5, lam_neg=4.5)
    assert torch.equal(ours, theirs)


def test_numbers_are_given_once():
    assert torch.equal(per_token(equations.cispo, cap=1.5)(LOGP, OLD, ADV, MASK),
                       equations.cispo(LOGP, OLD, ADV, cap=1.5))
    assert per_completion(equations.gmpo, clip=0.1)(LOGP, OLD, ADV, MASK).shape == (2, 4)


# ---- the covariance methods

def test_clip_cov_hand_numbers():
    """log π -1 -5 -1 -5 0, mean -3 of the four under the mask; A 2 -2 0 0, mean 0. Covariances
    4 4 0 0, so the two tokens between 1 and 5 are drawn with a share of 1, and lose value and
    gradient. The other two have A = 0."""
    logp = torch.tensor([[-1.0, -5.0, -1.0, -5.0, 0.0]], requires_grad=True)
    adv, mask = torch.tensor([[2.0, -2.0, 0.0, 0.0, 9.0]]), torch.tensor([[1, 1, 1, 1, 0]]).bool()
    old = logp.detach() - torch.tensor([[1.5, 1.5, 1.0, 1.0, 1.0]]).log()
    value = clip_cov(1.0, 1.0, 1.0, 1.0, 5.0)(logp, old, adv, mask)
    assert value.tolist() == [[0.0] * 5]
    assert not torch.autograd.grad(value.sum(), logp)[0].any()
    narrow = clip_cov(1.0, 1.0, 1.0, 4.5, 5.0)(logp, old, adv, mask)  # no candidates: PPO's clip
    torch.testing.assert_close(narrow[0, :2], torch.tensor([3.0, -3.0]))


def test_clip_cov_draws_its_share_and_leaves_the_rest_to_the_clip():
    """100 tokens of covariance 4: a share of 0.1 takes the gradient from 10, and the others have
    that of PPO's clip."""
    logp = torch.tensor([-1.0, -5.0]).repeat(50)[None].requires_grad_()
    adv, mask = torch.tensor([2.0, -2.0]).repeat(50)[None], torch.ones(1, 100).bool()
    objective = clip_cov(0.2, 0.2, 0.1, 1.0, 5.0)
    value = objective(logp, logp.detach(), adv, mask)
    slope, = torch.autograd.grad(value.sum(), logp)
    drawn = slope == 0
    assert drawn.sum() == 10 and torch.equal(slope[~drawn], adv[~drawn])
    assert torch.equal(value == 0, drawn)


def test_clip_cov_draws_no_token_that_is_clipped():
    """As verl: both tokens have covariance 4, the first has A > 0 and ratio 3. A share of 0.5
    draws one of the two: always the second."""
    logp, adv = torch.tensor([[-1.0, -5.0]]), torch.tensor([[2.0, -2.0]])
    for old in (-2.1, -2.2, -2.3, -2.4):
        value = clip_cov(1.0, 1.0, 0.5, 1.0, 5.0)(logp, torch.tensor([[old, -5.0]]), adv,
                                                  torch.ones(1, 2).bool())
        assert value.tolist() == [[4.0, 0.0]]              # (1 + ε) A = 4


def draws(logp, adv, mask):
    return clip_cov(0.2, 0.2, 0.05, 0.0, 9.0)(logp, logp, adv, mask) == 0


def test_what_clip_cov_draws_depends_on_the_numbers_alone():
    """No generator lives from step to step: a run that resumes would draw other tokens. Torch's
    own is left alone, and padding changes nothing, whatever stands there."""
    generator = torch.Generator().manual_seed(0)
    logp, adv = (torch.randn(4, 50, generator=generator) for _ in range(2))
    mask, before = torch.ones(4, 50).bool(), torch.get_rng_state()
    first = draws(logp, adv, mask)
    assert first.sum() == 10
    assert torch.equal(draws(logp, adv, mask), first)
    assert not torch.equal(draws(logp + 0.01 * adv, adv, mask), first)
    assert torch.equal(torch.get_rng_state(), before)
    padded = [torch.cat([x, fill], 1) for x, fill in (
        (logp, torch.full((4, 7), torch.nan)), (adv, torch.full((4, 7), 5.0)),
        (mask, torch.zeros(4, 7).bool()))]
    assert torch.equal(draws(*padded)[:, :50], first)


def test_seeds_are_exact_sums():
    """Of bits: of floats, the order of rows and the padding would change the last digit."""
    numbers = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([numbers.flip(0), torch.zeros(50, 9)], 1)
    assert seed_of(numbers) == seed_of(wide) != seed_of(numbers + 1e-3)
    assert seed_of(torch.tensor([1.0, 2.0])) == 0x3F800000 + 0x40000000


def test_kl_cov_hand_numbers():
    """log π -1 -2 -6, mean -3; A 2 0 1, mean 1: covariances 2, -1, 0 (test_entropy.py). A share of
    0.4 of three tokens chooses the first, whose ratio is 1.5: 1.5 * 2 - β log 1.5, with a slope of
    1.5 * 2 - β. The others have ρ A, and no clip at a ratio of 3."""
    logp = torch.tensor([[-1.0, 0.0], [-2.0, -6.0]]).double().requires_grad_()
    adv, mask = torch.tensor([[2.0, 9.0], [0.0, 1.0]]).double(), torch.tensor([[1, 0], [1, 1]])
    ratio = torch.tensor([[1.5, 1.0], [1.0, 3.0]]).double()
    value = kl_cov(0.4, 0.5)(logp, logp.detach() - ratio.log(), adv, mask.bool())
    slope, = torch.autograd.grad(value.sum(), logp)
    expected = torch.tensor([[3 - 0.5 * 0.4054651, 9.0], [0.0, 3.0]]).double()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, torch.tensor([[2.5, 9.0], [0.0, 3.0]]).double())


def test_kl_covs_penalty_pulls_back_from_either_side_and_not_in_the_first_update():
    """β = 1, A = 0 but for the mean: the slope is -sign(log ρ), and 0 at ρ = 1."""
    for log_ratio, slope in ((0.5, -1.0), (-0.5, 1.0), (0.0, 0.0)):
        logp = torch.tensor([[-1.0, -1.0]], requires_grad=True)
        value = kl_cov(1.0, 1.0)(logp, logp.detach() - log_ratio, torch.zeros(1, 2),
                                 torch.ones(1, 2).bool())
        assert torch.autograd.grad(value.sum(), logp)[0].tolist() == [[slope, slope]]


@pytest.mark.parametrize("objective", [clip_cov(1.0, 1.0, 0.3, 0.0, 9.0), kl_cov(0.3, 1.0)])
def test_covariances_are_those_of_the_rows_that_are_passed(objective):
    """A micro-batch has means and a share of its own, as in verl: the choice depends on the split.
    Of a row alone, whose advantages are equal, no covariance is above 0."""
    logp = torch.tensor([[-0.1, -0.2], [-3.0, -4.0], [-1.0, -2.0]])
    adv, mask = torch.tensor([[1.0, 1.0], [-2.0, -2.0], [0.5, 0.5]]), torch.ones(3, 2).bool()
    rows = [[x[i:i + 1] for x in (logp, logp - 0.3, adv, mask)] for i in range(3)]
    whole, parts = objective(logp, logp - 0.3, adv, mask), [objective(*row) for row in rows]
    assert not torch.equal(whole, torch.cat(parts))


def test_kl_cov_chooses_the_same_tokens_in_any_order_of_rows():
    logp, adv = torch.tensor([[-0.1, -0.2], [-3.0, -4.0]]), torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    objective, mask = kl_cov(0.5, 1.0), torch.ones(2, 2).bool()
    turned = objective(logp.flip(0), logp.flip(0) - 0.3, adv.flip(0), mask)
    torch.testing.assert_close(turned.flip(0), objective(logp, logp - 0.3, adv, mask))
