"""Accuracy against tokens: what a way to choose among n candidates is worth, measured, predicted.

What needs samples alone is measured on one draw: for n candidates the samples are cut into groups
of n, each chosen from as if it had been drawn for itself, and a problem's number is the mean over
its groups. Tokens are counted as each group by itself would cost them. A search draws anew for each
n. A prediction reads other samples of the same problems than those that are measured on.

    draw_samples    samples of each problem, judged, with the scores of verifiers
    measure_...     a point: a method with n candidates
    predict_...     what theory says of it, for each problem
"""

from __future__ import annotations

import math
from collections import Counter as Counts
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from minirl.equations.inference_time import (
    expected_best_of_n,
    majority_vote,
    pass_at_k,
    plurality_accuracy,
)
from minirl.inference.candidates import (
    Candidates,
    Spent,
    Verifier,
    ask_verifier,
    best_index,
    joined,
)
from minirl.inference.collect import ROWS, Counter, collect_in_parts
from minirl.inference.evaluate import Evaluation
from minirl.inference.intervals import wilson_interval
from minirl.inference.voting import weighted_choice
from minirl.lm.model import Transformer
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.answers import vote_of
from minirl.tasks.problem import JudgedTask, Problem, Task, columns
from minirl.tasks.rewards import judge

Search = Callable[[list[list[int]], int, torch.Generator], Candidates]


@dataclass(frozen=True)
class Samples:
    """Samples of each of P problems. Each list has a row per problem, an entry per sample.

    completions  their ids, EOS included
    answers      what each answers, None: nothing
    right        1.0 where its verdict is 1, else 0.0
    scores       of each verifier, NaN: no verdict
    """

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    answers: list[list[Hashable | None]]
    right: list[list[float]]
    scores: dict[str, list[list[float]]]

    def part(self, group: slice) -> Samples:
        """Some samples of each problem."""
        def cut(column: Sequence[Sequence]) -> list:
            return [row[group] for row in column]

        return Samples(self.prompts, cut(self.completions), cut(self.answers), cut(self.right),
                       {name: cut(column) for name, column in self.scores.items()})

    def spent(self, problem: int, group: slice, *, verified: bool) -> Spent:
        """What a group of a problem's samples costs by itself, as Candidates count it."""
        prompt, ids = len(self.prompts[problem]), self.completions[problem][group]
        read = {tuple(row) for row in ids} if verified else set()
        return Spent(prompt, sum(map(len, ids)), sum(prompt + len(row) for row in read))


@dataclass(frozen=True)
class Point:
    """A method with n candidates: a number for each of P problems.

    right      how often it is right on the problem
    predicted  what theory says of that, from other samples; None: there is no theory
    score      what its verifier says of the chosen candidate, on average; None: no verifier
    prefill, decode, verifier   tokens per problem, see Spent
    """

    method: str
    n: int
    right: list[float]
    prefill: float
    decode: float
    verifier: float
    predicted: list[float] | None = None
    score: float | None = None

    @property
    def accuracy(self) -> float:
        return mean(self.right)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's, of as many independent numbers as there are problems."""
        return wilson_interval(self.accuracy, len(self.right))

    @property
    def tokens(self) -> float:
        return self.prefill + self.decode + self.verifier

    @property
    def errors(self) -> list[float]:
        """Measured minus predicted, for each problem."""
        return [a - b for a, b in zip(self.right, self.predicted or [], strict=True)]


def mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def sizes(largest: int) -> list[int]:
    """Return 1, 2, 4, ... up to `largest`.

    >>> sizes(10)
    [1, 2, 4, 8]
    """
    return [2 ** i for i in range(largest.bit_length())]


# measured on one draw of samples

def draw_samples(policy: Transformer, tokenizer: Tokenizer, task: Task,
                 problems: Sequence[Problem], verifiers: Mapping[str, Verifier], *, n: int,
                 max_new_tokens: int, temperature: float = 1.0,
                 generator: torch.Generator | None = None,
                 progress: Counter | None = None) -> Samples:
    """Draw n samples of each problem, judge them by the task's accuracy, and ask each verifier.

    A completion without a verdict is not right.
    """
    judged = JudgedTask(task, {"accuracy": task.rewards["accuracy"]}, {"accuracy": 1.0})
    ids, texts, verdicts = list[list[int]](), list[str](), list["float | None"]()
    for part in collect_in_parts(policy, tokenizer, judged, problems, group=n, progress=progress,
                                 max_new_tokens=max_new_tokens, temperature=temperature,
                                 generator=generator):
        ids += part.rollouts.completion_ids()
        texts += part.completions
        verdicts += part.verdicts["accuracy"]
    prompts = [problem.prompt for problem in problems]
    return _samples(tokenizer, prompts, _rows(ids, n), _rows(texts, n), _rows(verdicts, n),
                    verifiers)


def samples_of(result: Evaluation, tokenizer: Tokenizer, verifiers: Mapping[str, Verifier]
               ) -> Samples:
    """Return an evaluation's completions as samples. Problems without a verdict are left out."""
    verdicts = result.verdicts["accuracy"]
    kept = [i for i, row in enumerate(verdicts) if any(verdict is not None for verdict in row)]
    return _samples(tokenizer, [result.problems[i].prompt for i in kept],
                    [result.completion_ids[i] for i in kept],
                    [result.completions[i] for i in kept], [verdicts[i] for i in kept], verifiers)


def _samples(tokenizer: Tokenizer, prompts: list[str], ids: list[list[list[int]]],
             texts: list[list[str]], verdicts: list[list[float | None]],
             verifiers: Mapping[str, Verifier]) -> Samples:
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    owners = [problem for problem, row in enumerate(ids) for _ in row]
    flat, n = [row for rows in ids for row in rows], len(ids[0]) if ids else 1
    return Samples(encoded, ids, [[vote_of(text) for text in row] for row in texts],
                   [[float(verdict == 1.0) for verdict in row] for row in verdicts],
                   {name: _rows(ask_verifier(verifier, encoded, owners, flat)[0], n)
                    for name, verifier in verifiers.items()})


def measure_vote(samples: Samples, n: int) -> Point:
    """The first sample with the commonest answer, as voting.majority_voting chooses."""
    def choose(problem: int, group: slice) -> int:
        answers = samples.answers[problem][group]
        return answers.index(majority_vote(answers))

    return _measure("majority vote", samples, n, choose)


def measure_best(samples: Samples, n: int, verifier: str) -> Point:
    """The sample with the highest score, as voting.best_of_n_sampling chooses."""
    return _measure(f"best of n, {verifier}", samples, n,
                    lambda problem, group: best_index(samples.scores[verifier][problem][group]),
                    verifier=verifier)


def measure_weighted(samples: Samples, n: int, verifier: str) -> Point:
    """The answer with the largest sum of scores, as voting.weighted_best_of_n chooses."""
    def choose(problem: int, group: slice) -> int:
        return weighted_choice(samples.answers[problem][group],
                               samples.scores[verifier][problem][group])

    return _measure(f"weighted vote, {verifier}", samples, n, choose, verifier=verifier)


def measure_any(samples: Samples, n: int) -> Point:
    """Whether any sample is right: the ceiling of whatever chooses one of them."""
    return _measure("any of n is right", samples, n,
                    lambda problem, group: best_index(samples.right[problem][group]))


def _measure(method: str, samples: Samples, n: int, choose: Callable[[int, slice], int], *,
             verifier: str | None = None) -> Point:
    right, spent, scores = [], Spent(), list[float]()
    groups = [slice(i, i + n) for i in range(0, len(samples.right[0]) - n + 1, n)]
    for problem, verdicts in enumerate(samples.right):
        places = [group.start + choose(problem, group) for group in groups]
        right.append(mean([verdicts[place] for place in places]))
        for group in groups:
            spent += samples.spent(problem, group, verified=verifier is not None)
        if verifier is not None:
            scores += [samples.scores[verifier][problem][place] for place in places]
    told = [score for score in scores if not math.isnan(score)]
    return _point(method, n, right, spent, len(right) * len(groups),
                  score=mean(told) if told else None)


# predicted from another

def predict_vote(samples: Samples, n: int) -> list[float]:
    """How often a vote of n is right on each problem, if its answers come as often as here."""
    chances = []
    for answers, right in zip(samples.answers, samples.right, strict=True):
        N, votes = len(answers), zip(answers, right, strict=True)
        wrong = Counts(answer for answer, is_right in votes if answer is not None and not is_right)
        chances.append(plurality_accuracy(sum(right) / N, [k / N for k in wrong.values()], n))
    return chances


def predict_best(samples: Samples, n: int, verifier: str) -> list[float]:
    """How often the best of n by this verifier is right on each problem."""
    usable = [[-math.inf if math.isnan(score) else score for score in scores]
              for scores in samples.scores[verifier]]
    return [expected_best_of_n(scores, right, n)
            for scores, right in zip(usable, samples.right, strict=True)]


def predict_any(samples: Samples, n: int) -> list[float]:
    """How often any of n is right on each problem: pass@n."""
    return [pass_at_k(len(right), int(sum(right)), n) for right in samples.right]


def over_optimisation(samples: Samples, verifier: str) -> list[tuple[int, float, float]]:
    """Return n, the verifier's mean score of the best of n, and how often that is right, for n = 1,
    2, 4, ... up to all samples: exactly, over all subsets. Problems with a sample without a verdict
    are left out.

    Paper      Gao et al., arXiv:2210.10760: the score goes on rising where the truth falls.
    """
    rows = [(scores, right) for scores, right in zip(samples.scores[verifier], samples.right,
                                                     strict=True)
            if not any(map(math.isnan, scores))]
    return [(n, mean([expected_best_of_n(scores, scores, n) for scores, _ in rows]),
             mean([expected_best_of_n(scores, right, n) for scores, right in rows]))
            for n in sizes(len(samples.right[0])) if rows]


# searches, which draw for themselves

def measure_search(method: str, search: Search, tokenizer: Tokenizer, task: Task,
                   problems: Sequence[Problem], n: int, *, generator: torch.Generator,
                   progress: Counter | None = None) -> Point:
    """A search with n rows for each problem: search(prompts, n, generator) -> Candidates."""
    parts, size = [], max(1, ROWS // n)
    for start in range(0, len(problems), size):
        part = problems[start:start + size]
        parts.append(search([tokenizer.encode_prompt(p.prompt) for p in part], n, generator))
        if progress is not None:
            progress.update(n * len(part))
    result = joined(parts)
    verdicts = judge(task.rewards, ["accuracy"], [problem.prompt for problem in problems],
                     [tokenizer.decode_completion(ids) for ids in result.best],
                     **columns(problems), completion_ids=result.best)["accuracy"]
    scores = [row[i] for row, i in zip(result.scores, result.chosen, strict=True)]
    told = [score for score in scores if not math.isnan(score)]
    return _point(method, n, [float(verdict == 1.0) for verdict in verdicts], result.total,
                  len(problems), score=mean(told) if told else None)


def _point(method: str, n: int, right: list[float], total: Spent, times: int, *,
           score: float | None) -> Point:
    return Point(method, n, right, total.prefill / times, total.decode / times,
                 total.verifier / times, score=score)


def _rows(column: Sequence, n: int) -> list:
    return [column[i:i + n] for i in range(0, len(column), n)]
