"""Searches over steps, led by a verifier of steps: beam search, and diverse verifier tree search.

A step is what split_steps calls one. All rows of all problems grow together, each by a step; then
the verifier says which of them to keep. What rows share is read once: a prompt for all rows, and a
row for its copies (lm/branches.py).

    result.total.decode    tokens that were drawn
    result.kept            tokens of the candidates that are left: the others were drawn in vain
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from minirl.inference.candidates import (
    Candidates,
    Ids,
    Spent,
    StepVerifier,
    Verifier,
    ask_verifier,
    best_index,
    check_budget,
    solution_verifier,
)
from minirl.lm.branches import Branches
from minirl.lm.choice import Choice
from minirl.lm.model import Transformer
from minirl.lm.sampling import check_sampling
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.steps import CLOSE


def beam_search(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids],
                verifier: StepVerifier, *, beams: int = 4, expansions: int = 4, how: str = "last",
                separator: str = ",", max_new_tokens: int, temperature: float = 0.8,
                budget: int | None = None, generator: torch.Generator | None = None) -> Candidates:
    """Step-level beam search: go on from each of the n best beams in m ways, and keep the n best of
    all, until the n best have ended.

    Paper      Snell et al., arXiv:2408.03314, section 5.1: N = n m candidates, of which N / m are
               kept; the scores are those of the last step. Temperature 0.8 is that of Hugging
               Face's search-and-learn.
    Raises     ValueError for numbers out of range, a budget that does not reach for a first token,
               and a verifier that does not give scores for each completion.

    how        the score of a beam from its steps' scores: candidates.solution_verifier
    separator  the text that ends a step. It is seen where it stands within one token.
    budget     the most tokens that a problem may cost, prefill and verifier counted. Where it is
               used up, beams stay as they are, cut off.

    Expansions that are equal are one candidate, so that no beam is kept twice. If fewer than n are
    left, these share the n m expansions. An ended beam is kept for as long as it is among the n
    best, and leaves its expansions out. A tie goes to the first; a beam without a verdict (NaN) is
    the last. Of the beams at the end the best is chosen that has ended.
    """
    return _search(model, tokenizer, prompts, solution_verifier(verifier, how), trees=1,
                   beams=beams, expansions=expansions, separator=separator,
                   max_new_tokens=max_new_tokens, temperature=temperature, budget=budget,
                   generator=generator)


def diverse_tree_search(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids],
                        verifier: StepVerifier, *, trees: int = 4, expansions: int = 4,
                        how: str = "last", separator: str = ",", max_new_tokens: int,
                        temperature: float = 0.8, budget: int | None = None,
                        generator: torch.Generator | None = None) -> Candidates:
    """Diverse verifier tree search (DVTS): several searches of a problem that know nothing of each
    other, each with one beam and m expansions.

    Paper      Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open models": N =
               trees * m candidates.
    Raises     ValueError as beam_search.
    See        beam_search, whose beams may all come to descend from one.

    Within a tree, expansions that are equal are one candidate; two trees may end with the same.
    """
    return _search(model, tokenizer, prompts, solution_verifier(verifier, how), trees=trees,
                   beams=1, expansions=expansions, separator=separator,
                   max_new_tokens=max_new_tokens, temperature=temperature, budget=budget,
                   generator=generator)


@lru_cache(maxsize=4)    # a large vocabulary takes a second
def step_stops(tokenizer: Tokenizer, separator: str = ",") -> tuple[int, ...]:
    """Return the ids after which a step is over: those whose text holds the separator or the end of
    the reasoning, and those that end a completion."""
    ids = range(tokenizer.vocab_size)
    texts = [tokenizer.decode([i]) for i in ids]
    ends = {i for i in ids if separator in texts[i] or CLOSE in texts[i]}
    return tuple(sorted(ends | set(tokenizer.stop_ids)))


@dataclass(frozen=True)
class Beam:
    """A candidate of a tree, finished or not.

    row    its row in the branches, for one that still grows
    """

    ids: tuple[int, ...]
    ended: bool
    row: int
    score: float = math.nan

    @property
    def rank(self) -> float:
        """The best first; no verdict is the last."""
        return math.inf if math.isnan(self.score) else -self.score


def _search(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids], verifier: Verifier,
            *, trees: int, beams: int, expansions: int, separator: str, max_new_tokens: int,
            temperature: float, budget: int | None, generator: torch.Generator | None
            ) -> Candidates:
    """Tree i belongs to problem i // trees. All trees grow by a step at a time."""
    _check(model, prompts, trees=trees, beams=beams, expansions=expansions,
           max_new_tokens=max_new_tokens, temperature=temperature, budget=budget)
    stops = step_stops(tokenizer, separator)
    branches = Branches(model, prompts)
    owners = [p for p in range(len(prompts)) for _ in range(trees)]
    forest = [[Beam((), False, row=p)] for p in owners]
    spent = [Spent(prefill=len(prompt)) for prompt in prompts]

    while True:
        # 1. expand: which rows grow, and by how many tokens at most
        rows = [(tree, beam) for tree, kept in enumerate(forest)
                for beam in _expanded(kept, beams, expansions, max_new_tokens)]
        rows, limits = _affordable(rows, owners, prompts, spent, max_new_tokens, budget)
        if not rows:
            return _result(forest, trees, spent)
        branches.select([beam.row for _, beam in rows])
        drawn = branches.grow(limits, stops=stops, generator=generator,
                              choice=Choice(temperature, 0, 1.0))

        # 2. join equal candidates; beams that do not grow stay candidates
        candidates, new = _joined(forest, rows, drawn, tokenizer.stop_ids)

        # 3. score the new ones
        scores, cost = ask_verifier(verifier, prompts, [owners[tree] for tree, _ in new],
                                    [beam.ids for _, beam in new])
        for (tree, beam), score in zip(new, scores, strict=True):
            candidates[tree][beam.ids] = replace(beam, score=score)

        # 4. keep the best of each tree, and count
        forest = [sorted(entries.values(), key=lambda beam: beam.rank)[:beams]
                  for entries in candidates]
        for (tree, _), ids in zip(rows, drawn, strict=True):
            spent[owners[tree]] += Spent(decode=len(ids))
        spent = [a + b for a, b in zip(spent, cost, strict=True)]


def _expanded(kept: Sequence[Beam], beams: int, expansions: int, max_new_tokens: int
              ) -> Iterable[Beam]:
    """Each beam that grows, as often as it is expanded: the best ones once more where the number
    cannot be shared out evenly."""
    growing = [beam for beam in kept if not beam.ended and len(beam.ids) < max_new_tokens]
    places = (beams - (len(kept) - len(growing))) * expansions
    for i, beam in enumerate(growing):
        yield from [beam] * (places // len(growing) + (i < places % len(growing)))


def _affordable(rows: list[tuple[int, Beam]], owners: Sequence[int], prompts: Sequence[Ids],
                spent: Sequence[Spent], max_new_tokens: int, budget: int | None
                ) -> tuple[list[tuple[int, Beam]], list[int]]:
    """The rows whose problem can afford another step, and how many tokens each may draw.

    The verifier reads the whole of each row; a new token is drawn and read.
    """
    limits = [max_new_tokens - len(beam.ids) for _, beam in rows]
    if budget is not None:
        left = {p: budget - spent[p].total for p in owners}
        count = dict.fromkeys(owners, 0)
        for tree, beam in rows:
            p = owners[tree]
            left[p] -= len(prompts[p]) + len(beam.ids)
            count[p] += 1
        limits = [min(limit, left[owners[tree]] // (2 * count[owners[tree]]))
                  for limit, (tree, _) in zip(limits, rows, strict=True)]
    places = [i for i, limit in enumerate(limits) if limit > 0]
    return [rows[i] for i in places], [limits[i] for i in places]


def _joined(forest: Sequence[Sequence[Beam]], rows: Sequence[tuple[int, Beam]],
            drawn: Sequence[Sequence[int]], stop_ids: Sequence[int]
            ) -> tuple[list[dict[tuple[int, ...], Beam]], list[tuple[int, Beam]]]:
    """The candidates of each tree by their ids: beams that did not grow, and what the rows have
    become. And the new ones among them, each with its tree."""
    grown, new = {(tree, beam.ids) for tree, beam in rows}, []
    candidates = [{beam.ids: beam for beam in kept if (tree, beam.ids) not in grown}
                  for tree, kept in enumerate(forest)]
    for row, ((tree, beam), ids) in enumerate(zip(rows, drawn, strict=True)):
        child = Beam((*beam.ids, *ids), ids[-1] in stop_ids, row)
        if child.ids not in candidates[tree]:
            candidates[tree][child.ids] = child
            new.append((tree, child))
    return candidates, new


def _result(forest: Sequence[Sequence[Beam]], trees: int, spent: list[Spent]) -> Candidates:
    problems = [[beam for kept in forest[i:i + trees] for beam in kept]
                for i in range(0, len(forest), trees)]
    ended = [[beam.ended for beam in row] for row in problems]
    scores = [[beam.score for beam in row] for row in problems]
    return Candidates([[list(beam.ids) for beam in row] for row in problems], ended, scores,
                      [best_index(*pair) for pair in zip(scores, ended, strict=True)], spent)


def _check(model: Transformer, prompts: Sequence[Ids], *, trees: int, beams: int, expansions: int,
           max_new_tokens: int, temperature: float, budget: int | None) -> None:
    if min(trees, beams, expansions) < 1:
        raise ValueError(f"{trees} trees, {beams} beams and {expansions} expansions: at least one "
                         "of each is wanted")
    rows = trees * beams * expansions
    check_sampling(model.config, [list(prompt) for prompt in prompts], group=rows,
                   max_new_tokens=max_new_tokens, temperature=temperature, top_k=0, top_p=1.0,
                   ids={}, device=model.device)
    if budget is not None:      # one token of each row, drawn and read by the verifier
        longest = max(map(len, prompts))
        check_budget(budget, longest + rows * (longest + 2))
