"""Fixtures for the tests of minirl.lm."""

import pytest

from minirl.lm.checkpoint import save_pretrained
from tests.lm.checkpoints import TOKENIZER, VOCAB
from tests.lm.models import VARIANTS, build_model


@pytest.fixture
def make_model():
    return build_model


@pytest.fixture(params=list(VARIANTS))
def model(request):
    return build_model(request.param)


@pytest.fixture
def ragged():
    """Prompts of several lengths, as lists of ids."""
    return [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9, 3]]


@pytest.fixture
def folder(make_model, tmp_path):
    """A sound checkpoint, for the tests to damage: as from elsewhere, without digests."""
    save_pretrained(make_model("untied", **VOCAB), TOKENIZER, tmp_path / "sound")
    (tmp_path / "sound" / "SHA256SUMS").unlink()
    return tmp_path / "sound"
