"""Reasoning as steps: where a step ends, whether it is true, and solutions whose steps have labels.

    split_steps      a completion's steps; joined they are the completion
    step_truths      which of them are true, where a problem knows how it is worked out
    Solution         a prompt, the steps of one completion, and a label for each
    load_solutions   from JSONL in TRL's stepwise format: prompt, completions, labels
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirl.tasks.problem import Problem
from minirl.tasks.records import read_records, text_field
from minirl.tasks.rewards import accuracy
from minirl.tasks.verdicts import as_number

CLOSE = "</think>"


def split_steps(completion: str, separator: str = ",") -> list[str]:
    """Return the steps of a completion: those of its reasoning, then its answer.

    A step ends with the separator, or with the reasoning. The separator belongs to the step that it
    ends: only there does a reader know that the step is over, as 12 may become 123. An answer is
    one step, whatever separators it holds.

    >>> split_steps("<think>7+5+0=12,4+8+1=132</think><answer>0132</answer>")
    ['<think>7+5+0=12,', '4+8+1=132</think>', '<answer>0132</answer>']
    >>> split_steps("7+5=12. So it is 12.", separator=". ")
    ['7+5=12. ', 'So it is 12.']
    """
    if not separator:
        raise ValueError("separator is empty: the text that ends a step is wanted, such as ','")
    reasoning, close, answer = completion.partition(CLOSE)
    *whole, last = reasoning.split(separator)
    steps = [step + separator for step in whole] + [last + close, answer]
    return [step for step in steps if step] or [""]


def step_truths(problem: Problem, completion: str, separator: str = ",") -> list[float | None]:
    """Return 1.0 for each step that is true, 0.0 for one that is not, None for one that says
    nothing.

    A step of the reasoning is true where it is the step at its place in `problem.worked`: a right
    sum of the wrong digits is not true of this problem. The answer is true where accuracy says so.

    >>> problem = Problem("47+85=", "132", worked="7+5+0=12,4+8+1=132")
    >>> step_truths(problem, "<think>7+5+0=12,4+8+0=122</think><answer>122</answer>")
    [1.0, 0.0, 0.0]
    """
    right = problem.worked.split(separator) if problem.worked else []
    has_answer = bool(completion.partition(CLOSE)[2])
    truths: list[float | None] = []
    for i, step in enumerate(split_steps(completion, separator)):
        claim = step.removeprefix("<think>").removesuffix(CLOSE).removesuffix(separator)
        truths.append(float(i < len(right) and claim == right[i]) if claim else None)
    if has_answer:
        truths[-1], = accuracy([problem.prompt], [completion], [problem.answer])
    return truths


def first_wrong(labels: Sequence[float | None]) -> int | None:
    """Return the index of the first step that is not true (a label below 1/2), None for none.

    >>> first_wrong([1.0, None, 0.25, 1.0])
    2
    """
    return next((i for i, label in enumerate(labels) if label is not None and label < 0.5), None)


@dataclass(frozen=True)
class Solution:
    """One completion of a prompt as steps, and a label in [0, 1] for each: 1 for a good step, the
    share of completions from there that were right, or None where nobody judged.

    ids, ends  the completion as it was sampled, EOS included, and how many of its tokens come up to
               the end of each step; empty: the text is tokenised
    source     where it was read, for messages

    Raises     ValueError for no steps, another number of labels or ends, or a label outside [0, 1].
    """

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    ids: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        where = self.source or f"the solution of {self.prompt[:40]!r}"
        if not self.steps or len(self.steps) != len(self.labels):
            raise ValueError(f"{where} has {len(self.steps)} steps and {len(self.labels)} labels: "
                             "at least one step, and a label for each, are wanted")
        if self.ids and (len(self.ends) != len(self.steps) or self.ends[-1] != len(self.ids)):
            raise ValueError(f"{where} has {len(self.steps)} steps, {len(self.ids)} tokens and the "
                             f"ends {list(self.ends)}: an end for each step, the last at the last "
                             "token, is wanted")
        for label in self.labels:
            if label is not None and not 0 <= label <= 1:
                raise ValueError(f"{where} has the label {label}: a number in [0, 1] is wanted, or "
                                 "None for no label")


# files

def load_solutions(path: str | Path) -> list[Solution]:
    """Read solutions from JSONL, one per line, in TRL's stepwise format: {"prompt": ...,
    "completions": [step, ...], "labels": [true, false, 0.25, null, ...]}. A line may also have the
    "ids" of the completion's tokens and the "ends" of its steps among them.

    Raises ValueError, with file and line, for a line that is no such object.
    """
    solutions = []
    for source, entry in read_records(path, "prompt, completions and labels"):
        prompt = text_field(entry.get("prompt"), "prompt", source)
        steps, labels, ids, ends = (_list(entry, name, source)
                                    for name in ("completions", "labels", "ids", "ends"))
        # a completion that ends at once is one step without text, and with the id of EOS
        texts = ["" if step == "" and ids else
                 text_field(step, "completions", source, at=f" at index {i}")
                 for i, step in enumerate(steps)]
        try:
            solutions.append(Solution(prompt, tuple(texts), tuple(map(as_number, labels)),
                                      tuple(map(int, ids)), tuple(map(int, ends)), source))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error
    return solutions


def save_solutions(solutions: Sequence[Solution], path: str | Path) -> None:
    """Write solutions as JSONL that load_solutions reads."""
    lines = (json.dumps({"prompt": solution.prompt, "completions": solution.steps,
                         "labels": solution.labels, "ids": solution.ids, "ends": solution.ends},
                        ensure_ascii=False)
             for solution in solutions)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")



def _list(entry: dict[str, Any], name: str, source: str) -> list[Any]:
    value = entry.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{source}: {name!r} is a {type(value).__name__}: a list is wanted, with "
                         "an entry for each step, or of ids for each token")
    return value
