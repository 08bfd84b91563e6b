"""minirl/corpus/decontaminate.py: what a benchmark's text is found by, and what not."""

import random

import pytest

from minirl.corpus.decontaminate import NgramIndex
from minirl.corpus.web import benchmark, disguised, web
from minirl.corpus.words import bare

QUESTION = "Ann has 12 apples and buys 30 more, gives 7 to Bob: how many has she now?"   # 16 words
WORDS = bare(QUESTION).split()


def test_ten_words_are_found_and_nine_are_not():
    index = NgramIndex([QUESTION])
    for i in range(len(WORDS) - 9):
        run = WORDS[i:i + 10]
        assert index.contains("before " + " ".join(run) + " after")
        assert not index.contains("before " + " ".join(run[:9]) + " after")
        assert not index.contains(" ".join([*run[:5], "so", *run[5:]]))
        assert not index.contains(" ".join([*run[1:], run[0]]))


@pytest.mark.parametrize("page", [
    QUESTION, QUESTION.upper(), f"“{QUESTION}”", QUESTION.replace(" ", "\n\n"),
    QUESTION.replace(",", " —").replace(":", "..."), f"<p>{QUESTION}</p>",
    QUESTION.replace("Ann", "Ａｎｎ")])
def test_case_punctuation_and_spelling_in_unicode_do_not_hide_it(page):
    assert NgramIndex([QUESTION]).contains(page)


@pytest.mark.parametrize("words, found", [(1, False), (2, False), (3, True), (4, True), (9, True)])
def test_short_benchmarks_are_found_whole(words, found):
    text = " ".join(WORDS[:words])
    index = NgramIndex([text])
    assert index.contains(text) == index.contains(f"x {text} y") == found
    if words > 1:
        assert not index.contains(" ".join(WORDS[:words - 1]))
        assert not index.contains(" ".join(WORDS[1:words]))


def test_benchmarks_of_all_lengths_at_once():
    index = NgramIndex(["a b c", "d e f g", QUESTION, "", "..."])
    texts = ["x a b c", "d e f", "d e f g", QUESTION, "", "a b d c"]
    assert index.contained(texts).tolist() == [True, False, True, True, False, False]
    assert [index.contains(text) for text in texts] == index.contained(texts).tolist()


def test_runs_do_not_go_from_one_text_to_the_next():
    index = NgramIndex(["a b c d"], n=4)
    assert not index.contained(["a b", "c d"]).any()
    assert not index.contained(["", "a b c", "d"]).any()
    assert not NgramIndex(["a b", "c d"], n=4).contains("a b c d")


def test_a_hash_alone_accuses_nobody(monkeypatch):
    """All words have one hash: the words themselves are compared."""
    monkeypatch.setattr("minirl.corpus.words.VALUES", 0 * __import__("numpy").ones(256, "uint64"))
    index = NgramIndex(["a b c"], n=3)
    assert index.contains("a b c") and not index.contains("d e f")


def test_an_empty_index_contains_nothing():
    for index in (NgramIndex([]), NgramIndex(["a b"])):
        assert not index.contains("a b c") and index.contained([]).shape == (0,)


def test_all_planted_questions_are_caught_and_no_other_page():
    """The truth of the other pages is looked up in words, without hashes."""
    questions = benchmark(0)
    index = NgramIndex(questions)
    pages = list(web(6000))
    planted = [bool(page.fields["planted"]) for page in pages]
    assert index.contained([page.text for page in pages]).tolist() == planted and any(planted)
    wanted = {run for q in questions
              for words in [bare(q).split()] for n in [min(10, len(words))]
              for run in (" ".join(words[i:i + n]) for i in range(len(words) - n + 1))}
    for page, hit in zip(pages[:800], planted, strict=False):
        padded = f" {bare(page.text)} "
        assert any(f" {run} " in padded for run in wanted) == hit
    rng = random.Random(0)
    assert all(index.contains(f"so: {disguised(rng, q)} I ask") for q in questions)


@pytest.mark.parametrize("arguments, says", [
    (("one text",), "a list of texts"), (([None],), "a NoneType came"),
    ((["a"], 2), "n is 2"), ((["a"], 3.0), "n is 3.0")])
def test_bad_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        NgramIndex(*arguments)
