"""One reward function for minirl and for TRL: both call it by keyword, with the same columns."""

from __future__ import annotations

import re
from typing import Any


def right_number(completions: list[list[dict[str, Any]]], answer: list[str], **_: Any
                 ) -> list[float]:
    """1 for the right number alone, 0.5 where it is the last number of a longer text, else 0.

    As the prompts are conversations, each completion is a list with one message.

    >>> texts = ["7", " 7.", "3+4=7", "8", "seven"]
    >>> completions = [[{"role": "assistant", "content": text}] for text in texts]
    >>> right_number(completions=completions, answer=["7"] * 5)
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    verdicts = []
    for messages, right in zip(completions, answer, strict=True):
        text = messages[-1]["content"].strip().rstrip(".")
        last = re.findall(r"\d+", text)[-1:]
        verdicts.append(1.0 if text == right else 0.5 if last == [right] else 0.0)
    return verdicts
