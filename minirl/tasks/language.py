"""Which language a chain of thought is in: Korean ("ko") or English ("en").

A word is a run of letters of one script: "3더하기four" has two. Words in Hangul are Korean, words
in Latin letters English. Numbers, signs, numerals (x², ½, ①, Ⅷ), tags and special tokens (<pad>,
<|im_end|>) are no words. A single Latin letter is an English word ("a", "I"); for other languages
it names a quantity and is no word.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby

# Reasoning ends at the next tag, at a tag that was cut off, or with the completion.
REASONING = re.compile(r"<think>(.*?)(?:</?(?:think|answer)>|<[^\s<>]*\Z|\Z)", re.DOTALL)
# <pad>, <|im_end|>, </s>, <b>, [PAD], [/INST]
MARKUP = re.compile(r"<[^\s<>]+>|\[/?(?:PAD|UNK|BOS|EOS|CLS|SEP|MASK|INST)\]")
# Letters of any script; a number is a word of no language.
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SCRIPTS = {"ko": re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]"),
           "en": re.compile("[A-Za-z\u00c0-\u024f]")}


def share_of_words(completion: str, language: str) -> float:
    """Return the share of the words of a completion's reasoning that are in the language; 0 where
    there is no word."""
    reasoning = REASONING.search(completion)
    plain = _letters(MARKUP.sub(" ", reasoning[1])) if reasoning else ""
    scripts = [script for word in WORD.findall(plain) for script in _scripts(word)]
    words = [script for script in scripts if language == "en" or script != "letter"]
    return sum(script in (language, "letter") for script in words) / len(words) if words else 0.0


def _letters(reasoning: str) -> str:
    """Reasoning with gaps for numerals, and its letters in their plain and composed form."""
    if reasoning.isascii():
        return reasoning
    composed = unicodedata.normalize("NFC", "".join(map(_letter, reasoning)))
    return "".join(c for c in composed if not unicodedata.category(c).startswith("M"))  # accents


def _letter(c: str) -> str:
    if not c.isalpha():
        return " " if c.isalnum() else c  # ½, ①, Ⅷ: \w, and no letters
    small = unicodedata.decomposition(c).startswith(("<super>", "<sub>"))  # 2ⁿ, 1º
    return " " if small else unicodedata.normalize("NFKC", c)  # of another font or width: 𝑥


def _scripts(word: str) -> list[str]:
    """The language of each run of one script in a word: "ko", "en", "letter" for a single Latin
    letter, or "other"."""
    kinds = [next((name for name, script in SCRIPTS.items() if script.match(c)), "other")
             for c in word if c not in "'’"]
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return ["letter" if (kind, length) == ("en", 1) else kind for kind, length in runs]
