"""minirl/inference/guided.py"""

import math
from collections import Counter

import pytest
import torch

from minirl.inference.candidates import Spent
from minirl.inference.guided import guided_decoding, guided_logp, reference_logp
from minirl.testing.oracle import Oracle
from tests.inference.policies import END, TOKENIZER, chain, ids, text

NAN = math.nan
EOS = 2


class World:
    """All completions of up to three of three tokens, a policy in float64, and a reward of each."""

    def __init__(self, beta, seed=0):
        self.oracle, self.beta = Oracle(vocab=3, length=3, eos=EOS), beta
        self.model = self.oracle.transformer(seed=seed)
        self.rewards = self.oracle.random(seed=seed)
        with torch.no_grad():
            self.ref = self.oracle.logp(self.model).sum(1)  # (N,)
        self.optimum = (self.ref + self.rewards / beta).log_softmax(0)  # (N,)

    def soft_value(self, prompts, prefixes):
        """V(prefix) = β log E[exp(r / β)] over the completions of the policy that begin so, each
        with its chance given the prefix."""
        values = []
        for prefix in prefixes:
            same = torch.tensor([row[:len(prefix)] == tuple(prefix)
                                 for row in self.oracle.completions])
            tilted = (self.ref + self.rewards / self.beta)[same].logsumexp(0)
            values.append(float(self.beta * (tilted - self.ref[same].logsumexp(0))))
        return values

    def plain_reward(self, prompts, prefixes):
        """The reward of whole completions, and 0 for those that are not."""
        table = dict(zip(self.oracle.completions, self.rewards.tolist(), strict=True))
        return [table.get(tuple(prefix), 0.0) for prefix in prefixes]

    def objective(self, logp):
        """E[r] - β KL(π || π_ref)."""
        return float((logp.exp() * (self.rewards - self.beta * (logp - self.ref))).sum())

    def guided(self, guide):
        """log π of every completion: the sum over its tokens. (N,)"""
        total = torch.zeros(len(self.oracle), dtype=torch.float64)
        with torch.no_grad():
            logits = self.oracle.logits(self.model)  # (N, T, V)
        for i, completion in enumerate(self.oracle.completions):
            for t, id in enumerate(completion):
                logp = reference_logp(logits[i, t + 1][None], 1.0, 0)
                tilted, _, _ = guided_logp(logp, guide, [[0]], [0], [completion[:t]],
                                           beta=self.beta)
                total[i] += tilted[0, id]
        return total


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_the_soft_value_it_is_the_optimum_under_a_kl_penalty(beta, seed):
    """By enumeration in float64: π_ref exp(r / β) / Z for every completion, and no other policy
    has a higher E[r] - β KL."""
    world = World(beta, seed)
    logp = world.guided(world.soft_value)
    torch.testing.assert_close(logp, world.optimum, rtol=0, atol=1e-12)

    best = world.objective(logp)
    assert best == pytest.approx(beta * float((world.ref + world.rewards / beta).logsumexp(0)))
    for nudge in range(5):
        other = (logp + 0.1 * world.oracle.random(seed=10 + nudge)).log_softmax(0)
        assert world.objective(other) < best


def test_with_the_plain_reward_of_prefixes_it_is_another_policy():
    """A reward of whole completions says nothing of a prefix that may still become good: only the
    last token is tilted. It is a distribution, and not the optimum."""
    world = World(0.5)
    logp = world.guided(world.plain_reward)
    assert float(logp.exp().sum()) == pytest.approx(1)
    distance = float((logp.exp() * (logp - world.optimum)).sum())
    assert distance > 0.02      # with the soft value it is below 1e-12
    worth = [world.objective(p) for p in (world.ref, logp, world.optimum)]
    assert worth[0] < worth[1] < worth[2]
    # it has more reward than the optimum, and has moved too far for it
    reward, most = (float((p.exp() * world.rewards).sum()) for p in (logp, world.optimum))
    assert reward > most


def test_a_constant_guide_changes_nothing():
    world = World(0.1)
    torch.testing.assert_close(world.guided(lambda p, c: [7.0] * len(c)), world.ref)


def test_what_is_drawn_is_that_distribution():
    """4000 rows; a count is about Poisson, and none is off by five standard deviations. A row's
    score is the reward of its completion, which the soft value of the whole is."""
    world = World(0.5)
    result = guided_decoding(world.model, [[0]], world.soft_value, beta=0.5, n=4000, eos_id=EOS,
                             max_new_tokens=3, generator=torch.Generator().manual_seed(0))
    counts = Counter(map(tuple, result.completions[0]))
    index = {completion: i for i, completion in enumerate(world.oracle.completions)}
    assert set(counts) <= set(index)
    for completion, i in index.items():
        wanted = 4000 * float(world.optimum[i].exp())
        assert abs(counts[completion] - wanted) < 5 * math.sqrt(wanted + 1)
    for completion, score, ended in zip(result.completions[0], result.scores[0], result.ended[0],
                                        strict=True):
        assert score == pytest.approx(float(world.rewards[index[tuple(completion)]]))
        assert ended == (completion[-1] == EOS)


# the function at work

def decode(guide, chances=None, *, prompts=("=",), **options):
    chances = chances or {"=": {"a": 1, "b": 1, "c": 2}, "a": END, "b": END, "c": END}
    options = {"beta": 0.01, "max_new_tokens": 6, "eos_id": TOKENIZER.stop_ids, "top_k": 3,
               "generator": torch.Generator().manual_seed(0), **options}
    return guided_decoding(chain(chances), ids(*prompts), guide, **options)


def letters(**scores):
    return lambda prompts, prefixes: [scores.get(text(prefix)[-1:], 0.0) for prefix in prefixes]


def test_tokens_by_hand():
    """Two tokens, b and EOS. Each is drawn after three ids have been asked about: of 1 + 1 tokens
    with the prompt, then of 1 + 2."""
    result = decode(letters(a=0.5, b=0.9, c=0.1), max_new_tokens=1)
    assert [text(row) for row in result.best] == ["b"] and result.ended == [[False]]
    assert result.spent == [Spent(prefill=1, decode=1, verifier=3 * 2)]
    more = decode(letters(a=0.5, b=0.9, c=0.1))
    assert more.spent == [Spent(prefill=1, decode=2, verifier=3 * 2 + 3 * 3)]
    assert more.ended == [[True]]


def test_beta_is_the_strength():
    """odds of a and b at β: exp((0.6 - 0.3) / β)."""
    logp = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    for beta in (0.1, 1.0, 10.0):
        tilted, told, _ = guided_logp(logp, lambda p, c: [0.6, 0.3], [[1]], [0], [[]], beta=beta)
        assert float(tilted[0, 0] - tilted[0, 1]) == pytest.approx(0.3 / beta)
        assert told.tolist() == [[0.6, 0.3]]


def test_only_the_likeliest_ids_are_asked_about():
    """c has chance 1/2, a and b 1/4: of two, c and the first of the others. The best, b, is none of
    them."""
    asked = []

    def guide(prompts, prefixes):
        asked.extend(text(prefix) for prefix in prefixes)
        return [{"a": 0.5, "b": 0.9, "c": 0.1}.get(text(prefix)[-1:], 0.0) for prefix in prefixes]

    assert text(decode(guide, top_k=2, max_new_tokens=1).best[0]) == "a"
    assert sorted(asked) == ["a", "c"]


def test_equal_prefixes_are_asked_once():
    """Four rows, three ids: three prefixes of 1 + 1 tokens, not twelve."""
    result = decode(letters(a=0.5), n=4, max_new_tokens=1)
    assert result.spent == [Spent(prefill=1, decode=4, verifier=6)]


def test_an_id_without_a_verdict_is_not_drawn():
    logp = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log()
    numbers = [NAN, 0.1, 0.1, None, NAN, NAN]       # the second row knows nothing at all
    tilted, told, _ = guided_logp(logp, lambda p, c: numbers, [[1], [2]], [0, 1], [[], []],
                                  beta=1.0)
    torch.testing.assert_close(tilted.exp(), torch.tensor([[0.0, 0.6, 0.4], [0.5, 0.3, 0.2]]))
    result = decode(lambda p, c: [NAN] * len(c), n=3)
    assert all(map(math.isnan, result.scores[0])) and all(result.ended[0])
    assert result.chosen == [0]


def test_rows_and_problems_share_a_batch():
    """Rows that have ended leave; the others go on. The best of a problem is its highest score."""
    chances = {"=": {"a": 1, "b": 1}, "a": "c", "c": "d", "d": END, "b": END, "#": "d"}
    result = decode(letters(b=-0.2, d=-0.5), chances, prompts=("=", "#"), n=12, top_k=2, beta=10)
    assert {text(row) for row in result.completions[0]} == {"acd", "b"}
    assert {text(row) for row in result.completions[1]} == {"d"}
    assert all(map(all, result.ended))
    assert [text(row) for row in result.best] == ["b", "d"]
    assert text(result.completions[0][0]) == "acd"      # so the first is not the best
    assert [cost.decode for cost in result.spent] == [
        sum(map(len, row)) for row in result.completions]


@pytest.mark.parametrize("budget", [8, 30, 50, 1000, 9000])
def test_a_budget_is_never_exceeded(budget):
    """One row, three ids: the first token costs 1 + 3 * 2, the second 1 + 3 * 3, ..."""
    result = decode(letters(), {"=": "a", "a": {"a": 2, "b": 1, "c": 1}, "b": "a", "c": "a"},
                    budget=budget, max_new_tokens=30)
    drawn = result.total.decode
    costs = [1 + 3 * (t + 2) for t in range(31)]
    assert drawn == min(30, max(k for k in range(31) if 1 + sum(costs[:k]) <= budget))
    assert result.total.total == 1 + sum(costs[:drawn]) <= budget
    assert result.ended == [[False]]


def test_greedy_and_no_end():
    """At temperature 0 the policy has one way, whatever the guide says."""
    result = decode(letters(a=9.0), temperature=0, eos_id=None, max_new_tokens=1)
    assert text(result.best[0]) == "c"


@pytest.mark.parametrize("options, message", [
    ({"beta": 0.0}, "beta"), ({"n": 0}, "group"), ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"prompts": ("",)}, "empty"), ({"budget": 7}, "at least 8"), ({"top_k": -1}, "top_k")])
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        decode(letters(), **options)


def test_errors_of_guides():
    with pytest.raises(ValueError, match="scores for"):
        decode(lambda p, c: [0.5])
    with pytest.raises(ValueError, match="infinite"):
        decode(lambda p, c: [math.inf] * len(c))
