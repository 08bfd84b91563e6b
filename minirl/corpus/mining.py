"""From a few mathematical pages to all those of a web, in rounds.

    Paper      DeepSeekMath, arXiv:2402.03300, section 2.1: a classifier is trained on a seed corpus
               against random pages. It ranks the web, and the first pages are kept, up to a number
               of tokens. A domain of which more than 10 % is kept is mathematical. The paths in it
               that hold mathematics are annotated, and their pages that were not kept join the
               seed corpus. In round 4, 98 % of what is kept was kept in round 3.

Same as the paper  the rounds; benchmarks are taken out of what is kept.
Different          tokens are words. A rule annotates paths: more than half of their pages were
                   kept. Near-duplicates are expected to be gone.
Why                the number of words is known from hashing; people look at paths in the paper.

A corpus is read several times in a round, as a stream. In memory are the examples, counts of sites,
and about 20 bytes for each page.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import compress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minirl.corpus.classifier import TextClassifier
from minirl.corpus.decontaminate import NgramIndex
from minirl.corpus.pages import Corpus, Page, Sample, chunks, line_of
from minirl.corpus.words import word_hashes

Site = tuple[str, str]       # domain, first part of the path


@dataclass(frozen=True)
class MineConfig:
    """The numbers of `mine_round`, and the classifier's."""

    rounds: int = 4                    # DeepSeekMath, section 2.1
    words: int = 0                     # what a round keeps, at most; 0: a sixth of the corpus
    domain_share: float = 0.1          # DeepSeekMath: a domain with more pages kept is mathematical
    path_share: float = 0.5            # the same for the paths of such a domain
    examples: int = 10_000             # of either label, at most; DeepSeekMath: 500,000
    dim: int = 64                      # DeepSeekMath: 256
    buckets: int = 2 ** 18             # hashed n-grams
    ngrams: int = 2                    # DeepSeekMath: 3
    epochs: int = 3                    # DeepSeekMath: 3
    lr: float = 0.1                    # DeepSeekMath: 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("words", 0), ("examples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: at least {least} is wanted")
        for name in ("domain_share", "path_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: between 0 and 1 is wanted")
        self.classifier()

    def classifier(self) -> TextClassifier:
        return TextClassifier(dim=self.dim, buckets=self.buckets, ngrams=self.ngrams,
                              epochs=self.epochs, lr=self.lr, seed=self.seed)


@dataclass(frozen=True)
class Survey:
    """What one look at all pages tells.

    words      of each page, (pages,)
    wanted     how many pages have label 1; None where no page has a label
    examples   random pages, each with its number: what a classifier takes as negatives
    """

    words: np.ndarray
    wanted: int | None
    examples: list[tuple[int, Page]]


@dataclass(frozen=True)
class State:
    """What a round starts from.

    seeds     the seed corpus       added   which pages of the web are in it, by number
    sites     annotated paths       kept    whether a page was kept by the round before, (pages,)
    """

    seeds: list[str]
    added: frozenset[int] = frozenset()
    sites: frozenset[Site] = frozenset()
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


@dataclass(frozen=True)
class Report:
    """A round in numbers.

    seeds          pages that its classifier learnt from
    pages, words   what is kept, `contaminated` pages included that hold a benchmark's text
    precision      share of it that has label 1            recall   share of label 1 that is kept
    kept_before    share of it that the round before kept: the paper stops at 98 %
    domains        domains that are mathematical           sites    paths annotated so far
    joining        pages that join the seed corpus
    """

    seeds: int
    pages: int
    words: int
    precision: float | None
    recall: float | None
    kept_before: float | None
    contaminated: int
    domains: int
    sites: int
    joining: int


def survey(corpus: Corpus, config: MineConfig) -> Survey:
    """Read all pages once. Raises ValueError where there is no word in them."""
    words, labels = [np.zeros(0, np.int32)], Counter[int | None]()
    examples = Sample(config.examples, config.seed)
    for start, chunk in chunks(corpus):
        words.append(word_hashes([page.text for page in chunk])[1].astype(np.int32))
        labels.update(page.label for page in chunk)
        for number, page in enumerate(chunk, start):
            examples.offer((number, page))
    if not any(counts.any() for counts in words):
        raise ValueError(f"there is no page with a word in it in {len(corpus.files)} files, "
                         f"{corpus.files[0]} the first; {corpus.malformed} lines are malformed"
                         + "".join(f", such as {text}" for text in corpus.complaints[:1]))
    wanted = labels[1] if labels[0] + labels[1] else None
    return Survey(np.concatenate(words), wanted, examples.items)


def mine_round(corpus: Corpus, state: State, overview: Survey, config: MineConfig, out: Path,
               index: NgramIndex | None = None) -> None:
    """Train a classifier, rank and cut, find sites, and write all to the folder `out`.

    corpus.jsonl   what is kept, without the pages that the index contains
    seeds.jsonl    the pages that join the seed corpus
    kept.npy       whether each page is kept, as bits       round.json   all counts, and the sites
    """
    # 1. a classifier: the seed corpus against random pages
    classifier = trained(state, overview, config)

    # 2. rank the web, and cut by tokens
    scores = scored(corpus, classifier, len(overview.words))
    kept = rank_and_cut(scores, overview.words, config.words or int(overview.words.sum()) // 6)

    # 3. write what is kept, without benchmarks
    with open(out / "corpus.jsonl", "wb") as file:
        count = write_kept(corpus, kept, scores, index, file)

    # 4. sites: their pages that were not kept join the seed corpus
    domains = rich(by_domain(count.kept), by_domain(count.all), config.domain_share)
    found = rich(count.kept, count.all, config.path_share)
    sites = state.sites | {site for site in found if site[0] in domains}
    joining = Sample(config.examples, config.seed)
    for number, page in enumerate(corpus):
        if page.site in sites and not kept[number] and number not in state.added:
            joining.offer((number, page))
    with open(out / "seeds.jsonl", "wb") as file:
        file.writelines(line_of(page, number=number) for number, page in joining.items)

    # 5. report
    pages, again = int(kept.sum()), int(kept[:len(state.kept)][state.kept].sum())
    report = Report(
        seeds=len(state.seeds), pages=pages, words=int(overview.words[kept].sum()),
        precision=None if overview.wanted is None else share(count.right, pages),
        recall=None if overview.wanted is None else share(count.right, overview.wanted),
        kept_before=share(again, pages) if len(state.kept) else None,
        contaminated=count.contaminated, domains=len(domains), sites=len(sites),
        joining=len(joining.items))
    np.save(out / "kept.npy", np.packbits(kept))
    content = {"report": asdict(report), "pages": len(kept), "sites": sorted(sites)}
    (out / "round.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_round(folder: Path, state: State) -> tuple[Report, State]:
    """Return a round's report and what the next one starts from: a resumed run reads the same."""
    content = json.loads((folder / "round.json").read_text(encoding="utf-8"))
    joined = list(Corpus([folder / "seeds.jsonl"]))
    return Report(**content["report"]), State(
        seeds=state.seeds + [page.text for page in joined],
        added=state.added | {page.fields["number"] for page in joined},
        sites=frozenset((domain, path) for domain, path in content["sites"]),
        kept=np.unpackbits(np.load(folder / "kept.npy"), count=content["pages"]).astype(bool))


# the steps of a round

def trained(state: State, overview: Survey, config: MineConfig) -> TextClassifier:
    """Return a classifier of the seed corpus against random pages that stand on no known site."""
    positives = Sample(config.examples, config.seed)
    for text in state.seeds:
        positives.offer(text)
    negatives = [page.text for number, page in overview.examples
                 if number not in state.added and page.site not in state.sites]
    if not positives.items or not negatives:
        raise ValueError(f"there are {len(positives.items)} seeds and {len(negatives)} other pages "
                         "to learn from: some of both are wanted")
    labels = [1] * len(positives.items) + [0] * len(negatives)
    return config.classifier().fit([*positives.items, *negatives], labels)


def scored(corpus: Corpus, classifier: TextClassifier, pages: int) -> np.ndarray:
    """Return the score of every page. Raises ValueError where there are more or fewer of them."""
    scores = [np.zeros(0, np.float32)]
    for _, chunk in chunks(corpus):
        scores.append(classifier.scores([page.text for page in chunk]).astype(np.float32))
    result = np.concatenate(scores)
    if len(result) != pages:
        raise ValueError(f"the corpus had {pages} pages and has {len(result)} now: leave its files "
                         "alone while they are mined, and start again")
    return result


def rank_and_cut(scores: np.ndarray, tokens: np.ndarray, budget: int) -> np.ndarray:
    """Return which pages are kept, (N,): the best, as many as have `budget` tokens together.

    >>> rank_and_cut(np.array([0.1, 0.9, 0.5]), np.array([10, 20, 30]), 50).tolist()
    [False, True, True]
    """
    best_first = np.argsort(-scores, kind="stable")
    kept = np.zeros(len(scores), bool)
    kept[best_first[np.cumsum(tokens[best_first]) <= budget]] = True
    return kept & (tokens > 0)


@dataclass
class Count:
    """What was kept: pages by site, of all and of these; with label 1; with a benchmark's text."""

    all: Counter[Site] = field(default_factory=Counter)
    kept: Counter[Site] = field(default_factory=Counter)
    right: int = 0
    contaminated: int = 0


def write_kept(corpus: Corpus, kept: np.ndarray, scores: np.ndarray, index: NgramIndex | None,
               file: BinaryIO) -> Count:
    """Write the pages that are kept, without those that the index contains. Count all of them."""
    count = Count()
    for start, chunk in chunks(corpus):
        chosen = [i for i in range(len(chunk)) if kept[start + i]]
        count.all.update(page.site for page in chunk if page.url)
        count.kept.update(chunk[i].site for i in chosen if chunk[i].url)
        count.right += sum(chunk[i].label == 1 for i in chosen)
        texts = [chunk[i].text for i in chosen]
        dirty = index.contained(texts) if index else np.zeros(len(texts), bool)
        count.contaminated += int(dirty.sum())
        for i in compress(chosen, ~dirty):
            file.write(line_of(chunk[i], score=round(float(scores[start + i]), 4)))
    return count


def rich(kept: Counter, pages: Counter, share: float) -> set:
    """Return the domains, or paths, of which more than this share of the pages is kept.

    >>> rich(Counter({"a.org": 2, "b.org": 1}), Counter({"a.org": 10, "b.org": 10}), 0.1)
    {'a.org'}
    """
    return {place for place, n in kept.items() if n > share * pages[place]}


def by_domain(sites: Counter[Site]) -> Counter[str]:
    domains = Counter[str]()
    for (domain, _), n in sites.items():
        domains[domain] += n
    return domains


def share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 4)
