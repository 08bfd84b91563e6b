"""Every estimator against the truth.

In worlds that can be listed completely (minirl/testing/oracle.py), expectations are sums in
float64, and the right gradients are autograd of the exact objective. Nothing is sampled, so nothing
here is only approximately true.
"""

import functools
import math

import pytest
import torch

from minirl.equations.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    opo_advantages,
    optimal_baseline,
    process_advantages,
    reinforce_plus_plus_advantages,
    remax_advantages,
)
from minirl.equations.inference_time import reward_guided
from minirl.equations.kl import corrected_k3, exact_kl, k1, k2, k3, kl_shaped_rewards
from minirl.equations.mismatch import (
    effective_sample_size,
    importance_ratio,
    masked_weights,
    sequence_weights,
    truncated_weights,
)
from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    dual_clipped_surrogate,
    gspo_token,
    kl_penalised_surrogate,
    policy_gradient,
    sapo,
    sequence_clipped_surrogate,
)
from minirl.equations.preferences import dpo_loss
from minirl.testing.oracle import Oracle

# vocabulary, length, eos: 3, 9 and 15 completions
ONE, SMALL, ENDING = (3, 1, None), (3, 2, None), (3, 3, 2)
every_world = pytest.mark.parametrize(
    "world", [(SMALL, "table"), (ENDING, "table"), (ENDING, "transformer")],
    ids=lambda w: f"{w[1]}-{w[0][1]}")
tensor = functools.partial(torch.tensor, dtype=torch.float64)
cosine = functools.partial(torch.cosine_similarity, dim=0)
no_scale = functools.partial(group_advantages, scale="none")  # Dr. GRPO


class World:
    """A policy at some distance from a reference, and their log-probs, probabilities, gradients."""

    def __init__(self, shape, kind, distance, seed):
        self.oracle = Oracle(*shape)
        self.mask = self.oracle.mask
        self.policy, self.ref = (getattr(self.oracle, kind)(seed=seed) for _ in range(2))
        generator = torch.Generator().manual_seed(100 + seed)
        scale = 1.0 if kind == "table" else 0.3  # a transformer's weights are smaller than logits
        for x in self.policy.parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x.data += distance * scale * noise
        self.logp = self.oracle.logp(self.policy)  # (N, T)
        self.ref_logp = self.oracle.logp(self.ref).detach()
        self.seq, self.ref_seq = self.logp.sum(1), self.ref_logp.sum(1)  # (N,)
        self.p = self.oracle.prob(self.logp).detach()  # (N,)
        self.q = self.oracle.prob(self.ref_logp)  # (N,), what the reference gives each completion
        self.kl = self.gradient(self.oracle.kl(self.logp, self.ref_logp))
        self.reverse = self.gradient(self.oracle.kl(self.ref_logp, self.logp))

    def gradient(self, objective):
        return self.oracle.gradient(self.policy, objective)

    def truth(self, rewards):
        """The gradient of E[rewards]."""
        return self.gradient(self.oracle.mean(self.logp, rewards))

    def loss(self, k):
        """E[grad k]: the samples are fixed, and k is differentiated."""
        return self.gradient((self.p * k).sum())

    def reward(self, k):
        """E[k grad log pi]: k is a number."""
        return self.gradient((self.p * k.detach() * self.seq).sum())


@functools.cache
def build(world, distance=1.0, seed=0):
    return World(*world, distance, seed)


def error(actual, expected):
    """The relative error of a gradient."""
    return ((actual - expected).norm() / expected.norm()).item()


def rho_k3(logp, ref_logp):
    """corrected_k3 on-policy: the ratio is 1, and has a gradient."""
    return corrected_k3(logp, logp.detach(), ref_logp)


# ---- KL

# pi = (.4615, .2292, .3093), log(pi/ref) = .8363 -.7802 .0305
GRAD_KL = (0.28592, -0.22842, -0.05751)
GRAD_REVERSE = (0.26149, -0.27083, 0.00934)
DIFFERENCE = (0.02444, 0.04242, -0.06685)


@pytest.mark.parametrize("estimator, mean, variance, as_loss, as_reward, likeness", [
    (k1, 0.216570, 0.4155, (0.0, 0.0, 0.0), GRAD_KL, 1.0),
    # k2 in the reward: pi (k2 - .2312); the first is .4615 (.3497 - .2312) = .0547
    (k2, 0.231205, 0.02416, GRAD_KL, (0.05462, 0.01676, -0.07138), 0.469),
    (k3, 0.216570, 0.02359, GRAD_REVERSE, DIFFERENCE, 0.037),
    (rho_k3, 0.216570, 0.02359, GRAD_KL, DIFFERENCE, 0.037),
])
def test_kl_table_of_one_token(estimator, mean, variance, as_loss, as_reward, likeness):
    oracle = Oracle(3, 1)
    policy = oracle.table()
    policy.lm_head.weight.data[:, 0] = tensor([0.5, -0.2, 0.1])
    logp, ref_logp = oracle.logp(policy), tensor([[1, 0.2], [1, 0.5], [1, 0.3]]).log()
    p, k = oracle.prob(logp).detach(), estimator(logp, ref_logp).sum(1)
    gradient = functools.partial(oracle.gradient, policy)
    assert (p * k).sum().item() == pytest.approx(mean, abs=1e-6)
    assert (p * (k - mean).square()).sum().item() == pytest.approx(variance, abs=6e-5)
    in_reward = gradient((p * k.detach() * logp.sum(1)).sum())
    kl = gradient(oracle.kl(logp, ref_logp))
    for actual, expected in (
        (gradient((p * k).sum()), as_loss),
        (in_reward, as_reward),
        (kl, GRAD_KL),
        (gradient(oracle.kl(ref_logp, logp)), GRAD_REVERSE),
    ):
        torch.testing.assert_close(actual, tensor(expected), atol=6e-6, rtol=0)
    assert cosine(in_reward, kl) == pytest.approx(likeness, abs=6e-4)


@every_world
def test_kl_of_whole_sequences(world):
    """The theorem, with k of the whole completion's log-ratio.

    E_pi[k] has two halves, and what k2 and k3 lack in one they have in the other. In a reward rho
    is 1 and has no gradient. k2 in the reward penalises its own bias as a value.
    """
    w = build(world)
    a, b = w.seq, w.ref_seq
    assert error(w.reward(k1(a, b)), w.kl) < 1e-10
    assert w.loss(k1(a, b)).norm() < 1e-10 * w.kl.norm()
    assert error(w.loss(k2(a, b)), w.kl) < 1e-10
    assert error(w.loss(rho_k3(a, b)), w.kl) < 1e-10
    assert error(w.loss(k3(a, b)), w.reverse) < 1e-10 and error(w.loss(k3(a, b)), w.kl) > 0.1
    for estimator in (k3, rho_k3):
        assert error(w.reward(estimator(a, b)), w.kl - w.reverse) < 1e-10
    mean_k2 = w.oracle.mean(w.logp, (a - b).square() / 2)
    bias = w.gradient(mean_k2 - w.oracle.kl(w.logp, w.ref_logp))
    assert error(w.reward(k2(a, b)), bias) < 1e-10


@every_world
def test_kl_token_by_token(world):
    """Values: the mean of all but k2 is the KL.

    k1 in the reward, and rho of the sequence times the sum of k3: exact. k2 and rho_t k3_t as
    losses have the gradient of the full-vocabulary KL at the states visited, k3 that of the
    reverse; what a token does to the states that follow is lost.
    """
    w = build(world)
    kl = w.oracle.kl(w.logp, w.ref_logp)
    total = {k: k(w.logp, w.ref_logp).sum(1) for k in (k1, k2, k3, rho_k3)}
    bias = {k: abs(((w.p * x).sum() / kl).item() - 1) for k, x in total.items()}
    assert max(bias[k1], bias[k3], bias[rho_k3]) < 1e-12 and bias[k2] > 0.005
    assert error(w.reward(total[k1]), w.kl) < 1e-10
    assert w.loss(total[k1]).norm() < 1e-10 * w.kl.norm()
    sequence_rho = (w.seq - w.seq.detach()).exp()
    assert error(w.loss(sequence_rho * total[k3]), w.kl) < 1e-10
    logits, ref_logits = w.oracle.logits(w.policy), w.oracle.logits(w.ref).detach()
    full = w.loss(torch.where(w.mask, exact_kl(logits, ref_logits), 0).sum(1))
    # KL(ref || pi) without the entropy of ref, which has no gradient
    cross_entropy = -(ref_logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    reverse = w.loss(torch.where(w.mask, cross_entropy, 0).sum(1))
    assert error(w.loss(total[k2]), full) < 1e-10
    assert error(w.loss(total[rho_k3]), full) < 1e-10
    assert error(w.loss(total[k3]), reverse) < 1e-10
    assert error(full, w.kl) > 0.02


@pytest.mark.parametrize("kind, at_one", [("table", 0.20), ("transformer", 0.43)])
def test_what_token_losses_leave_out_shrinks_with_the_distance(kind, at_one):
    """It shrinks in proportion to the distance: means of eight worlds, with k2 for all three."""
    def mean_error(distance):
        worlds = [build((ENDING, kind), distance, seed) for seed in range(8)]
        return sum(error(w.loss(k2(w.logp, w.ref_logp).sum(1)), w.kl) for w in worlds) / 8

    far, middle, near = (mean_error(distance) for distance in (1.0, 0.3, 0.1))
    assert far == pytest.approx(at_one, abs=0.02)
    assert 2 < far / middle < 4 and 2 < middle / near < 4


@pytest.mark.parametrize("estimator", [k2, k3])
def test_k2_and_k3_in_the_reward_near_and_far(estimator):
    """Neither is a penalty.

    Near the reference there is nearly no gradient beside that of the KL: it shrinks in proportion
    to the distance. Far away there is plenty, and it points anywhere.
    """
    def gradients(distance):
        worlds = [build((ENDING, "table"), distance, seed) for seed in range(8)]
        return [(w.reward(estimator(w.logp, w.ref_logp).sum(1)), w.kl) for w in worlds]

    def mean_length(distance):
        return sum((g.norm() / kl.norm()).item() for g, kl in gradients(distance)) / 8

    nearest, near, far = (mean_length(distance) for distance in (0.01, 0.1, 3.0))
    assert near < 0.1 and 9 < near / nearest < 11 and far > 0.8
    directions = [cosine(g, kl) for g, kl in gradients(3.0)]
    assert min(directions) < -0.5 and max(directions) > 0.5


def test_kl_from_samples_of_another_policy():
    """rho k3 is right under anyone's samples, k2 only under the policy's own, or with weights.

    First one token of mu = (.6, .3, .1), then a world that a third policy samples.
    """
    mu, ref = tensor([0.6, 0.3, 0.1]), tensor([0.2, 0.5, 0.3]).log()
    logits = tensor([0.5, -0.2, 0.1]).requires_grad_()
    logp = logits.log_softmax(0)
    weight = importance_ratio(logp, mu.log()).detach()
    for k, expected in (
        (k2(logp, ref), (0.377, -0.296, -0.081)),
        (corrected_k3(logp, mu.log(), ref), GRAD_KL),
        (weight * k2(logp, ref), GRAD_KL),
    ):
        slope, = torch.autograd.grad((mu * k).sum(), logits, retain_graph=True)
        torch.testing.assert_close(slope, tensor(expected), atol=6e-4, rtol=0)
    w, other = build((ENDING, "table")), build((ENDING, "table"), 1.0, 1)

    def under_other(k):
        return w.gradient((other.p * k).sum())

    weights = sequence_weights(w.logp, other.logp.detach(), w.mask)
    plain = k2(w.seq, w.ref_seq)
    corrected = corrected_k3(w.seq, other.seq.detach(), w.ref_seq)
    assert error(under_other(corrected), w.kl) < 1e-10
    assert error(under_other(weights * plain), w.kl) < 1e-10
    assert error(under_other(plain), w.kl) > 0.2


# ---- advantages

def coin(p, group):
    """All outcomes of `group` tosses, by number of heads.

    Returns rewards (G + 1, G), their probability, and the score of each toss in the logit of p.
    """
    rewards = tensor([[1.0] * k + [0.0] * (group - k) for k in range(group + 1)])
    prob = [math.comb(group, k) * p ** k * (1 - p) ** (group - k) for k in range(group + 1)]
    return rewards, tensor(prob), rewards - p


def mean_and_variance(p, group, advantages):
    """Of the estimator 1/G sum_i A_i grad log pi_i."""
    rewards, prob, scores = coin(p, group)
    estimate = (advantages(rewards) * scores).mean(1)
    mean = (prob * estimate).sum()
    return mean.item(), (prob * (estimate - mean).square()).sum().item()


def reinforce_plus_plus(rewards):
    """Each group as a batch of one-token completions."""
    zero = torch.zeros_like(rewards[0])[:, None]
    adv = [reinforce_plus_plus_advantages(row, zero, zero, zero + 1, 0.0).T for row in rewards]
    return torch.cat(adv)


# Mean and variance at p = .1, .5 and .9. The truth is dJ/dlogit = p (1 - p): .09, .25, .09.
@pytest.mark.parametrize("advantages, tenth, half, nine_tenths", [
    (lambda r: r, (0.09, 0.00911), (0.25, 0.00781), (0.09, 0.00011)),
    # with baseline 1: REINFORCE with heads and tails exchanged
    (lambda r: remax_advantages(r, torch.ones_like(r[:, 0])),
     (0.09, 0.00011), (0.25, 0.00781), (0.09, 0.00911)),
    (leave_one_out_advantages, (0.09, 0.00749), (0.25, 0.00223), (0.09, 0.00749)),
    # 7/8 of the truth
    (no_scale, (0.07875, 0.00573), (0.21875, 0.00171), (0.07875, 0.00573)),
    # with equal lengths: Dr. GRPO
    (lambda r: opo_advantages(r, torch.full_like(r, 7.0)),
     (0.07875, 0.00573), (0.21875, 0.00171), (0.07875, 0.00573)),
    (group_advantages, (0.19591, 0.03049), (0.43387, 0.00309), (0.19591, 0.03049)),
    # one step each
    (lambda r: process_advantages(r[..., None]).squeeze(-1),
     (0.19591, 0.03049), (0.43387, 0.00309), (0.19591, 0.03049)),
    (lambda r: group_advantages(r, ddof=0),
     (0.20944, 0.03485), (0.46381, 0.00353), (0.20944, 0.03485)),
    # ddof 1 without GRPO's eps of 1e-4: .43387 (1 + eps / .53)
    (reinforce_plus_plus, (0.19596, 0.03051), (0.43395, 0.00309), (0.19596, 0.03051)),
], ids=["reinforce", "remax", "rloo", "dr_grpo", "opo", "grpo", "process", "grpo ddof 0",
        "reinforce++"])
def test_mean_and_variance_of_eight_tosses(advantages, tenth, half, nine_tenths):
    for p, expected in ((0.1, tenth), (0.5, half), (0.9, nine_tenths)):
        assert mean_and_variance(p, 8, advantages) == pytest.approx(expected, abs=6e-6)


def test_the_mean_reward_is_not_the_best_baseline():
    """One toss, p = .9, s = .1 for heads, -.9 for tails.

    R s is .1 with chance .9 and 0 with .1: variance .0009. (R - .9) s is .01 with .9 and .81 with
    .1: .0576. b* = E[s^2 R] / E[s^2] = .009 / (.009 + .081) = .1, and (R - .1) s is .09 both times.
    In a world b* has the least variance, summed over parameters.
    """
    rewards, prob, scores = coin(0.9, 1)
    best = optimal_baseline(rewards.T, (prob[:, None] * scores.square()).T).item()
    for baseline, variance in ((0.0, 0.0009), (0.9, 0.0576), (best, 0.0)):
        actual = mean_and_variance(0.9, 1, lambda r, baseline=baseline: r - baseline)
        assert actual == pytest.approx((0.09, variance), abs=1e-12)
    w = build((ENDING, "transformer"))
    rewards, scores = w.oracle.random(seed=5), w.oracle.scores(w.policy)
    best = optimal_baseline(rewards[None], (w.p * scores.square().sum(1))[None]).item()

    def variance(baseline):
        estimate = (rewards - baseline)[:, None] * scores  # (N, parameters)
        assert error((w.p[:, None] * estimate).sum(0), w.truth(rewards)) < 1e-10
        return (w.p[:, None] * (estimate - w.truth(rewards)).square()).sum().item()

    others = (0.0, (w.p * rewards).sum().item(), best - 1e-3, best + 1e-3)
    assert variance(best) < min(variance(b) for b in others)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("group", [2, 3, 8])
def test_maxrl_is_unbiased_for_one_order_less(p, group):
    """J_N = -sum_{k <= N} (1-p)^k / k goes to log p.

    With 0 where no toss was right, G tosses give the gradient of J_{G-1}; with -1 there (the
    control variate kept) that of J_G, as does 1/K sum r s. At p = .1: .09 and .171 (J_2 has .9 *
    .09 more).
    """
    def truth(order):
        logit = tensor(math.log(p / (1 - p))).requires_grad_()
        j = -sum((1 - torch.sigmoid(logit)) ** k / k for k in range(1, order + 1))
        return torch.autograd.grad(j, logit)[0].item()

    def mean(advantages):
        return mean_and_variance(p, group, advantages)[0]

    def keep_control_variate(r):
        return torch.where(r.sum(1, keepdim=True) == 0, -1, maxrl_advantages(r))

    def mean_score_of_the_right(r):
        return r / r.mean(1, keepdim=True).clamp(min=1e-9)

    assert p != 0.1 or (truth(1), truth(2)) == pytest.approx((0.09, 0.171))
    assert mean(maxrl_advantages) == pytest.approx(truth(group - 1), rel=1e-10)
    assert mean(keep_control_variate) == pytest.approx(truth(group), rel=1e-10)
    assert mean(mean_score_of_the_right) == pytest.approx(truth(group), rel=1e-10)


@every_world
@pytest.mark.parametrize("group", [2, 3])
def test_groups_of_completions(world, group):
    """Over all N^G groups, RLOO is the gradient and Dr. GRPO (G - 1)/G of it.

    GRPO is not. In a group of two only the winner counts, A = ±.7071: it climbs the chance to beat
    oneself.
    """
    w = build(world)
    rewards = w.oracle.random(seed=6)
    index = torch.cartesian_prod(*[torch.arange(len(w.p))] * group)  # (N^G, G)
    chance = w.p[index].prod(1, keepdim=True)  # (N^G, 1)

    def mean(advantages):
        return w.gradient((chance * advantages(rewards[index]) * w.seq[index]).sum() / group)

    assert error(mean(leave_one_out_advantages), w.truth(rewards)) < 1e-10
    assert error(mean(no_scale), w.truth(rewards) * (group - 1) / group) < 1e-10
    grpo = mean(functools.partial(group_advantages, eps=1e-12))
    beaten = (w.p * torch.sign(rewards[:, None] - rewards)).sum(1)  # (N,): wins minus losses
    climbs_beaten = error(grpo, w.truth(beaten) * math.sqrt(0.5)) < 1e-9
    assert climbs_beaten == (group == 2)
    assert cosine(grpo, w.truth(rewards)) < 0.999


@pytest.mark.parametrize("scale, expected", [
    ("none", 0.36), ("group", 0.19591 / 0.43387), ("batch", 0.344),
])
def test_what_a_std_does_to_the_weight_of_a_prompt(scale, expected):
    """Two prompts with p = .1 and .5, eight tosses each: the true gradients are .09 : .25 = .36.

    "none" keeps that. The group's std makes the hard prompt count for more, .19591 : .43387, as if
    each were alone. The batch's couples them, and the hard one counts for a little less.
    """
    (hard, p_hard, s_hard), (easy, p_easy, s_easy) = coin(0.1, 8), coin(0.5, 8)
    i, j = torch.cartesian_prod(torch.arange(9), torch.arange(9)).T  # 81 batches of two groups
    rewards, scores = torch.stack([hard[i], easy[j]], 1), torch.stack([s_hard[i], s_easy[j]], 1)
    adv = torch.stack([group_advantages(batch, scale=scale) for batch in rewards])  # (81, 2, 8)
    estimates = (adv * scores).mean(-1)  # (81, 2)
    hard_mean, easy_mean = (p_hard[i] * p_easy[j] @ estimates).tolist()
    assert hard_mean / easy_mean == pytest.approx(expected, abs=6e-4)


# ---- training-inference mismatch

def biases(world, distance=1.0, seed=0, cap=1.5):
    """The reference samples, the policy learns: the relative error of E_mu[sum_t w_t R grad log
    pi_t] under each weight w."""
    w = build(world, distance, seed)
    rewards, logp = w.oracle.random(seed=seed + 7), w.logp.detach()
    token = importance_ratio(logp, w.ref_logp)
    sequence = sequence_weights(logp, w.ref_logp, w.mask)[:, None]
    weights = {
        "none": torch.ones_like(token),
        "token": token,
        "token_tis": truncated_weights(token, cap),
        "token_mis": masked_weights(token, cap),
        "sequence": sequence,
        "tis": truncated_weights(sequence, cap),
        "mis": masked_weights(sequence, cap),
    }

    def estimate(x):
        return w.gradient((w.q[:, None] * x * rewards[:, None] * w.logp).sum())

    return {name: error(estimate(x), w.truth(rewards)) for name, x in weights.items()}


@every_world
def test_importance_weights_of_sequences_and_of_tokens(world):
    """Only the whole sequence's weight is exact.

    A cap that nothing reaches changes nothing. A token's own weight leaves out the tokens before
    it, and is exact only where there is one token.
    """
    idle, biting = biases(world, cap=1e6), biases(world)
    single = biases((ONE, "table"), cap=1e6)
    assert max(idle["sequence"], idle["tis"], idle["mis"], single["token"]) < 1e-10
    assert 0.01 < min(biting["tis"], biting["mis"], single["none"])
    assert idle["token_tis"] == idle["token_mis"] == idle["token"] > 0.05
    assert biting["token_tis"] != biting["token"] != biting["token_mis"]


def test_masking_can_be_worse_than_no_weight():
    """The mask removes what the policy likes better than the sampler does.

    Where the cap has no effect (seed 5) the mask costs nothing. A token's own weight can be worse
    than none, too (seed 3).
    """
    names = ("sequence", "tis", "token", "none", "mis")
    typical, no_effect, worse = (biases((SMALL, "table"), 0.3, seed) for seed in (2, 5, 3))
    expected = [0.0, 0.148, 0.446, 0.865, 1.321]
    assert [typical[name] for name in names] == pytest.approx(expected, abs=1e-3)
    assert no_effect["mis"] < 1e-10 < 0.1 < no_effect["token"] < no_effect["none"]
    assert worse["none"] < worse["token"]


@pytest.mark.parametrize("length, variance", [
    (1, 0.0101), (2, 0.0203), (5, 0.0515), (10, 0.1057),  # 1.0101^T - 1
])
def test_the_weight_of_a_sequence_varies_exponentially(length, variance):
    """Sampler (1/2, 1/2), policy (.55025, .44975) at every step: chi^2 = 4 * .05025^2 = .0101.

    Each of the 2^T sequences once is the sampler's distribution itself, so ESS / N is
    E[w]^2 / E[w^2].
    """
    oracle = Oracle(2, length)
    logp, behavior = (torch.where(oracle.mask, tensor(x).log()[oracle.tokens], 0)
                      for x in ((0.55025, 0.44975), (0.5, 0.5)))
    weights, q = sequence_weights(logp, behavior, oracle.mask), oracle.prob(behavior)
    assert (q * weights).sum().item() == pytest.approx(1)
    assert (q * (weights - 1).square()).sum().item() == pytest.approx(variance, abs=6e-5)
    share = effective_sample_size(weights) / len(weights)
    assert share.item() == pytest.approx(1 / (1 + variance), abs=6e-5)


# ---- generalised advantage estimation

@every_world
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae(world, gamma):
    """lam = 1 is exact with any V of the state, any lam with the true V; a wrong V and lam < 1 are
    biased.

    The objective is the whole of RLHF: score at the end, -beta k1 on the way. Its gradient is that
    of E[score] - beta KL (InstructGPT, eq. 2).
    """
    w = build(world)
    scores = w.oracle.random(seed=8)
    discount = gamma ** (torch.arange(w.mask.shape[1]).double() - 1)  # the first token is in slot 1
    rewards = kl_shaped_rewards(scores, w.logp, w.ref_logp, w.mask, 0.3)
    exact = w.truth((discount * rewards).sum(1))
    assert gamma != 1 or error(exact, w.truth(scores) - 0.3 * w.kl) < 1e-10
    true = w.oracle.values(w.logp.detach(), rewards, gamma=gamma)
    # of another policy and other rewards: still of the state
    wrong = w.oracle.values(w.ref_logp, rewards.flip(0), gamma=gamma)

    def bias(values, lam):
        adv, _ = gae(rewards, values, w.mask, gamma=gamma, lam=lam)
        return error(w.loss((discount * policy_gradient(w.logp, adv)).sum(1)), exact)

    assert bias(wrong, 1.0) < 1e-10
    assert max(bias(true, lam) for lam in (0.0, 0.5, 0.95, 1.0)) < 1e-10
    assert bias(wrong, 0.0) > bias(wrong, 0.95) > 1e-3


@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_gae_of_a_truncated_completion(lam):
    """The third token is not sampled any more. The true V of the state before it, as bootstrap,
    stands for all that would have come."""
    w = build((ENDING, "table"))
    rewards = kl_shaped_rewards(w.oracle.random(seed=8), w.logp, w.ref_logp, w.mask, 0.3)
    values = w.oracle.values(w.logp.detach(), rewards)
    early = w.mask & (torch.arange(4) < 3)
    true_adv = w.oracle.advantages(w.logp.detach(), rewards)
    exact = w.loss((early * true_adv * w.logp).sum(1))

    def bias(bootstrap):
        adv, _ = gae(rewards * early, values * early, early, lam=lam, bootstrap=bootstrap)
        return error(w.loss((adv * w.logp).sum(1)), exact)

    assert bias(values[:, 3]) < 1e-10 < 0.05 < bias(None)


# ---- surrogates

@every_world
@pytest.mark.parametrize("objective", [
    lambda logp, old, adv: policy_gradient(logp, adv),
    # old - logp has no gradient on average
    lambda logp, old, adv: kl_penalised_surrogate(logp, old, adv, old - logp, 0.3),
    clipped_surrogate,
    dual_clipped_surrogate,
    functools.partial(cispo, cap=5.0),
    sapo,
], ids=["policy_gradient", "kl_penalised", "clipped", "dual_clipped", "cispo", "sapo"])
def test_every_surrogate_is_the_policy_gradient_at_ratio_one(world, objective):
    w = build(world)
    rewards = w.oracle.random(seed=9)
    last = w.mask & (w.mask.flip(1).cumsum(1).flip(1) == 1)
    adv = w.oracle.advantages(w.logp.detach(), torch.where(last, rewards[:, None], 0))
    surrogate = objective(w.logp, w.logp.detach(), adv).sum(1)
    assert error(w.loss(surrogate), w.truth(rewards)) < 1e-10


@every_world
def test_sequence_surrogates(world):
    """The product of ratios has the gradient of J wherever the samples came from, until the clip
    takes effect.

    GSPO's mean has 1/|o| of each completion's share: the gradient over T where all are T long, and
    another direction where they are not. gspo_token has the same value and gradient, clipped or
    not.
    """
    w = build(world)
    rewards, old, lengths = w.oracle.random(seed=9), w.logp.detach(), w.mask.sum(1)
    exact = w.truth(rewards)
    product, mean = (
        functools.partial(sequence_clipped_surrogate, w.logp, adv=rewards, mask=w.mask,
                          length_normalised=normalised)
        for normalised in (False, True))

    def from_ref(surrogate):  # the reference samples
        return w.gradient((w.q * surrogate).sum())

    on_policy = product(old_logp=old, clip_low=0.0, clip_high=0.0)
    assert error(w.loss(on_policy), exact) < 1e-10
    unclipped = product(old_logp=w.ref_logp, clip_low=1.0, clip_high=1e6)
    assert error(from_ref(unclipped), exact) < 1e-10
    clipped = product(old_logp=w.ref_logp, clip_low=0.2, clip_high=0.2)
    assert error(from_ref(clipped), exact) > 0.05

    off_policy = mean(old_logp=w.ref_logp, clip_low=0.2, clip_high=0.2)
    token_adv = rewards[:, None].expand_as(w.logp)
    by_token = gspo_token(w.logp, w.ref_logp, token_adv, w.mask, clip_low=0.2, clip_high=0.2)
    by_token = torch.where(w.mask, by_token, 0).sum(1) / lengths
    assert error(by_token, off_policy) < 1e-10
    assert error(from_ref(by_token), from_ref(off_policy)) < 1e-10

    gspo = w.loss(mean(old_logp=old, clip_low=3e-4, clip_high=4e-4))
    if lengths.min() == lengths.max():
        assert error(gspo, exact / w.oracle.length) < 1e-10
    else:
        assert cosine(gspo, exact) < 0.999


# ---- preferences

@pytest.mark.parametrize("shape", [SMALL, ENDING])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_finds_the_optimum_of_rlhf(shape, beta):
    """Where preferences are Bradley-Terry in r, the minimum of the expected DPO loss over all pairs
    is ref e^{r / beta} / Z (DPO, section 4), for a policy token by token too.

    There, and not before, the gradient of E[r] - beta KL is 0.
    """
    oracle = Oracle(*shape)
    policy = oracle.table(seed=1)
    ref_logp, rewards = oracle.logp(oracle.table(seed=2)).detach(), oracle.random(seed=3)
    ref = ref_logp.sum(1)
    # each pair both ways, the first preferred
    first, second = torch.cartesian_prod(*[torch.arange(len(oracle))] * 2).T
    odds = rewards[first].exp() / (rewards[first].exp() + rewards[second].exp())
    optimiser = torch.optim.LBFGS(policy.parameters(), max_iter=2000, tolerance_grad=1e-12,
                                  tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        seq = oracle.logp(policy).sum(1)
        losses = dpo_loss(seq[first], seq[second], ref[first], ref[second], beta=beta)
        loss = (odds * losses).mean()
        loss.backward()
        return loss

    def slope():
        logp = oracle.logp(policy)
        objective = oracle.mean(logp, rewards) - beta * oracle.kl(logp, ref_logp)
        return oracle.gradient(policy, objective).norm().item()

    before = slope()
    optimiser.step(closure)
    assert slope() < 1e-5 < 0.1 < before
    tilted = ref.exp() * (rewards / beta).exp()
    optimum = oracle.prob(oracle.logp(policy)).detach()
    for p in (optimum, reward_guided(ref, rewards, beta=beta).exp()):
        torch.testing.assert_close(p, tilted / tilted.sum(), atol=1e-6, rtol=0)
