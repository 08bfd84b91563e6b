"""minirl/train/metrics_file.py: a log in a file. tests/app/test_rundir.py spoils its lines."""

from functools import partial

import pytest

from minirl.train.metrics_file import append_metrics, cut_metrics, read_metrics
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import PAIRS, TOKENIZER, tiny


def test_a_page_logs_to_a_file_and_goes_on_behind_a_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    config = SFTConfig(epochs=1, batch_size=8, warmup_steps=0)
    train_sft(tiny(), TOKENIZER, PAIRS, config, log=partial(append_metrics, file))
    assert [metrics["step"] for metrics in read_metrics(file)] == [1, 2, 3]
    assert all(metrics["loss"] > 0 for metrics in read_metrics(file))
    cut_metrics(file, 2)
    append_metrics(file, 3, {"loss": 0.5})
    assert [metrics["step"] for metrics in read_metrics(file)] == [1, 2, 3]
    assert read_metrics(file)[2] == {"step": 3, "loss": 0.5}


def test_a_missing_step_is_a_warning(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for step in (1, 3, 4):
        append_metrics(file, step, {"loss": 0.5})
    with pytest.warns(UserWarning, match="step 2 is missing; all lines are kept"):
        cut_metrics(file, 3)
    assert [metrics["step"] for metrics in read_metrics(file)] == [1, 3]


def test_a_file_that_is_not_there_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
    cut_metrics(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()
