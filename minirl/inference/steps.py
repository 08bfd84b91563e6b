"""The steps of sampled completions, as tokens, and what a step is worth: how often a policy that
goes on from there is right.

    step_ends       the tokens up to the end of each step
    true_steps      whether each step is true, as a reward
    step_values     the labels of Math-Shepherd, arXiv:2312.08935, by sampling from each prefix
    label_solutions completions of a task's problems with such labels, to train on
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minirl.equations.process import soft_estimate
from minirl.inference.collect import (
    ROWS,
    Collected,
    Counter,
    collect_in_parts,
    verdict_tensor,
)
from minirl.lm.model import Transformer
from minirl.lm.sampling import sample
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import JudgedTask, Problem, Task, columns
from minirl.tasks.rewards import judge
from minirl.tasks.steps import Solution, split_steps, step_truths

COMPLETIONS = 8  # N of Math-Shepherd, section 4.1: completions from each step

# for each completion the tokens up to the end of each step, and a number for each step
StepRewards = Callable[[Collected], "tuple[list[list[int]], list[list[float]]]"]
Prefix = tuple[int, tuple[int, ...]]  # a problem's index, and the tokens of a completion so far


# steps as tokens

def step_ends(tokenizer: Tokenizer, ids: Sequence[int], separator: str = ",") -> list[int]:
    """Return for each step of a completion how many tokens come up to its end.

    The steps are those of split_steps. A token that holds the end of a step belongs to that step,
    with whatever else it holds. The last step has all the rest, EOS included.

    >>> from minirl.lm.tokenizer import build_tokenizer
    >>> tokenizer = build_tokenizer()                                     # a token per character
    >>> step_ends(tokenizer, [*tokenizer.encode("1+1=2,2+2=4"), tokenizer.eos_id])
    [6, 12]
    """
    pieces = _pieces(tokenizer, ids)
    steps = split_steps("".join(pieces), separator)
    ends, length, token = [], 0, 0
    written = 0
    for step in steps[:-1]:
        length += len(step)
        while written < length:
            written += len(pieces[token])
            token += 1
        ends.append(token)
    return [*ends, len(ids)]


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token alone; of the stop token at the end none."""
    stop = len(ids) - 1 if ids and ids[-1] in tokenizer.stop_ids else len(ids)
    return [tokenizer.decode([i]) for i in ids[:stop]] + [""] * (len(ids) - stop)


def padded_steps(rows: Sequence[Sequence[float | None]], fill: float = math.nan,
                 dtype: torch.dtype = torch.float32) -> Tensor:
    """Return B rows of a number per step as a table (B, S): `fill` behind the last, NaN for None.

    >>> padded_steps([[1.0, 0.0], [1.0]])
    tensor([[1., 0.],
            [1., nan]])
    """
    width = max(1, *map(len, rows)) if rows else 1
    return torch.tensor([[math.nan if x is None else x for x in row] + [fill] * (width - len(row))
                         for row in rows], dtype=dtype).view(len(rows), width)


def true_steps(tokenizer: Tokenizer, separator: str = ",") -> StepRewards:
    """Return the truth of each step as its reward, where problems know how they are worked out: 1
    or 0, and 0 for a step that says nothing. See tasks.steps.step_truths."""
    def rewards(answers: Collected) -> tuple[list[list[int]], list[list[float]]]:
        group = len(answers.completions) // len(answers.problems)
        ends = [step_ends(tokenizer, ids, separator) for ids in answers.rollouts.completion_ids()]
        truths = [step_truths(answers.problems[i // group], completion, separator)
                  for i, completion in enumerate(answers.completions)]
        return ends, [[truth or 0.0 for truth in row] for row in truths]

    return rewards


# what a step is worth

def step_values(model: Transformer, tokenizer: Tokenizer, task: Task, answers: Collected, *,
                samples: int = COMPLETIONS, separator: str = ",", max_new_tokens: int,
                temperature: float = 1.0, generator: torch.Generator | None = None,
                progress: Counter | None = None) -> list[list[float | None]]:
    """Return for each step of each completion how often `samples` completions from there are right.

    Paper      Math-Shepherd, arXiv:2312.08935, section 3.3: the soft estimate, as
               equations.process.soft_estimate; hard_estimate makes the hard one of it.
    Raises     ValueError for a task without a reward "accuracy", which says what is right.

    The policy goes on from the tokens that were sampled: nothing is decoded and encoded again. A
    whole completion has at most about max_new_tokens tokens, as when it was sampled. Equal prefixes
    are completed once. Behind the last step nothing is to come, and its value is the completion's
    own verdict.
    """
    if "accuracy" not in task.rewards:
        raise ValueError("the task has no reward named accuracy, which says what is right; it has "
                         f"{', '.join(task.rewards) or 'none'}: add one to its rewards")
    group = len(answers.completions) // len(answers.problems)
    ids = answers.rollouts.completion_ids()
    prefixes = [[(i // group, tuple(row[:end])) for end in step_ends(tokenizer, row, separator)]
                for i, row in enumerate(ids)]
    inner = sorted({prefix for row in prefixes for prefix in row[:-1]},
                   key=lambda prefix: (len(prefix[1]), prefix))
    whole = [row[-1] for row in prefixes]
    values = _right(tokenizer, task, answers.problems, whole, [[()] for _ in whole])
    size = max(1, ROWS // samples)
    for start in range(0, len(inner), size):
        part = inner[start:start + size]
        endings = _endings(model, tokenizer, answers.problems, part, group=samples,
                           max_new_tokens=max_new_tokens, temperature=temperature,
                           generator=generator)
        values |= _right(tokenizer, task, answers.problems, part, endings)
        if progress is not None:
            progress.update(len(part))
    return [[values[prefix] for prefix in row] for row in prefixes]


def label_solutions(model: Transformer, tokenizer: Tokenizer, task: Task,
                    problems: Sequence[Problem], *, group: int = 1, samples: int = COMPLETIONS,
                    separator: str = ",", max_new_tokens: int, temperature: float = 1.0,
                    generator: torch.Generator | None = None,
                    progress: Counter | None = None) -> list[Solution]:
    """Sample `group` solutions of each problem, and label their steps by step_values.

    progress.update(n) is called after each part of n solutions.
    """
    judged = JudgedTask(task, task.rewards, {"accuracy": 1.0})
    options: Any = {"max_new_tokens": max_new_tokens, "temperature": temperature,
                    "generator": generator}
    solutions: list[Solution] = []
    for part in collect_in_parts(model, tokenizer, judged, problems, group=group, rows=ROWS // 4,
                                 **options):
        values = step_values(model, tokenizer, task, part, samples=samples, separator=separator,
                             **options)
        for i, (row, ids) in enumerate(zip(values, part.rollouts.completion_ids(), strict=True)):
            ends = step_ends(tokenizer, ids, separator)
            texts = [tokenizer.decode_completion(ids[start:end])
                     for start, end in pairwise([0, *ends])]
            solutions.append(Solution(part.problems[i // group].prompt, tuple(texts), tuple(row),
                                      tuple(ids), tuple(ends)))
        if progress is not None:
            progress.update(len(values))
    return solutions


def _endings(model: Transformer, tokenizer: Tokenizer, problems: Sequence[Problem],
             prefixes: Sequence[Prefix], *, group: int, max_new_tokens: int, temperature: float,
             generator: torch.Generator | None) -> list[list[tuple[int, ...]]]:
    """Sample the rest of each prefix, `group` times."""
    rows = [[*tokenizer.encode_prompt(problems[p].prompt), *ids] for p, ids in prefixes]
    left = max_new_tokens - min(len(ids) for _, ids in prefixes)
    room = model.config.max_seq_len - max(map(len, rows))
    rollouts = sample(model, rows, group=group, max_new_tokens=max(1, min(left, room)),
                      temperature=temperature, eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id,
                      generator=generator)
    new = [tuple(ids) for ids in rollouts.completion_ids()]
    return [new[i * group:(i + 1) * group] for i in range(len(prefixes))]


def _right(tokenizer: Tokenizer, task: Task, problems: Sequence[Problem],
           prefixes: Sequence[Prefix], endings: Sequence[Sequence[tuple[int, ...]]]
           ) -> dict[Prefix, float | None]:
    """How often each prefix is right with its endings."""
    n = len(endings[0]) if endings else 0
    asked = [problems[p] for p, _ in prefixes]
    ids = [[*prefix, *end] for (_, prefix), ends in zip(prefixes, endings, strict=True)
           for end in ends]
    texts = [tokenizer.decode_completion(row) for row in ids]
    prompts = [problem.prompt for problem in asked for _ in range(n)]
    verdicts = judge(task.rewards, ["accuracy"], prompts, texts,
                     **columns(asked, repeat=n), completion_ids=ids)["accuracy"]
    right = verdict_tensor([None if v is None else float(v == 1.0) for v in verdicts])
    values = soft_estimate(right.view(len(prefixes), n)).tolist() if prefixes else []
    return {prefix: None if math.isnan(value) else value
            for prefix, value in zip(prefixes, values, strict=True)}
