r"""A user's file as a task: problems in TRL's dataset formats, or questions and answers.

    {"prompt": "What is 6*7?", "answer": "42"}
    {"prompt": [{"role": "user", "content": "What is 6*7?"}], "solution": "so $\\boxed{42}$"}
    {"question": "What is 6*7?", "answer": "6*7 = 42\n#### 42", "level": 1}

Files are JSONL, JSON, CSV, TSV or Parquet (records.py). All columns of a file are handed to reward
functions as they are, but for the prompt. TRL's prompt-completion and preference formats are tasks,
too: their prompts, mostly without an answer.

What is held out, so that it is never trained on:

    a folder          its test files
    eval_path         that file, or folder
    a column "split"  the records that say test, or validation
    else              a tenth of the prompts, by a hash of the prompt: records that are added move
                      no others. Where no hash falls into that tenth, the prompt of the smallest

A prompt that is held out is not trained on, wherever else it stands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from minirl.tasks.answers import boxed, claim, judged_answers, marked
from minirl.tasks.conversations import Conversation, prompt_field, with_system
from minirl.tasks.latex import MathVerify, is_installed
from minirl.tasks.problem import Problem, RewardFunction, hash_of, split_of
from minirl.tasks.records import (
    ANSWERS,
    ENDINGS,
    PROMPTS,
    Record,
    check_unicode,
    first_of,
    read_records,
)
from minirl.tasks.rewards import Completion, Verdicts, answer_text, format_reward, text

HELD_OUT = "test", "validation", "valid", "val", "dev"     # names of splits
RESERVED = "prompts", "completions", "completion_ids", "environments"     # what rewards get anyway
KINDS = {bool: "a bool", int: "a number", float: "a number", str: "text", list: "a list",
         dict: "an object"}


@dataclass(frozen=True)
class Row(Problem):
    """A record of a file as a problem. `record` holds its columns but for the prompt."""

    record: Mapping[str, Any] = field(default_factory=dict, hash=False)
    split: str = "train"

    @property
    def columns(self) -> dict[str, Any]:
        return {"answer": self.answer, **self.record}


@dataclass(frozen=True)
class Dataset:
    """The problems of a user's file, in their order, and a task that draws from them.

    accuracy       whether the final answer is right, in one of three spellings (answers.py); no
                   verdict on a problem without an answer
    format_reward  <think>…</think><answer>…</answer>, as for every other task
    same           says whether two formulas are the same; None: where they are written alike
    """

    problems: tuple[Row, ...]
    source: str
    same: Callable[[str, str], bool] | None = None

    @property
    def name(self) -> str:
        train, test = (len(self.split[name]) for name in ("train", "test"))
        return f"{self.source}, {train:,} problems and {test:,} held out"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": self.accuracy, "format_reward": format_reward}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def accuracy(self, prompts: Sequence[Any], completions: Sequence[Completion],
                 answer: Sequence[Any], **_: Any) -> Verdicts:
        return judged_answers(completions, answer, self.same)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Row]:
        """Draw n problems of a split, evenly and with replacement."""
        return draw_from(self.split, n, rng, split=split, source=self.source)

    @cached_property
    def split(self) -> dict[str, list[Row]]:
        return by_split(self.problems)


def load_dataset(path: str | Path, *, system_prompt: str | None = None,
                 eval_path: str | Path | None = None, split: str | None = None,
                 math_verify: bool | None = None) -> Dataset:
    """Read a file, or a folder with files train* and test*, as a task.

    Raises     ValueError, with file and place, for what cannot be read, a record without a prompt,
               or without an answer where others have one, and a column of mixed types.

    system_prompt  a message in front of every conversation that has no system message; prompts
                   that are text become conversations
    eval_path      a file or folder of problems that are held out
    split          the split of all records: "test" to measure a policy on a whole file
    math_verify    compare formulas with math-verify; None: where it is installed
    """
    keys, rows, splits = [], [], []
    kinds: dict[str, tuple[str, str]] = {}
    for file, its_split in files_of(path, eval_path, split):
        for key, problem, said in _read(file, kinds):
            keys.append(key)
            rows.append(problem)
            splits.append(its_split or said)
    names = list(dict.fromkeys(name for row in rows for name in row.record))
    problems = tuple(
        Row(with_system(row.prompt, system_prompt), row.answer, row.worked, split=its_split,
            record={name: row.record.get(name) for name in names})
        for row, its_split in zip(rows, hold_out(keys, splits), strict=True) if its_split)
    use = is_installed() if math_verify is None else math_verify
    return Dataset(problems, Path(path).name, MathVerify() if use else None)


# which files, and what of them is held out

def files_of(path: str | Path, eval_path: str | Path | None = None, split: str | None = None
             ) -> Iterator[tuple[Path, str | None]]:
    """Yield files and the split that all their records are in; None: each may be in another.

    Raises ValueError for a folder without files whose names begin with train or test.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f"split is {split!r}: train or test is wanted")
    train = "train" if eval_path is not None else None
    yield from _in_folder(Path(path), split or train)
    if eval_path is not None:
        yield from _in_folder(Path(eval_path), "test", only="test")


def _in_folder(path: Path, split: str | None, only: str | None = None
               ) -> Iterator[tuple[Path, str | None]]:
    if not path.is_dir():
        yield path, split
        return
    files = {"train": _named(path, "train"),
             "test": next(filter(None, (_named(path, name) for name in HELD_OUT)), [])}
    if not any(files.values()):
        raise ValueError(f"{path} has no train.jsonl and no test.jsonl: a folder with such files "
                         f"({', '.join(ENDINGS)}), or the path of one file, is wanted")
    for name in files if only is None or not files[only] else [only]:
        for file in files[name]:
            yield file, split or name


def _named(folder: Path, name: str) -> list[Path]:
    """The file train.jsonl, or train.csv, …; where there is none all whose names begin so."""
    files = [file for file in sorted(folder.glob(f"{name}*")) if file.suffix.lower() in ENDINGS]
    return [file for file in files if file.stem == name] or files


def hold_out(keys: Sequence[str], splits: Sequence[str | None]) -> list[str | None]:
    """Return the split of each record, whose prompt is its key: the one that is known, or one by a
    hash of the key; None for a record that must be left out, as its prompt is held out.

    >>> hold_out(["a", "b", "a"], ["train", "train", "test"])
    [None, 'train', 'test']
    """
    unknown = {key for key, split in zip(keys, splits, strict=True) if split is None}
    test = {key for key in unknown if split_of(key) == "test"}
    if not test and len(unknown) > 1:
        test = {min(unknown, key=lambda key: (hash_of(key), key))}
    chosen = [split or ("test" if key in test else "train")
              for key, split in zip(keys, splits, strict=True)]
    test |= {key for key, split in zip(keys, chosen, strict=True) if split == "test"}
    return [None if split == "train" and key in test else split
            for key, split in zip(keys, chosen, strict=True)]


def by_split(problems: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the problems of each split."""
    return {split: [problem for problem in problems if problem.split == split]
            for split in ("train", "test")}


def draw_from(problems: Mapping[str, Sequence[Any]], n: int, rng: random.Random, *, split: str,
              source: str) -> list[Any]:
    """Draw n problems of a split with replacement. Raises ValueError where there are none."""
    if split not in problems:
        raise ValueError(f"split is {split!r}: train or test is wanted")
    if n < 0:
        raise ValueError(f"n is {n}: a number of problems is wanted")
    if n and not problems[split]:
        raise ValueError(f"{source}: of {sum(map(len, problems.values())):,} problems none is in "
                         f"the {split} split: name another file, or say it in a column 'split'")
    return rng.choices(problems[split], k=n) if n else []


# records

def _read(file: Path, kinds: dict[str, tuple[str, str]]) -> Iterator[tuple[str, Row, str | None]]:
    """The records of a file: the prompt as it stands there, the problem, and the split."""
    prompt_name, answer_name = None, None
    for source, record in read_records(file, f"a prompt ({', '.join(PROMPTS)})"):
        if prompt_name is None:
            prompt_name = first_of(PROMPTS, record)
            answer_name = first_of(ANSWERS, record)
        if prompt_name is None:
            raise ValueError(f"{source} has the columns {', '.join(record)}: a prompt "
                             f"({', '.join(PROMPTS)}) is wanted; rename the column that holds it")
        check_names(record, source)
        for name, value in record.items():
            _check_column(name, value, source, kinds, free=name == answer_name)
        prompt = prompt_field(record.pop(prompt_name, None), prompt_name, source)
        if not prompt:
            raise ValueError(f"{source}: {prompt_name!r} is empty: leave the record out")
        if isinstance(prompt, Conversation) and prompt.messages[-1]["role"] == "assistant":
            raise ValueError(f"{source}: {prompt_name!r} ends with a message of the assistant: one "
                             "of the user's is wanted there, which the policy answers")
        whole = _answer(record, answer_name, source)
        answer = marked(whole) if whole else ""
        said = _split(record.get("split"), source) if "split" in record else None
        yield str(prompt), Row(prompt, answer, _work(whole), record=record), said


def check_names(record: Record, source: str) -> None:
    """Raise ValueError for a column under whose name rewards get something else."""
    if (name := first_of(RESERVED, record)) is not None:
        raise ValueError(f"{source} has a column {name!r}, under which rewards get something else: "
                         "rename it")


def _check_column(name: str, value: Any, source: str, kinds: dict[str, tuple[str, str]], *,
                  free: bool) -> None:
    """Raise ValueError for a value of another type than the column's first, unless it is free."""
    if value is None or free:
        return
    kind = KINDS.get(type(value), f"a {type(value).__name__}")
    first, where = kinds.setdefault(name, (kind, source))
    if kind != first:
        raise ValueError(f"{source}: {name!r} is {kind}, and {first} in {where}: one type in a "
                         "column is wanted")


def _answer(record: Record, name: str | None, source: str) -> str:
    """The answer in a record, with the work that leads to it; "" where there is none."""
    if name is None:
        completion = record.get("completion")
        content = text(completion) if isinstance(completion, (str, list)) else ""
        return content if claim(content) is not None else ""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{source}: {name!r} is {KINDS.get(type(value), type(value).__name__)}: "
                         "text or a number is wanted")
    whole = answer_text(value)
    if whole is None:
        what = "missing" if value is None else "empty" if value == "" else repr(value)
        raise ValueError(f"{source}: {name!r} is {what}: text or a number is wanted, or no column "
                         f"{name!r} at all")
    check_unicode(whole, name, source)
    return whole


def _work(whole: str) -> str:
    """What stands before the answer in a solution; "" where there is the answer alone."""
    for mark in ("####", "<answer>"):
        work, is_marked, _ = whole.rpartition(mark)
        if is_marked:
            return work.replace("<think>", "").replace("</think>", "").strip()
    return whole if boxed(whole) is not None else ""


def _split(value: Any, source: str) -> str:
    if value != "train" and value not in HELD_OUT:
        raise ValueError(f"{source}: 'split' is {value!r}: train or {' or '.join(HELD_OUT)} is "
                         "wanted; give the column another name if it says something else")
    return "train" if value == "train" else "test"
