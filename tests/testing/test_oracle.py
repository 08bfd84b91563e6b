"""Tests of the oracle: it lists everything once, and its sums obey the identities they must."""

import pytest
import torch

from minirl.testing.oracle import Oracle

WORLDS = [Oracle(3, 2), Oracle(3, 3, eos=2), Oracle(4, 2, eos=0), Oracle(2, 4, eos=1)]
every_world = pytest.mark.parametrize(
    "oracle", WORLDS, ids=lambda o: f"{o.vocab}-{o.length}-{len(o)}")
every_kind = pytest.mark.parametrize("kind", ["table", "transformer"])


@every_world
@every_kind
def test_probabilities_sum_to_one_and_scores_to_zero(oracle, kind):
    policy = getattr(oracle, kind)(seed=1)
    p = oracle.prob(oracle.logp(policy))
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    mean_score = (p[:, None] * oracle.scores(policy)).sum(0)  # E[grad log pi] = 0
    torch.testing.assert_close(mean_score, torch.zeros_like(mean_score), atol=1e-12, rtol=0)


def test_every_completion_is_listed_once():
    """eos 2: one completion of one token (2), and 2 * 3 of two tokens that do not start with 2."""
    oracle = Oracle(3, 2, eos=2)
    assert oracle.completions == [(2,), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert oracle.mask.int().tolist()[:2] == [[0, 1, 0], [0, 1, 1]]
    assert oracle.truncated.tolist() == [False, True, True, False, True, True, False]
    assert len(Oracle(3, 4)) == 81


@every_kind
def test_logits_and_log_probs_are_of_one_policy(kind):
    oracle = Oracle(3, 3)
    policy = getattr(oracle, kind)(seed=2)
    logp = oracle.logits(policy).log_softmax(-1)
    logp = logp.gather(-1, oracle.tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(torch.where(oracle.mask, logp, 0), oracle.logp(policy))


def test_a_uniform_policy_by_hand():
    """00 01 10 11, 1/4 each, with rewards 0 1 2 5.

    V of the start is 2; after 0 it is 1/2, after 1 it is 7/2. The advantages of the first token are
    -3/2 and 3/2, of the second ±1/2 and ±3/2.
    """
    oracle = Oracle(2, 2)
    policy = oracle.table(scale=0.0)
    logp = oracle.logp(policy)
    rewards = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    assert oracle.mean(logp, rewards).item() == pytest.approx(2.0)
    assert oracle.entropy(logp).item() == pytest.approx(2 * 0.693147, abs=1e-6)
    last = torch.zeros(4, 3, dtype=torch.float64)
    last[:, 2] = rewards
    assert oracle.values(logp, last).tolist() == [
        [0, 2, 0.5], [0, 2, 0.5], [0, 2, 3.5], [0, 2, 3.5]]
    assert oracle.advantages(logp, last).tolist() == [
        [0, -1.5, -0.5], [0, -1.5, 0.5], [0, 1.5, -1.5], [0, 1.5, 1.5]]
    # a policy whose first token is 0 with 3/4: (log 2/3 + log 2) / 2, as in the test of exact_kl
    other = oracle.table(scale=0.0)
    other.lm_head.weight.data[:, 0] = torch.tensor([3.0, 1.0], dtype=torch.float64).log()
    assert oracle.kl(logp, oracle.logp(other)).item() == pytest.approx(0.143841, abs=1e-6)


@every_world
def test_three_ways_to_the_same_gradient(oracle):
    """d E[R] = E[R grad log pi] = E[sum_t A_t grad log pi_t], and the advantages of a state average
    to 0."""
    policy, rewards = oracle.table(seed=3), oracle.random(seed=4)
    logp = oracle.logp(policy)
    exact = oracle.gradient(policy, oracle.mean(logp, rewards))
    p = oracle.prob(logp).detach()[:, None]
    torch.testing.assert_close((p * rewards[:, None] * oracle.scores(policy)).sum(0), exact)
    last = oracle.mask & (oracle.mask.flip(1).cumsum(1).flip(1) == 1)
    adv = oracle.advantages(logp.detach(), torch.where(last, rewards[:, None], 0))
    torch.testing.assert_close(oracle.gradient(policy, (p * adv * logp).sum()), exact)
    zero = torch.zeros(oracle.length + 1, dtype=torch.float64)
    torch.testing.assert_close((p * adv).sum(0), zero, atol=1e-12, rtol=0)
