"""What a page reports, in a file: a line of JSON per step, and what to make of lines that a kill or
a bad disk spoiled.

    train_sft(model, tokenizer, pairs, config, log=partial(append_metrics, file))

A page that goes on from a checkpoint (checkpoints.py) first takes out what came after it:
cut_metrics(file, state["step"]).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirl.lm.files import replacing

Line = tuple[bytes, dict | None]           # as it stands, and what it says: None where unreadable


def append_metrics(file: Path, step: int, metrics: dict[str, float]) -> None:
    with open(file, "a", encoding="utf-8") as f:
        f.write(json.dumps({"step": step, **metrics}) + "\n")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, without those that were spoiled. Raises ValueError as read_lines.
    """
    return [metrics for _, metrics in read_lines(file) if metrics is not None]


def read_lines(file: Path) -> list[Line]:
    """The lines of a file, [] where there is none.

    Raises ValueError, naming the line, where there is JSON that is no metrics of a step.
    """
    content = file.read_bytes() if file.is_file() else b""
    lines: list[Line] = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), 1):
        try:
            metrics = json.loads(line)
        except (ValueError, RecursionError):
            lines.append((line, None))
            continue
        if not is_metrics(metrics):
            raise ValueError(f"{file}, line {number}: an object of numbers with a \"step\" is "
                             "wanted, and this is none: mend the line, or delete it")
        lines.append((line, metrics))
    return lines


def is_metrics(content: object) -> bool:
    if not isinstance(content, dict) or type(content.get("step")) is not int:
        return False
    return all(isinstance(value, (int, float)) for value in content.values())


def cut_metrics(file: Path, last: int, warn: Callable[[str], None] = warnings.warn) -> None:
    """Take out what came after step `last`; warn(message) says what is missing before it.

    A line that cannot be read stays as it is, as whoever knows more may mend it.
    """
    lines = [(line, metrics) for line, metrics in read_lines(file)
             if metrics is None or metrics["step"] <= last]
    steps = [metrics["step"] for _, metrics in lines if metrics is not None]
    while lines and lines[-1][1] is None and (not last or last in steps):
        lines.pop()                                        # the beginning of a later step's line
    unreadable = [number for number, (_, metrics) in enumerate(lines, 1) if metrics is None]
    missing = sorted(set(range(1, last + 1)) - set(steps))
    faults = []
    if unreadable:
        faults.append(f"line {first(unreadable)} cannot be read")
    if missing:
        faults.append(f"step {first(missing)} is missing")
    if steps != sorted(set(steps)):
        faults.append("steps are repeated or out of order")
    if faults:
        warn(f"{file}: {', '.join(faults)}; all lines are kept, and the run goes on")
    content = b"".join(line + b"\n" for line, _ in lines)
    if content != (file.read_bytes() if file.is_file() else b""):
        with replacing(file) as partial:
            partial.write_bytes(content)


def first(numbers: list[int]) -> str:
    more = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
    return f"{numbers[0]}{more}"
