"""Reward-guided decoding: at each token the policy is tilted by what a guide says of the prefix.

    Paper      Controlled decoding, arXiv:2310.17022, eq. 5 (a value of prefixes); ARGS,
               arXiv:2402.01694, and RAD, arXiv:2310.09520 (a reward model, on the likeliest ids)
    Equation   π(a | prefix) ∝ π_ref(a | prefix) exp(guide(prefix a) / β)

With the exact soft value V(prefix) = β log E_{y ~ π_ref | prefix} exp(r(y) / β) as its guide this
samples from π_ref(y) exp(r(y) / β) / Z, the optimum of E[r] - β KL(π || π_ref): the values of all
tokens but the last cancel. A reward model asked about prefixes is not that value. It sees what is
good now, and not what may still become good: the policy is then another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minirl.equations.checks import check_positive
from minirl.equations.inference_time import reward_guided
from minirl.inference.candidates import (
    Candidates,
    Ids,
    Spent,
    Verifier,
    ask_verifier,
    best_index,
    check_budget,
)
from minirl.lm.branches import Branches
from minirl.lm.choice import draw, keep_likeliest
from minirl.lm.model import Transformer
from minirl.lm.sampling import check_sampling


def guided_decoding(model: Transformer, prompts: Sequence[Ids], guide: Verifier, *, beta: float,
                    n: int = 1, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0,
                    eos_id: int | Iterable[int] | None, budget: int | None = None,
                    generator: torch.Generator | None = None) -> Candidates:
    """Draw n completions of each prompt, each token from guided_logp.

    Raises     ValueError for numbers out of range, a budget that does not reach for a first token,
               and a guide that does not give one score for each prefix.

    guide      the number of a completion so far, with the token in question as its last
    top_k      the ids that are asked about, the likeliest under the policy; 0: the whole
               vocabulary, which is a prefix for each id to be read
    temperature  that of π_ref
    budget     the most tokens that a problem may cost; a row that can afford no further token is
               cut off. What the guide reads is most of it.

    A row's score is the guide's number of the whole; the best that has ended is chosen. Prefixes
    that are equal are asked once in a step.
    """
    stops = [eos_id] if isinstance(eos_id, int) else list(eos_id or ())
    check_positive(beta=beta)
    check_sampling(model.config, [list(p) for p in prompts], group=n, top_p=1.0,
                   max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                   ids={"eos_id": stops}, device=model.device)
    asked = min(top_k or model.config.vocab_size, model.config.vocab_size)  # about each row
    spent = [Spent(prefill=len(prompt)) for prompt in prompts]
    if budget is not None:
        longest = max(map(len, prompts))
        check_budget(budget, longest + n * (1 + asked * (longest + 1)))
    branches = Branches(model, prompts)
    rows = [Row(p) for p in range(len(prompts)) for _ in range(n)]
    growing = rows                                          # in the order of the branches
    branches.select([row.problem for row in rows])

    for _ in range(max_new_tokens):
        # 1. rows leave that have ended, or whose problem can afford no further token
        places = _affordable(growing, prompts, asked, spent, budget)
        branches.select(places)
        growing = [growing[place] for place in places]
        if not growing:
            break

        # 2. tilt the policy, and draw
        logp = reference_logp(branches.next_logits(), temperature, top_k)  # (n, V)
        tilted, told, read = guided_logp(logp, guide, prompts, [row.problem for row in growing],
                                         [row.ids for row in growing], beta=beta)
        ids = _draw(tilted, generator)

        # 3. write down
        spent = [a + b for a, b in zip(spent, read, strict=True)]
        for place, (row, id) in enumerate(zip(growing, ids, strict=True)):
            row.ids.append(id)
            row.ended, row.score = id in stops, float(told[place, id])
            branches.give(place, [id])
            spent[row.problem] += Spent(decode=1)
    return _result(rows, n, spent)


@dataclass
class Row:
    """A completion of a problem. The score is the guide's number of what it has so far."""

    problem: int
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    score: float = math.nan


def reference_logp(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """Log-probs of the policy's next token: its top_k likeliest ids, the others -inf; temperature 0
    leaves the likeliest alone. (n, V) -> (n, V)"""
    if temperature == 0:
        temperature, top_k = 1.0, 1
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return keep_likeliest((logits / temperature).log_softmax(-1), top_k, 1.0)


def guided_logp(logp: Tensor, guide: Verifier, prompts: Sequence[Ids], owners: Sequence[int],
                completions: Sequence[Ids], *, beta: float) -> tuple[Tensor, Tensor, list[Spent]]:
    """Log-probs of the next token under the guide, for each completion so far.

    Equation   log π(a | prefix) = log π_ref(a | prefix) + guide(prefix a) / β - log Z(prefix)
    Shapes     logp (n, V), of π_ref -> log-probs (n, V), the guide's numbers (n, V), 0 where it was
               not asked, and what each prompt cost
    Raises     ValueError for an infinite number.

    owners says which prompt each completion belongs to. The guide is asked about the ids that π_ref
    can draw. An id without a verdict (NaN) cannot be drawn, unless no id has one: then π_ref stays
    as it is.
    """
    places = (logp > -math.inf).nonzero().tolist()          # of a row and an id
    prefixes = [[*completions[row], id] for row, id in places]
    numbers, read = ask_verifier(guide, prompts, [owners[row] for row, _ in places], prefixes)
    if any(math.isinf(x) for x in numbers):
        raise ValueError("the guide gave an infinite number: finite ones are wanted, NaN or None "
                         "for an id that must not be drawn")
    told = torch.zeros_like(logp)  # (n, V)
    row, id = torch.tensor(places, device=logp.device).T
    told[row, id] = torch.tensor(numbers, dtype=logp.dtype, device=logp.device)
    unknown = told.isnan()  # (n, V)
    allowed = logp.masked_fill(unknown, -math.inf)
    silent = (allowed == -math.inf).all(-1, keepdim=True)  # (n, 1)
    allowed = torch.where(silent, logp, allowed)
    return reward_guided(allowed, told.nan_to_num(nan=0.0), beta=beta), told, read


def _affordable(growing: Sequence[Row], prompts: Sequence[Ids], asked: int,
                spent: Sequence[Spent], budget: int | None) -> list[int]:
    """The places of the rows that may draw one more token: of those that have not ended, all of a
    problem or none. The guide reads prompt and row with each id that it is asked about."""
    places = [place for place, row in enumerate(growing) if not row.ended]
    if budget is None:
        return places
    cost = [0] * len(prompts)
    for row in (growing[place] for place in places):
        cost[row.problem] += 1 + asked * (len(prompts[row.problem]) + len(row.ids) + 1)
    fits = [problem.total + more <= budget for problem, more in zip(spent, cost, strict=True)]
    return [place for place in places if fits[growing[place].problem]]


def _draw(logp: Tensor, generator: torch.Generator | None) -> list[int]:
    """One id for each row of log-probs (n, V)."""
    device = logp.device if generator is None else generator.device
    uniform = torch.rand(len(logp), generator=generator, dtype=logp.dtype, device=device)
    ids, _ = draw(logp, uniform.to(logp.device), 1.0, 0, 1.0)
    return ids.tolist()


def _result(rows: Sequence[Row], n: int, spent: list[Spent]) -> Candidates:
    problems = [rows[i:i + n] for i in range(0, len(rows), n)]
    ended = [[row.ended for row in problem] for problem in problems]
    scores = [[row.score for row in problem] for problem in problems]
    return Candidates([[row.ids for row in problem] for problem in problems], ended, scores,
                      [best_index(*pair) for pair in zip(scores, ended, strict=True)], spent)
