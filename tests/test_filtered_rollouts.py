"""What GRPO's expected gradient is where rollouts come from another distribution than the policy's:
cut by top-k, top-p or min-p, or with a repetition penalty (tutorials/TRL.md).

The worlds of minirl/testing/oracle.py are so small that every pair of completions is listed, each
with its probability under the sampler: expectations are sums in float64. π is the policy, μ the
sampler, Z_t the probability under π of what the filter keeps in state t.
"""

import statistics

import pytest
import torch

from minirl.equations.advantages import group_advantages
from minirl.lm.choice import draw, keep_likeliest, penalise
from minirl.testing.oracle import Oracle
from minirl.train.grpo import GRPOConfig
from minirl.train.objectives import clipped
from minirl.train.weights import IMPORTANCE, token_weights

INF = float("inf")
CUTS = [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.15}, {"top_k": 3, "top_p": 0.8}]
cut = pytest.mark.parametrize("cut", CUTS, ids=str)


def world(seed, vocab=4, length=3):
    oracle = Oracle(vocab, length, vocab - 1)
    return oracle, oracle.table(seed=seed), oracle.random(seed=100 + seed)


def behaviour(oracle, policy, *, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """log μ of every token of every completion, (N, T); -inf where the sampler cannot draw it."""
    logits, V = oracle.logits(policy), oracle.vocab
    before = torch.nn.functional.one_hot(oracle.tokens, V).cumsum(1).roll(1, dims=1) > 0
    logits = penalise(logits, before, repetition_penalty)  # (N, T, V)
    logp = keep_likeliest(logits.log_softmax(-1).view(-1, V), top_k, top_p, min_p)
    logp = logp.view_as(logits).gather(-1, oracle.tokens[..., None]).squeeze(-1)
    return torch.where(oracle.mask, logp, 0)


def expected_gradient(oracle, policy, behavior_logp, rewards, *, ratio_to="learner", weights=None):
    """The gradient of GRPO's first update after one batch, in expectation over groups of two."""
    live = behavior_logp.sum(1) > -INF  # (N,): what the sampler can draw
    logp, mask, behavior = oracle.logp(policy)[live], oracle.mask[live], behavior_logp[live]
    a, b = torch.cartesian_prod(*[torch.arange(len(logp))] * 2).T  # n² pairs
    rows = torch.stack([a, b], 1).flatten()  # (2 n²,)
    logp, mask, behavior = logp[rows], mask[rows], behavior[rows].detach()
    old = logp.detach() if ratio_to == "learner" else behavior
    adv = group_advantages(rewards[live][rows].view(-1, 2), scale="none").flatten()
    adv = adv[:, None] * mask  # (2 n², T)
    surrogate = clipped(0.2, 0.2, 0.0)(logp, old, adv, mask)
    if weights is not None:
        surrogate = surrogate * weights(logp.detach(), old, behavior, adv, mask, mask)
    of_pair = (surrogate * mask).sum(1).view(-1, 2)
    p = behavior.sum(1).exp().view(-1, 2).prod(1)  # (n²,), of the pair
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    return oracle.gradient(policy, (p * of_pair.mean(1)).sum())


def mean_reward(oracle, behavior_logp, rewards):
    """E_μ[r], differentiable."""
    live = behavior_logp.sum(1) > -INF
    return (behavior_logp[live].sum(1).exp() * rewards[live]).sum()


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


def assert_close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_without_a_filter_it_is_the_gradient_of_the_policys_mean_reward(seed):
    """Times (G - 1) / G = 1/2, as each completion is a part of its own group's mean."""
    oracle, policy, rewards = world(seed)
    right = oracle.gradient(policy, oracle.mean(oracle.logp(policy), rewards))
    got = expected_gradient(oracle, policy, behaviour(oracle, policy), rewards)
    assert_close(got, right / 2)


@cut
@pytest.mark.parametrize("seed", range(3))
def test_with_a_cut_it_is_that_of_the_cut_policy_and_a_bias(cut, seed):
    """E_μ[A ∇ log π] = ∇ E_μ[r] + Cov_μ(r, ∇ Σ_t log Z_t), as log π = log μ + log Z: the cut policy
    learns, and the filter keeps more in the states of completions that are better than the mean."""
    oracle, policy, rewards = world(seed)
    logp, mu = oracle.logp(policy), behaviour(oracle, policy, **cut)
    live = mu.sum(1) > -INF
    assert 0 < live.sum() < len(live)
    p, r = mu[live].sum(1).exp().detach(), rewards[live]
    kept = (logp - mu)[live].sum(1)  # Σ_t log Z_t of each completion
    bias = oracle.gradient(policy, (p * (r - (p * r).sum()) * kept).sum())
    of_cut = oracle.gradient(policy, mean_reward(oracle, mu, rewards))
    got = expected_gradient(oracle, policy, mu, rewards)
    assert_close(got, (of_cut + bias) / 2)
    of_policy = oracle.gradient(policy, oracle.mean(logp, rewards))
    assert bias.norm() > 1e-3 and (got - of_policy / 2).norm() > 1e-2
    assert cosine(got, of_cut) > cosine(got, of_policy)


@cut
def test_a_completion_of_one_token_has_no_bias(cut):
    """Z is then the same for all completions, and the group's mean takes it away."""
    oracle, policy, rewards = world(3, vocab=7, length=1)
    mu = behaviour(oracle, policy, **cut)
    of_cut = oracle.gradient(policy, mean_reward(oracle, mu, rewards))
    assert_close(expected_gradient(oracle, policy, mu, rewards), of_cut / 2)


@pytest.fixture
def state():
    """One state, π = (1/2, 3/10, 1/5)."""
    oracle = Oracle(3, 1)
    policy = oracle.table()
    policy.lm_head.weight.data[:, 0] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    return oracle, policy


def test_by_hand(state):
    """Rewards 0, 1, 2. E_π[r] = 0.7, and its gradient by a logit is π_j (r_j - 0.7): -0.35, 0.09,
    0.26. With top_k = 2, μ = (5/8, 3/8, 0) and E_μ[r] = 3/8: by the logits ∓5/8 · 3/8 = ∓15/64, and
    nothing for the best token, which is never drawn."""
    oracle, policy = state
    rewards = torch.tensor([0.0, 1.0, 2.0]).double()
    whole = expected_gradient(oracle, policy, behaviour(oracle, policy), rewards)
    assert (2 * whole).tolist() == pytest.approx([-0.35, 0.09, 0.26])
    of_two = expected_gradient(oracle, policy, behaviour(oracle, policy, top_k=2), rewards)
    assert (2 * of_two).tolist() == pytest.approx([-15 / 64, 15 / 64, 0], abs=1e-12)


def test_a_baseline_that_is_not_the_groups_is_not_free(state):
    """E_π[∇ log π] = 0, but E_μ[∇ log π] = μ - π = (1/8, 3/40, -1/5): a reward of 1 for all, or a
    batch's mean that is below this prompt's, makes the filter keep more."""
    oracle, policy = state
    p = behaviour(oracle, policy, top_k=2).sum(1).exp().detach()
    gradient = oracle.gradient(policy, (p * oracle.logp(policy).sum(1)).sum())
    assert gradient.tolist() == pytest.approx([1 / 8, 3 / 40, -1 / 5])


# what compares π with μ

@cut
@pytest.mark.parametrize("seed", range(3))
def test_no_weight_makes_up_for_what_is_never_drawn(cut, seed):
    """Each completion's weight π/μ, without a bound. What is missing of E_π[A ∇ log π] is exactly
    the share of the completions that the sampler cannot draw: GRPOConfig refuses the two together.
    """
    oracle, policy, rewards = world(seed)
    mu = behaviour(oracle, policy, **cut)
    ratio = IMPORTANCE["sequence_truncate"](0.0, INF)
    got = expected_gradient(oracle, policy, mu, rewards, weights=lambda logp, old, behavior, adv,
                            counted, mask: ratio(old, behavior, mask))
    logp, centred = oracle.logp(policy), rewards - mean_reward(oracle, mu, rewards).detach()
    dead = mu.sum(1) == -INF
    missing = oracle.gradient(policy, oracle.mean(logp, centred * dead))
    right = oracle.gradient(policy, oracle.mean(logp, rewards))
    assert_close(got, (right - missing) / 2)
    assert missing.norm() > 0.02 * right.norm()


def test_a_ratio_to_the_sampler_is_clipped_before_the_first_update(state):
    """--old-logp sampler. Of π = (0.4, 0.3, 0.3) the filter keeps 0.7: each ratio π/μ is 0.7, below
    1 - ε, so a token that is worse than the mean has no gradient any more. The better one has
    0.7 A ∇ log π, which takes as much from the token that was never drawn as from the worse one."""
    oracle, policy = state
    policy.lm_head.weight.data[:, 0] = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64).log()
    mu = behaviour(oracle, policy, top_k=2)  # 4/7, 3/7: of equal ids the first is kept
    rewards = torch.tensor([1.0, 0.0, 0.0]).double()
    got = expected_gradient(oracle, policy, mu, rewards, ratio_to="sampler")
    # the pairs (0, 1) and (1, 0), 24/49 together, A = 1/2: 24/49 · 1/2 · 1/2 · 0.7 (e_0 - π)
    expected = [6 / 49 * 0.7 * x for x in (0.6, -0.3, -0.3)]
    assert got.tolist() == pytest.approx(expected)
    learner = expected_gradient(oracle, policy, mu, rewards)
    assert learner.tolist() == pytest.approx([6 / 49, -6 / 49, 0], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_repetition_penalty_leaves_no_token_out_and_its_weights_are_right(seed):
    """μ is another policy, and no token has probability 0 under it. Uncorrected, the gradient is
    biased; with each completion's weight it is that of E_π[r], so this is not refused."""
    oracle, policy, rewards = world(seed)
    mu = behaviour(oracle, policy, repetition_penalty=1.8)
    right = oracle.gradient(policy, oracle.mean(oracle.logp(policy), rewards))
    plain = expected_gradient(oracle, policy, mu, rewards)
    assert (2 * plain - right).norm() > 0.05 * right.norm()
    weights = token_weights(GRPOConfig(repetition_penalty=1.8, importance="sequence_truncate",
                                       importance_max=0.0))
    assert_close(expected_gradient(oracle, policy, mu, rewards, weights=weights), right / 2)


def test_the_samplers_log_prob_is_that_of_the_list_above():
    """draw, which `sample` calls, gives log μ: of π = (1/2, 3/10, 1/5) with top_k = 2, 5/8, 3/8."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(2, 3)
    ids, logp = draw(logits, torch.tensor([0.6, 0.7]), 1.0, 2, 1.0)
    assert ids.tolist() == [0, 1] and logp.exp().tolist() == pytest.approx([5 / 8, 3 / 8])


def test_the_figures_of_the_tutorial():
    """tutorials/TRL.md: cosines of the expected gradient to those of E_π[r] and E_μ[r], in 40
    worlds of four tokens and completions of up to three."""
    of_policy, of_cut = [], []
    for seed in range(40):
        oracle, policy, rewards = world(seed)
        mu = behaviour(oracle, policy, top_p=0.9)
        got = expected_gradient(oracle, policy, mu, rewards)
        of_policy.append(cosine(got, oracle.gradient(
            policy, oracle.mean(oracle.logp(policy), rewards))))
        of_cut.append(cosine(got, oracle.gradient(policy, mean_reward(oracle, mu, rewards))))
    for cosines, median, least in ((of_policy, 0.987, 0.74), (of_cut, 0.999, 0.995)):
        assert statistics.median(cosines) == pytest.approx(median, abs=5e-4)
        assert min(cosines) == pytest.approx(least, abs=5e-3)
