"""Inference-time compute: what several samples of one problem are worth, and how one answer is made of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def pass_at_k(n: int, c: int, k: int) -> float:
    r"""Probability that at least one of k samples is right, estimated without bias from n samples of which c were right.

    Equation   pass@k = 1 - C(n - c, k) / C(n, k)  =  1 - prod_{i = n-c+1..n} (1 - k / i)
    Paper      Codex, arXiv:2107.03374, section 2.1, eq. 1.
    Erratum    The plug-in 1 - (1 - c/n)^k is biased downwards: 0.64 where the unbiased value is 0.7 (n = 5, c = 2, k = 2).
    Raises     ValueError unless 1 <= k <= n and 0 <= c <= n.

    >>> round(pass_at_k(5, 2, 2), 4), round(pass_at_k(10, 3, 5), 4)          # 1 - 3/10, 1 - 21/252
    (0.7, 0.9167)
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"n = {n}, c = {c}, k = {k}: 1 <= k <= n and 0 <= c <= n are wanted")
    if n - c < k:
        return 1.0
    none_right = 1.0
    for i in range(n - c + 1, n + 1):
        none_right *= 1 - k / i
    return 1 - none_right


def majority_vote(answers: Sequence[Hashable | None]) -> Hashable | None:
    r"""Self-consistency: the answer that most samples give; None and NaN (no answer) have no vote.

    Equation   argmax_a sum_i 1{a_i = a}
    Paper      Wang et al., arXiv:2203.11171, section 2.
    Raises     ValueError for no answers.
    See        majority_accuracy, which predicts it.

    A tie goes to the answer that came first. None if nobody answered. Answers that are equal but
    spelt differently (62, 062) are different here: tasks.rewards.answer_of spells them alike.

    >>> majority_vote(["12", "13", None, "13"])
    '13'
    """
    return weighted_vote(answers, [1.0] * len(answers))


def weighted_vote(answers: Sequence[Hashable | None], scores: Sequence[float]) -> Hashable | None:
    r"""Weighted self-consistency, or weighted best-of-n: the answer whose samples have the largest sum of scores.

    Equation   argmax_a sum_{i: a_i = a} score_i
    Paper      Math-Shepherd, arXiv:2312.08935, section 3.4; Li et al., arXiv:2206.02336.
    Raises     ValueError for no answers, not one score per answer, or a score that is not a number.

    A tie goes to the answer that came first. None and NaN have no vote. With negative scores a
    common answer loses by being common: use probabilities.

    >>> weighted_vote(["12", "13", "12"], [0.3, 0.5, 0.3])                       # 0.6 against 0.5
    '12'
    """
    if not len(answers) or len(answers) != len(scores):
        raise ValueError(f"{len(answers)} answers and {len(scores)} scores: at least one answer, and a score for each, are wanted")
    if any(score is None or float(score) != float(score) for score in scores):
        raise ValueError("a score is None or NaN: numbers are wanted")
    totals: dict = {}
    for answer, score in zip(answers, scores):
        answer = answer.item() if isinstance(answer, Tensor) else answer                     # tensors are equal to themselves alone, as keys
        if answer is not None and answer == answer:                      # NaN does not equal NaN
            totals[answer] = totals.get(answer, 0.0) + float(score)
    return max(totals, key=totals.get) if totals else None


def best_of_n(scores: Sequence[float] | Tensor) -> int:
    r"""The index of the sample that a reward model likes best; the first of several.

    Equation   argmax_i r(x, y_i)
    Paper      Stiennon et al., arXiv:2009.01325 (rejection sampling); Cobbe et al., arXiv:2110.14168 (verifiers).
    Raises     ValueError for no scores, or a score that is not a number.
    See        best_of_n_kl, the distance that this moves the policy.

    >>> best_of_n([0.1, 0.9, 0.9])
    1
    """
    scores = [math.nan if score is None else float(score) for score in scores]
    if not scores or any(score != score for score in scores):
        raise ValueError(f"scores are {scores[:8]}: at least one, and none of them NaN, are wanted")
    return scores.index(max(scores))


def best_of_n_kl(n: int) -> float:
    r"""How far best-of-n leaves the policy that it samples from, in nats: an upper bound, reached where all scores differ.

    Equation   KL <= log n - (n - 1) / n
    Paper      Stiennon et al., arXiv:2009.01325, appendix G.3; that it is a bound: Beirami et al., arXiv:2401.01879.
    Raises     ValueError if n is below 1.

    >>> [round(best_of_n_kl(n), 4) for n in (1, 4, 16)]
    [0.0, 0.6363, 1.8351]
    """
    if n < 1:
        raise ValueError(f"n is {n}: at least one sample is wanted")
    return math.log(n) - (n - 1) / n


def majority_accuracy(p: float, n: int) -> float:
    r"""Probability that more than half of n samples are right, each with probability p, on its own.

    Equation   sum_{k > n/2} C(n, k) p^k (1 - p)^(n - k)
    Paper      Condorcet 1785.
    Raises     ValueError unless 0 <= p <= 1 and n is odd and positive (an even n can tie).

    With p > 1/2 it rises to 1, with p < 1/2 it falls to 0: voting sharpens what is already there. A lower bound for majority_vote, whose wrong
    answers need not agree.

    >>> round(majority_accuracy(0.6, 5), 5), round(majority_accuracy(0.4, 5), 5)
    (0.68256, 0.31744)
    """
    if not 0 <= p <= 1 or n < 1 or n % 2 == 0:
        raise ValueError(f"p = {p}, n = {n}: a probability and an odd, positive number of voters are wanted")
    if p in (0, 1):
        return float(p)
    terms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p) for k in range(n // 2 + 1, n + 1))
    return math.fsum(math.exp(x) for x in terms)                                  # in logarithms, as C(n, k) overflows from n = 1030


def solution_score(step_scores: Tensor, how: str) -> Tensor:
    r"""One score for a solution from the scores of its steps, probabilities of being right.

    Equation   "last" p_S ;   "min" min_j p_j ;   "product" prod_j p_j
    Paper      Lightman et al., arXiv:2305.20050, appendix E ("product"); Math-Shepherd, arXiv:2312.08935, section 3.4 ("min"); Snell et al.,
               arXiv:2408.03314, and Hugging Face's search-and-learn ("last").
    Shapes     step_scores (..., S), NaN behind a solution's last step -> (...)
    Raises     ValueError for an unknown `how`, a solution without steps, a step behind a missing one, or a score outside [0, 1].

    >>> steps = torch.tensor([0.9, 0.5, 0.8])
    >>> [round(float(solution_score(steps, how)), 2) for how in ("last", "min", "product")]
    [0.8, 0.5, 0.36]
    """
    missing = step_scores.isnan()
    known = step_scores[~missing]
    if how not in ("last", "min", "product"):
        raise ValueError(f"how is {how!r}: one of last, min, product is wanted")
    if step_scores.dim() == 0 or step_scores.shape[-1] == 0 or bool(missing[..., 0].any() | (missing.int().cummax(-1).values != missing).any()):
        raise ValueError("a solution has no first step, or a step behind a missing one: NaN stands behind the last step only")
    if bool(((known < 0) | (known > 1)).any()):
        raise ValueError("a step's score is outside [0, 1]: probabilities are wanted; put logits through a sigmoid")
    if how == "last":
        last = (~missing).sum(-1, keepdim=True) - 1
        return step_scores.gather(-1, last).squeeze(-1)
    filled = torch.where(missing, 1, step_scores)
    return filled.amin(-1) if how == "min" else filled.prod(-1)


def reward_guided(ref_logp: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    r"""Log-probs of the best policy under a KL penalty: the reference, tilted by the reward. What PPO, DPO and guided decoding all aim at.

    Equation   log pi*(y) = log ref(y) + r(y) / beta - log Z,   Z = sum_y ref(y) exp(r(y) / beta)
    Paper      DPO, arXiv:2305.18290, section 4, eq. 4; Korbak et al., arXiv:2205.11275.
    Shapes     ref_logp, rewards (..., V), over all V answers or next tokens -> (..., V)
    Raises     ValueError if shapes differ, or if beta is not positive.

    >>> reward_guided(torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0986123, 0.0]), beta=1.0).exp()      # odds 3 : 1
    tensor([0.7500, 0.2500])
    """
    if ref_logp.shape != rewards.shape:
        raise ValueError(f"ref_logp {tuple(ref_logp.shape)} and rewards {tuple(rewards.shape)}: the same shape is wanted")
    if not beta > 0:
        raise ValueError(f"beta is {beta}: a positive number is wanted; as it goes to 0, all probability goes to the best answer")
    return (ref_logp + rewards / beta).log_softmax(-1)
