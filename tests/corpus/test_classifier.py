"""minirl/corpus/classifier.py: one step by hand and against autograd, what it learns, its speed."""

import math
import random
import time

import numpy as np
import pytest
import torch

from minirl.corpus.classifier import TextClassifier, sgd_step
from minirl.corpus.web import web

MATHS = "solve the equation for x", "the sum of two squares", "a proof by induction"
OTHER = "the match ended in a draw", "bake the bread for an hour", "police closed the road"


def pages(n, rng):
    """n texts of either kind, a few words each from one of its sentences."""
    labels = [i % 2 for i in range(n)]
    texts = [" ".join(rng.choices(rng.choice(MATHS if label else OTHER).split(), k=5))
             for label in labels]
    return texts, labels


def test_one_step_by_hand():
    """One text of rows 0 and 1, label 1, dim 1: h = mean(2, 4) = 3, and W = 0, so p = 1/2, 1/2.

    The error is p - onehot = (1/2, -1/2); dL/dW = error h = (1.5, -1.5), and dL/dh = W^T error = 0.
    With W = (0, 2 ln 2) / 3 instead the logits are 0 and 2 ln 2, so p = 1/5, 4/5, the error is
    (1/5, -1/5), dL/dW = (3/5, -3/5), and dL/dh = -2 ln 2 / 15, which both rows get whole.
    """
    for w, step_w, step_e in ((0.0, 1.5, 0.0), (2 * math.log(2) / 3, 0.6, 2 * math.log(2) / 15)):
        E, W = torch.tensor([[2.0], [4.0], [9.0]]), torch.tensor([[0.0], [w]])
        sgd_step(E, W, torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([1]), lr=1.0)
        assert E.flatten().tolist() == pytest.approx([2 + step_e, 4 + step_e, 9])
        assert W.flatten().tolist() == pytest.approx([-step_w, w + step_w])


def test_the_step_is_autograd_s():
    """On rows that occur twice and a text without words; a text's rows get its whole gradient:
    autograd's times their number in the text."""
    torch.manual_seed(0)
    E, W = torch.randn(6, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    ids, counts = torch.tensor([0, 1, 1, 5, 2]), torch.tensor([3, 0, 2])
    y = torch.tensor([1, 0, 0])
    rows = [E[ids[:3]].clone().requires_grad_(), E[ids[3:]].clone().requires_grad_()]
    V = W.clone().requires_grad_()
    h = torch.stack([rows[0].mean(0), torch.zeros(3, dtype=torch.float64), rows[1].mean(0)])
    torch.nn.functional.cross_entropy(h @ V.T, y, reduction="sum").backward()
    want = E.clone().index_add_(0, ids, torch.cat([3 * rows[0].grad, 2 * rows[1].grad]), alpha=-0.1)
    stepped = E.clone(), W.clone()
    sgd_step(*stepped, ids, counts, y, lr=0.1)
    torch.testing.assert_close(stepped[0], want)
    torch.testing.assert_close(stepped[1], W - 0.1 * V.grad)


@pytest.mark.parametrize("lr", [0.02, 0.5, 5.0, 1e30])
def test_no_learning_rate_diverges(lr):
    """At 0.5, the weights of 20,000 pages were NaN before the length of a step was bounded."""
    data = [(page.text, page.label) for page in web(3000)]
    texts, labels = zip(*data, strict=True)
    model = TextClassifier(lr=lr, dim=16, buckets=2 ** 14).fit(texts[:2000], labels[:2000])
    right = (model.predict(texts[2000:]) > 0.5) == np.array(labels[2000:])
    assert right.mean() > 0.97


@pytest.mark.parametrize("sizes", [{}, {"dim": 3, "buckets": 1009}, {"ngrams": 1}, {"ngrams": 3},
                                   {"lr": 0.5}, {"epochs": 1}])
def test_it_learns_from_a_few_hundred_texts(sizes):
    rng = random.Random(0)
    model = TextClassifier(**sizes).fit(*pages(400, rng))
    texts, labels = pages(1000, rng)
    p = model.predict(texts)
    assert p.shape == (1000,) and ((p > 0) & (p < 1)).all()
    assert ((p > 0.5) == np.array(labels)).mean() > 0.97


def test_order_of_words_is_what_bigrams_add():
    """"not good" and "good, not": the words are the same."""
    texts, labels = ["it is not good", "good it is not"] * 100, [0, 1] * 100
    alone = TextClassifier(ngrams=1).fit(texts, labels).scores(texts[:2])
    pair = TextClassifier(ngrams=2).fit(texts, labels).scores(texts[:2])
    assert alone[0] == alone[1] and pair[0] < 0 < pair[1]


def test_the_table_of_logits_is_the_model():
    """W mean(E) by torch, and the mean of (w_1 - w_0) E that predict looks up."""
    model = TextClassifier(dim=4, buckets=64).fit(["a b c", "d e"] * 5, [1, 0] * 5)
    (ids, counts), = model._hashed(["a b d"])
    assert counts.tolist() == [5], "three words and two pairs"
    p = 1 / (1 + np.exp(-model.logits[ids].mean()))
    assert model.predict(["a b d"])[0] == pytest.approx(p)


def test_scores_do_not_depend_on_what_else_is_asked(monkeypatch):
    model = TextClassifier().fit(*pages(100, random.Random(0)))
    texts = [*pages(50, random.Random(1))[0], "", "x" * 10_000]
    together = model.scores(texts)
    monkeypatch.setattr("minirl.corpus.classifier.CHUNK", 60)
    assert (model.scores(texts) == together).all()
    assert [model.scores([text])[0] for text in texts] == together.tolist()


def test_a_seed_is_a_model():
    data = pages(100, random.Random(0))
    state = torch.get_rng_state()
    a, b, c = (TextClassifier(seed=seed, buckets=5000).fit(*data).logits for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()
    assert torch.equal(torch.get_rng_state(), state), "the caller's randomness is left alone"
    model = TextClassifier(buckets=5000).fit(*data)
    assert (model.fit(*data).logits == a).all(), "fit starts anew"


def test_what_has_no_words_has_one_half():
    model = TextClassifier().fit(["a", ""], [1, 0])
    assert model.predict(["", " \n", "\ud800"])[:2].tolist() == [0.5, 0.5]
    assert model.predict([]).shape == (0,)


@pytest.mark.parametrize("sizes, says", [
    ({"dim": 0}, "dim is 0"), ({"ngrams": 1.5}, "ngrams is 1.5"), ({"epochs": -1}, "epochs is -1"),
    ({"buckets": 2 ** 40}, "at most"), ({"lr": 0}, "lr is 0"), ({"lr": float("nan")}, "lr is nan")])
def test_bad_sizes(sizes, says):
    with pytest.raises(ValueError, match=says):
        TextClassifier(**sizes)


@pytest.mark.parametrize("texts, labels, says", [
    ("ab", [1, 0], "a list of texts"), (["a"], [1, 0], "1 texts have 2 labels"),
    (["a", "b"], [1, 2], r"labels are \[2\]"),
    (["a", "b"], [1, 1], "one label"), ([], [], "one label")])
def test_bad_examples(texts, labels, says):
    with pytest.raises(ValueError, match=says):
        TextClassifier().fit(texts, labels)


@pytest.mark.parametrize("labels", [np.array([1, 0]), torch.tensor([1, 0]), [True, False],
                                    (1.0, 0.0)], ids=["numpy", "torch", "bool", "float"])
def test_labels_of_any_kind(labels):
    model = TextClassifier(buckets=64).fit(["a", "b"], labels)
    assert (model.logits == TextClassifier(buckets=64).fit(["a", "b"], [1, 0]).logits).all()


def test_what_cannot_be_asked():
    with pytest.raises(ValueError, match="call fit first"):
        TextClassifier().predict(["a"])
    model = TextClassifier().fit(["a", "b"], [1, 0])
    with pytest.raises(ValueError, match="a list of texts"):
        model.predict("a")
    with pytest.raises(ValueError, match="a NoneType came"):
        model.predict(["a", None])


def test_it_classifies_twenty_thousand_pages_a_second():
    """Of the processor's time, on one thread: the best of three, as other work may be beside it."""
    texts = [page.text for page in web(4000)]
    model = TextClassifier().fit(texts[:200], [i % 2 for i in range(200)])
    times = []
    for _ in range(3):
        began = time.process_time()
        model.predict(texts)
        times.append(time.process_time() - began)
    assert len(texts) / min(times) > 20_000
