"""minirl/corpus/mining.py: ranking and sites by hand, and rounds over a web whose truth is known.
"""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from minirl.corpus.decontaminate import NgramIndex
from minirl.corpus.mining import (
    MineConfig,
    State,
    mine_round,
    rank_and_cut,
    read_round,
    rich,
    survey,
)
from minirl.corpus.pages import Corpus, Page, line_of
from minirl.corpus.web import benchmark, seed_texts, web

CONFIG = MineConfig(examples=2000, dim=16, buckets=2 ** 16, words=40_000)


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """Two rounds over a small web -> its folder, the survey, and each round's report and state."""
    folder = tmp_path_factory.mktemp("mined")
    (folder / "web.jsonl").write_bytes(b"".join(map(line_of, web(3000, sites=100))))
    corpus = Corpus([folder / "web.jsonl"])
    overview = survey(corpus, CONFIG)
    rounds = [(None, State(seed_texts(200)))]
    for k in (1, 2):
        (folder / f"round-{k}").mkdir()
        mine_round(corpus, rounds[-1][1], overview, CONFIG, folder / f"round-{k}",
                   NgramIndex(benchmark()))
        rounds.append(read_round(folder / f"round-{k}", rounds[-1][1]))
    return folder, overview, rounds


@pytest.mark.parametrize("budget, kept", [
    (0, []), (4, []), (5, [1]), (7, [1]), (8, [1, 3]), (17, [1, 3]), (18, [0, 1, 3]),
    (100, [0, 1, 2, 3])])
def test_rank_and_cut_by_hand(budget, kept):
    """Best first: page 1 of 5 tokens, 3 of 3, 0 of 10, 2 of 20. It stops before the first that is
    too much, and takes no smaller one behind it. Page 4 has no words."""
    scores, tokens = np.array([0.2, 0.9, -1.0, 0.5, 0.6]), np.array([10, 5, 20, 3, 0])
    assert np.flatnonzero(rank_and_cut(scores, tokens, budget)).tolist() == kept


def test_equal_scores_are_cut_in_the_order_of_the_corpus():
    assert rank_and_cut(np.zeros(4), np.ones(4), 2).tolist() == [True, True, False, False]
    assert rank_and_cut(np.zeros(0), np.zeros(0), 5).shape == (0,)


def test_more_than_the_share_and_not_just_it():
    kept = Counter({("a.org", "/q"): 2, ("b.org", "/"): 1})
    pages = Counter({("a.org", "/q"): 19, ("b.org", "/"): 10, ("c.org", "/"): 3})
    assert rich(kept, pages, 0.1) == {("a.org", "/q")}


def test_a_round_s_numbers_are_those_of_its_files(mined):
    folder, overview, rounds = mined
    pages = list(Corpus([folder / "web.jsonl"]))
    for k in (1, 2):
        report, state = rounds[k]
        kept = [page for page, keep in zip(pages, state.kept, strict=True) if keep]
        written = list(Corpus([folder / f"round-{k}" / "corpus.jsonl"]))
        assert report.pages == len(kept) == len(written) + report.contaminated
        assert report.words == overview.words[state.kept].sum() <= CONFIG.words
        right = sum(page.label for page in kept)
        assert report.precision == pytest.approx(right / len(kept), abs=1e-4)
        assert report.recall == pytest.approx(right / sum(p.label for p in pages), abs=1e-4)
        assert report.contaminated == sum(page.fields["planted"] for page in kept)
        assert not any(page.fields["planted"] for page in written)
        lowest = min(page.fields["score"] for page in written)
        assert all(page.fields["score"] >= lowest for page in written)
    both = (rounds[1][1].kept & rounds[2][1].kept).sum()
    assert rounds[1][0].kept_before is None
    assert rounds[2][0].kept_before == pytest.approx(both / rounds[2][0].pages, abs=1e-4)


def test_a_round_teaches_the_next_one(mined):
    """The seeds are of two topics of six; sites lead to the next."""
    _, _, rounds = mined
    first, second = rounds[1][0], rounds[2][0]
    assert second.recall > first.recall + 0.05 and second.precision > first.precision
    assert first.joining > 20 and second.seeds == 200 + first.joining
    assert rounds[2][1].sites >= rounds[1][1].sites != frozenset()


def test_what_joins_was_not_kept_and_stands_on_an_annotated_path(mined):
    folder, _, rounds = mined
    pages = list(Corpus([folder / "web.jsonl"]))
    for k in (1, 2):
        before, state = rounds[k - 1][1], rounds[k][1]
        joined = state.added - before.added
        assert len(state.seeds) == len(before.seeds) + len(joined) == 200 + len(state.added)
        for number in joined:
            assert pages[number].site in state.sites and not state.kept[number]
            assert pages[number].text in state.seeds


def test_annotated_paths_hold_mathematics(mined):
    _, _, rounds = mined
    sites = rounds[1][1].sites
    good = [path in ("/questions", "/mathematics") for _, path in sites]
    assert sum(good) / len(good) > 0.8


def test_a_round_is_the_same_when_it_is_made_again(mined, tmp_path):
    folder, overview, rounds = mined
    mine_round(Corpus([folder / "web.jsonl"]), rounds[1][1], overview, CONFIG, tmp_path,
               NgramIndex(benchmark()))
    for file in ("corpus.jsonl", "seeds.jsonl", "kept.npy", "round.json"):
        assert (tmp_path / file).read_bytes() == (folder / "round-2" / file).read_bytes()


def mine(tmp_path, pages, seeds=("a sum of squares",), **numbers):
    (tmp_path / "pages.jsonl").write_bytes(b"".join(map(line_of, pages)))
    corpus, config = Corpus([tmp_path / "pages.jsonl"]), replace(CONFIG, **numbers)
    mine_round(corpus, State(list(seeds)), survey(corpus, config), config, tmp_path)
    return read_round(tmp_path, State(list(seeds)))


def test_pages_without_labels_or_urls(tmp_path):
    pages = [Page(text) for text in ["a sum of squares", "bread and butter", ""] * 10]
    report, state = mine(tmp_path, pages, words=40)
    assert report.precision is report.recall is None
    assert (report.pages, report.words, report.domains, report.joining) == (10, 40, 0, 0)
    assert {page.text for page in Corpus([tmp_path / "corpus.jsonl"])} == {"a sum of squares"}


def test_without_a_budget_a_sixth_of_the_words_is_kept(tmp_path):
    report, _ = mine(tmp_path, [Page(f"five words stand here {i}") for i in range(60)], words=0)
    assert report.words == 50


def test_a_budget_for_all_and_a_budget_for_none(tmp_path):
    pages = [Page("a b c", "x.org/a/b", 1), Page("d e f", "x.org/a/c", 0)] * 3
    assert mine(tmp_path, pages, words=10 ** 9)[0].pages == 6
    report, _ = mine(tmp_path, pages, words=1)
    assert (report.pages, report.precision, report.recall) == (0, 0.0, 0.0)


def test_a_corpus_without_words_and_one_that_changes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n{"te\n')
    corpus = Corpus([tmp_path / "a.jsonl"])
    with pytest.raises(ValueError, match=r"no page with a word .* 1 lines are malformed, such as "):
        survey(corpus, CONFIG)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a b"}\n' * 3)
    overview = survey(corpus, CONFIG)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a b"}\n' * 4)
    with pytest.raises(ValueError, match="had 3 pages and has 4 now"):
        mine_round(corpus, State(["b"]), overview, CONFIG, tmp_path)


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(ValueError, match="0 seeds and 1 other pages"):
        mine(tmp_path, [Page("a b")], seeds=())


@pytest.mark.parametrize("numbers, says", [
    ({"rounds": 0}, "rounds is 0"), ({"words": -1}, "words is -1"), ({"examples": 0}, "examples"),
    ({"domain_share": 0.0}, "domain_share is 0"), ({"path_share": 1.0}, "path_share is 1"),
    ({"path_share": float("nan")}, "path_share is nan"), ({"seed": -1}, "seed is -1"),
    ({"dim": 0}, "dim is 0"), ({"lr": -1.0}, "lr is -1")])
def test_bad_numbers(numbers, says):
    with pytest.raises(ValueError, match=says):
        MineConfig(**numbers)


def test_sites_survive_the_file(mined):
    folder, _, rounds = mined
    content = json.loads((folder / "round-1" / "round.json").read_text())
    assert frozenset(map(tuple, content["sites"])) == rounds[1][1].sites
