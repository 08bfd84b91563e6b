"""minirl/train/profiling.py: the share of each stage, from the pages' own stage comments."""

import gzip
import json
import sys
import time

import pytest
import torch

from minirl.train.dpo import train_dpo
from minirl.train.grpo import train_grpo
from minirl.train.ppo import train_ppo
from minirl.train.profiling import SKIPPED, StageProfile, profiled, stage_lines
from minirl.train.reward_model import train_reward_model
from minirl.train.sft import train_sft


def page(steps, stop=None):
    """A page with three stages: at least 30 ms in the first, and 10 ms in the last."""
    for step in range(steps):
        # 1. sample something
        time.sleep(0.03)
        # 2. score it
        x = torch.ones(64, 64)
        # 4. update
        for _ in range(2):
            x = x @ x
            time.sleep(0.005)
        if step == stop:
            raise ValueError("stopped")
    return steps


ONLINE = ["1 sample", "2 score", "3 freeze", "4 update", "5 report"]
OFFLINE = ["1 batch", "2 update", "3 report"]


@pytest.mark.parametrize("train, stages", [
    (train_grpo, ONLINE),
    (train_ppo, ONLINE),
    (train_sft, OFFLINE),
    (train_reward_model, OFFLINE),
    (train_dpo, OFFLINE),
])
def test_the_stages_of_every_training_page(train, stages):
    """Pages that sample nothing had five stages, too: SFT's "score" computed lengths."""
    lines, names = stage_lines(train)
    assert names == stages and lines == sorted(lines)


def test_a_function_without_stages_is_an_error():
    with pytest.raises(ValueError, match="stage_lines has no stage comments"):
        stage_lines(stage_lines)


STAGES = ["1 sample", "2 score", "4 update"]


@pytest.fixture
def profile():
    """The profile of eight steps of the page."""
    before = sys.gettrace()
    with profiled(page) as profile:
        assert page(8) == 8
    assert sys.gettrace() is before
    return profile


def test_seconds_and_shares_of_the_stages(profile, tmp_path):
    title, (_, *rows) = profile.report(tmp_path / "trace.json.gz")
    assert title.startswith("steps 3 to 5 ")
    assert [name for name, *_ in rows] == [*STAGES, "all"]
    seconds = {name: float(cell) for name, cell, *_ in rows}
    assert seconds["1 sample"] >= 0.03
    assert seconds["4 update"] >= 0.01 > seconds["2 score"]
    shares = {name: int(cell.rstrip("%")) for name, _, cell, _ in rows}
    assert sum(shares[name] for name in STAGES) in range(98, 103)      # each is rounded


def test_the_trace_has_the_stages_and_their_operations(profile, tmp_path):
    """Three steps, with two matrix products each."""
    profile.report(tmp_path / "trace.json.gz")
    with gzip.open(tmp_path / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    marks = [event["name"] for event in events
             if event.get("cat") == "user_annotation" and event["name"] in (*STAGES, "all")]
    assert marks == STAGES * 3
    assert sum(event.get("name") == "aten::mm" for event in events) == 2 * 3


def test_products_are_counted_in_the_stage_that_made_them():
    profile = StageProfile(page)
    profile.start()
    page(4)
    profile.stop()
    seconds = profile.products()
    assert set(seconds) == {"4 update"}
    assert 0 < seconds["4 update"] < profile.seconds["4 update"]


def test_a_short_run_says_that_nothing_was_profiled(tmp_path):
    with profiled(page) as profile:
        page(SKIPPED)
    title, rows = profile.report(tmp_path / "trace.json.gz")
    assert "nothing profiled" in title
    assert rows == []
    assert not (tmp_path / "trace.json.gz").exists()


@pytest.mark.parametrize("stop", [0, 3])
def test_an_error_in_the_page_is_passed_on_and_tracing_ends(stop):
    before = sys.gettrace()
    with pytest.raises(ValueError, match="stopped"), profiled(page):
        page(8, stop)
    assert sys.gettrace() is before
