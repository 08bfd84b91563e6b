"""Several samples of a problem, and one of them: a majority vote, the best of n, a weighted vote.

Each reads a prompt once for all n samples, and its batch shrinks as samples end. `budget` is the
most tokens that a problem may cost, prefill and verifier counted: as many samples are drawn as it
allows even where all of them are as long as they may be.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch

from minirl.equations.inference_time import majority_vote, weighted_vote
from minirl.inference.candidates import (
    Answer,
    Candidates,
    Ids,
    Spent,
    Verifier,
    affordable,
    ask_verifier,
    best_index,
)
from minirl.lm.model import Transformer
from minirl.lm.sampling import sample
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.answers import vote_of


def majority_voting(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids], *, n: int,
                    max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0,
                    answer: Answer = vote_of, budget: int | None = None,
                    generator: torch.Generator | None = None) -> Candidates:
    """Self-consistency: sample n completions, and choose the first with the commonest answer.

    Paper      Wang et al., arXiv:2203.11171, section 2.
    Raises     ValueError for n below 1, and a budget that does not reach for one sample.

    `answer` spells equal answers alike: 62 and 062 are one vote. A completion without an answer has
    no vote. A tie goes to the answer that came first. Where nobody answers, the first is chosen.
    """
    n = affordable(n, prompts, max_new_tokens, budget, verified=False)
    samples = _sample(model, tokenizer, prompts, n, max_new_tokens, temperature, top_p, generator)
    for i, answers in enumerate(samples.answers(tokenizer, answer)):
        samples.chosen[i] = answers.index(majority_vote(answers))
    return samples


def best_of_n_sampling(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids],
                       verifier: Verifier, *, n: int, max_new_tokens: int,
                       temperature: float = 1.0, top_p: float = 1.0, budget: int | None = None,
                       generator: torch.Generator | None = None) -> Candidates:
    """Sample n completions, and choose the one with the highest score.

    Paper      Cobbe et al., arXiv:2110.14168, section 4.2; with a process reward model Lightman et
               al., arXiv:2305.20050.
    Raises     ValueError as majority_voting, and for a verifier that does not give one score each.
    See        candidates.solution_verifier, which makes a verifier of one that scores steps.

    A tie goes to the first. A completion without a verdict is chosen only where none has one.
    """
    n = affordable(n, prompts, max_new_tokens, budget, verified=True)
    samples = _sample(model, tokenizer, prompts, n, max_new_tokens, temperature, top_p, generator)
    samples = _scored(samples, prompts, verifier)
    samples.chosen[:] = [best_index(scores) for scores in samples.scores]
    return samples


def weighted_best_of_n(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids],
                       verifier: Verifier, *, n: int, max_new_tokens: int,
                       temperature: float = 1.0, top_p: float = 1.0, answer: Answer = vote_of,
                       budget: int | None = None,
                       generator: torch.Generator | None = None) -> Candidates:
    """Sample n completions; the answer with the largest sum of scores wins. Of its completions the
    one with the highest score is chosen.

    Paper      Li et al., arXiv:2206.02336; Math-Shepherd, arXiv:2312.08935, section 3.4.
    Raises     ValueError as best_of_n_sampling, and for a score below 0 or infinite: such weights
               are no votes.

    A completion without a verdict has no vote. Where none that answers has one, each has one vote;
    where nobody answers, the choice is that of best_of_n_sampling.
    """
    n = affordable(n, prompts, max_new_tokens, budget, verified=True)
    samples = _sample(model, tokenizer, prompts, n, max_new_tokens, temperature, top_p, generator)
    samples = _scored(samples, prompts, verifier)
    for i, answers in enumerate(samples.answers(tokenizer, answer)):
        samples.chosen[i] = weighted_choice(answers, samples.scores[i])
    return samples


def weighted_choice(answers: Sequence[Hashable | None], scores: Sequence[float]) -> int:
    """Return the index of the highest score among those that give the answer with the largest sum.

    >>> weighted_choice(["12", "13", "12", None], [0.3, 0.5, 0.4, 0.9])      # 0.7 against 0.5
    2
    """
    wrong = [score for score in scores if score < 0 or math.isinf(score)]
    if wrong:
        raise ValueError(f"the verifier gave the score {wrong[0]}, which is no weight of a vote: "
                         "probabilities are wanted; put logits through a sigmoid")
    votes = [None if math.isnan(score) else answer
             for answer, score in zip(answers, scores, strict=True)]
    winner = weighted_vote(votes, [0.0 if math.isnan(score) else score for score in scores])
    if winner is None and (winner := majority_vote(answers)) is None:
        return best_index(scores)
    places = [i for i, answer in enumerate(answers) if answer == winner]
    return places[best_index([scores[i] for i in places])]


def _sample(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids], n: int,
            max_new_tokens: int, temperature: float, top_p: float,
            generator: torch.Generator | None) -> Candidates:
    """n samples of each problem, the first one chosen."""
    rollouts = sample(model, prompts, group=n, max_new_tokens=max_new_tokens,
                      temperature=temperature, top_p=top_p, eos_id=tokenizer.stop_ids,
                      pad_id=tokenizer.pad_id, generator=generator)
    ids, ended = rollouts.completion_ids(), (~rollouts.truncated).tolist()
    rows = [slice(i, i + n) for i in range(0, len(ids), n)]
    spent = [Spent(prefill=len(prompt), decode=sum(map(len, ids[row])))
             for prompt, row in zip(prompts, rows, strict=True)]
    return Candidates([ids[row] for row in rows], [ended[row] for row in rows],
                      [[math.nan] * n for _ in rows], [0] * len(rows), spent)


def _scored(samples: Candidates, prompts: Sequence[Ids], verifier: Verifier) -> Candidates:
    """The same samples with the verifier's scores, and its cost."""
    n = len(samples.completions[0])
    owners = [p for p in range(len(prompts)) for _ in range(n)]
    scores, cost = ask_verifier(verifier, prompts, owners,
                                [ids for row in samples.completions for ids in row])
    return Candidates(samples.completions, samples.ended,
                      [scores[i:i + n] for i in range(0, len(scores), n)], samples.chosen,
                      [a + b for a, b in zip(samples.spent, cost, strict=True)])
