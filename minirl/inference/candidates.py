"""What a search at inference time returns: candidates for each problem, the chosen one, and what it
cost in tokens. And how a verifier is asked.

A verifier is a function of ids, so that nothing is decoded and encoded again:

    Verifier       prompts, completions -> a score for each completion
    StepVerifier   prompts, completions -> for each completion a score for each of its steps

Completions may be unfinished. A score of NaN (or None) is no verdict: such a candidate is chosen
only where no candidate of its problem has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch

from minirl.equations.inference_time import SOLUTION_SCORES, best_of_n, solution_score
from minirl.inference.steps import padded_steps
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.answers import vote_of

Ids = Sequence[int]
Verifier = Callable[[Sequence[Ids], Sequence[Ids]], "Sequence[float | None]"]
StepVerifier = Callable[[Sequence[Ids], Sequence[Ids]], "Sequence[Sequence[float | None]]"]
Answer = Callable[[str], "Hashable | None"]     # a completion's text -> its answer, None: none


@dataclass(frozen=True)
class Spent:
    """Tokens that a problem cost.

    prefill    that the policy read and did not draw: the prompt, once for all its candidates, and
               what was put into a completion
    decode     that it drew, dropped ones too
    verifier   that the verifier was handed, prompts too: it keeps nothing from call to call
    """

    prefill: int = 0
    decode: int = 0
    verifier: int = 0

    @property
    def total(self) -> int:
        return self.prefill + self.decode + self.verifier

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.prefill + other.prefill, self.decode + other.decode,
                     self.verifier + other.verifier)


@dataclass(frozen=True)
class Candidates:
    """Candidates for each of P problems.

    completions   for each problem its candidates' ids, EOS included
    ended         whether each candidate has ended; else it ran out of tokens
    scores        the verifier's score of each, NaN: no verdict, or no verifier
    chosen        for each problem the index of the chosen candidate
    spent         for each problem what it cost
    """

    completions: list[list[list[int]]]
    ended: list[list[bool]]
    scores: list[list[float]]
    chosen: list[int]
    spent: list[Spent]

    @property
    def best(self) -> list[list[int]]:
        """The ids of each problem's chosen candidate."""
        return [row[i] for row, i in zip(self.completions, self.chosen, strict=True)]

    @property
    def total(self) -> Spent:
        """What all problems cost."""
        return sum(self.spent, Spent())

    @property
    def kept(self) -> int:
        """Tokens of all candidates, to compare with total.decode: the others were dropped."""
        return sum(len(ids) for row in self.completions for ids in row)

    def answers(self, tokenizer: Tokenizer, answer: Answer = vote_of
                ) -> list[list[Hashable | None]]:
        """The answer of each candidate, None where it has none."""
        return [[answer(tokenizer.decode_completion(ids)) for ids in row]
                for row in self.completions]


def joined(parts: Iterable[Candidates]) -> Candidates:
    """Return the candidates of several parts of the problems as one."""
    whole = Candidates([], [], [], [], [])
    for part in parts:
        for name, column in vars(whole).items():
            column += getattr(part, name)
    return whole


# choosing

def best_index(scores: Sequence[float], ended: Sequence[bool] | None = None) -> int:
    """Return the index of the highest score, the first one in a tie.

    NaN is below every number. With `ended`, a candidate that has not ended is chosen only where
    none has.

    >>> best_index([math.nan, 0.2, 0.7, 0.7])
    2
    >>> best_index([0.1, 0.9], [True, False])
    0
    """
    usable = [-math.inf if math.isnan(score) else score for score in scores]
    if ended is None or not any(ended):
        return best_of_n(usable)
    places = [i for i, has_ended in enumerate(ended) if has_ended]
    return places[best_of_n([usable[i] for i in places])]


# asking a verifier

def solution_verifier(verifier: StepVerifier, how: str = "min") -> Verifier:
    """Return a verifier of steps as one of whole solutions, by the last, the lowest or the product
    of the steps' scores: equations.inference_time.solution_score.

    A solution without steps, or with a step that has no verdict, has no verdict.

    >>> steps = lambda prompts, completions: [[0.9, 0.5, 0.8], [0.9, None], []]
    >>> [f"{score:.2f}" for score in solution_verifier(steps, "product")([[1]] * 3, [[2]] * 3)]
    ['0.36', 'nan', 'nan']
    """
    def scores(prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[float | None]:
        rows = verifier(prompts, completions)
        _check_number(rows, completions)
        judged = [i for i, row in enumerate(rows)
                  if len(row) and not any(x is None or math.isnan(x) for x in row)]
        out: list[float | None] = [math.nan] * len(rows)
        if judged:
            # in float64: two scores next to 1 stay apart
            table = padded_steps([rows[i] for i in judged], dtype=torch.float64)  # (n, S)
            for i, score in zip(judged, solution_score(table, how).tolist(), strict=True):
                out[i] = score
        return out

    if how not in SOLUTION_SCORES:
        raise ValueError(f"how is {how!r}: expected one of {', '.join(SOLUTION_SCORES)}")
    return scores


def ask_verifier(verifier: Verifier, prompts: Sequence[Ids], owners: Sequence[int],
                 completions: Sequence[Ids]) -> tuple[list[float], list[Spent]]:
    """Ask for the score of each completion -> the scores, NaN: no verdict, and what each prompt
    cost.

    Raises     ValueError unless there is one number (or None) for each.

    owners says which prompt each completion belongs to. Completions that are equal are asked once.
    """
    keys = [(p, tuple(ids)) for p, ids in zip(owners, completions, strict=True)]
    distinct = list(dict.fromkeys(keys))
    asked = [prompts[p] for p, _ in distinct], [list(ids) for _, ids in distinct]
    answers = verifier(*asked) if distinct else []
    _check_number(answers, distinct)
    scores = {key: math.nan if x is None else float(x)
              for key, x in zip(distinct, answers, strict=True)}
    spent = [Spent()] * len(prompts)
    for p, ids in distinct:
        spent[p] += Spent(verifier=len(prompts[p]) + len(ids))
    return [scores[key] for key in keys], spent


def _check_number(answers: Sequence, completions: Sequence) -> None:
    if len(answers) != len(completions):
        raise ValueError(f"the verifier gave {len(answers)} scores for {len(completions)} "
                         "completions: one for each is wanted, NaN or None for no verdict")


# token budgets

def affordable(n: int, prompts: Sequence[Ids], tokens: int, budget: int | None, *,
               verified: bool) -> int:
    """Return how many of n candidates of up to so many tokens each problem can afford.

    A problem costs its prompt once, and for each candidate its tokens; a verifier reads prompt and
    candidate. The longest prompt decides for all problems. No budget: n.

    Raises     ValueError for n below 1, and where not one can be afforded.

    >>> affordable(64, [[1] * 10], 20, budget=100, verified=False)       # 10 + 4 * 20 = 90
    4
    >>> affordable(64, [[1] * 10], 20, budget=100, verified=True)        # 10 + 20 + (10 + 20) = 60
    1
    """
    if n < 1:
        raise ValueError(f"n is {n}: at least one candidate is wanted")
    longest = max(map(len, prompts), default=0)
    if budget is None or not longest:
        return n
    one = tokens + (longest + tokens if verified else 0)
    check_budget(budget, longest + one)
    return min(n, (budget - longest) // one)


def check_budget(budget: int, least: int) -> None:
    if budget < least:
        raise ValueError(f"a budget of {budget} tokens for each problem is too small: at least "
                         f"{least} are wanted, or fewer and shorter candidates")
