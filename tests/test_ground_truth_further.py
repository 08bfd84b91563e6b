"""Every newer estimator against the truth: distillation, trust regions, prefix ratios, groups.

As in test_ground_truth.py, expectations are sums over all completions in float64, and the right
gradients are autograd of the exact objective. Nothing is sampled.
"""

import functools
import itertools
import math

import pytest
import torch

from minirl.equations.advantages import (
    discounted_returns,
    distillation_advantages,
    distillation_values,
    gdpo_advantages,
    group_advantages,
    maxrl_advantages,
    pass_at_k_advantages,
)
from minirl.equations.entropy import token_covariance
from minirl.equations.inference_time import reward_guided
from minirl.equations.kl import exact_kl, generalised_jsd
from minirl.equations.mismatch import (
    geometric_mask,
    icepop_weights,
    importance_ratio,
    minimum_prefix_weights,
    off_policy_mask,
    prefix_weights,
    sequence_weights,
)
from minirl.equations.objectives import dppo, gmpo, luspo, sequence_clipped_surrogate, vespo
from minirl.equations.regression import astar_po_loss, optimal_values
from minirl.testing.oracle import Oracle
from tests.test_ground_truth import ENDING, SMALL, build, coin, cosine, error, every_world, tensor

WIDE = {"clip_low": 1.0, "clip_high": 1e6}  # a clip that never takes effect


# ---- distillation: the reference is the teacher

@every_world
def test_distillation_imitates_at_the_states_visited(world):
    """A_t for its own token alone has the gradient of the KL of each state visited, summed over the
    vocabulary. It leaves out that a token leads to other states. With its returns, the sum of A to
    the end, it is the gradient of the KL of whole completions."""
    w = build(world)
    adv = torch.where(w.mask, distillation_advantages(w.logp, w.ref_logp), 0)
    logits, teacher_logits = w.oracle.logits(w.policy), w.oracle.logits(w.ref).detach()
    states = torch.where(w.mask, exact_kl(logits, teacher_logits), 0).sum(1)
    own = w.loss((adv * w.logp).sum(1))
    assert error(own, -w.loss(states)) < 1e-10
    assert error(own, -w.kl) > 0.02
    returns = discounted_returns(adv, w.mask)
    assert error(w.loss((returns * w.logp).sum(1)), -w.kl) < 1e-10


def variances(policy, teacher, oracle):
    """The variance of the estimate of a completion, without and with the exact baseline, summed
    over parameters; their means are one."""
    logp, teacher_logp = oracle.logp(policy), oracle.logp(teacher).detach()
    p = oracle.prob(logp).detach()
    adv = torch.where(oracle.mask, distillation_advantages(logp, teacher_logp), 0)
    values = distillation_values(oracle.logits(policy), oracle.logits(teacher))
    means, spreads = [], []
    for credit in (adv, torch.where(oracle.mask, adv - values, 0)):
        each = torch.stack([oracle.gradient(policy, row.sum()) for row in credit * logp])
        means.append((p[:, None] * each).sum(0))
        spreads.append((p[:, None] * (each - means[-1]).square()).sum().item())
    assert error(means[1], means[0]) < 1e-10
    return spreads


@pytest.mark.parametrize("sharpness, least, most", [
    (3.0, 0.6, 0.8), (1.5, 0.8, 0.9), (0.67, 1.1, 1.2), (0.33, 1.2, 1.5)])
def test_the_exact_baseline_of_distillation(sharpness, least, most):
    """It is the mean of A_t over the vocabulary, so it changes no mean gradient. What it does to
    the variance depends on the teacher, whose logits are here the student's times a number. A surer
    teacher: a third less (three times the logits). A less sure one: a third more (a third of the
    logits), in each of eight worlds, because rare tokens have long gradients and a positive A, so
    that the best baseline is positive, and V = -KL is not."""
    for seed in range(8):
        oracle = Oracle(*ENDING)
        policy, teacher = oracle.table(seed=seed), oracle.table(seed=seed)
        teacher.lm_head.weight.data *= sharpness
        plain, centred = variances(policy, teacher, oracle)
        assert least < centred / plain < most


def test_the_exact_baseline_by_hand():
    """Two tokens, p = 1/2: |∇ log π|² is 1/2 for both, so the mean of A is the best baseline, and
    A - V is ±(ln 9) / 2 where the teacher has 9/10. One of p = 9/10 under a teacher of 1/2: |∇|² is
    0.02 for the likely token, whose A is ln 5/9 = -0.59, and 1.62 for the other, ln 5 = 1.61. The
    best baseline is (0.9 * 0.02 * -0.59 + 0.1 * 1.62 * 1.61) / 0.18 = 1.39, V is -0.37."""
    oracle = Oracle(2, 1)
    half, sure = oracle.table(), oracle.table()
    half.lm_head.weight.data[:, 0] = tensor([0.5, 0.5]).log()
    sure.lm_head.weight.data[:, 0] = tensor([0.9, 0.1]).log()
    # with two tokens the variance is E|∇|² (b - best)²: here 1/2 of the square of
    # V = (ln 9/5 + ln 1/5) / 2 = -0.5108, and nothing with b = V
    plain, centred = variances(half, sure, oracle)
    assert (plain, centred) == pytest.approx((0.130471, 0.0), abs=1e-6)
    plain, centred = variances(sure, half, oracle)
    best = (0.018 * math.log(5 / 9) + 0.162 * math.log(5)) / 0.18
    value = -(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert (best, value) == pytest.approx((1.389715, -0.368064), abs=1e-5)
    assert centred / plain == pytest.approx(((best - value) / best) ** 2, rel=1e-9)


def test_the_baseline_leaves_no_mean_in_a_state():
    """E over the vocabulary of A - V is 0 in every state."""
    oracle = Oracle(3, 1)
    logits, teacher = oracle.random(4, 3, seed=1), oracle.random(4, 3, seed=2)
    logp, teacher_logp = logits.log_softmax(-1), teacher.log_softmax(-1)
    values = distillation_values(logits, teacher)[:, None]
    adv = distillation_advantages(logp, teacher_logp) - values
    assert (logp.exp() * adv).sum(-1).abs().max() < 1e-14


def test_the_generalised_jsd_near_its_ends():
    """JSD_β / β goes to the forward KL, JSD_β / (1 - β) to the reverse, each with an error in
    proportion to the distance; at the ends themselves the function is the KL."""
    oracle = Oracle(3, 1)
    logits, teacher = oracle.random(5, 3, seed=1), oracle.random(5, 3, seed=2)
    forward, reverse = exact_kl(teacher, logits), exact_kl(logits, teacher)
    torch.testing.assert_close(generalised_jsd(logits, teacher, 0.0), forward)
    torch.testing.assert_close(generalised_jsd(logits, teacher, 1.0), reverse)
    for beta in (1e-3, 1e-4):
        near_0 = generalised_jsd(logits, teacher, beta) / beta
        near_1 = generalised_jsd(logits, teacher, 1 - beta) / beta
        assert ((near_0 - forward).abs() / forward).max() < 10 * beta
        assert ((near_1 - reverse).abs() / reverse).max() < 10 * beta


# ---- mismatch: the reference samples, the policy learns

@functools.cache
def mismatch(world, seed=0):
    """A world with the true advantages of the policy, and a function for the relative error of
    E_μ[Σ_t w_t A_t ∇ log π_t]."""
    w = build(world, 1.0, seed)
    rewards = w.oracle.random(seed=seed + 7)
    last = w.mask & (w.mask.flip(1).cumsum(1).flip(1) == 1)
    adv = w.oracle.advantages(w.logp.detach(), torch.where(last, rewards[:, None], 0))

    def bias(weights, credit=adv):
        return error(w.gradient((w.q[:, None] * weights * credit * w.logp).sum()), w.truth(rewards))

    return w, rewards, adv, bias


@every_world
def test_prefix_weights_are_exact_for_the_policys_own_advantages(world):
    """The ratios up to a token correct how its state was reached and how it was drawn: no bias if
    the advantage is that of π. The reward of the completion is also due to the tokens behind, which
    the sampler drew: then only the whole product is exact, and the prefix is biased."""
    w, rewards, _, bias = mismatch(world)
    prefix = prefix_weights(w.logp, w.ref_logp, w.mask)
    whole = sequence_weights(w.logp, w.ref_logp, w.mask)[:, None]
    token = importance_ratio(w.logp.detach(), w.ref_logp)
    assert bias(prefix) < 1e-10 < 0.02 < bias(token)
    assert bias(whole) < 1e-10
    assert bias(whole, rewards[:, None]) < 1e-10 < 0.02 < bias(prefix, rewards[:, None])


def test_prefix_weights_vary_less_than_the_product():
    """With true advantages both are exact; the tokens behind t add nothing but variance."""
    shares = []
    for seed in range(8):
        w, rewards, adv, _ = mismatch((ENDING, "table"), seed)
        variance = []
        for weights in (prefix_weights(w.logp, w.ref_logp, w.mask),
                        sequence_weights(w.logp, w.ref_logp, w.mask)[:, None]):
            terms = weights * adv * w.logp
            each = torch.stack([w.gradient(row.sum()) for row in terms])
            variance.append((w.q[:, None] * (each - w.truth(rewards)).square()).sum().item())
        shares.append(variance[0] / variance[1])
    assert max(shares) < 1


def test_the_minimum_in_the_place_of_the_prefix():
    """MinPRO is exact up to the second token. With three it is biased: less than the token's own
    ratio in most worlds, not in all."""
    w, _, _, bias = mismatch((SMALL, "table"))
    assert bias(minimum_prefix_weights(w.logp, w.ref_logp, w.mask)) < 1e-10
    better = 0
    for seed in range(8):
        w, _, _, bias = mismatch((ENDING, "table"), seed)
        minimum = bias(minimum_prefix_weights(w.logp, w.ref_logp, w.mask))
        assert minimum > 1e-3
        better += minimum < bias(importance_ratio(w.logp.detach(), w.ref_logp))
    assert better == 8


@every_world
def test_icepop_and_the_masks_of_completions(world):
    """IcePop with bounds that nothing reaches is the token's ratio, and with bounds that bite
    another bias. The masks of completions keep everything on-policy, and so the exact gradient;
    off-policy what they drop is missing. With the exact weight that costs little where bad
    completions are dropped that π hardly writes, and much where those go that it writes more."""
    w, rewards, adv, bias = mismatch(world)
    logp, token = w.logp.detach(), importance_ratio(w.logp.detach(), w.ref_logp)
    assert bias(icepop_weights(token, low=0.0, high=1e6)) == bias(token)
    assert bias(icepop_weights(token, low=0.7, high=1.4)) != bias(token)
    assert off_policy_mask(logp, logp, rewards, w.mask, delta=1e-9).all()
    assert geometric_mask(logp, logp, w.mask, low=0.999, high=1.001).all()
    whole = sequence_weights(logp, w.ref_logp, w.mask)[:, None]
    good = off_policy_mask(logp, w.ref_logp, rewards, w.mask, delta=0.2)
    close = geometric_mask(logp, w.ref_logp, w.mask, low=0.8, high=1.25)
    assert not good.all() and not close.all() and good[rewards >= 0].all()
    credit = rewards[:, None]
    dropped_bad, dropped_far = (bias(whole * kept[:, None], credit) for kept in (good, close))
    assert 0.005 < dropped_bad < 0.03 < 0.1 < dropped_far


@every_world
def test_the_newer_surrogates_at_ratio_one(world):
    """On-policy DPPO, VESPO and LUSPO are the policy gradient. GMPO is GSPO: 1/|o| of it for each
    completion."""
    w = build(world)
    rewards, old = w.oracle.random(seed=9), w.logp.detach()
    spread = torch.where(w.mask, rewards[:, None], 0)
    exact = w.truth(rewards)
    assert error(w.loss(dppo(w.logp, old, spread, delta=1e-9).sum(1)), exact) < 1e-10
    assert error(w.loss(vespo(w.logp, old, spread, w.mask).sum(1)), exact) < 1e-10
    unbiased = luspo(w.logp, old, rewards, w.mask, clip_low=0.0, clip_high=0.0)
    assert error(w.loss(unbiased), exact) < 1e-10
    geometric = gmpo(w.logp, old, rewards, w.mask)
    gspo = sequence_clipped_surrogate(w.logp, old, rewards, w.mask, clip_low=3e-4, clip_high=4e-4,
                                      length_normalised=True)
    assert error(w.loss(geometric), w.loss(gspo)) < 1e-10
    if w.oracle.length == 2:  # all have this length
        assert error(w.loss(geometric), exact / 2) < 1e-10


@every_world
def test_the_newer_surrogates_off_policy(world):
    """Without a bound that bites, DPPO is the token's importance weight. None of the four is exact:
    LUSPO's and GMPO's ratio is a mean, and VESPO's weight a bell around the exact one."""
    w, rewards, adv, bias = mismatch(world)
    spread = torch.where(w.mask, rewards[:, None], 0)

    def slope(objective):
        return w.gradient((w.q * objective).sum())

    token = importance_ratio(w.logp.detach(), w.ref_logp)
    region = slope(dppo(w.logp, w.ref_logp, spread, delta=2.0, cap=1e6).sum(1))
    assert error(region, slope((token * spread * w.logp).sum(1))) < 1e-10
    tight = slope(dppo(w.logp, w.ref_logp, spread, delta=0.05, cap=1e6).sum(1))
    assert error(tight, region) > 0.05
    exact = w.truth(rewards)
    for objective in (luspo(w.logp, w.ref_logp, rewards, w.mask, **WIDE),
                      vespo(w.logp, w.ref_logp, spread, w.mask).sum(1)):
        assert error(slope(objective), exact) > 0.02
        assert cosine(slope(objective), exact) > 0.5


# ---- groups

@every_world
@pytest.mark.parametrize("group, k", [(2, None), (3, None), (3, 2), (3, 3)])
def test_pass_at_k_is_unbiased_for_the_best_of_k(world, group, k):
    """Over all N^G groups the estimate 1/G Σ_i A_i ∇ log π_i is 1/k of the gradient of
    E[max of k rewards]."""
    w = build(world)
    rewards = w.oracle.random(seed=6)

    def groups(size):
        index = torch.cartesian_prod(*[torch.arange(len(w.p))] * size)  # (N^size, size)
        return index, rewards[index]

    index, own = groups(group)
    chance = w.p[index].prod(1, keepdim=True)
    estimate = w.gradient((chance * pass_at_k_advantages(own, k=k) * w.seq[index]).sum() / group)
    size = k or group
    index, own = groups(size)
    best = w.seq[index].sum(1).exp() @ own.amax(1)
    assert error(estimate, w.gradient(best) / size) < 1e-10


@pytest.mark.parametrize("group, k", [(4, 2), (4, 3), (6, 4), (4, 4)])
def test_pass_at_k_training_estimates_a_share_of_the_same_gradient(group, k):
    """arXiv:2508.10751, before it divides: the mean of max(r_S) over all sets of k with i, minus
    that over all sets. The second holds i in k/G of its sets, so 1 - k/G of the mean is left. A
    wrong sample is in sets without a right one, and gets less than 0."""
    rewards, chance, scores = coin(0.3, group)

    def best(row, i=None):
        sets = [s for s in itertools.combinations(range(group), k) if i is None or i in s]
        return sum(max(row[j] for j in s) for s in sets) / len(sets)

    training = torch.tensor([[best(row, i) - best(row) for i in range(group)]
                             for row in rewards.tolist()], dtype=torch.float64)
    came = (chance * (training * scores).mean(1)).sum().item()
    ours = (chance * (pass_at_k_advantages(rewards, k=k) * scores).mean(1)).sum().item()
    assert came == pytest.approx((1 - k / group) * ours, abs=1e-12)
    assert ours == pytest.approx(0.7 ** (k - 1) * 0.3 * 0.7, rel=1e-10)    # 1/k of ∇ (1 - 0.7^k)
    if (group, k) == (4, 2):
        two_right, mean = rewards.sum(1) == 2, 5 / 6
        came = training[two_right] / math.sqrt(mean * (1 - mean))
        sign = torch.where(rewards[two_right] == 1, 0.4472, -0.4472)
        torch.testing.assert_close(came, sign.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("group", [2, 3, 8])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_maximum_likelihood_is_the_sum_of_all_pass_at_k(group, p):
    """log p = -Σ_k (1 - p)^k / k, and ∇ of its k-th term is 1/k ∇ pass@k. So the advantages of all
    k from 1 (the reward itself) to G add up to r / mean(r), which MaxRL takes, less 1: Σ_j
    C(w, j) / C(G-1, j) = G / (G - w) for w wrong ones of G. Its mean is ∇J_G."""
    rewards, chance, scores = coin(p, group)
    every = rewards + sum(pass_at_k_advantages(rewards, k=k) for k in range(2, group + 1))
    share = rewards.mean(1, keepdim=True)
    torch.testing.assert_close(every, rewards / share.clamp(min=1e-9), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(every - 1, maxrl_advantages(rewards) - (share == 0).double())
    truth = sum((1 - p) ** (k - 1) for k in range(1, group + 1)) * p * (1 - p)
    assert (chance * (every * scores).mean(1)).sum().item() == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("k", [2, 4])
def test_pass_at_k_varies_more_than_it_need_when_it_sees_k_samples_alone(k):
    """Eight tosses, p = 0.1. The mean over all sets of k has the same expectation as two or four
    groups of k, and less variance."""
    rewards, chance, scores = coin(0.1, 8)

    def moments(estimate):
        mean = (chance * estimate).sum()
        return mean.item(), (chance * (estimate - mean).square()).sum().item()

    def apart(order):
        """The tosses of one outcome in this order, split into groups of k."""
        adv = pass_at_k_advantages(rewards[:, order].reshape(-1, k)).view(-1, 8)
        return (adv * scores[:, order]).mean(1)

    # an outcome is a number of heads: its orders are alike, so their mean square is the variance
    orders = [torch.randperm(8, generator=torch.Generator().manual_seed(i)) for i in range(400)]
    many = torch.stack([apart(order) for order in orders])
    mean, variance = moments((pass_at_k_advantages(rewards, k=k) * scores).mean(1))
    spread = (chance * (many - mean).square().mean(0)).sum().item()
    assert mean == pytest.approx(0.9 ** k * 0.1, rel=1e-10)
    assert variance < 0.95 * spread


def test_gdpo_counts_rewards_won_in_a_group_of_two():
    """One prompt and two samples: each z-score is ±.7071, so the sum says who won more rewards, and
    GDPO climbs the chance to beat oneself in the majority of three. GRPO of the sum climbs the
    chance to have the larger sum, which one large reward decides."""
    w = build((ENDING, "table"))
    rewards = torch.stack([w.oracle.random(seed=i) * scale
                           for i, scale in enumerate((100.0, 1.0, 0.01))], -1)  # (N, 3)
    pairs = list(itertools.product(range(len(w.p)), repeat=2))
    index = torch.tensor(pairs)  # (N², 2)
    chance = w.p[index].prod(1, keepdim=True)

    def climbs(advantages):
        adv = torch.cat([advantages(rewards[pair][None]) for pair in index])  # (N², 2)
        return w.gradient((chance * adv * w.seq[index]).sum() / 2)

    ahead = torch.sign(rewards[:, None] - rewards[None])  # (N, N, 3)
    majority = (w.p * torch.sign(ahead.sum(-1))).sum(1)
    first = (w.p * ahead[..., 0]).sum(1)
    gdpo = climbs(lambda r: gdpo_advantages(r, [1.0] * 3, eps=0.0))
    grpo = climbs(lambda r: group_advantages(r.sum(-1), eps=0.0))
    assert error(gdpo, w.truth(majority) * math.sqrt(0.5)) < 1e-9
    assert error(grpo, w.truth(first) * math.sqrt(0.5)) < 0.05 < error(gdpo, grpo)


def test_gdpo_tells_apart_what_the_sum_does_not():
    """Two rewards, eight samples. (1, 0) and (0, 1) have one sum, so GRPO knows three kinds of
    completion. In GDPO the first reward, which two got, has less spread than the second, which five
    got, so it counts for more: four kinds. Had six got the second, both would spread alike."""
    rewards = tensor([[1, 1], [1, 0]] + [[0, 1]] * 4 + [[0, 0]] * 2)[None]
    grpo = group_advantages(rewards.sum(-1))[0]
    gdpo = gdpo_advantages(rewards, [1.0, 1.0])[0]
    assert len(grpo.unique()) == 3 and grpo[1] == grpo[2]
    assert gdpo[0] > gdpo[1] > gdpo[2] > gdpo[-1]
    rewards[0, -2] = tensor([0, 1])
    alike = gdpo_advantages(rewards, [1.0, 1.0])[0]
    assert alike[1] == alike[2] == 0


# ---- entropy

def test_the_covariance_is_the_slope_of_the_entropy():
    """A natural policy gradient adds η A to a state's logits. dH/dη there is -Cov(log π, A) under
    π, which is the mean of token_covariance over the state's tokens, each as often as π takes
    it."""
    oracle = Oracle(3, 1)
    for seed in range(5):
        logits, adv = oracle.random(3, seed=seed), oracle.random(3, seed=seed + 50)
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        p = (logits + step * adv).softmax(0)
        slope, = torch.autograd.grad(-(p * p.log()).sum(), step)
        # a batch in which each token stands as often as π takes it, in 100,000
        counts = (p.detach() * 1e5).round().long()
        logp = logits.log_softmax(0).repeat_interleave(counts)[None]
        covariance = token_covariance(logp, adv.repeat_interleave(counts)[None],
                                      torch.ones_like(logp))
        assert covariance.mean().item() == pytest.approx(-slope.item(), abs=1e-4)


# ---- A*-PO

@pytest.mark.parametrize("shape", [SMALL, ENDING])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_astar_po_finds_the_optimum_of_rlhf(shape, beta):
    """With the exact V* and one β the regression has one minimum, loss 0, at ref e^{r / β} / Z,
    whoever sampled: here every completion counts the same."""
    oracle = Oracle(*shape)
    policy = oracle.table(seed=1)
    ref = oracle.logp(oracle.table(seed=2)).detach().sum(1)
    rewards = oracle.random(seed=3)
    value = beta * (ref.exp() * (rewards / beta).exp()).sum().log()
    values = value.expand_as(rewards)
    optimiser = torch.optim.LBFGS(policy.parameters(), max_iter=2000, tolerance_grad=1e-12,
                                  tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = astar_po_loss(oracle.logp(policy).sum(1), ref, rewards, values, beta=beta).mean()
        loss.backward()
        return loss

    before = closure().item()
    optimiser.step(closure)
    assert closure().item() < 1e-12 < 0.1 < before
    optimum = oracle.prob(oracle.logp(policy)).detach()
    torch.testing.assert_close(optimum, reward_guided(ref, rewards, beta=beta).exp(), atol=1e-6,
                               rtol=0)


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_the_optimal_value_of_a_group(beta):
    """Over all groups of the reference's samples exp(V / β) is unbiased for E_ref[exp(r / β)]. V
    itself is too low on average (Jensen), and less so in larger groups."""
    w = build((SMALL, "table"))
    rewards = w.oracle.random(seed=3)
    exact = (w.q * (rewards / beta).exp()).sum()
    gaps = []
    for group in (1, 2, 4):
        index = torch.cartesian_prod(*[torch.arange(len(w.q))] * group).view(-1, group)
        chance = w.q[index].prod(1)
        values = optimal_values(rewards[index], beta=beta)
        assert (chance * (values / beta).exp()).sum().item() == pytest.approx(exact.item())
        gaps.append((beta * exact.log() - (chance * values).sum()).item())
    assert gaps[0] > gaps[1] > gaps[2] > 0
