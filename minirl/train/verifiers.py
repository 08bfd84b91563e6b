"""Trained models as verifiers for the searches of inference/: functions of ids that give a score to
each completion, or to each of its steps (inference/candidates.py).

    outcome_verifier   a score for a whole completion: Cobbe et al., arXiv:2110.14168
    step_verifier      a score for each of its steps: Lightman et al., arXiv:2305.20050

Both read a ScalarModel's score s as σ(s), the probability that the answer will be right. An outcome
model is a process reward model whose solutions have one label each, that of the last step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minirl.inference.candidates import Ids, StepVerifier, Verifier
from minirl.inference.steps import padded_steps, step_ends
from minirl.lm.heads import ScalarModel, score_ids
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.steps import Solution


def outcome_verifier(model: ScalarModel, tokenizer: Tokenizer, *,
                     token_budget: int = TOKEN_BUDGET) -> Verifier:
    """Return a reward model as a verifier of whole completions: σ of the score behind the last
    token.

    An unfinished completion has the score of the state in which it was left; an empty one has no
    verdict, NaN. A model that was trained on rankings chooses as well: σ keeps the order.
    """
    def scores(prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[float | None]:
        rows = [i for i, ids in enumerate(completions) if len(ids)]
        values = score_ids(model, [prompts[i] for i in rows], [completions[i] for i in rows],
                           tokenizer.pad_id, token_budget=token_budget)  # (n,)
        out: list[float | None] = [math.nan] * len(completions)
        # in float64: in float32 every score above 17 would be a tie at 1
        for i, value in zip(rows, values.double().sigmoid().tolist(), strict=True):
            out[i] = value
        return out

    return scores


def step_verifier(model: ScalarModel, tokenizer: Tokenizer, *, separator: str = ",",
                  token_budget: int = TOKEN_BUDGET) -> StepVerifier:
    """Return a process reward model as a verifier of steps: σ of the score behind each step.

    The steps are those of inference.steps.step_ends, and all of them are read in one pass. The last
    one need not be over: it has the score of the state in which it was left, as in training. An
    empty completion has no steps.
    """
    def scores(prompts: Sequence[Ids], completions: Sequence[Ids]
               ) -> list[Sequence[float | None]]:
        ends = [step_ends(tokenizer, ids, separator) if len(ids) else [] for ids in completions]
        rows = [i for i, marks in enumerate(ends) if marks]
        chances = step_probabilities(
            model, [prompts[i] for i in rows], [completions[i] for i in rows],
            [ends[i] for i in rows], tokenizer.pad_id, token_budget=token_budget)
        out: list[Sequence[float | None]] = [[] for _ in completions]
        for i, row in zip(rows, chances, strict=True):
            out[i] = row
        return out

    return scores


def outcomes_alone(solutions: Sequence[Solution]) -> list[Solution]:
    """Return the solutions with the label of their last step alone: what an outcome reward model
    learns from.

    >>> outcomes_alone([Solution("7+5=", ("7+5=12,", "12"), (0.25, 1.0))])[0].labels
    (None, 1.0)
    """
    return [replace(solution, labels=(None,) * (len(solution.labels) - 1) + solution.labels[-1:])
            for solution in solutions]


# the scores of steps

def score_steps(model: ScalarModel, prompts: Sequence[Sequence[int]],
                completions: Sequence[Sequence[int]], ends: Sequence[Sequence[int]],
                pad_id: int) -> Tensor:
    """Return the scores behind the last token of each step: (B, S), NaN where there is no step.

    ends says how many tokens of the completion come up to the end of each step. The state behind a
    step is the one before the next token; behind the last step it is that of the whole.
    """
    tokens, mask = completion_batch(prompts, completions, pad_id, model.device)
    values, whole = model(tokens, mask)  # (B, T), (B,)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)
    lengths = torch.tensor([len(c) for c in completions], device=tokens.device)
    slots = padded_steps(ends).to(tokens.device)  # (B, S): slots of the completion, NaN: none
    last = slots == lengths[:, None]  # (B, S)
    at = torch.where(last | slots.isnan(), 1, slots).long() + starts[:, None]  # any slot will do
    inner = values.gather(1, at.clamp(max=tokens.shape[1] - 1))  # (B, S)
    scores = torch.where(last, whole[:, None], inner)
    return torch.where(slots.isnan(), torch.nan, scores)


@torch.no_grad()
def step_probabilities(model: ScalarModel, prompts: Sequence[Sequence[int]],
                       completions: Sequence[Sequence[int]], ends: Sequence[Sequence[int]],
                       pad_id: int, *, token_budget: int = TOKEN_BUDGET) -> list[list[float]]:
    """Return σ of score_steps of N completions, one list each, in micro-batches."""
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    chances: list[list[float]] = [[] for _ in lengths]
    for part in micro_batches(torch.tensor(lengths, dtype=torch.long), token_budget):
        rows = part.tolist()
        scores = score_steps(model, [prompts[i] for i in rows], [completions[i] for i in rows],
                             [ends[i] for i in rows], pad_id)  # (b, S)
        for i, row in zip(rows, scores.double().sigmoid().tolist(), strict=True):
            chances[i] = row[:len(ends[i])]
    return chances
