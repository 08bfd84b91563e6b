"""minirl/corpus/web.py: the same web for the same seed, and truth that holds."""

import re
from collections import Counter

from minirl.corpus.web import MATHS, OTHER, benchmark, seed_texts, web


def test_a_seed_is_a_web():
    first, again, other = list(web(200, 1)), list(web(200, 1)), list(web(200, 2))
    assert first == again != other
    assert list(web(50, 1)) == first[:50], "pages are made one at a time"
    assert seed_texts(5, 1) == seed_texts(5, 1) and benchmark(1) == benchmark(1) != benchmark(2)


def test_shares_are_what_the_docstring_says():
    pages = list(web(8000))
    topics = Counter(page.fields["topic"] for page in pages)
    assert set(topics) == {*MATHS, *OTHER}
    assert all(page.label == (page.fields["topic"] in MATHS) for page in pages)
    assert 0.10 < sum(page.label for page in pages) / len(pages) < 0.17
    stray = [page for page in pages if page.label and ".com/" in page.url]
    assert len(stray) > 50, "some mathematics is on sites of other things"


def test_sums_are_right():
    text = " ".join(page.text for page in web(3000) if page.fields["topic"] == "sums")
    found = re.findall(r"(\d) \+ (\d) = (\d+)", text)
    assert len(found) > 100 and all(int(a) + int(b) == int(s) for a, b, s in found)


def test_seeds_are_of_the_first_two_topics_and_of_another_web():
    seeds = seed_texts(300)
    assert not set(seeds) & {page.text for page in web(8000)}
    assert not any(word in text for text in seeds for word in ("epsilon", "variance", "이다"))


def test_questions_are_long_or_short():
    lengths = Counter(len(re.findall(r"\w+", text)) > 10 for text in benchmark())
    assert lengths == {True: 50, False: 10}
