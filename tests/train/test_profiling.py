"""--profile: the share of each stage, from the pages' own stage comments."""

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
    for step in range(steps):
        pause = 0.01
        # 1. sample something
        time.sleep(3 * pause)
        # 2. score it
        x = torch.ones(64, 64)
        # 4. update
        for _ in range(2):
            x = x @ x
            time.sleep(pause / 2)
        if step == stop:
            raise ValueError("stopped")
    return steps


FIVE = ["1 sample", "2 score", "3 freeze", "4 update", "5 report"]
THREE = ["1 batch", "2 update", "3 report"]


@pytest.mark.parametrize("page, stages", [(train_grpo, FIVE), (train_ppo, FIVE), (train_sft, THREE),
                                          (train_reward_model, THREE), (train_dpo, THREE)])
def test_every_training_page_has_the_stages_that_it_has(page, stages):
    """Pages that sample nothing had five stages too: SFT's "score" computed lengths."""
    lines, names = stage_lines(page)
    assert names == stages and lines == sorted(lines)


def test_a_function_without_stages_is_refused():
    with pytest.raises(ValueError, match="stage_lines has no stage comments"):
        stage_lines(stage_lines)


def test_shares_and_trace_of_a_page(tmp_path):
    """At least 30 ms a step in stage 1, and 10 ms in stage 4."""
    before = sys.gettrace()
    with profiled(page) as profile:
        assert page(8) == 8
    assert sys.gettrace() is before
    title, lines = profile.report(tmp_path / "trace.json.gz")
    assert title.startswith("steps 3 to 5 ")
    rows = {name: cells for name, *cells in lines[1:]}
    stages = ["1 sample", "2 score", "4 update"]
    assert list(rows) == [*stages, "all"]
    assert float(rows["1 sample"][0]) >= 0.03
    assert float(rows["4 update"][0]) >= 0.01 > float(rows["2 score"][0])
    assert sum(int(rows[name][1].rstrip("%")) for name in stages) in range(98, 103)
    events = json.loads(gzip.open(tmp_path / "trace.json.gz").read())["traceEvents"]
    marks = [e["name"] for e in events if e.get("cat") == "user_annotation" and e["name"] in rows]
    assert marks == ["1 sample", "2 score", "4 update"] * 3
    assert sum(e.get("name") == "aten::mm" for e in events) == 2 * 3


def test_products_are_counted_in_the_stage_that_made_them():
    profile = StageProfile(page)
    profile.start()
    page(4)
    profile.stop()
    spent = profile.products()
    assert set(spent) == {"4 update"} and 0 < spent["4 update"] < profile.seconds["4 update"]


def test_a_short_run_says_that_nothing_was_profiled(tmp_path):
    with profiled(page) as profile:
        page(SKIPPED)
    title, rows = profile.report(tmp_path / "trace.json.gz")
    assert "nothing profiled" in title and rows == []
    assert not (tmp_path / "trace.json.gz").exists()


@pytest.mark.parametrize("stop", [0, 3])
def test_an_error_in_the_page_is_passed_on_and_tracing_ends(stop):
    before = sys.gettrace()
    with pytest.raises(ValueError, match="stopped"):
        with profiled(page):
            page(8, stop)
    assert sys.gettrace() is before
