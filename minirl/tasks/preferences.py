"""Comparisons: how a labeller ranks completions, how rankings become pairs, and how both are read
from files.

    Ranking              a prompt and K completions, best first
    Demonstration        a prompt and a completion that a person wrote
    draw_ranking         rank completions as a labeller does whose judgement is noisy
    pairs                every comparison in some rankings, as (prompt, chosen, rejected)
    split_rankings       those to learn from, and those held out
    load_rankings        from JSONL in TRL's preference format, or with all K completions in a line
    load_demonstrations  from JSONL in TRL's prompt-completion format
"""

from __future__ import annotations

import codecs
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from minirl.tasks.rewards import content_text
from minirl.tasks.verdicts import as_number


@dataclass(frozen=True)
class Ranking:
    """K completions of a prompt, best first.

    `source` says where it was read ("file.jsonl, line 3"), for messages.

    Raises     ValueError for fewer than two completions, an empty one, or two that are equal: such
               a pair's loss is log 2 whatever is learnt.
    """

    prompt: str
    completions: tuple[str, ...]
    source: str = ""

    def __post_init__(self) -> None:
        where = f"{self.source}: " if self.source else ""
        prompt = repr(self.prompt[:40])
        if len(self.completions) < 2:
            raise ValueError(f"{where}a ranking of {len(self.completions)} completions for "
                             f"{prompt}: at least two are wanted")
        if not all(self.completions):
            raise ValueError(f"{where}an empty completion in a ranking for {prompt}: leave it out")
        if len(set(self.completions)) < len(self.completions):
            raise ValueError(f"{where}two equal completions in a ranking for {prompt}: nothing can "
                             "be learnt from comparing them; leave one out")


class Demonstration(NamedTuple):
    """What a person wrote for a prompt. `source` says where it was read, for messages."""

    prompt: str
    completion: str
    source: str = ""


def draw_ranking(prompt: str, completions: Sequence[str], rewards: Sequence[float | None],
                 rng: random.Random, *, noise: float) -> Ranking | None:
    """Rank completions by their true reward, as a labeller does whose judgement is noisy.

    Equation   P(i before j) = σ((r_i - r_j) / noise)
    Paper      Bradley and Terry 1952; for more than two at once Plackett 1975 and Luce 1959, drawn
               by sorting r_i / noise + Gumbel noise.
    Raises     ValueError unless noise is positive.

    Of equal completions one is ranked, empty ones and those without a verdict are left out. Returns
    None where fewer than two remain.
    """
    if not noise > 0:
        raise ValueError(f"noise is {noise}: a positive number is wanted; the smaller, the "
                         "steadier the labeller")
    verdicts = [as_number(reward) for reward in rewards]
    candidates = {completion: verdict
                  for completion, verdict in zip(completions, verdicts, strict=True)
                  if completion and verdict is not None}
    if len(candidates) < 2:
        return None
    scores = {completion: reward / noise + _gumbel(rng)
              for completion, reward in candidates.items()}
    return Ranking(prompt, tuple(sorted(scores, key=lambda c: scores[c], reverse=True)))


def _gumbel(rng: random.Random) -> float:
    """Draw from the standard Gumbel distribution."""
    return -math.log(-math.log(rng.random() or 1e-300))


def pairs(rankings: Sequence[Ranking]) -> list[tuple[str, str, str]]:
    """Return all C(K, 2) comparisons of each ranking: (prompt, chosen, rejected)."""
    return [(ranking.prompt, chosen, rejected) for ranking in rankings
            for chosen, rejected in combinations(ranking.completions, 2)]


def split_rankings(rankings: Sequence[Ranking]) -> tuple[list[Ranking], list[Ranking]]:
    """Return the rankings to learn from, and those held out: every tenth prompt, with all its
    rankings. Raises ValueError for fewer than two prompts."""
    prompts = list(dict.fromkeys(ranking.prompt for ranking in rankings))
    if len(prompts) < 2:
        raise ValueError(f"rankings of {len(prompts)} prompt: at least two are wanted, as one in "
                         "ten is held out")
    held_out = set(prompts[::10])
    return ([ranking for ranking in rankings if ranking.prompt not in held_out],
            [ranking for ranking in rankings if ranking.prompt in held_out])


# files

def load_rankings(path: str | Path) -> list[Ranking]:
    """Read rankings from JSONL, one per line.

    A line is TRL's preference format, {"prompt": ..., "chosen": ..., "rejected": ...}, or what
    save_rankings writes, {"prompt": ..., "completions": [best, ..., worst]}.

    Raises ValueError, with file and line, for a line that is no such object, an empty or missing
    text, or a pair of equal completions.
    """
    rankings = []
    for source, entry in entries(path, "prompt, chosen and rejected"):
        completions = entry.get("completions")
        if isinstance(completions, list):
            texts = [text_field(text, "completions", source, at=f" at index {i}")
                     for i, text in enumerate(completions)]
        else:
            names = ("completions",) if "completions" in entry else ("chosen", "rejected")
            texts = [text_field(entry.get(name), name, source) for name in names]
        prompt = text_field(entry.get("prompt"), "prompt", source)
        rankings.append(Ranking(prompt, tuple(texts), source))
    return rankings


def load_demonstrations(path: str | Path) -> list[Demonstration]:
    """Read demonstrations from JSONL in TRL's prompt-completion format, one per line:
    {"prompt": ..., "completion": ...}. Raises ValueError as load_rankings does."""
    return [Demonstration(text_field(entry.get("prompt"), "prompt", source),
                          text_field(entry.get("completion"), "completion", source), source)
            for source, entry in entries(path, "prompt and completion")]


def save_rankings(rankings: Sequence[Ranking], path: str | Path) -> None:
    """Write rankings as JSONL that load_rankings reads."""
    lines = (json.dumps({"prompt": ranking.prompt, "completions": ranking.completions},
                        ensure_ascii=False)
             for ranking in rankings)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def entries(path: str | Path, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the object) for each line that is not blank."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: a JSONL file, an object with {wanted} per "
                         "line, is wanted")
    empty = True
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            empty = False
            yield f"{path}, line {number}", _entry(line, path, number, wanted)
    if empty:
        raise ValueError(f"{path} has no lines: an object with {wanted} per line is wanted")


def _entry(line: bytes, path: Path, number: int, wanted: str) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (line {number}: {error}): convert it first"
                         ) from error
    except (ValueError, RecursionError) as error:  # 5,000 digits, lists 100,000 deep
        raise ValueError(f"{path}, line {number} is no JSON that can be read ({error}): an object "
                         f"with {wanted} is wanted") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{path}, line {number} is a {type(entry).__name__}: an object with "
                         f"{wanted} is wanted")
    return entry


def text_field(value: Any, name: str, source: str, *, at: str = "") -> str:
    """Return the text of the field `name`: a string, or the content of a single message, as TRL's
    conversational format has it: text, or parts that are text. Only a prompt may be empty.

    `at` says where in the field the value stands (" at index 2"), for messages.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = _content(value[0].get("content"), name, source)
    if isinstance(value, list):
        raise ValueError(f"{source}: {name!r} is a conversation of {len(value)} messages{at}: "
                         "text, or a single message, is wanted; apply the model's chat template "
                         "first")
    if not isinstance(value, str):
        nothing = "null" if at else "missing"
        what = nothing if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{source}: {name!r} is {what}{at}: text is wanted")
    if not value and name != "prompt":
        raise ValueError(f"{source}: {name!r} is empty{at}: leave "
                         f"{'the completion' if at else 'the line'} out")
    if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{source}: {name!r} holds half of a surrogate pair{at}, which no text "
                         "can hold: write the character itself")
    return value


def _content(content: Any, name: str, source: str) -> Any:
    """A message's content; of a list of parts, their text. An image would be lost silently."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"{source}: {name!r} has a part of type {kind}: text alone is wanted")
    return content_text(content)
