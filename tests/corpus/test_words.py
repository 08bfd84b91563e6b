"""minirl/corpus/words.py: words as numbers, against the same worked out one byte at a time."""

import random

import numpy as np
import pytest

from minirl.corpus import words
from minirl.corpus.words import KINDS, VALUES, M, N, bare, ngram_hashes, whole, word_hashes


def split(text):
    """The words of a text, found letter by letter."""
    found, kind = [], 0
    for b in text.encode("utf-8", "replace"):
        if KINDS[b] == 1 and kind == 1:
            found[-1] += bytes([b])
        elif KINDS[b]:
            found.append(bytes([b]))
        kind = KINDS[b]
    return found


def slow(word):
    return sum(int(VALUES[b]) * pow(M, i, 2 ** 64) for i, b in enumerate(word)) % 2 ** 64


@pytest.mark.parametrize("texts", [
    ["a"], ["the sum is 12"], ["x=12"], ["", " ", "\n"], ["a  b\tc\r\nd"], ["(a)(b)"],
    ["두 수의 합", "é\u0301 ∑x²"], ["\ud800 half of a pair"], ["a\x00b\x7fc"], [], ["a" * 5000]])
def test_the_numbers_are_the_formula_s(texts):
    hashes, counts = word_hashes(texts)
    found = [split(text) for text in texts]
    assert counts.tolist() == [len(words) for words in found]
    assert hashes.tolist() == [slow(word) for text in found for word in text]


def test_a_word_has_one_number_wherever_it_stands(monkeypatch):
    """Also across the places where the powers of M start again, every few bytes here."""
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abc", k=rng.randint(1, 30))) for _ in range(400))
    want = word_hashes([text])[0]
    monkeypatch.setattr(words, "REACH", 7)
    monkeypatch.setattr(words, "JUMP", pow(M, 7, 2 ** 64))
    assert (word_hashes([text])[0] == want).all()
    assert want.tolist() == [slow(word) for word in split(text)]


def test_case_counts_for_nothing_and_symbols_are_words():
    same = word_hashes(["Sum of X"])[0], word_hashes(["sum OF x"])[0]
    assert (same[0] == same[1]).all()
    assert len(word_hashes(["f(x)=x^2+1"])[0]) == 10
    assert len(set(word_hashes(["ab ba a b aa bb"])[0].tolist())) == 6, "order counts"


def test_texts_do_not_touch():
    """"ab" and "c" are not "abc", and their last and first words are no bigram."""
    together, counts = word_hashes(["ab", "c"])
    assert counts.tolist() == [1, 1] and len(together) == 2
    assert not whole(counts, 2).any()
    assert whole(np.array([0, 2, 0, 1]), 2).tolist() == [True, False]


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_runs_of_words_are_the_polynomial_of_their_words(n):
    hashes = word_hashes(["a b c a b c d"])[0]
    want = [sum(int(hashes[i + j]) * N ** (n - 1 - j) for j in range(n)) % 2 ** 64
            for i in range(len(hashes) - n + 1)]
    before = hashes.copy()
    assert ngram_hashes(hashes, n).tolist() == want
    assert (hashes == before).all(), "nothing writes to its inputs"
    assert whole(np.array([7]), n).tolist() == [True] * max(0, 8 - n)


@pytest.mark.parametrize("text, words", [
    ("It's 3+4, “OK”?", "it s 3 4 ok"), ("a_b", "a b"), ("", ""), ("…", ""),
    ("ＦＵＬＬ width", "full width"), ("e\u0301t\u00e9", "été"), ("한국어, 말!", "한국어 말")])
def test_bare_words(text, words):
    assert bare(text) == words
