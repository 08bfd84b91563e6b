"""Budget forcing: how long a policy thinks is decided from outside, by what it is made to write.

    cut       after `most` tokens the end of thinking is written for it, and it must answer
    extend    where it ends its thinking too early, the end is taken back and "Wait," put in its
              place, and it thinks on

    Paper     s1, arXiv:2501.19393, section 3.1 (figure 3 shows an extended trace)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from minirl.equations.inference_time import majority_vote
from minirl.inference.candidates import Answer, Candidates, Ids, Spent, affordable
from minirl.lm.branches import Branches
from minirl.lm.choice import Choice
from minirl.lm.model import Transformer
from minirl.lm.sampling import check_sampling
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.answers import vote_of
from minirl.tasks.steps import CLOSE


def budget_forcing(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Ids], *, n: int = 1,
                   most: int, extensions: int = 0, least: int | None = None, wait: str = "Wait,",
                   end: str = CLOSE, then: str = "", max_new_tokens: int, temperature: float = 1.0,
                   answer: Answer = vote_of, budget: int | None = None,
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
    forced = _forced(tokenizer, wait, end, then)
    _check_lengths(forced, extensions, most, max_new_tokens)
    # Drawn and taken back: a token for each extension, and an EOS in place of an end.
    n = affordable(n, prompts, max_new_tokens + extensions + 1, budget, verified=False)
    check_sampling(model.config, [list(prompt) for prompt in prompts], group=n, top_k=0, top_p=1.0,
                   max_new_tokens=max_new_tokens, temperature=temperature, ids={},
                   device=model.device)
    branches = Branches(model, prompts)
    rows = [Row(p, extensions) for p in range(len(prompts)) for _ in range(n)]
    growing = rows                                          # in the order of the branches
    branches.select([row.problem for row in rows])
    spent = [Spent(prefill=len(prompt)) for prompt in prompts]

    while growing:
        # 1. grow: up to the end of the thinking, of the answer, or of what is allowed
        limits = [(most if row.thinking else max_new_tokens) - len(row.ids) for row in growing]
        drawn = branches.grow(limits, stops=(*tokenizer.stop_ids, forced.end), generator=generator,
                              choice=Choice(temperature, 0, 1.0))
        for place, (row, new) in enumerate(zip(growing, drawn, strict=True)):
            row.ids += new
            spent[row.problem] += Spent(decode=len(new))
            # 2. an answer is over; another end of thinking in it is text
            if not row.thinking:
                row.ended = row.ids[-1] in tokenizer.stop_ids
                continue
            # 3. thinking is over: refuse its end, let it stand, or write it
            taken, put = end_thinking(row, forced, most, least)
            for _ in range(taken):
                branches.take_back(place)
            branches.give(place, put)
            spent[row.problem] += Spent(prefill=len(put))

        # 4. rows leave that have ended, or have no tokens left
        places = [place for place, row in enumerate(growing)
                  if not row.ended and len(row.ids) < max_new_tokens]
        growing = [growing[place] for place in places]
        branches.select(places)
    return _voted(tokenizer, rows, n, spent, answer)


@dataclass
class Row:
    """A completion of a problem: first it thinks, then it answers.

    left   how many ends of its thinking may still be refused
    """

    problem: int
    left: int
    ids: list[int] = field(default_factory=list)
    thinking: bool = True
    ended: bool = False


class Forced(NamedTuple):
    """The id that ends the thinking, those that end a completion, and the ids that are put in: to
    extend the thinking, and to cut it."""

    end: int
    stops: list[int]
    wait: list[int]
    close: list[int]


def end_thinking(row: Row, forced: Forced, most: int, least: int | None
                 ) -> tuple[int, list[int]]:
    """Refuse the end of a row's thinking, let it stand, or write it -> how many tokens were taken
    back, and what was put in their place.

    The row's last token is an end, or the thinking has all its tokens.

    >>> forced = Forced(end=7, stops=[0], wait=[8, 9], close=[7])
    >>> [end_thinking(Row(0, left, [1, 2, last]), forced, 20, None)
    ...  for left, last in ((1, 7), (0, 7), (0, 0), (0, 3))]      # refuse, let stand, write, write
    [(1, [8, 9]), (0, []), (1, [7]), (0, [7])]
    """
    stopped, over = row.ids[-1] in forced.stops, row.ids[-1] == forced.end
    length = len(row.ids) - (stopped or over)       # without its end
    early = least is None or length < least
    taken, put = int(stopped), [] if over else forced.close
    if (stopped or over) and row.left > 0 and early and length + len(forced.wait) < most:
        taken, put, row.left = 1, forced.wait, row.left - 1
    else:
        row.thinking = False
    row.ids = row.ids[:len(row.ids) - taken] + put
    return taken, put


def _forced(tokenizer: Tokenizer, wait: str, end: str, then: str) -> Forced:
    end_ids, wait_ids = tokenizer.encode(end), tokenizer.encode(wait)
    if len(end_ids) != 1 or end_ids[0] in tokenizer.stop_ids:
        raise ValueError(f"the end of thinking {end!r} is {len(end_ids)} tokens or ends the "
                         "completion: one token is wanted that ends the thinking alone")
    if not wait_ids:
        raise ValueError("wait is empty: the text that is put in place of an end is wanted")
    return Forced(end_ids[0], tokenizer.stop_ids, wait_ids, [*end_ids, *tokenizer.encode(then)])


def _check_lengths(forced: Forced, extensions: int, most: int, max_new_tokens: int) -> None:
    room = max_new_tokens - len(forced.close) - 1
    if extensions < 0 or not 1 <= most <= room:
        raise ValueError(f"{extensions} extensions, and at most {most} tokens of thinking in "
                         f"{max_new_tokens}: at least 0, and 1 to {room} are wanted, so that the "
                         "end and a token of the answer fit")


def _voted(tokenizer: Tokenizer, rows: Sequence[Row], n: int, spent: list[Spent], answer: Answer
           ) -> Candidates:
    problems = [rows[i:i + n] for i in range(0, len(rows), n)]
    result = Candidates([[row.ids for row in problem] for problem in problems],
                        [[row.ended for row in problem] for problem in problems],
                        [[math.nan] * n for _ in problems], [0] * len(problems), spent)
    for i, answers in enumerate(result.answers(tokenizer, answer)):
        result.chosen[i] = answers.index(majority_vote(answers))
    return result
