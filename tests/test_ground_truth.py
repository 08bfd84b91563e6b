"""Every estimator against the truth: in worlds that can be listed whole (tests/oracle.py), expectations are sums in float64, and the gradients that
they must have are autograd of the exact objective. Nothing is sampled, so nothing here is approximately true."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch

from minirl.equations.advantages import (gae, group_advantages, leave_one_out_advantages, maxrl_advantages, opo_advantages, optimal_baseline,
                                         process_advantages, reinforce_plus_plus_advantages, remax_advantages)
from minirl.equations.kl import corrected_k3, exact_kl, k1, k2, k3, kl_shaped_rewards
from minirl.equations.mismatch import effective_sample_size, importance_ratio, masked_weights, sequence_weights, truncated_weights
from minirl.equations.objectives import (cispo, clipped_surrogate, dual_clipped_surrogate, gspo_token, kl_penalised_surrogate, policy_gradient, sapo,
                                         sequence_clipped_surrogate)
from minirl.equations.preferences import dpo_loss
from minirl.equations.inference_time import reward_guided
from tests.oracle import Oracle

ONE, SMALL, ENDING = (3, 1, None), (3, 2, None), (3, 3, 2)                                  # vocab, length, eos: 3, 9 and 15 completions
every_world = pytest.mark.parametrize("world", [(SMALL, "table"), (ENDING, "table"), (ENDING, "transformer")], ids=lambda w: f"{w[1]}-{w[0][1]}")
tensor, cosine = functools.partial(torch.tensor, dtype=torch.float64), functools.partial(torch.cosine_similarity, dim=0)
no_scale = functools.partial(group_advantages, scale="none")                                # Dr. GRPO


@functools.lru_cache(maxsize=None)
def build(world, distance=1.0, seed=0):
    """A policy `distance` away from a reference (q: what the reference gives each completion), and all that tests ask of the two."""
    shape, kind = world
    oracle = Oracle(*shape)
    policy, ref = (getattr(oracle, kind)(seed=seed) for _ in range(2))
    generator = torch.Generator().manual_seed(100 + seed)
    for x in policy.parameters():                                                           # a transformer's weights are smaller than logits are
        x.data += distance * (1.0 if kind == "table" else 0.3) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    logp, ref_logp, gradient = oracle.logp(policy), oracle.logp(ref).detach(), functools.partial(oracle.gradient, policy)
    p, seq = oracle.prob(logp).detach(), logp.sum(1)
    return SimpleNamespace(oracle=oracle, mask=oracle.mask, policy=policy, ref=ref, logp=logp, ref_logp=ref_logp, seq=seq, ref_seq=ref_logp.sum(1),
                           p=p, q=oracle.prob(ref_logp), gradient=gradient,
                           kl=gradient(oracle.kl(logp, ref_logp)), reverse=gradient(oracle.kl(ref_logp, logp)),
                           truth=lambda rewards: gradient(oracle.mean(logp, rewards)),
                           loss=lambda k: gradient((p * k).sum()),                          # E[grad k]: samples are given, k is differentiated
                           reward=lambda k: gradient((p * k.detach() * seq).sum()))         # E[k grad log pi]: k is a number


def error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def rho_k3(logp, ref_logp):
    """corrected_k3 on-policy: the ratio is 1, and has a gradient."""
    return corrected_k3(logp, logp.detach(), ref_logp)


# KL: papers.md 2.16. pi (.4615, .2292, .3093), log(pi/ref) .8363 -.7802 .0305. k2 in the reward: pi (k2 - .2312), .4615 (.3497 - .2312) = .0547 first
GRAD_KL, GRAD_REVERSE, DIFFERENCE = (0.28592, -0.22842, -0.05751), (0.26149, -0.27083, 0.00934), (0.02444, 0.04242, -0.06685)


@pytest.mark.parametrize("estimator, mean, variance, as_loss, as_reward, likeness", [
    (k1, 0.216570, 0.4155, (0.0, 0.0, 0.0), GRAD_KL, 1.0),
    (k2, 0.231205, 0.02416, GRAD_KL, (0.05462, 0.01676, -0.07138), 0.469),
    (k3, 0.216570, 0.02359, GRAD_REVERSE, DIFFERENCE, 0.037),
    (rho_k3, 0.216570, 0.02359, GRAD_KL, DIFFERENCE, 0.037),
])
def test_kl_table_of_one_token(estimator, mean, variance, as_loss, as_reward, likeness):
    oracle = Oracle(3, 1)
    policy = oracle.table()
    policy.lm_head.weight.data[:, 0] = tensor([0.5, -0.2, 0.1])
    logp, ref_logp = oracle.logp(policy), tensor([[1, 0.2], [1, 0.5], [1, 0.3]]).log()
    p, k, gradient = oracle.prob(logp).detach(), estimator(logp, ref_logp).sum(1), functools.partial(oracle.gradient, policy)
    assert (p * k).sum().item() == pytest.approx(mean, abs=1e-6)
    assert (p * (k - mean).square()).sum().item() == pytest.approx(variance, abs=6e-5)
    in_reward, kl = gradient((p * k.detach() * logp.sum(1)).sum()), gradient(oracle.kl(logp, ref_logp))
    for found, expected in ((gradient((p * k).sum()), as_loss), (in_reward, as_reward), (kl, GRAD_KL),
                            (gradient(oracle.kl(ref_logp, logp)), GRAD_REVERSE)):
        torch.testing.assert_close(found, tensor(expected), atol=6e-6, rtol=0)
    assert cosine(in_reward, kl) == pytest.approx(likeness, abs=6e-4)


@every_world
def test_kl_of_whole_sequences(world):
    """The theorem, with k of the whole completion's log-ratio. E_pi[k] has two halves, and what k2 and k3 lack in one they have in the other."""
    w = build(world)
    a, b = w.seq, w.ref_seq
    assert error(w.reward(k1(a, b)), w.kl) < 1e-10 and w.loss(k1(a, b)).norm() < 1e-10 * w.kl.norm()
    assert error(w.loss(k2(a, b)), w.kl) < 1e-10 and error(w.loss(rho_k3(a, b)), w.kl) < 1e-10
    assert error(w.loss(k3(a, b)), w.reverse) < 1e-10 and error(w.loss(k3(a, b)), w.kl) > 0.1
    for estimator in (k3, rho_k3):                                                           # in a reward rho is 1 and has no gradient
        assert error(w.reward(estimator(a, b)), w.kl - w.reverse) < 1e-10
    bias = w.gradient(w.oracle.mean(w.logp, (a - b).square() / 2) - w.oracle.kl(w.logp, w.ref_logp))
    assert error(w.reward(k2(a, b)), bias) < 1e-10                                           # k2 in the reward penalises its own bias as a value


@every_world
def test_kl_token_by_token(world):
    """Values: all but k2 have KL as their mean. k1 in the reward, and rho of the sequence times the sum of k3: exact. k2 and rho_t k3_t as losses
    have the gradient of the full-vocabulary KL at the states visited, k3 that of the reverse; what a token does to the states behind it is lost."""
    w = build(world)
    total = {estimator: estimator(w.logp, w.ref_logp).sum(1) for estimator in (k1, k2, k3, rho_k3)}
    wrong = {estimator: abs(((w.p * k).sum() / w.oracle.kl(w.logp, w.ref_logp)).item() - 1) for estimator, k in total.items()}
    assert max(wrong[k1], wrong[k3], wrong[rho_k3]) < 1e-12 and wrong[k2] > 0.005
    assert error(w.reward(total[k1]), w.kl) < 1e-10 and w.loss(total[k1]).norm() < 1e-10 * w.kl.norm()
    assert error(w.loss((w.seq - w.seq.detach()).exp() * total[k3]), w.kl) < 1e-10
    logits, ref_logits = w.oracle.logits(w.policy), w.oracle.logits(w.ref).detach()
    full = w.loss(torch.where(w.mask, exact_kl(logits, ref_logits), 0).sum(1))
    reverse = w.loss(torch.where(w.mask, -(ref_logits.softmax(-1) * logits.log_softmax(-1)).sum(-1), 0).sum(1))        # plus an entropy of ref alone
    assert max(error(w.loss(total[k2]), full), error(w.loss(total[rho_k3]), full), error(w.loss(total[k3]), reverse)) < 1e-10
    assert error(full, w.kl) > 0.02


@pytest.mark.parametrize("kind, at_one", [("table", 0.20), ("transformer", 0.43)])
def test_what_token_losses_leave_out_shrinks_with_the_distance(kind, at_one):
    """Like the distance. papers.md 2.16 has .56 .24 .08 at 1, .3, .1 in a world of its own; here means of eight worlds, k2 standing for all three."""
    worlds = [[build((ENDING, kind), distance, seed) for seed in range(8)] for distance in (1.0, 0.3, 0.1)]
    far, middle, close = (sum(error(w.loss(k2(w.logp, w.ref_logp).sum(1)), w.kl) for w in row) / 8 for row in worlds)
    assert far == pytest.approx(at_one, abs=0.02) and 2 < far / middle < 4 and 2 < middle / close < 4


@pytest.mark.parametrize("estimator", [k2, k3])
def test_k2_and_k3_in_the_reward_near_and_far(estimator):
    """Neither is a penalty. Near the reference there is nearly no gradient beside that of the KL: it shrinks like the distance. Far away there is
    plenty, and it points anywhere: "nearly none" holds in the neighbourhood only."""
    worlds = [[build((ENDING, "table"), distance, seed) for seed in range(8)] for distance in (0.01, 0.1, 3.0)]
    gradients = [[w.reward(estimator(w.logp, w.ref_logp).sum(1)) for w in row] for row in worlds]
    nearest, close, far = (sum((g.norm() / w.kl.norm()).item() for g, w in zip(*rows)) / 8 for rows in zip(gradients, worlds))
    directions = [cosine(g, w.kl) for g, w in zip(gradients[2], worlds[2])]
    assert close < 0.1 and 9 < close / nearest < 11 and far > 0.8 and min(directions) < -0.5 and max(directions) > 0.5


def test_kl_from_samples_of_another_policy():
    """rho k3 is right from anyone's samples, k2 only from the policy's own or weighted. One token of mu = (.6, .3, .1), papers.md 2.16; a world."""
    mu, ref, logits = tensor([0.6, 0.3, 0.1]), tensor([0.2, 0.5, 0.3]).log(), tensor([0.5, -0.2, 0.1]).requires_grad_()
    logp = logits.log_softmax(0)
    weight = importance_ratio(logp, mu.log()).detach()
    for k, expected in ((k2(logp, ref), (0.377, -0.296, -0.081)), (corrected_k3(logp, mu.log(), ref), GRAD_KL), (weight * k2(logp, ref), GRAD_KL)):
        found = torch.autograd.grad((mu * k).sum(), logits, retain_graph=True)[0]
        torch.testing.assert_close(found, tensor(expected), atol=6e-4, rtol=0)
    w, other = build((ENDING, "table")), build((ENDING, "table"), 1.0, 1)                    # a third policy samples
    weights, plain = sequence_weights(w.logp, other.logp.detach(), w.mask), k2(w.seq, w.ref_seq)
    found = [w.gradient((other.p * k).sum()) for k in (corrected_k3(w.seq, other.seq.detach(), w.ref_seq), weights * plain, plain)]
    assert max(error(found[0], w.kl), error(found[1], w.kl)) < 1e-10 and error(found[2], w.kl) > 0.2


# Advantages: papers.md, appendix A.2, with eps 1e-4. The truth is dJ/dlogit = p (1 - p), .09 and .25. ReMax with baseline 1 is REINFORCE with heads
# and tails exchanged; OPO with equal lengths is Dr. GRPO, 7/8 of the truth. GRPO for two, in any world, has a test of its own.

def coin(p, group):
    """All outcomes of `group` tosses, by number of heads: rewards (G + 1, G), their probability and the score of each toss, in the logit of p."""
    rewards = tensor([[1.0] * k + [0.0] * (group - k) for k in range(group + 1)])
    return rewards, tensor([math.comb(group, k) * p ** k * (1 - p) ** (group - k) for k in range(group + 1)]), rewards - p


def mean_and_variance(p, group, advantages):
    """Of the estimator 1/G sum_i A_i grad log pi_i."""
    rewards, prob, scores = coin(p, group)
    estimate = (advantages(rewards) * scores).mean(1)
    mean = (prob * estimate).sum()
    return mean.item(), (prob * (estimate - mean).square()).sum().item()


def plus_plus(rewards):
    zero = torch.zeros_like(rewards[0])[:, None]                                             # each group a batch of one-token completions
    return torch.cat([reinforce_plus_plus_advantages(row, zero, zero, zero + 1, 0.0).T for row in rewards])


@pytest.mark.parametrize("advantages, tenth, half, nine_tenths", [
    (lambda r: r, (0.09, 0.00911), (0.25, 0.00781), (0.09, 0.00011)),
    (lambda r: remax_advantages(r, torch.ones_like(r[:, 0])), (0.09, 0.00011), (0.25, 0.00781), (0.09, 0.00911)),
    (leave_one_out_advantages, (0.09, 0.00749), (0.25, 0.00223), (0.09, 0.00749)),
    (no_scale, (0.07875, 0.00573), (0.21875, 0.00171), (0.07875, 0.00573)),
    (lambda r: opo_advantages(r, torch.full_like(r, 7.0)), (0.07875, 0.00573), (0.21875, 0.00171), (0.07875, 0.00573)),
    (group_advantages, (0.19591, 0.03049), (0.43387, 0.00309), (0.19591, 0.03049)),
    (lambda r: process_advantages(r[..., None]).squeeze(-1), (0.19591, 0.03049), (0.43387, 0.00309), (0.19591, 0.03049)),       # one step each
    (lambda r: group_advantages(r, ddof=0), (0.20944, 0.03485), (0.46381, 0.00353), (0.20944, 0.03485)),
    (plus_plus, (0.19596, 0.03051), (0.43395, 0.00309), (0.19596, 0.03051)),                 # ddof 1 without GRPO's eps: .43387 (1 + eps / .53)
], ids=["reinforce", "remax", "rloo", "dr_grpo", "opo", "grpo", "process", "grpo ddof 0", "reinforce++"])
def test_mean_and_variance_of_eight_tosses(advantages, tenth, half, nine_tenths):
    for p, expected in ((0.1, tenth), (0.5, half), (0.9, nine_tenths)):
        assert mean_and_variance(p, 8, advantages) == pytest.approx(expected, abs=6e-6)


def test_the_mean_reward_is_not_the_best_baseline():
    """One toss, p = .9. s = .1 for heads, -.9 for tails. R s: .1 with .9, 0 with .1: variance .0009. (R - .9) s: .01 with .9, .81 with .1: .0576.
    b* = E[s^2 R] / E[s^2] = .009 / (.009 + .081) = .1, and (R - .1) s is .09 both times. In a world: least variance, summed over parameters."""
    rewards, prob, scores = coin(0.9, 1)
    best = optimal_baseline(rewards.T, (prob[:, None] * scores.square()).T).item()
    for baseline, variance in ((0.0, 0.0009), (0.9, 0.0576), (best, 0.0)):
        assert mean_and_variance(0.9, 1, lambda r: r - baseline) == pytest.approx((0.09, variance), abs=1e-12)
    w = build((ENDING, "transformer"))
    rewards, scores = w.oracle.random(seed=5), w.oracle.scores(w.policy)
    best = optimal_baseline(rewards[None], (w.p * scores.square().sum(1))[None]).item()

    def variance(baseline):
        estimate = (rewards - baseline)[:, None] * scores                                    # (N, parameters)
        assert error((w.p[:, None] * estimate).sum(0), w.truth(rewards)) < 1e-10
        return (w.p[:, None] * (estimate - w.truth(rewards)).square()).sum().item()

    assert variance(best) < min(variance(b) for b in (0.0, (w.p * rewards).sum().item(), best - 1e-3, best + 1e-3))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("group", [2, 3, 8])
def test_maxrl_is_unbiased_for_one_order_less(p, group):
    """J_N = -sum_{k <= N} (1-p)^k / k, which goes to log p. With 0 where no toss was right G tosses give J_{G-1}; with -1 there (the control variate
    kept) J_G, as does 1/K sum r s. papers.md 2.17, p = .1: .09 and .171 (J_2 has .9 * .09 more)."""
    def truth(order):
        logit = tensor(math.log(p / (1 - p))).requires_grad_()
        return torch.autograd.grad(-sum((1 - torch.sigmoid(logit)) ** k / k for k in range(1, order + 1)), logit)[0].item()

    assert p != 0.1 or (truth(1), truth(2)) == pytest.approx((0.09, 0.171))
    assert mean_and_variance(p, group, maxrl_advantages)[0] == pytest.approx(truth(group - 1), rel=1e-10)
    for kept in (lambda r: torch.where(r.sum(1, keepdim=True) == 0, -1, maxrl_advantages(r)), lambda r: r / r.mean(1, keepdim=True).clamp(min=1e-9)):
        assert mean_and_variance(p, group, kept)[0] == pytest.approx(truth(group), rel=1e-10)


@every_world
@pytest.mark.parametrize("group", [2, 3])
def test_groups_of_completions(world, group):
    """RLOO is the gradient and Dr. GRPO (G - 1)/G of it, over all N^G groups. GRPO is not: of two, only who is better counts, A = +-.7071, and it
    climbs the chance to beat oneself."""
    w = build(world)
    rewards, index = w.oracle.random(seed=6), torch.cartesian_prod(*[torch.arange(len(w.p))] * group)            # (N^G, G)

    def expected(advantages):
        return w.gradient((w.p[index].prod(1, keepdim=True) * advantages(rewards[index]) * w.seq[index]).sum() / group)

    assert error(expected(leave_one_out_advantages), w.truth(rewards)) < 1e-10
    assert error(expected(no_scale), w.truth(rewards) * (group - 1) / group) < 1e-10
    grpo = expected(lambda r: group_advantages(r, eps=1e-12))
    beaten = (w.p * torch.sign(rewards[:, None] - rewards)).sum(1)                           # (N,): chance to win less chance to lose
    assert (error(grpo, w.truth(beaten) * math.sqrt(0.5)) < 1e-9) == (group == 2) and cosine(grpo, w.truth(rewards)) < 0.999


def test_what_a_std_does_to_the_weight_of_a_prompt():
    """Two prompts with p = .1 and .5, eight tosses each: the true gradients stand .09 : .25 = .36. "none" keeps that; the group's std makes the hard
    prompt count for more, .19591 : .43387, as if each were alone; the batch's couples them, and the hard one counts for a little less."""
    (hard, p_hard, s_hard), (easy, p_easy, s_easy) = coin(0.1, 8), coin(0.5, 8)
    i, j = torch.cartesian_prod(torch.arange(9), torch.arange(9)).T                          # all 81 outcomes, each a batch of two groups
    rewards, scores = torch.stack([hard[i], easy[j]], 1), torch.stack([s_hard[i], s_easy[j]], 1)                      # (81, 2, 8)
    for scale, expected in (("none", 0.36), ("group", 0.19591 / 0.43387), ("batch", 0.344)):
        estimates = (torch.stack([group_advantages(batch, scale=scale) for batch in rewards]) * scores).mean(-1)      # (81, 2)
        hard_mean, easy_mean = (p_hard[i] * p_easy[j] @ estimates).tolist()
        assert hard_mean / easy_mean == pytest.approx(expected, abs=6e-4), scale


def biases(world, distance=1.0, seed=0, cap=1.5):
    """The reference samples, the policy learns: relative error of E_mu[sum_t w_t R grad log pi_t] under each weight w."""
    w = build(world, distance, seed)
    rewards, logp = w.oracle.random(seed=seed + 7), w.logp.detach()
    token, sequence = importance_ratio(logp, w.ref_logp), sequence_weights(logp, w.ref_logp, w.mask)[:, None]
    weights = {"none": torch.ones_like(token), "token": token, "token_tis": truncated_weights(token, cap), "token_mis": masked_weights(token, cap),
               "sequence": sequence, "tis": truncated_weights(sequence, cap), "mis": masked_weights(sequence, cap)}
    return {name: error(w.gradient((w.q[:, None] * x * rewards[:, None] * w.logp).sum()), w.truth(rewards)) for name, x in weights.items()}


@every_world
def test_importance_weights_of_sequences_and_of_tokens(world):
    """Only the whole sequence's weight is exact. A cap that nothing reaches changes nothing; a token's own weight leaves out the tokens before it,
    and is exact only where there is one token."""
    idle, biting, single = biases(world, cap=1e6), biases(world), biases((ONE, "table"), cap=1e6)
    assert max(idle["sequence"], idle["tis"], idle["mis"], single["token"]) < 1e-10 < 0.01 < min(biting["tis"], biting["mis"], single["none"])
    assert idle["token_tis"] == idle["token_mis"] == idle["token"] > 0.05 and biting["token_tis"] != biting["token"] != biting["token_mis"]


def test_masking_can_be_worse_than_no_weight():
    """What is masked is what the policy likes better than the sampler does. papers.md 2.15 has 0, .042, .175, .398, 1.10 in a world of its own, in
    the same order. Where the cap does not bite (seed 5) the mask costs nothing; and a token's own weight can be worse than none, too (seed 3)."""
    found, spared, worse = (biases((SMALL, "table"), 0.3, seed) for seed in (2, 5, 3))
    assert [found[x] for x in ("sequence", "tis", "token", "none", "mis")] == pytest.approx([0.0, 0.148, 0.446, 0.865, 1.321], abs=1e-3)
    assert spared["mis"] < 1e-10 < 0.1 < spared["token"] < spared["none"] and worse["none"] < worse["token"]


@pytest.mark.parametrize("length, expected", [(1, 0.0101), (2, 0.0203), (5, 0.0515), (10, 0.1057)])         # 1.0101^T - 1
def test_the_weight_of_a_sequence_varies_exponentially(length, expected):
    """Sampler (1/2, 1/2), policy (.55025, .44975) at every step: chi^2 = 4 * .05025^2 = .0101; papers.md 2.15: variance .11 after ten tokens. Each of
    the 2^T sequences once is the sampler's distribution itself, so that ESS / N = E[w]^2 / E[w^2]."""
    oracle = Oracle(2, length)
    logp, behavior = (torch.where(oracle.mask, tensor(x).log()[oracle.tokens], 0) for x in ((0.55025, 0.44975), (0.5, 0.5)))
    weights, q = sequence_weights(logp, behavior, oracle.mask), oracle.prob(behavior)
    assert (q * weights).sum().item() == pytest.approx(1) and (q * (weights - 1).square()).sum().item() == pytest.approx(expected, abs=6e-5)
    assert (effective_sample_size(weights) / len(weights)).item() == pytest.approx(1 / (1 + expected), abs=6e-5)


@every_world
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae(world, gamma):
    """lam = 1 is exact with any V of the state, any lam with the true V; a wrong V and lam < 1 are biased. The objective is the whole of RLHF:
    score at the end, -beta k1 on the way, whose gradient is that of E[score] - beta KL (InstructGPT, eq. 2)."""
    w = build(world)
    scores, discount = w.oracle.random(seed=8), gamma ** (torch.arange(w.mask.shape[1]).double() - 1)       # the first token is in slot 1
    rewards = kl_shaped_rewards(scores, w.logp, w.ref_logp, w.mask, 0.3)
    exact = w.truth((discount * rewards).sum(1))
    assert gamma != 1 or error(exact, w.truth(scores) - 0.3 * w.kl) < 1e-10
    true = w.oracle.values(w.logp.detach(), rewards, gamma=gamma)
    wrong = w.oracle.values(w.ref_logp, rewards.flip(0), gamma=gamma)                        # of another policy and other rewards: still of the state

    def bias(values, lam):
        adv, _ = gae(rewards, values, w.mask, gamma=gamma, lam=lam)
        return error(w.loss((discount * policy_gradient(w.logp, adv)).sum(1)), exact)

    exact_ones = max(bias(wrong, 1.0), *(bias(true, lam) for lam in (0.0, 0.5, 0.95, 1.0)))
    assert exact_ones < 1e-10 and bias(wrong, 0.0) > bias(wrong, 0.95) > 1e-3


@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_gae_of_a_completion_that_was_cut_off(lam):
    """The third token is not sampled any more; the true V of the state before it, as bootstrap, stands for all that would have come."""
    w = build((ENDING, "table"))
    rewards = kl_shaped_rewards(w.oracle.random(seed=8), w.logp, w.ref_logp, w.mask, 0.3)
    values, early = w.oracle.values(w.logp.detach(), rewards), w.mask & (torch.arange(4) < 3)
    exact = w.loss((early * w.oracle.advantages(w.logp.detach(), rewards) * w.logp).sum(1))
    cut = [gae(rewards * early, values * early, early, lam=lam, bootstrap=bootstrap)[0] for bootstrap in (values[:, 3], None)]
    true, none = (error(w.loss((adv * w.logp).sum(1)), exact) for adv in cut)
    assert true < 1e-10 < 0.05 < none


@every_world
@pytest.mark.parametrize("objective", [
    lambda logp, old, adv: policy_gradient(logp, adv),
    lambda logp, old, adv: kl_penalised_surrogate(logp, old, adv, old - logp, 0.3),          # old - logp: no gradient on average
    clipped_surrogate, dual_clipped_surrogate, functools.partial(cispo, cap=5.0), sapo,
], ids=["policy_gradient", "kl_penalised", "clipped", "dual_clipped", "cispo", "sapo"])
def test_every_surrogate_is_the_policy_gradient_at_ratio_one(world, objective):
    w = build(world)
    rewards, last = w.oracle.random(seed=9), w.mask & (w.mask.flip(1).cumsum(1).flip(1) == 1)
    adv = w.oracle.advantages(w.logp.detach(), torch.where(last, rewards[:, None], 0))
    bias = error(w.loss(objective(w.logp, w.logp.detach(), adv).sum(1)), w.truth(rewards))
    assert bias < 1e-10


@every_world
def test_sequence_surrogates(world):
    """The product of ratios has the gradient of J wherever the samples came from, until the clip bites. GSPO's mean has 1/|o| of each
    completion's share: the gradient over T where all are T long, and another direction where they are not."""
    w = build(world)
    rewards, old, lengths = w.oracle.random(seed=9), w.logp.detach(), w.mask.sum(1)
    exact = w.truth(rewards)
    product = functools.partial(sequence_clipped_surrogate, w.logp, adv=rewards, mask=w.mask, length_normalised=False)
    assert error(w.loss(product(old_logp=old, clip_low=0.0, clip_high=0.0)), exact) < 1e-10
    assert error(w.gradient((w.q * product(old_logp=w.ref_logp, clip_low=1.0, clip_high=1e6)).sum()), exact) < 1e-10
    assert error(w.gradient((w.q * product(old_logp=w.ref_logp, clip_low=0.2, clip_high=0.2)).sum()), exact) > 0.05
    gspo = w.loss(sequence_clipped_surrogate(w.logp, old, rewards, w.mask, clip_low=3e-4, clip_high=4e-4, length_normalised=True))
    off_policy = sequence_clipped_surrogate(w.logp, w.ref_logp, rewards, w.mask, clip_low=0.2, clip_high=0.2, length_normalised=True)
    by_token = gspo_token(w.logp, w.ref_logp, rewards[:, None].expand_as(w.logp), w.mask, clip_low=0.2, clip_high=0.2)
    by_token = torch.where(w.mask, by_token, 0).sum(1) / lengths                             # the same value and gradient, clipped or not
    assert max(error(by_token, off_policy), error(w.gradient((w.q * by_token).sum()), w.gradient((w.q * off_policy).sum()))) < 1e-10
    assert error(gspo, exact / w.oracle.length) < 1e-10 if lengths.min() == lengths.max() else cosine(gspo, exact) < 0.999


@pytest.mark.parametrize("shape", [SMALL, ENDING])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_finds_the_optimum_of_rlhf(shape, beta):
    """Where preferences are Bradley-Terry in r, the minimum of the expected DPO loss over all pairs is ref e^{r / beta} / Z (DPO, section 4),
    for a policy token by token too; and there, not before, the gradient of E[r] - beta KL is 0."""
    oracle = Oracle(*shape)
    policy, ref_logp, rewards = oracle.table(seed=1), oracle.logp(oracle.table(seed=2)).detach(), oracle.random(seed=3)
    first, second = torch.cartesian_prod(*[torch.arange(len(oracle))] * 2).T                 # each pair both ways, the first preferred
    odds, ref = rewards[first].exp() / (rewards[first].exp() + rewards[second].exp()), ref_logp.sum(1)
    optimiser = torch.optim.LBFGS(policy.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        seq = oracle.logp(policy).sum(1)
        loss = (odds * dpo_loss(seq[first], seq[second], ref[first], ref[second], beta=beta)).mean()
        loss.backward()
        return loss

    def slope():
        return oracle.gradient(policy, oracle.mean(oracle.logp(policy), rewards) - beta * oracle.kl(oracle.logp(policy), ref_logp)).norm().item()

    before = slope()
    optimiser.step(closure)
    assert slope() < 1e-5 < 0.1 < before
    tilted = ref.exp() * (rewards / beta).exp()
    for found in (oracle.prob(oracle.logp(policy)).detach(), reward_guided(ref, rewards, beta=beta).exp()):
        torch.testing.assert_close(found, tilted / tilted.sum(), atol=1e-6, rtol=0)
