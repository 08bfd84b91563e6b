"""Tests of minirl.equations.inference_time."""

from fractions import Fraction
from functools import partial
from itertools import combinations, permutations, product
from math import comb, log, prod

import pytest
import torch

from minirl.equations.inference_time import (
    best_of_n,
    best_of_n_kl,
    expected_best_of_n,
    majority_accuracy,
    majority_vote,
    pass_at_k,
    plurality_accuracy,
    reward_guided,
    solution_score,
    weighted_vote,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("n, c, k, expected", [
    (5, 2, 2, 0.7),  # 1 - C(3,2)/C(5,2) = 1 - 3/10; the plug-in 1 - (3/5)^2 gives .64
    (16, 1, 8, 0.5),  # one right among 16: it is in half of the subsets
    (10, 3, 1, 0.3),
    (10, 3, 5, 0.916667),  # 1 - 21/252
    (4, 0, 4, 0.0),
    (4, 4, 1, 1.0),
    (1, 1, 1, 1.0),
    (1, 0, 1, 0.0),
    (5, 3, 3, 1.0),  # only 2 wrong: any 3 hold a right one
    (5, 2, 3, 0.9),  # 1 - C(3,3)/C(5,3) = 1 - 1/10
])
def test_hand_numbers(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n, c, k", [
    (n, c, k) for n in (1, 4, 7) for c in range(n + 1) for k in range(1, n + 1)
])
def test_share_of_all_subsets(n, c, k):
    """By enumeration: of all k out of n samples, the share that holds one of the c right ones."""
    subsets = list(combinations(range(n), k))
    share = sum(min(s) < c for s in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_unbiased_by_enumeration(p, k):
    """Averaged over how many of 8 come out right, it is 1 - (1 - p)^k.

    The plug-in 1 - (1 - c/n)^k is below, and only right at k = 1.
    """
    chances = [comb(8, c) * p ** c * (1 - p) ** (8 - c) for c in range(9)]
    truth = 1 - (1 - p) ** k
    mean = sum(w * pass_at_k(8, c, k) for c, w in enumerate(chances))
    assert mean == pytest.approx(truth, abs=1e-12)
    plug_in = sum(w * (1 - (1 - c / 8) ** k) for c, w in enumerate(chances))
    assert plug_in == pytest.approx(truth, abs=1e-12) if k == 1 else plug_in < truth - 1e-9


@pytest.mark.parametrize("n", [1, 7, 100, 1000, 9_999, 10_000])
def test_exact_up_to_ten_thousand_samples(n):
    """C(10000, 5000) has 3000 digits. A product of floats (1 - k/i) is off in the last digits, and
    by 1e-13 of a small value."""
    for c in {0, 1, n // 3, n - 1, n}:
        for k in {1, max(1, n // 100), n // 2 + 1, n}:
            assert pass_at_k(n, c, k) == float(1 - Fraction(comb(n - c, k), comb(n, k)))
    assert pass_at_k(n, 1, 1) == 1 / n


def test_more_right_samples_are_better():
    values = [pass_at_k(10_000, c, 100) for c in (0, 1, 100, 5000, 9900, 10_000)]
    assert values == sorted(values)
    assert values[0] == 0.0 and values[1] == 0.01 and values[-1] == 1.0


@pytest.mark.parametrize("n, c, k", [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_bad_arguments_raise(n, c, k):
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("answers, winner", [
    (["12", "13", None, "13"], "13"),
    (["7"], "7"),
    (["a", "a", "a"], "a"),
    # a tie: the one that came first
    (["a", "b", "b", "a"], "a"),
    (["b", "a", "a", "b"], "b"),
    (["c", "b", "a"], "c"),
    # no answer is no vote, however many samples have none
    ([None, None, None, "x"], "x"),
    ([None, None], None),
    # an answer of 0, or an empty one, is an answer
    ([0, 0, 1], 0),
    (["", "", "1"], ""),
    ([(1, 2), (1, 2), (3,)], (1, 2)),
])
def test_majority_vote(answers, winner):
    assert majority_vote(answers) == winner
    assert weighted_vote(answers, [0.25] * len(answers)) == winner  # equal scores are votes
    assert majority_vote(tuple(answers)) == winner


@pytest.mark.parametrize("answers, scores, winner", [
    (["12", "13", "12"], [0.3, 0.5, 0.3], "12"),  # .6 against .5
    (["12", "13", "12"], [0.2, 0.5, 0.2], "13"),  # .4 against .5: unlike the majority
    (["a", "b", "b"], [0.5, 0.25, 0.25], "a"),  # a tie
    (["b", "a", "b"], [0.25, 0.5, 0.25], "b"),
    ([None, "a", "b"], [0.9, 0.1, 0.2], "b"),
    ([None, None], [0.5, 0.9], None),
    (["a", "b"], [0.0, 0.0], "a"),
    # -1 against -1.5: what the docstring warns of
    (["a", "b", "b"], [-1.0, -0.75, -0.75], "a"),
])
def test_weighted_vote(answers, scores, winner):
    assert weighted_vote(answers, scores) == winner
    assert weighted_vote(answers, torch.tensor(scores)) == winner


@pytest.mark.parametrize("scores, best", [
    ([0.1, 0.9, 0.9], 1),
    ([0.5], 0),
    ([0.5] * 4, 0),
    ([-3.0, -1.0, -2.0], 1),
    ([-INF, -INF], 0),
    ([0.0, -INF, INF], 2),
    ([-100.0, 100.0], 1),
])
def test_best_of_n(scores, best):
    for s in (scores, torch.tensor(scores), tuple(scores)):
        assert best_of_n(s) == best


@pytest.mark.parametrize("n, bound", [
    (1, 0.0),
    (2, 0.193147),  # log 2 - 1/2
    (4, 0.636294),  # 1.386294 - 3/4
    (16, 1.835089),  # 2.772589 - 15/16
    (10 ** 6, 12.815512),  # 13.815511 - 1 + 1e-6
])
def test_best_of_n_kl_hand_numbers(n, bound):
    assert best_of_n_kl(n) == pytest.approx(bound, abs=1e-6)


def kl_of_best(chances, scores, n):
    """KL between best-of-n and one draw, over all draws of n answers with these chances and
    scores."""
    best = [0.0] * len(chances)
    for draw in product(range(len(chances)), repeat=n):
        winner = draw[best_of_n([scores[i] for i in draw])]
        best[winner] += prod(chances[i] for i in draw)
    assert sum(best) == pytest.approx(1.0)
    return sum(q * log(q / p) for q, p in zip(best, chances, strict=True) if q > 0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_kl_is_an_upper_bound_by_enumeration(n):
    """Over all draws of n from four answers. Two draws of one answer need no choice, so the KL
    stays below the bound; with equal scores it is 0."""
    even, skewed = [0.25] * 4, [0.7, 0.1, 0.15, 0.05]
    orders = ([1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 2, 2], [0, 0, 0, 1])
    kls = [kl_of_best(p, scores, n) for p in (even, skewed) for scores in orders]
    assert max(kls) <= best_of_n_kl(n) + 1e-12
    assert n == 1 or 0 < min(kls) and max(kls) < best_of_n_kl(n)
    assert kl_of_best(skewed, [2, 2, 2, 2], n) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_best_of_n_kl_is_reached_where_all_scores_differ(n):
    """V equally likely answers. The i-th best wins if all n are at most i, but not all at most
    i - 1. As V grows, two samples with one score become rare, and the bound is reached from
    below."""
    def exact(v):
        best = [(i / v) ** n - ((i - 1) / v) ** n for i in range(1, v + 1)]
        return sum(q * log(q * v) for q in best if q > 0)

    if n < 16:
        assert exact(4) == pytest.approx(kl_of_best([0.25] * 4, [1, 2, 3, 4], n), abs=1e-12)
    gaps = [best_of_n_kl(n) - exact(v) for v in (10, 100, 1000, 10_000)]
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 1e-4 * n and gaps[0] > 1e-3


@pytest.mark.parametrize("p, n, accuracy", [
    (0.6, 5, 0.68256),  # 10 .216 .16 + 5 .1296 .4 + .07776
    (0.4, 5, 0.31744),  # what is missing to 1
    (0.6, 1, 0.6),
    (0.6, 3, 0.648),  # 3 .36 .4 + .216
    (0.5, 7, 0.5),
    (0.0, 5, 0.0),
    (1.0, 5, 1.0),
    (0.9, 3, 0.972),
])
def test_majority_accuracy_hand_numbers(p, n, accuracy):
    assert majority_accuracy(p, n) == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("p", [0.2, 0.4, 0.6])
def test_majority_accuracy_by_enumeration(p, n):
    """Over all n answers: exact with one wrong answer to agree on, a lower bound where the wrong
    ones differ."""
    def chance_of_right(chances):
        draws = product(chances, repeat=n)
        return sum(prod(chances[a] for a in draw) for draw in draws
                   if majority_vote(draw) == "right")

    one_wrong = chance_of_right({"right": p, "wrong": 1 - p})
    assert majority_accuracy(p, n) == pytest.approx(one_wrong, abs=1e-12)
    split = chance_of_right({"right": p, "wrong": (1 - p) / 2, "also wrong": (1 - p) / 2})
    assert split == pytest.approx(p) if n == 1 else split > majority_accuracy(p, n) + 0.01


@pytest.mark.parametrize("n", [101, 1001, 10_001])
def test_majority_accuracy_of_many(n):
    """C(10001, 5001) has 3009 digits and is no float: a plot over n must not end there."""
    assert majority_accuracy(0.5, n) == pytest.approx(0.5, abs=1e-9)
    assert majority_accuracy(0.4, n) < 0.03 and majority_accuracy(0.6, n) > 0.97


def chance_that_right_wins(right, wrong, n):
    """By enumeration of all draws of n samples, in exact fractions."""
    answers = {"right": right, **{f"wrong {i}": p for i, p in enumerate(wrong)}}
    answers[None] = 1 - sum(answers.values())
    return sum((prod(answers[a] for a in draw) for draw in product(answers, repeat=n)
                if majority_vote(draw) == "right"), Fraction(0))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("right, wrong", [
    ("1/2", ["1/2"]), ("1/4", ["1/4"]), ("2/5", ["3/10", "3/10"]), ("1/10", ["1/5", "3/10"]),
    ("1/5", ["1/5", "1/10", "1/20"]), ("3/10", []), ("0", ["1/2", "1/4"]), ("1", []),
    ("1/4", ["1/4", "1/4", "1/4"]), ("1/3", ["1/3", "0"]),
])
def test_plurality_accuracy_by_enumeration(right, wrong, n):
    """Ties among two, three and four answers, silence, and answers that never come."""
    right, wrong = Fraction(right), [Fraction(p) for p in wrong]
    exact = chance_that_right_wins(right, wrong, n)
    assert plurality_accuracy(float(right), [float(p) for p in wrong], n) == pytest.approx(
        float(exact), abs=1e-13)


@pytest.mark.parametrize("n", [1, 7, 63, 301])
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.6, 1.0])
def test_plurality_accuracy_with_one_wrong_answer_is_majority_accuracy(p, n):
    assert plurality_accuracy(p, [1 - p], n) == pytest.approx(majority_accuracy(p, n), abs=1e-12)


def test_plurality_accuracy_of_hundreds_of_votes_is_a_number():
    """Poisson numbers with the wrong sign before their mean are e^(2 n) times as large, which
    cancels until n = 355, where it is more than float64 holds."""
    assert plurality_accuracy(0.55, [0.45], 401) == pytest.approx(majority_accuracy(0.55, 401),
                                                                  rel=1e-9)


def test_plurality_accuracy_of_many_answers_sums_to_one():
    """Somebody wins: over all answers as the right one, the chances add up to 1. 64 samples and 100
    answers, among them some that hardly ever come."""
    weights = [1.2 ** -i for i in range(100)]
    chances = [w / sum(weights) for w in weights]
    wins = [plurality_accuracy(chances[i], chances[:i] + chances[i + 1:], 64)
            for i in (*range(12), *range(12, 100, 11))]
    assert wins == sorted(wins, reverse=True) and min(wins) >= 0
    few = [0.4, 0.3, 0.2, 0.1 - 1e-9, 1e-9]
    total = sum(plurality_accuracy(few[i], few[:i] + few[i + 1:], 64) for i in range(5))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_plurality_accuracy_does_not_depend_on_the_order_or_on_a_split_of_silence():
    assert plurality_accuracy(0.3, [0.1, 0.4], 9) == pytest.approx(
        plurality_accuracy(0.3, [0.4, 0.1, 0.0], 9), abs=1e-15)
    # wrong answers that do not agree hurt less
    assert plurality_accuracy(0.3, [0.1] * 4, 9) > plurality_accuracy(0.3, [0.4], 9) + 0.2


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("scores, values", [
    ([0.1, 0.2, 0.3, 0.4, 0.5], [1, 0, 1, 0, 0]),
    ([3, 1, 2, 5, 4], [0.5, -1.0, 2.0, 7.0, 0.0]),
    ([1, 1, 1, 0, 0], [1, 0, 0, 1, 1]),
    ([2, 2, 1, 1, -INF], [1, 0, 0, 1, 0]),
    ([0, 0, 0, 0, 0], [1, 2, 3, 4, 5]),
])
def test_expected_best_of_n_by_enumeration(scores, values, n):
    """The first n of all 120 orders: what best_of_n chooses there, on average."""
    chosen = [values[order[best_of_n([scores[i] for i in order[:n]])]]
              for order in permutations(range(5))]
    expected = sum(chosen) / len(chosen)
    assert expected_best_of_n(scores, values, n) == pytest.approx(expected, abs=1e-12)
    assert expected_best_of_n(torch.tensor(scores).double(), torch.tensor(values), n
                              ) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n, c, k", [(5, 2, 2), (64, 3, 16), (10, 0, 3), (10, 10, 1)])
def test_expected_best_of_n_with_the_verdict_as_its_score_is_pass_at_k(n, c, k):
    verdicts = [1.0] * c + [0.0] * (n - c)
    assert expected_best_of_n(verdicts, verdicts, k) == pytest.approx(pass_at_k(n, c, k))


def test_expected_best_of_n_is_unbiased():
    """Four answers with chances, scores and values; N = 3 samples, n = 2. Over all draws of three,
    the estimate's mean is the value of the best of two."""
    chances, scores, values = [0.5, 0.2, 0.2, 0.1], [1, 2, 2, 3], [1.0, 0.0, 4.0, -2.0]

    def mean(n, number):
        return sum(prod(chances[i] for i in draw) * number(draw)
                   for draw in product(range(4), repeat=n))

    def estimate(draw):
        return expected_best_of_n([scores[i] for i in draw], [values[i] for i in draw], 2)

    truth = mean(2, lambda draw: values[draw[best_of_n([scores[i] for i in draw])]])
    assert mean(3, estimate) == pytest.approx(truth, abs=1e-12)


STEPS = torch.tensor(
    [[0.9, 0.5, 0.8], [0.5, 0.25, NAN], [0.7, NAN, NAN], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])


@pytest.mark.parametrize("how, scores", [
    ("last", [0.8, 0.25, 0.7, 1.0, 1.0]),
    ("min", [0.5, 0.25, 0.7, 0.0, 1.0]),
    ("product", [0.36, 0.125, 0.7, 0.0, 1.0]),
])
def test_solution_score(how, scores):
    """A wrong step in the middle does not count for "last" and is fatal for the others.

    A long solution has a small product. Padding has no score.
    """
    score, scores = partial(solution_score, how=how), torch.tensor(scores)
    torch.testing.assert_close(score(STEPS), scores)
    padded = torch.nn.functional.pad(STEPS, (0, 2), value=NAN)
    torch.testing.assert_close(score(padded), scores)
    torch.testing.assert_close(score(STEPS[None].expand(2, 5, 3)), scores.expand(2, 5))
    assert score(STEPS[0]).shape == () and score(torch.zeros(0, 3)).shape == (0,)
    assert score(STEPS.bfloat16()).isfinite().all() and score(torch.tensor([1.0])).item() == 1.0


def test_reward_guided_hand_numbers():
    """Odds 1 : 1 times e^(log 3 / 1) are 3 : 1, times e^(log 3 / .5) 9 : 1.

    Odds 1 : 3 and a reward of log 3 for the first are even.
    """
    rewards = torch.tensor([1.0986123, 0.0])
    half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    for ref_logp, beta, expected in ((half, 1.0, [0.75, 0.25]), (half, 0.5, [0.9, 0.1]),
                                     (quarter, 1.0, [0.5, 0.5])):
        p = reward_guided(ref_logp, rewards, beta=beta).exp()
        torch.testing.assert_close(p, torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reward_guided_at_the_edges(dtype):
    """Equal rewards leave the reference as it is, and so does a large beta.

    A small beta takes the best answer, but none that the reference never gives.
    """
    ref_logp = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.4, 0.6]], dtype=dtype).log()
    rewards = torch.tensor([[0.0, 1.0, 0.0], [9.0, 0.0, 1.0]], dtype=dtype)
    equal = torch.full_like(rewards, 2.0)
    tolerance = 0.01 if dtype == torch.bfloat16 else 1e-5
    for logp in (reward_guided(ref_logp, equal, beta=1.0),
                 reward_guided(ref_logp, rewards, beta=1e6)):
        torch.testing.assert_close(logp.exp(), ref_logp.exp(), atol=tolerance, rtol=0)
    best = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=dtype)
    torch.testing.assert_close(reward_guided(ref_logp, rewards, beta=1e-3).exp(), best)
    assert reward_guided(ref_logp[:1], 100 * rewards[:1], beta=0.01).isfinite().all()


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_reward_guided_is_the_best_under_the_penalty(beta):
    """E[r] - beta KL(pi || ref) has gradient 0 there, is beta log Z, and none of 200 other policies
    has more."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(4, generator=generator).double()
    ref_logp = torch.randn(4, generator=generator).double().log_softmax(0)

    def objective(logits):
        logp = logits.log_softmax(-1)
        return (logp.exp() * (rewards - beta * (logp - ref_logp))).sum(-1)

    best = reward_guided(ref_logp, rewards, beta=beta).requires_grad_()
    objective(best).backward()
    assert best.grad.abs().max() < 1e-12 and best.exp().sum().item() == pytest.approx(1.0)
    log_z = (ref_logp.exp() * (rewards / beta).exp()).sum().log()
    assert objective(best).item() == pytest.approx(beta * log_z.item(), abs=1e-9)
    others = best + 0.3 * torch.randn(200, 4, generator=generator).double()
    assert (objective(others) < objective(best)).all()


@pytest.mark.parametrize("call, message", [
    (lambda: majority_vote([]), "0 answers"),
    (lambda: weighted_vote([], []), "0 answers and 0 scores"),
    (lambda: weighted_vote(["a", "b"], [1.0]), "2 answers and 1 scores"),
    (lambda: weighted_vote(["a", "b"], [1.0, NAN]), "NaN"),
    (lambda: best_of_n([]), "at least one"),
    (lambda: best_of_n([0.1, NAN]), "nan.*none of them NaN"),
    (lambda: best_of_n_kl(0), "n is 0"),
    (lambda: majority_accuracy(0.6, 4), "n = 4.*odd"),
    (lambda: majority_accuracy(0.6, -1), "n = -1"),
    (lambda: majority_accuracy(0.6, 0), "n = 0"),
    (lambda: majority_accuracy(1.1, 3), "p = 1.1.*probability"),
    (lambda: majority_accuracy(-0.1, 3), "p = -0.1"),
    (lambda: majority_accuracy(NAN, 3), "p = nan"),
    (lambda: plurality_accuracy(0.5, [0.6], 3), "sum of at most 1"),
    (lambda: plurality_accuracy(-0.1, [0.6], 3), "right = -0.1"),
    (lambda: plurality_accuracy(0.5, [NAN], 3), "nan"),
    (lambda: plurality_accuracy(0.5, [], 0), "n = 0.*at least one sample"),
    (lambda: expected_best_of_n([1.0], [1.0], 2), "n = 2.*n <= samples"),
    (lambda: expected_best_of_n([1.0], [1.0], 0), "n = 0"),
    (lambda: expected_best_of_n([], [], 1), "0 scores, 0 values"),
    (lambda: expected_best_of_n([1.0, 2.0], [1.0], 1), "2 scores, 1 values"),
    (lambda: expected_best_of_n([1.0, NAN], [1.0, 0.0], 1), "none of them NaN"),
    (lambda: expected_best_of_n([1.0, 2.0], [NAN, 0.0], 1), "none of them NaN"),
    (lambda: solution_score(STEPS, "mean"), "'mean'.*last, min, product"),
    (lambda: solution_score(STEPS[:, :0], "min"), "first step"),
    (lambda: solution_score(torch.tensor(0.5), "min"), "first step"),
    (lambda: solution_score(torch.tensor([NAN, 0.5]), "last"), "first step"),
    (lambda: solution_score(torch.tensor([0.5, NAN, 0.5]), "product"), "after a missing one"),
    (lambda: solution_score(torch.tensor([0.5, 1.5]), "min"), "outside .*sigmoid"),
    (lambda: solution_score(torch.tensor([-0.1]), "last"), "outside"),
    (lambda: reward_guided(torch.zeros(3, 3), torch.zeros(3), beta=1.0),
     r"ref_logp \(3, 3\), rewards \(3,\): .*same shape"),
    (lambda: reward_guided(torch.zeros(3), torch.zeros(3), beta=0.0), "beta is 0.0.*positive"),
    (lambda: reward_guided(torch.zeros(3), torch.zeros(3), beta=NAN), "beta is nan"),
])
def test_other_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_tensors_vote_by_their_number():
    """As keys of a dictionary two tensors are never the same, so the first answer always won."""
    assert majority_vote(torch.tensor([1, 2, 2])) == 2
    assert weighted_vote(torch.tensor([1, 2, 2]), [0.5, 0.2, 0.2]) == 1


@pytest.mark.parametrize("nothing", [None, NAN, torch.tensor(NAN)])
def test_no_answer_has_no_vote(nothing):
    """NaN is not equal to itself: each was an answer of its own, and could win a tie."""
    assert majority_vote([nothing, 12.0, nothing]) == 12.0
    assert majority_vote([nothing]) is None and weighted_vote([nothing, 5], [9.0, 0.1]) == 5


@pytest.mark.parametrize("nothing", [None, NAN])
def test_no_score_is_no_number(nothing):
    with pytest.raises(ValueError, match="a score is None or NaN: expected numbers"):
        weighted_vote(["a", "b"], [1.0, nothing])
    with pytest.raises(ValueError, match="none of them NaN"):
        best_of_n([1.0, nothing])
