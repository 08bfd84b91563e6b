"""Budget forcing: how long a policy thinks is decided from outside, by what it is made to write.

    cut       after `most` tokens the end of thinking is written for it, and it must answer
    extend    where it ends its thinking too early, the end is taken back and "Wait," put in its
              place, and it thinks on

    Paper     s1, arXiv:2501.19393, section 3.1 (figure 3 shows an extended trace)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from minirl.equations.inference_time import majority_vote
from minirl.inference.candidates import Answer, Candidates, Ids, Spent, affordable
from minirl.lm.branches import Branches
from minirl.lm.choice import Choice
from minirl.lm.model import Transformer
from minirl.lm.sampling import check_sampling
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.rewards import answer_of
from minirl.tasks.steps import CLOSE


def budget_forcing(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids], *, n: int = 1,
                   most: int, extensions: int = 0, least: int | None = None, wait: str = "Wait,",
                   end: str = CLOSE, then: str = "", max_new_tokens: int, temperature: float = 1.0,
                   answer: Answer = answer_of, budget: int | None = None,
                   generator: torch.Generator | None = None) -> Candidates:
    """Draw n completions of each prompt whose thinking is cut or extended; the commonest answer is
    chosen, as in majority_voting.

    Raises     ValueError for numbers out of range, an `end` that is not one token, and a budget
               that does not reach for one completion.

    most        tokens of thinking after which it is cut, those of `wait` among them
    extensions  how many times an end of thinking is refused at most; the paper has 2, 4 and 6
    least       an end is refused only before so many tokens; None: whenever there are extensions
    end, then   the token that ends the thinking, and the text behind it where the thinking was cut,
                such as "<answer>"
    max_new_tokens  of thinking and answer together, with what was put in
    budget      the most tokens that a problem may cost; it decides how many of the n are drawn

    An EOS within the thinking is an end of it, and is taken back, too. An end is not refused where
    `wait` and one more token do not fit in `most`. Nothing is read twice: a row goes on from what
    the cache holds.
    """
    end_id, wait_ids, close_ids = _forced(tokenizer, wait, end, then)
    if extensions < 0 or not 1 <= most <= max_new_tokens - len(close_ids) - 1:
        raise ValueError(f"{extensions} extensions, and at most {most} tokens of thinking in "
                         f"{max_new_tokens}: at least 0, and 1 to "
                         f"{max_new_tokens - len(close_ids) - 1} are wanted, so that the end and a "
                         "token of the answer fit")
    # Drawn and taken back: a token for each extension, and an EOS in place of an end.
    n = affordable(n, prompts, max_new_tokens + extensions + 1, budget, verified=False)
    check_sampling(model.config, [list(prompt) for prompt in prompts], group=n, top_k=0, top_p=1.0,
                   max_new_tokens=max_new_tokens, temperature=temperature, ids={},
                   device=model.device)
    branches = Branches(model, prompts)
    rows = list(range(len(prompts) * n))                    # those that grow; row i is of i // n
    branches.select([i // n for i in rows])
    thinking, left = [True] * len(rows), [extensions] * len(rows)
    completions: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    spent = [Spent(prefill=len(prompt)) for prompt in prompts]

    while rows:
        # 1. grow: up to the end of the thinking, of the answer, or of what is allowed
        limits = [(most if thinking[i] else max_new_tokens) - len(completions[i]) for i in rows]
        drawn = branches.grow(limits, stops=(*tokenizer.stop_ids, end_id), generator=generator,
                              choice=Choice(temperature, 0, 1.0))
        growing = []
        for place, (i, new) in enumerate(zip(rows, drawn, strict=True)):
            length, last = len(completions[i]) + len(new), new[-1]
            stopped = last in tokenizer.stop_ids
            given: Sequence[int] = ()

            # 2. an answer is over; another end of thinking in it is text
            if not thinking[i]:
                ended[i] = stopped
                if not stopped and length < max_new_tokens:
                    growing.append(place)
            # 3. thinking is over: refuse the end, let it stand, or write it
            else:
                growing.append(place)
                over = stopped or last == end_id
                fits = length - over + len(wait_ids) < most
                early = least is None or length - over < least
                thinking[i] = over and left[i] > 0 and early and fits
                if thinking[i]:
                    left[i] -= 1
                    given = wait_ids
                elif last != end_id:
                    given = close_ids
                if over and given:
                    branches.take_back(place)
                branches.give(place, given)
            spent[i // n] += Spent(prefill=len(given), decode=len(new))
            completions[i] = branches.tokens[place][len(prompts[i // n]):]
        rows = [rows[place] for place in growing]
        branches.select(growing)
    return _voted(tokenizer, completions, ended, n, spent, answer)


def _forced(tokenizer: Tokenizer, wait: str, end: str, then: str
            ) -> tuple[int, list[int], list[int]]:
    """The id that ends the thinking, the ids that extend it, and those that cut it."""
    end_ids, wait_ids = tokenizer.encode(end), tokenizer.encode(wait)
    if len(end_ids) != 1 or end_ids[0] in tokenizer.stop_ids:
        raise ValueError(f"the end of thinking {end!r} is {len(end_ids)} tokens or ends the "
                         "completion: one token is wanted that ends the thinking alone")
    if not wait_ids:
        raise ValueError("wait is empty: the text that is put in place of an end is wanted")
    return end_ids[0], wait_ids, [*end_ids, *tokenizer.encode(then)]


def _voted(tokenizer: Tokenizer, completions: list[list[int]], ended: list[bool], n: int,
           spent: list[Spent], answer: Answer) -> Candidates:
    rows = [slice(i, i + n) for i in range(0, len(completions), n)]
    result = Candidates([completions[row] for row in rows], [ended[row] for row in rows],
                        [[math.nan] * n for _ in rows], [0] * len(rows), spent)
    for i, answers in enumerate(result.answers(tokenizer, answer)):
        result.chosen[i] = answers.index(majority_vote(answers))
    return result
