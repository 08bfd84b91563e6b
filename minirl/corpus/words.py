"""Words as 64-bit numbers, made for many texts at once: what the classifier and the index of
benchmarks share.

Text is bytes, and numpy reads them all in one pass. A word b_0 b_1 ... b_n gets the number

    h = Σ_i v(b_i) M^i   modulo 2^64, M odd, v a random number for each byte

so the sum over a word that starts at byte s of a long text is M^s h, and M has an inverse.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

M, N = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03       # odd: for bytes in a word, words in an n-gram
MIX = 0xBF58476D1CE4E5B9                            # odd: low bits change the high ones
SEPARATOR, LETTER, SYMBOL = 0, 1, 2
NOT_A_WORD = re.compile(r"[\W_]+")


def _kinds() -> np.ndarray:
    """Return what each byte is. Those above 127 are letters: UTF-8 has no space among them."""
    kinds = np.full(256, SYMBOL, np.uint8)
    letters = [b for b in range(256) if b > 127 or chr(b).isalnum()]
    kinds[letters] = LETTER
    kinds[:33] = kinds[127] = SEPARATOR
    return kinds


def _values() -> np.ndarray:
    """Return v: a random number for each byte, the same for A and a, and 0 for separators."""
    values = np.random.default_rng(0).integers(1, 2 ** 64, 256, dtype=np.uint64)
    values[65:91] = values[97:123]
    values[_kinds() == SEPARATOR] = 0
    return values


def _powers(base: int, n: int) -> np.ndarray:
    """Return 1, base, base^2, ... modulo 2^64, n of them."""
    powers = np.full(n, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


KINDS, VALUES = _kinds(), _values()
REACH = 1 << 16                                     # bytes that the powers are made for at a time
POWERS, INVERSES = _powers(M, REACH), _powers(pow(M, -1, 2 ** 64), REACH)
JUMP = pow(M, REACH, 2 ** 64)


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of every word, and how many words each text has.

    A word is a run of letters and digits, or one symbol: "x=12" has three. Case counts for
    nothing in ASCII.

    >>> hashes, counts = word_hashes(["The sum", "", "the SUM, the sum"])
    >>> counts.tolist(), len(set(hashes.tolist()))
    ([2, 0, 5], 3)
    """
    parts = [text.encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"\n".join([*parts, b""]), np.uint8)
    ends = np.cumsum([len(part) + 1 for part in parts], dtype=np.int64)
    kinds = KINDS.take(data)                        # twice as fast as KINDS[data]
    begins = kinds != SEPARATOR
    begins[1:] &= (kinds[1:] != kinds[:-1]) | (kinds[1:] == SYMBOL)
    starts = np.flatnonzero(begins)
    counts = np.diff(np.searchsorted(starts, ends), prepend=0)
    if not len(starts):
        return np.zeros(0, np.uint64), counts
    terms = VALUES.take(data)
    for at in range(0, len(data), REACH):           # M^(at + i) = M^at M^i
        part = terms[at:at + REACH]
        part *= POWERS[:len(part)]
        if at:
            part *= np.uint64(pow(JUMP, at // REACH, 2 ** 64))
    sums = np.add.reduceat(terms, starts)
    back = np.array([pow(JUMP, -i, 2 ** 64) for i in range(len(data) // REACH + 1)], np.uint64)
    return sums * INVERSES[starts % REACH] * back[starts // REACH], counts


def check_texts(texts: Iterable[str]) -> None:
    """Raise ValueError for one text, and for what is none."""
    if isinstance(texts, str):
        raise ValueError("one text came: a list of texts is wanted")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a {type(text).__name__} came among the texts: only str is wanted")


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """Return a number for each run of n words: the last n - 1 words begin none.

    Runs go over the end of one text into the next; `whole` says which do not.

    >>> a, b = word_hashes(["one two three one two"])[0], word_hashes(["two three"])[0]
    >>> (ngram_hashes(a, 2) == ngram_hashes(b, 2)).tolist()
    [False, True, False, False]
    """
    runs = len(hashes) - n + 1
    if runs <= 0:
        return hashes[:0]
    total = hashes[:runs].copy()
    for i in range(1, n):
        total *= np.uint64(N)
        total += hashes[i:i + runs]
    return total


def whole(counts: np.ndarray, n: int) -> np.ndarray:
    """Return which of the runs of n words lie within one text.

    >>> whole(np.array([3, 2]), 2).tolist()              # of words 0 1 2 | 3 4
    [True, True, False, True]
    """
    text = np.repeat(np.arange(len(counts)), counts)
    return text[:max(0, len(text) - n + 1)] == text[n - 1:]


def bare(text: str) -> str:
    """Return the words of a text, in lower case, without punctuation and symbols, however they
    are spelt in Unicode.

    >>> bare("What is “3 + 4”, Ann?")
    'what is 3 4 ann'
    """
    return NOT_A_WORD.sub(" ", unicodedata.normalize("NFKC", text).lower()).strip()
