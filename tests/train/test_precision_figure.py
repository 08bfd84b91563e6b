"""minirl/train/precision_figure.py"""

import random

import pytest
import torch

from minirl.inference.mismatch import Mismatch
from minirl.lm.precision import DTYPES
from minirl.tasks.arithmetic import Arithmetic
from minirl.train import precision_lab as module
from minirl.train.precision_figure import plot_precision
from minirl.train.precision_lab import (
    PrecisionLab,
    ScaledStep,
    lost_updates,
    product_mismatches,
    run_precision_lab,
)
from tests.train.small import TOKENIZER, tiny


@pytest.fixture
def titles(monkeypatch):
    """The titles of every axis that is drawn."""
    seen = []
    monkeypatch.setattr("minirl.train.precision_figure.tidy",
                        lambda axis, title, **_: seen.append(title))
    return seen


def test_a_lab_becomes_a_picture_of_six_panels(tmp_path, titles, monkeypatch):
    monkeypatch.setattr(module, "product_mismatches", lambda seed: product_mismatches(seed, 32, 8))
    task = Arithmetic("addition", 2)
    lab = run_precision_lab(tiny(), TOKENIZER, task, task.sample(20, random.Random(0)), group=2,
                            max_new_tokens=6, steps=2)
    plot_precision(lab, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(titles) == 6 and len(set(titles)) == 6


def test_a_lab_where_nothing_differs(tmp_path, titles):
    """Differences of exactly 0 have no logarithm, and one completion has no spread."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    pairs = [Mismatch(a, b, mask * -1.0, mask * -1.0, mask) for a in DTYPES for b in DTYPES]
    lab = PrecisionLab(pairs, pairs[:1], lost_updates(), torch.tensor([1e-40, 1e30]),
                       [ScaledStep(1.0, True)])
    plot_precision(lab, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000 and len(titles) == 6
