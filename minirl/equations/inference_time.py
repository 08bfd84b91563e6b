"""Inference-time compute: what several samples of one problem are worth, and how to choose one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from minirl.equations.checks import check_positive, check_same_shape

SOLUTION_SCORES = ("last", "min", "product")   # how steps' scores become a solution's


def pass_at_k(n: int, c: int, k: int) -> float:
    r"""Probability that at least one of k samples is right, estimated from n with c right.

    Equation   pass@k = 1 - C(n-c, k) / C(n, k)
    Paper      Codex, arXiv:2107.03374, section 2.1, eq. 1.
    Erratum    This is unbiased. The plug-in 1 - (1 - c/n)^k is biased downwards: at n = 5, c = 2,
               k = 2 it is 0.64, not 0.7.
    Raises     ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.

    The binomials are whole numbers of any size, and their quotient is rounded once: the result is
    the exact one, to the last digit.

    >>> round(pass_at_k(5, 2, 2), 4), round(pass_at_k(10, 3, 5), 4)  # 1 - 3/10, 1 - 21/252
    (0.7, 0.9167)
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"n = {n}, c = {c}, k = {k}: expected 1 <= k <= n and 0 <= c <= n")
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - c, k)) / subsets  # C(n-c, k) is 0 where k > n - c


def majority_vote(answers: Sequence[Hashable | None]) -> Hashable | None:
    r"""Self-consistency: return the answer that most samples give.

    Equation   argmax_a Σ_i 1{a_i = a}
    Paper      Wang et al., arXiv:2203.11171, section 2.
    Raises     ValueError for no answers.
    See        majority_accuracy, which predicts how often it is right.

    None and NaN, "no answer", have no vote; if nobody answered, the result is None. A tie goes to
    the answer that came first. Answers that are spelt differently (62, 062) are different here:
    tasks.rewards.answer_of spells equal numbers alike.

    >>> majority_vote(["12", "13", None, "13"])
    '13'
    """
    return weighted_vote(answers, [1.0] * len(answers))


def weighted_vote(answers: Sequence[Hashable | None], scores: Sequence[float]) -> Hashable | None:
    r"""Weighted self-consistency: return the answer whose samples have the largest sum of scores.

    Equation   argmax_a Σ_{i: a_i = a} score_i
    Paper      Math-Shepherd, arXiv:2312.08935, section 3.4; Li et al., arXiv:2206.02336.
    Raises     ValueError for no answers, not one score per answer, or a score that is not a number.

    None and NaN, "no answer", have no vote. A tie goes to the answer that came first. With negative
    scores a common answer loses because it is common: use probabilities.

    >>> weighted_vote(["12", "13", "12"], [0.3, 0.5, 0.3])  # 0.6 against 0.5
    '12'
    """
    if not len(answers) or len(answers) != len(scores):
        raise ValueError(f"{len(answers)} answers and {len(scores)} scores: expected at least one "
                         "answer, and a score for each")
    if any(score is None or float(score) != float(score) for score in scores):
        raise ValueError("a score is None or NaN: expected numbers")
    totals: dict[Hashable, float] = {}
    for answer, score in zip(answers, scores, strict=True):
        if isinstance(answer, Tensor):
            answer = answer.item()  # as keys, two equal tensors would be two answers
        if answer is not None and answer == answer:  # NaN does not equal itself
            totals[answer] = totals.get(answer, 0.0) + float(score)
    return max(totals, key=totals.__getitem__) if totals else None


def best_of_n(scores: Sequence[float] | Tensor) -> int:
    r"""Return the index of the sample with the highest score, the first one in a tie.

    Equation   argmax_i r(x, y_i)
    Paper      Stiennon et al., arXiv:2009.01325 (rejection sampling); Cobbe et al.,
               arXiv:2110.14168 (verifiers).
    Raises     ValueError for no scores, or a score that is not a number.
    See        best_of_n_kl, the distance by which this moves the policy.

    >>> best_of_n([0.1, 0.9, 0.9])
    1
    """
    scores = [math.nan if score is None else float(score) for score in scores]
    if not scores or any(score != score for score in scores):
        raise ValueError(f"scores are {scores[:8]}: expected at least one, and none of them NaN")
    return scores.index(max(scores))


def best_of_n_kl(n: int) -> float:
    r"""Upper bound, in nats, on the KL between best-of-n and the policy that it samples from.

    Equation   KL ≤ log n - (n - 1) / n
    Paper      Stiennon et al., arXiv:2009.01325, appendix G.3. That it is a bound: Beirami et al.,
               arXiv:2401.01879.
    Raises     ValueError if n is below 1.

    The bound is reached where all samples have different scores.

    >>> [round(best_of_n_kl(n), 4) for n in (1, 4, 16)]
    [0.0, 0.6363, 1.8351]
    """
    if n < 1:
        raise ValueError(f"n is {n}: expected at least one sample")
    return math.log(n) - (n - 1) / n


def majority_accuracy(p: float, n: int) -> float:
    r"""Probability that more than half of n independent samples are right, each with probability p.

    Equation   Σ_{k>n/2} C(n, k) p^k (1-p)^(n-k)
    Paper      Condorcet 1785.
    Raises     ValueError unless 0 ≤ p ≤ 1 and n is odd and positive (an even n can tie).

    As n grows it rises to 1 for p > 1/2 and falls to 0 for p < 1/2: voting amplifies what is
    already there. It is a lower bound for majority_vote, whose wrong answers need not agree.

    >>> round(majority_accuracy(0.6, 5), 5), round(majority_accuracy(0.4, 5), 5)
    (0.68256, 0.31744)
    """
    if not 0 <= p <= 1 or n < 1 or n % 2 == 0:
        raise ValueError(f"p = {p}, n = {n}: expected a probability and an odd, positive number of "
                         "voters")
    if p in (0, 1):
        return float(p)

    def log_term(k: int) -> float:  # in logarithms, because C(n, k) overflows from n = 1030
        log_binomial = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return log_binomial + k * math.log(p) + (n - k) * math.log1p(-p)

    return math.fsum(math.exp(log_term(k)) for k in range(n // 2 + 1, n + 1))


def plurality_accuracy(right: float, wrong: Sequence[float], n: int) -> float:
    r"""Probability that majority_vote of n independent samples is right.

    Equation   Σ_k Σ_m 1/(m+1) P(k samples give the right answer, m wrong answers have k votes too,
               and no answer has more)
    Paper      Wang et al., arXiv:2203.11171, section 2, of which this is the exact expectation.
    Raises     ValueError for n below 1, and unless all are probabilities with a sum of at most 1.
    See        majority_accuracy, the case of one wrong answer.

    right is the probability of the right answer, wrong that of each wrong one. What is left to 1 is
    a sample without an answer, which has no vote. A tie goes to the answer that came first, which
    is each of the m + 1 equally often.

    Votes are counted as independent Poisson numbers with means n p, given that they are n in all:
    the coefficient of x^n in a product of exponential series. All terms are positive.

    >>> round(plurality_accuracy(0.5, [0.25, 0.25], 2), 4)  # 0.25, and half of 2 * 0.5 * 0.5
    0.5
    >>> round(plurality_accuracy(0.4, [0.3, 0.3], 3), 4)    # 0.064 + 3 * 0.16 * 0.6 + 0.216 / 3
    0.424
    """
    rest = 1 - math.fsum([right, *wrong])
    if n < 1 or not all(0 <= p <= 1 for p in (right, *wrong)) or rest < -1e-9:
        raise ValueError(f"n = {n}, right = {right}, wrong = {list(wrong)[:8]}: expected at least "
                         "one sample, and probabilities with a sum of at most 1")
    votes, none, samples = (_poisson(n * p, n) for p in (right, max(0.0, rest), 1.0))
    others = [(pmf := _poisson(n * p, n), _convolution(pmf)) for p in wrong if p > 0]
    total = 0.0
    for k in range(1, n + 1):
        size = n - k + 1
        chances = torch.zeros(n // k, size, dtype=torch.float64)  # m ties x samples of the others
        chances[0] = none[:size]
        for pmf, adding in others:
            tied = chances[:-1, :max(0, size - k)] * pmf[k]
            chances = chances @ adding[:size, :size].tril(k - 1)   # fewer than k
            chances[1:, k:] += tied
        total += float(votes[k] * (chances[:, n - k] / torch.arange(1, n // k + 1)).sum())
    return min(1.0, total / float(samples[n]))


def _poisson(mean: float, n: int) -> Tensor:
    """Probabilities of 0 to n under a Poisson distribution, (n + 1,)."""
    counts = torch.arange(n + 1, dtype=torch.float64)
    if mean == 0:
        return (counts == 0).double()
    return (counts * math.log(mean) - mean - (counts + 1).lgamma()).exp()


def _convolution(chances: Tensor) -> Tensor:
    """The matrix that adds an independent number with these chances: [i, j] is that of j - i."""
    steps = torch.arange(len(chances))
    steps = steps - steps[:, None]
    return torch.where(steps >= 0, chances[steps.clamp(min=0)], 0)


def expected_best_of_n(scores: Sequence[float] | Tensor, values: Sequence[float] | Tensor,
                       n: int) -> float:
    r"""Unbiased estimate, from N samples of one problem, of the value of the best of n by score.

    Equation   Σ_i C(i-1, n-1) / C(N, n) v_(i),  v_(i) the value of the sample with the i-th lowest
               score: how often it is the best of a subset of n
    Paper      WebGPT, arXiv:2112.09332, appendix I.
    Raises     ValueError unless 1 ≤ n ≤ N and each sample has a score and a value, none of them
               NaN.
    See        best_of_n, which it averages over all subsets; pass_at_k, the case of scores that are
               the values, 1 for right and 0 for wrong.

    Samples with equal scores share what they win: best_of_n takes the first, which is each of them
    equally often where the order is random.

    >>> expected_best_of_n([0.1, 0.2, 0.3], [0.0, 1.0, 0.0], 2)  # 0.2 wins 1 subset of 3
    0.3333333333333333
    >>> expected_best_of_n([1, 1, 0, 0, 0], [1, 1, 0, 0, 0], 2), pass_at_k(5, 2, 2)
    (0.7, 0.7)
    """
    pairs = sorted((float(s), float(v)) for s, v in zip(scores, values, strict=False))
    N = len(pairs)
    if not 1 <= n <= N or not N == len(scores) == len(values) or any(
            math.isnan(x) for pair in pairs for x in pair):
        raise ValueError(f"{len(scores)} scores, {len(values)} values, n = {n}: expected a score "
                         "and a value for each sample, none of them NaN, and 1 <= n <= samples")
    total, below = 0.0, 0
    for _, tied in itertools.groupby(pairs, key=lambda pair: pair[0]):
        group = [value for _, value in tied]
        upto = below + len(group)
        subsets = math.comb(upto, n) - math.comb(below, n)     # whose best is one of the group
        total += subsets / math.comb(N, n) * (math.fsum(group) / len(group))
        below = upto
    return total


def solution_score(step_scores: Tensor, how: str) -> Tensor:
    r"""Return one score for a solution from its steps' scores, probabilities of being right.

    Equation   "last"      p_S
               "min"       min_j p_j
               "product"   Π_j p_j
    Paper      Lightman et al., arXiv:2305.20050, appendix E ("product"); Math-Shepherd,
               arXiv:2312.08935, section 3.4 ("min"); Snell et al., arXiv:2408.03314, and Hugging
               Face's search-and-learn ("last").
    Shapes     step_scores: (..., S), NaN after a solution's last step -> (...)
    Raises     ValueError for an unknown `how`, a solution without steps, a step after a missing
               one, or a score outside [0, 1].

    >>> steps = torch.tensor([0.9, 0.5, 0.8])
    >>> [round(float(solution_score(steps, how)), 2) for how in ("last", "min", "product")]
    [0.8, 0.5, 0.36]
    """
    if how not in SOLUTION_SCORES:
        raise ValueError(f"how is {how!r}: expected one of {', '.join(SOLUTION_SCORES)}")
    missing = step_scores.isnan()
    _check_steps(step_scores, missing)
    if how == "last":
        last = (~missing).sum(-1, keepdim=True) - 1
        return step_scores.gather(-1, last).squeeze(-1)
    filled = torch.where(missing, 1, step_scores)
    return filled.amin(-1) if how == "min" else filled.prod(-1)


def reward_guided(ref_logp: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    r"""Log-probs of the optimal policy under a KL penalty: the reference, tilted by the reward.

    Equation   log π*(y) = log ref(y) + r(y)/β - log Z,   Z = Σ_y ref(y) exp(r(y)/β)
    Paper      DPO, arXiv:2305.18290, section 4, eq. 4; Korbak et al., arXiv:2205.11275.
    Shapes     ref_logp, rewards: (..., V), over all V answers or next tokens -> (..., V)
    Raises     ValueError if shapes differ, or if beta is not positive.
    See        preferences.implicit_reward, the converse.

    PPO, DPO and guided decoding all aim at this policy. As β goes to 0, all probability goes to the
    best answer.

    >>> half, rewards = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0986123, 0.0])
    >>> reward_guided(half, rewards, beta=1.0).exp()  # odds 3 : 1
    tensor([0.7500, 0.2500])
    """
    check_same_shape(ref_logp=ref_logp, rewards=rewards)
    check_positive(beta=beta)
    return (ref_logp + rewards / beta).log_softmax(-1)


def _check_steps(step_scores: Tensor, missing: Tensor) -> None:
    """Raise ValueError unless every solution has a first step, no gaps, and probabilities."""
    if step_scores.dim() == 0 or step_scores.shape[-1] == 0:
        raise ValueError(f"step_scores is {tuple(step_scores.shape)}: a solution has no first step")
    gap = missing.int().cummax(-1).values != missing
    if bool((missing[..., 0] | gap.any(-1)).any()):
        raise ValueError("a solution has no first step, or a step after a missing one: expected "
                         "NaN after the last step only")
    scores = step_scores[~missing]
    if bool(((scores < 0) | (scores > 1)).any()):
        raise ValueError("a step's score is outside [0, 1]: expected probabilities; put logits "
                         "through a sigmoid")
