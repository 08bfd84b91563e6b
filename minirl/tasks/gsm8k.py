"""GSM8K: 8,792 word problems of grade-school mathematics, read from files that you have.

Paper      Training verifiers to solve math word problems, arXiv:2110.14168.

    {"question": "A robe takes 2 bolts of ...", "answer": "It takes 2/2=<<2/2=1>>1 ...\\n#### 3"}

The files come with the paper, as train.jsonl and test.jsonl. A reference solution ends with a line
"#### 3", and holds annotated calculations, <<2/2=1>>, from which a model can learn to call a
calculator.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from minirl.tasks.answers import claims
from minirl.tasks.conversations import prompt_field
from minirl.tasks.dataset import by_split, check_names, draw_from, files_of, hold_out
from minirl.tasks.problem import Problem, RewardFunction
from minirl.tasks.records import ANSWERS, PROMPTS, first_of, read_records, text_field
from minirl.tasks.rewards import (
    FULL_WIDTH,
    NUMBER,
    Completion,
    Verdicts,
    format_reward,
    normalise_answer,
    text,
)

CALCULATION = re.compile(r"<<([^<>\n]*)=([^<>=\n]*)>>")


@dataclass(frozen=True)
class WordProblem(Problem):
    """A Problem with its split. `solution` is the reference solution as the file has it, and
    `worked` the same without calculations and without the last line. `others` are the file's other
    columns."""

    solution: str = ""
    split: str = "train"
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def columns(self) -> dict[str, Any]:
        own = super().columns
        return {**own.pop("others"), **own}


@dataclass(frozen=True)
class GSM8K(Sequence[WordProblem]):
    """The problems of a file or a folder, in their order; and a task that draws from them.

    accuracy       by `final_answer`: <answer>3</answer> and "#### 3" are both read
    format_reward  <think>…</think><answer>…</answer>, as for every other task
    """

    problems: tuple[WordProblem, ...]
    name: str = "GSM8K"

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: Any) -> Any:
        return self.problems[index]

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": final_accuracy, "format_reward": format_reward}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[WordProblem]:
        """Draw n problems of a split, evenly and with replacement."""
        return draw_from(self.split, n, rng, split=split, source=self.name)

    @cached_property
    def split(self) -> dict[str, list[WordProblem]]:
        return by_split(self.problems)


def load_gsm8k(path: str | Path, *, template: str = "{question}",
               eval_path: str | Path | None = None, split: str | None = None) -> GSM8K:
    """Read GSM8K from a file, or from a folder with train.jsonl and test.jsonl.

    Raises     ValueError, with file and line, for a line without a question, an answer, or a final
               number in the answer; for a folder without such files, or a template without
               {question}.

    A folder's files may have longer names, such as train-2000.jsonl, and other formats
    (records.py). Of a single file a tenth is the test split, by a hash of the question.
    `template` is what a prompt looks like; dataset.load_dataset explains the others.
    """
    if "{question}" not in template:
        raise ValueError(f"template is {template!r}: a text with {{question}} in it is wanted, "
                         "which the question replaces")
    keys, problems, splits = [], [], []
    for file, its_split in files_of(path, eval_path, split):
        for source, entry in read_records(file, "question and answer"):
            problem = _problem(source, entry)
            keys.append(str(problem.prompt))
            problems.append(problem)
            splits.append(its_split)
    if None in splits or eval_path is not None:        # the files of a folder are taken as they are
        splits = hold_out(keys, splits)
    names = list(dict.fromkeys(name for problem in problems for name in problem.others))
    return GSM8K(tuple(
        replace(problem, prompt=_filled(template, problem.prompt), split=its_split,
                others={name: problem.others.get(name) for name in names})
        for problem, its_split in zip(problems, splits, strict=True) if its_split))


def _problem(source: str, entry: dict[str, Any]) -> WordProblem:
    names = first_of(PROMPTS, entry) or "question", first_of(ANSWERS, entry) or "answer"
    question, solution = entry.pop(names[0], None), entry.pop(names[1], None)
    question = prompt_field(question, names[0], source)
    if not question:
        raise ValueError(f"{source}: {names[0]!r} is empty: leave the record out")
    solution = text_field(solution, names[1], source)
    answer = final_answer(solution) or (
        _single_number(solution) if NUMBER.fullmatch(solution.strip()) else None)
    if answer is None:
        raise ValueError(f"{source}: the answer has no final number: a last line such as '#### 18' "
                         "is wanted; minirl.tasks.dataset reads other answers")
    worked = without_calculations(solution).rpartition("####")[0].rstrip()
    check_names(entry, source)
    return WordProblem(question, answer, worked=worked, solution=solution, others=entry)


def _filled(template: str, question: str) -> str:
    """The template with the question; a conversation keeps its messages where nothing is added."""
    return question if template == "{question}" else template.replace("{question}", question)


# what a text says

def final_answer(completion: str) -> str | None:
    r"""Return the number behind "####", in <answer>…</answer> or, where there is neither, in the
    last \boxed{…}, in one spelling for all that are equal; None where there is no such number.

    Units, currency and percent signs around it do not count: "$18.00", "18 dollars" and "18" are
    equal, as are "5%" and "5" (GSM8K's questions say which is meant). There has to be one number,
    and if an answer stands in several places, it has to be the same: listing guesses does not pay.

    >>> [final_answer(x) for x in ("… 1234 eggs.\n#### 1,234", "<answer>$1234.00</answer>")]
    ['1234', '1234']
    >>> print(final_answer("<answer>3 or 4</answer>"), final_answer("#### 3\n#### 4"))
    None None
    """
    numbers = {_single_number(place) for place in claims(completion)}
    return numbers.pop() if len(numbers) == 1 else None


def _single_number(content: str) -> str | None:
    """The one number in a text, as normalise_answer spells it; None for none, or several."""
    plain = content.translate(FULL_WIDTH).replace("\u2212", "-").replace("$", "")
    plain = plain.replace("{,}", ",")                    # LaTeX's comma without a space behind it
    numbers = [match[0] for match in NUMBER.finditer(plain)]
    return normalise_answer(numbers[0]) if len(numbers) == 1 else None


def calculations(solution: str) -> list[tuple[str, str]]:
    """Return the annotated calculations of a solution: (expression, result), in their order.

    >>> calculations("16-3-4 = <<16-3-4=9>>9 eggs, and 9*2 = $<<9*2=18>>18")
    [('16-3-4', '9'), ('9*2', '18')]
    """
    return CALCULATION.findall(solution)


def without_calculations(solution: str) -> str:
    """Return a solution as a person would write it.

    >>> without_calculations("16-3-4 = <<16-3-4=9>>9 eggs")
    '16-3-4 = 9 eggs'
    """
    return CALCULATION.sub("", solution)


def final_accuracy(prompts: Sequence[Any], completions: Sequence[Completion],
                   answer: Sequence[Any], **_: Any) -> Verdicts:
    """1.0 where a completion's final answer is the answer, else 0.0. None where `answer` has no
    number. `answer` may be a number or a whole reference solution."""
    golds = [final_answer(str(gold)) or _single_number(str(gold)) for gold in answer]
    return [None if gold is None else float(final_answer(text(completion)) == gold)
            for completion, gold in zip(completions, golds, strict=True)]
