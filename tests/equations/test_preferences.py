"""Tests of minirl.equations.preferences."""

from functools import partial

import pytest
import torch

from minirl.equations.preferences import (
    bradley_terry_loss,
    dpo_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    label_smoothed_dpo_loss,
    ranking_loss,
    simpo_loss,
)

NAN, LOG2, LOG3, LOG9 = float("nan"), 0.693147, 1.0986123, 2.1972246
PAIR_LOSSES = {"dpo": dpo_loss, "smoothed": label_smoothed_dpo_loss, "ipo": ipo_loss}
every_pair_loss = pytest.mark.parametrize("loss", PAIR_LOSSES.values(), ids=PAIR_LOSSES)


def value_and_slopes(loss, *parameters, **options):
    """Return the loss of one pair, and its derivative in each of the parameters."""
    leaves = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in parameters]
    value = loss(*leaves, **options)
    value.sum().backward()
    assert value.shape == (1,)
    return [value.item(), *(x.grad.item() for x in leaves)]


def beside_references(loss, chosen=0.0, rejected=0.0, **options):
    """Return the loss as a function of a pair's two learnt log-probs, at these reference ones."""
    def of_logps(w, r):
        ref_w, ref_r = torch.full_like(w, chosen).detach(), torch.full_like(r, rejected).detach()
        return loss(w, r, ref_w, ref_r, **options)

    return of_logps


@pytest.mark.parametrize("chosen, rejected, margin, value, slope", [
    (LOG3, 0.0, None, 0.287682, 0.25),  # odds 3 : 1, log 4/3; the model is 1/4 short of certain
    (0.0, LOG3, None, 1.386294, 0.75),  # the other way round, log 4
    (2.0, 2.0, None, LOG2, 0.5),  # no preference
    (LOG3, 0.0, LOG3, LOG2, 0.5),  # with a margin of 3 : 1, as good as no preference
    (LOG9, 0.0, LOG3, 0.287682, 0.25),
    (100.0, -100.0, None, 0.0, 0.0),
    (-100.0, 100.0, None, 200.0, 1.0),
])
def test_bradley_terry(chosen, rejected, margin, value, slope):
    """The gradient raises the chosen score and lowers the rejected one, by how wrong the order is.

    Far away the value is not the log of a sigmoid that underflowed to 0.
    """
    margin = None if margin is None else torch.tensor([margin]).double()
    actual = value_and_slopes(partial(bradley_terry_loss, margin=margin), chosen, rejected)
    assert actual == pytest.approx([value, -slope, slope], abs=1e-6)


@pytest.mark.parametrize("scores, value", [
    # gaps 1 1 1 2 2 3: (3 * .313262 + 2 * .126928 + .048587) / 6
    ([2.0, 1.0, 0.0, -1.0], 0.207038),
    # each gap the wrong way round costs the gap more: + (3 + 4 + 3) / 6
    ([-1.0, 0.0, 1.0, 2.0], 1.873705),
    # log 2 however many pairs: it is a mean
    ([0.5] * 4, LOG2),
    ([0.5] * 9, LOG2),
    # two answers are one comparison
    ([LOG3, 0.0], 0.287682),
    # (2 * .287682 + .693147) / 3
    ([LOG3, 0.0, 0.0], 0.422837),
    # (100 + 200 + 100) / 3
    ([100.0, 0.0, -100.0], 0.0),
    ([-100.0, 0.0, 100.0], 133.333333),
])
def test_ranking(scores, value):
    """Only differences count: a constant on all scores changes nothing."""
    scores = torch.tensor([scores], requires_grad=True)
    loss = ranking_loss(scores)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([value], abs=2e-6, rel=1e-6)
    assert scores.grad.sum().item() == pytest.approx(0.0, abs=1e-6)
    assert scores.grad[0, 0] <= 0 <= scores.grad[0, -1]
    torch.testing.assert_close(ranking_loss(scores + 7), loss, atol=2e-5, rtol=0)


def test_ranking_is_one_element_per_prompt():
    """A prompt with many comparisons weighs as much as any other, and no answer is compared with
    one to another prompt."""
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    assert ranking_loss(scores).tolist() == pytest.approx([0.207038, LOG2], abs=1e-6)
    ranking_loss(scores)[0].backward()
    assert (scores.grad[1] == 0).all() and (scores.grad[0] != 0).all()


@pytest.mark.parametrize("chosen, rejected, ref_chosen, ref_rejected, beta, value, weight", [
    (2.0, -1.0, 0.0, 0.0, 0.1, 0.554355, 0.425557),  # h_w - h_l = 3, sigmoid(-.3)
    (-1.0, 2.0, 0.0, 0.0, 0.1, 0.854355, 0.574443),  # -3: .3 more
    # h is 2 and -1 again: only the difference from the reference counts
    (-7.0, -4.0, -9.0, -3.0, 0.1, 0.554355, 0.425557),
    # at the reference, whatever it likes better
    (-7.0, -4.0, -7.0, -4.0, 0.1, LOG2, 0.5),
    (LOG3, 0.0, 0.0, 0.0, 1.0, 0.287682, 0.25),
    (100.0, -100.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    (-100.0, 100.0, 0.0, 0.0, 1.0, 200.0, 1.0),
])
def test_dpo(chosen, rejected, ref_chosen, ref_rejected, beta, value, weight):
    loss = beside_references(dpo_loss, ref_chosen, ref_rejected, beta=beta)
    expected = [value, -beta * weight, beta * weight]
    assert value_and_slopes(loss, chosen, rejected) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("h, smoothing, value, slope", [
    # no smoothing is DPO: log(1 + e^-3) and 1 / (1 + e^3)
    (3.0, 0.0, 0.048587, -0.047426),
    # a tenth of wrong labels gives odds 9 : 1: .9 * .105361 + .1 * 2.302585
    (LOG9, 0.1, 0.325083, 0.0),
    # higher odds are too sure: .018150 + .1 * 4; .1 - 1 / (1 + e^4)
    (4.0, 0.1, 0.418150, 0.082014),
    # .018150 + .9 * 4; .1 - 1 / (1 + e^-4)
    (-4.0, 0.1, 3.618150, -0.882014),
    (100.0, 0.25, 25.0, 0.25),
    (-100.0, 0.25, 75.0, -0.75),
])
def test_label_smoothing(h, smoothing, value, slope):
    loss = beside_references(label_smoothed_dpo_loss, beta=1.0, smoothing=smoothing)
    assert value_and_slopes(loss, h, 0.0) == pytest.approx([value, slope, -slope], abs=1e-6)


@pytest.mark.parametrize("chosen, rejected, beta, value, slope", [
    (2.0, -1.0, 0.1, 4.0, -4.0),  # (3 - 5)^2, 2 (3 - 5)
    (2.0, -3.0, 0.1, 0.0, 0.0),  # at the target
    (3.0, -3.0, 0.1, 1.0, 2.0),  # beyond it: pulled back, where DPO would go on
    (2.0, -1.0, 0.5, 4.0, 4.0),
    (0.0, 0.0, 0.5, 1.0, -2.0),
    (100.0, -100.0, 0.1, 38025.0, 390.0),
])
def test_ipo(chosen, rejected, beta, value, slope):
    expected = pytest.approx([value, slope, -slope], abs=1e-6)
    assert value_and_slopes(beside_references(ipo_loss, beta=beta), chosen, rejected) == expected
    moved = beside_references(ipo_loss, 1.0, -2.0, beta=beta)
    assert value_and_slopes(moved, chosen + 1, rejected - 2) == expected


@pytest.mark.parametrize("chosen, rejected, options, value, slope", [
    # 2 (.5 - .5); beta / 2
    (-1.0, -1.5, {}, LOG2, 1.0),
    # 2 (1 - .5) = 1; 2 / (1 + e)
    (-0.5, -1.5, {}, 0.313262, 0.537883),
    # odds 3 : 1; log 3 / 4
    (-0.5, -1.5, {"beta": LOG3, "gamma_over_beta": 0.0}, 0.287682, 0.274653),
    # TRL's gamma .5 at beta .1: log(1 + e^.5), .1 / (1 + e^-.5)
    (-1.0, -1.0, {"beta": 0.1, "gamma_over_beta": 5.0}, 0.974077, 0.062246),
    # the same .5 as the ratio: log(1 + e^.05), .1 / (1 + e^-.05)
    (-1.0, -1.0, {"beta": 0.1, "gamma_over_beta": 0.5}, 0.718460, 0.051250),
])
def test_simpo(chosen, rejected, options, value, slope):
    """No reference, and a margin that is gamma in one code base and gamma / beta in the other: ten
    times apart at beta .1."""
    actual = value_and_slopes(partial(simpo_loss, **options), chosen, rejected)
    assert actual == pytest.approx([value, -slope, slope], abs=1e-6)


@pytest.mark.parametrize("h, desirable, options, value, slope", [
    # sigmoid 3/4; 3/4 1/4
    (LOG3, True, {"kl": 0.0}, 0.25, -0.1875),
    (LOG3, False, {"kl": 0.0}, 0.75, 0.1875),
    # a gain that the policy has everywhere is no gain
    (LOG3, True, {"kl": LOG3}, 0.5, -0.25),
    (0.0, False, {"kl": LOG3}, 0.25, 0.1875),
    # an estimate below 0 counts as 0
    (LOG3, True, {"kl": -5.0}, 0.25, -0.1875),
    (LOG3, True, {"kl": 0.0, "desirable_weight": 4.0, "undesirable_weight": 9.0}, 1.0, -0.75),
    (LOG3, False, {"kl": 0.0, "desirable_weight": 9.0, "undesirable_weight": 4.0}, 3.0, 0.75),
    (100.0, True, {"kl": 0.0}, 0.0, 0.0),
    (100.0, False, {"kl": 0.0}, 1.0, 0.0),
    (-100.0, True, {"kl": 0.0}, 1.0, 0.0),
    (-100.0, False, {"kl": 0.0}, 0.0, 0.0),
])
def test_kto(h, desirable, options, value, slope):
    ref_logp, label = torch.tensor([-2.0]).double(), torch.tensor([desirable])

    def loss(logp):
        return kto_loss(logp, ref_logp, label, beta=1.0, **options)

    assert value_and_slopes(loss, h - 2) == pytest.approx([value, slope], abs=1e-6)


def test_kto_does_not_learn_through_its_baseline():
    logp, kl = torch.zeros(2, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    kto_loss(logp, torch.zeros(2), torch.tensor([True, False]), kl=kl).sum().backward()
    assert kl.grad is None and (logp.grad[0] < 0 < logp.grad[1])
    yes_as_number = torch.ones(2)
    assert kto_loss(logp, torch.zeros(2), yes_as_number, kl=0.0, beta=2.0).tolist() == [0.5, 0.5]


REF = torch.tensor([0.5, 0.2, 0.2, 0.1]).double().log()
REWARD = torch.tensor([0.0, 1.0, -0.5, 0.3]).double()
BETA = 0.5


def mean_over_all_pairs(loss, logits):
    """Mean loss over all pairs of 4 answers, each preferred as often as Bradley and Terry say."""
    logp = logits.log_softmax(0)
    grid = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    first, second = (x.flatten() for x in grid)
    chance = (REWARD[:, None] - REWARD[None, :]).sigmoid().flatten()
    losses = loss(logp[first], logp[second], REF[first], REF[second], beta=BETA)
    return (chance * losses).sum()


def test_dpo_optimum_by_enumeration():
    """The theorem of the paper: without any reward model the minimum is the reference tilted by
    exp(r / beta), and its implicit reward is the reward, up to one constant.

    IPO's minimum is elsewhere: it aims at probabilities of preference, not at log-odds.
    """
    best = REF + REWARD / BETA
    slopes = {}
    for loss in (dpo_loss, ipo_loss):
        logits = best.clone().requires_grad_()
        mean_over_all_pairs(loss, logits).backward()
        slopes[loss] = logits.grad.abs().max().item()
    assert slopes[dpo_loss] < 1e-15 and slopes[ipo_loss] > 0.01
    logits = REF.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        value = mean_over_all_pairs(dpo_loss, logits)
        value.backward()
        return value

    for _ in range(5):
        optimiser.step(closure)
    optimum = logits.detach()
    torch.testing.assert_close(optimum.softmax(0), best.softmax(0), atol=1e-7, rtol=0)
    constant = implicit_reward(optimum.log_softmax(0), REF, beta=BETA) - REWARD
    assert (constant - constant[0]).abs().max() < 1e-6


def test_implicit_reward():
    logp, ref_logp = torch.tensor([-1.0]), torch.tensor([-3.0])
    assert implicit_reward(logp, ref_logp, beta=0.5).tolist() == [1.0]


@every_pair_loss
def test_constants_and_beta(loss):
    """A reference with a gradient is a forgotten no_grad: it would be trained away from the
    policy."""
    x = torch.zeros(2)
    for i, name in ((2, "ref_chosen"), (3, "ref_rejected")):
        with pytest.raises(ValueError, match=f"{name} requires grad"):
            loss(*[x.clone().requires_grad_() if j == i else x for j in range(4)])
    for beta in (0.0, -0.1, NAN):
        with pytest.raises(ValueError, match=f"beta is {beta}: expected a positive number"):
            loss(x, x, x, x, beta=beta)


@pytest.mark.parametrize("call, message", [
    (lambda x: simpo_loss(x, x, beta=0.0), "beta is 0.0.*positive"),
    (lambda x: implicit_reward(x, x, beta=-1.0), "beta is -1.0.*positive"),
    (lambda x: kto_loss(x, x, x.bool(), kl=0.0, beta=0.0), "beta is 0.0.*positive"),
    (lambda x: kto_loss(x, x.clone().requires_grad_(), x.bool(), kl=0.0),
     "ref_logp requires grad"),
    (lambda x: label_smoothed_dpo_loss(x, x, x, x, smoothing=0.5), "smoothing is 0.5.*1/2"),
    (lambda x: label_smoothed_dpo_loss(x, x, x, x, smoothing=-0.1), "smoothing is -0.1"),
    (lambda x: ranking_loss(x), r"scores is \(2,\)"),
    (lambda x: ranking_loss(x[:, None]), r"scores is \(2, 1\).*at least two"),
    (lambda x: bradley_terry_loss(x, x, margin=x[:1]), r"margin \(1,\): expected the same shape"),
])
def test_other_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2))


def test_no_pairs():
    none = torch.zeros(0)
    assert all(loss(none, none, none, none).shape == (0,) for loss in PAIR_LOSSES.values())
    assert bradley_terry_loss(none, none).shape == simpo_loss(none, none).shape == (0,)
    assert ranking_loss(torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("shape", [(), (2, 2), (2, 1)])
def test_a_loss_is_of_one_number_per_completion(shape):
    """Log-probs of tokens, (B, T), were accepted, and so was a column: a loss for each token where
    that of the completion's sum was meant."""
    x = torch.zeros(shape)
    pairs = [partial(loss, x, x, x, x) for loss in PAIR_LOSSES.values()]
    for call in (*pairs,
                 partial(bradley_terry_loss, x, x),
                 partial(simpo_loss, x, x),
                 partial(bradley_terry_loss, x, x, margin=x),
                 partial(kto_loss, x, x, x.bool(), kl=0.0)):
        with pytest.raises(ValueError, match=r"expected one number per completion, \(N,\); add up"):
            call()


@pytest.mark.parametrize("labels", [[1, -1], [1.0, 0.5], [1.0, NAN], [2, 0]])
def test_labels_of_kto_are_yes_or_no(labels):
    """-1 for a bad completion is not 0, so it counted as a good one: every label was good."""
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match="True for good and False for bad; .* labels > 0"):
        kto_loss(zero, zero, torch.tensor(labels), kl=0.0)
    for good_and_bad in (torch.tensor([1, 0]), torch.tensor([1.0, 0.0]),
                         torch.tensor([True, False])):
        loss = kto_loss(zero, zero, good_and_bad, kl=0.0, undesirable_weight=3.0)
        assert loss.tolist() == [0.5, 1.5]
