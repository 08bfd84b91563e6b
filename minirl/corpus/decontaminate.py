"""Pages that hold a benchmark's text, which must not be learnt from.

    Paper      DeepSeekMath, arXiv:2402.03300, section 2.1: a page goes if it has a run of 10 words
               in common with a benchmark; a benchmark's text of 3 to 9 words must stand in it whole

Words are compared without case, punctuation and symbols, so that a question is still found where
its quotation marks are other ones. It follows that 3 + 4 and 3 - 4 are the same two words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from minirl.corpus.words import bare, check_texts, ngram_hashes, whole, word_hashes

SHORTEST = 3                 # words of a benchmark's text that is looked for


class NgramIndex:
    """The runs of n words of some benchmarks, and the texts that are shorter than that.

    >>> index = NgramIndex(["one two three four", "a b c", "x y"], n=4)
    >>> index.contains("... ONE, two; three (four)!"), index.contains("one two three five")
    (True, False)
    >>> index.contains("o a b c d"), index.contains("x y")
    (True, False)
    """

    def __init__(self, benchmarks: Iterable[str], n: int = 10) -> None:
        benchmarks = benchmarks if isinstance(benchmarks, str) else list(benchmarks)
        check_texts(benchmarks)
        if type(n) is not int or n < SHORTEST:
            raise ValueError(f"n is {n!r}: an int of at least {SHORTEST} is wanted")
        self.runs: dict[int, set[str]] = {}               # by their number of words
        for text in benchmarks:
            words = bare(text).split()
            length = min(n, len(words))
            if length >= SHORTEST:
                self.runs.setdefault(length, set()).update(runs_of(words, length))
        self.hashes = {length: np.unique(run_hashes(list(runs), length)[0])
                       for length, runs in self.runs.items()}

    def contains(self, text: str) -> bool:
        """Return whether the text has such a run, or such a short text, in it."""
        return bool(self.contained([text])[0])

    def contained(self, texts: Sequence[str]) -> np.ndarray:
        """Return the same for many texts, (N,): faster than one by one.

        Hashes find the texts to look at. Then the words themselves are compared.
        """
        check_texts(texts)
        texts = [bare(text) for text in texts]
        result = np.zeros(len(texts), bool)
        for length, wanted in self.hashes.items():
            hashes, text = run_hashes(texts, length)
            at = np.searchsorted(wanted, hashes)
            hit = wanted[np.minimum(at, len(wanted) - 1)] == hashes
            for i in set(text[hit].tolist()):
                result[i] |= any(run in self.runs[length]
                                 for run in runs_of(texts[i].split(), length))
        return result


def runs_of(words: Sequence[str], n: int) -> Iterable[str]:
    return (" ".join(words[i:i + n]) for i in range(len(words) - n + 1))


def run_hashes(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all runs of n words, and the text that each stands in."""
    hashes, counts = word_hashes(texts)
    fits = whole(counts, n)
    text = np.repeat(np.arange(len(counts)), counts)[:len(fits)]
    return ngram_hashes(hashes, n)[fits], text[fits]
