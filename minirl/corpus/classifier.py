"""A fastText classifier for two kinds of text, small enough to read and fast enough for a web.

    Model      p = softmax(W mean(E)), over the word n-grams of a text, each a row of E by its hash
    Paper      fastText, arXiv:1607.01759, sections 2 and 2.1; DeepSeekMath, arXiv:2402.03300,
               section 2.1: dim 256, learning rate 0.1, n-grams to 3, min count 3, 3 epochs,
               500 000 pages of either label

Same as the paper  the model, its hashing trick, SGD with a learning rate that falls to 0.
Different          no min count and no vocabulary: words are hashed as n-grams are. A row of E gets
                   its text's whole gradient, and not one part in as many as there are n-grams.
                   The gradients of a few texts are added up before a step, whose length is
                   bounded as the weights grow.
Why                the text's logit then moves as far whatever its length, and a few hundred texts
                   are enough; without the bound a learning rate of 0.5 diverges on 20,000 texts. A
                   vocabulary would need another pass.

W mean(E) is linear in E. So after training the logit of label 1 against label 0 is the mean of one
number per bucket, (w_1 - w_0) E, and a page is classified by looking those up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from minirl.corpus.words import MIX, check_texts, ngram_hashes, whole, word_hashes

TOGETHER = 8                 # texts of one step
LONGEST_STEP = 1.0           # lr is at most this over the square of all weights
CHUNK = 1 << 18              # characters that are hashed at a time: their arrays stay in the cache


class TextClassifier:
    """Tells texts of label 1 from texts of label 0.

    dim, buckets   size of an embedding, and how many there are
    ngrams         n-grams of up to so many words
    epochs, lr     passes over the texts, and the first learning rate

    >>> model = TextClassifier().fit(["the sum of two squares"] * 50 + ["a goal in May"] * 50,
    ...                              [1] * 50 + [0] * 50)
    >>> (model.predict(["two squares", "May", ""]) > 0.5).tolist()
    [True, False, False]
    """

    def __init__(self, *, dim: int = 64, buckets: int = 2 ** 18, ngrams: int = 2, epochs: int = 3,
                 lr: float = 0.1, seed: int = 0) -> None:
        sizes = {"dim": dim, "buckets": buckets, "ngrams": ngrams, "epochs": epochs}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} is {size!r}: an int of at least 1 is wanted")
        if buckets > 2 ** 31:
            raise ValueError(f"buckets is {buckets}: at most 2 ** 31 can be addressed")
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr is {lr}: a number above 0 is wanted")
        self.dim, self.buckets, self.ngrams, self.epochs = dim, buckets, ngrams, epochs
        self.lr, self.seed = lr, seed
        self.logits: np.ndarray | None = None             # (buckets,): see above

    def fit(self, texts: Sequence[str], labels: Sequence[int]) -> TextClassifier:
        """Learn from texts and their labels, 0 or 1. It starts anew each time. Returns self."""
        labels = [int(label) if label in (0, 1) else label for label in labels]
        check(texts, labels)
        chunks = list(self._hashed(texts))
        ids = torch.from_numpy(np.concatenate([ids for ids, _ in chunks]))
        counts = torch.from_numpy(np.concatenate([counts for _, counts in chunks]))
        begins = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        y = torch.tensor(labels, dtype=torch.long)
        generator = torch.Generator().manual_seed(self.seed)
        E = (2 * torch.rand(self.buckets, self.dim, generator=generator) - 1) / self.dim
        W = torch.randn(2, self.dim, generator=generator) / self.dim ** 0.5
        per_epoch = -(-len(y) // TOGETHER)
        for step in range(self.epochs * per_epoch):
            if step % per_epoch == 0:
                shuffle = torch.randperm(len(y), generator=generator).split(TOGETHER)
            rows = shuffle[step % per_epoch]
            grams = torch.cat([ids[begins[i]:begins[i + 1]] for i in rows])
            lr = self.lr * (1 - step / (self.epochs * per_epoch))
            lr = min(lr, LONGEST_STEP / float(W.square().sum()))
            sgd_step(E, W, grams, counts[rows], y[rows], lr)
        self.logits = (E @ (W[1] - W[0])).numpy()
        return self

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of label 1 for each text, (N,). A text without words has 0.5."""
        return 0.5 + 0.5 * np.tanh(self.scores(texts) / 2)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return log p / (1 - p) for each text, (N,): no two large ones round to the same p."""
        if self.logits is None:
            raise ValueError("this classifier has learnt nothing yet: call fit first")
        check_texts(texts)
        scores = [np.zeros(0)]
        for ids, counts in self._hashed(texts):
            text = np.repeat(np.arange(len(counts)), counts)
            sums = np.bincount(text, self.logits.take(ids), minlength=len(counts))
            scores.append(sums / np.maximum(counts, 1))
        return np.concatenate(scores)

    def _hashed(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the buckets of all n-grams, text by text, and how many each text has."""
        for chunk in chunks_of(texts):
            hashes, words = word_hashes(chunk)
            ids = np.full((len(hashes), self.ngrams), -1, np.int64)  # (words, n-grams from each)
            for n in range(1, self.ngrams + 1):
                fits = whole(words, n)
                spread = (ngram_hashes(hashes, n) * np.uint64(MIX)) >> np.uint64(32)
                bucket = (spread * np.uint64(self.buckets)) >> np.uint64(32)
                ids[:len(fits), n - 1] = np.where(fits, bucket.astype(np.int64), -1)
            counts = sum(np.maximum(words - n, 0) for n in range(self.ngrams))
            yield ids[ids >= 0], counts


def sgd_step(E: torch.Tensor, W: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor,
             y: torch.Tensor, lr: float) -> None:
    """Change E and W by one step down the cross-entropy of a few texts, in place.

    Equation   h = mean E[ids],  p = softmax(W h)
               dL/d(W h) = p - onehot(y),  dL/dW = (p - onehot(y)) h^T,  dL/dh = W^T (p - onehot(y))
    Shapes     E (buckets, dim), W (2, dim), ids (sum of counts,), counts and y (N,)
    """
    begins = counts.cumsum(0) - counts
    h = torch.nn.functional.embedding_bag(ids, E, begins, mode="mean")           # (N, dim)
    error = torch.softmax(h @ W.T, dim=1) - torch.nn.functional.one_hot(y, 2)    # (N, 2)
    E.index_add_(0, ids, (error @ W).repeat_interleave(counts, dim=0), alpha=-lr)
    W.sub_(error.T @ h, alpha=lr)


def check(texts: Sequence[str], labels: Sequence[int]) -> None:
    """Raise ValueError where nothing can be learnt from these."""
    check_texts(texts)
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} texts have {len(labels)} labels: one for each is wanted")
    if not set(labels) <= {0, 1}:
        raise ValueError(f"labels are {sorted(set(labels) - {0, 1})[:3]}: 0 and 1 are wanted")
    if len(set(labels)) < 2:
        raise ValueError(f"all {len(texts)} texts have one label: texts of both are wanted")


def chunks_of(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield lists of texts with about CHUNK characters together, at least one text each."""
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text) + 1
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
