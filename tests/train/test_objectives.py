"""minirl/train/objectives.py: equations in the form in which a page calls them."""

import pytest
import torch

from minirl.equations import objectives as equations
from minirl.equations.reduce import aggregate
from minirl.train.objectives import (
    bell,
    capped,
    clipped,
    geometric_mean,
    of_completion,
    per_completion,
    per_token,
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
