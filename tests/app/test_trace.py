"""minirl/app/trace.py: `minirl trace`, in the terminal and as HTML."""

import json
import random
import re

import pytest

from minirl.app.cli import main
from minirl.app.trace import EXPLAIN, describe, explanations, report, with_one_problem
from minirl.tasks.environment import tool_task, with_tools
from minirl.tasks.problem import JudgedTask, Problem
from minirl.tasks.products import Products
from minirl.tasks.tools import calculate
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import PRESETS
from minirl.train.step_trace import traced
from tests.app.reading import numbers_in
from tests.train.small import TOKENIZER, Digits, length, tiny

FLAGS = ["--max-new-tokens", "8", "--group-size", "3"]


@pytest.fixture
def trace():
    with traced(train_grpo) as tracer:
        train_grpo(tiny(), TOKENIZER, Digits(length), GRPOConfig(
            steps=1, prompts_per_step=1, group_size=3, iterations=2, max_new_tokens=8))
    return tracer.trace


def test_the_command_prints_a_completion_and_writes_a_page(base, inside, capsys):
    assert main(["trace", str(base), "--prompt", "3+4=", *FLAGS]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "one GRPO step on '3+4=', preset grpo, lr 0.0004: 3 completions, 2 updates"
    assert str(base) in printed.err and "trace.html" in lines[-1]
    data = numbers_in((inside / "trace.html").read_text())
    assert data["prompt"] == "3+4=" and data["answer"] == "7" and data["page"] == "GRPO"
    assert len(data["rows"]) == 3 and len(data["updates"]) == 2
    assert "The gradient is 0" in printed.out, "this model gets nothing right"
    assert [path.name for path in inside.iterdir()] == ["trace.html"]


def test_ppo_and_the_run_of_the_checkpoint(base, finished, inside, capsys):
    assert main(["trace", str(base), "--page", "ppo", *FLAGS]) == 0
    assert capsys.readouterr().out.startswith("one PPO step")
    data = numbers_in((inside / "trace.html").read_text())
    assert {"value", "return", "reward", "old_value"} <= set(data["names"])
    # a checkpoint of a GRPO run is traced as the run trained it: there weight_decay is 1
    assert main(["trace", str(finished / "final"), *FLAGS]) == 0
    run = json.loads((finished / "config.json").read_text())
    data = numbers_in((inside / "trace.html").read_text())
    assert (data["preset"], data["lr"]) == (run["preset"], run["grpo"]["lr"])
    assert main(["trace", str(finished / "final"), "--max-new-tokens", "20",
                 "--preset", "dapo", "--lr", "1e-3"]) == 0
    data = numbers_in((inside / "trace.html").read_text())
    assert (data["preset"], data["lr"]) == ("dapo", 1e-3)
    assert "1.28" in data["explain"]["objective"][1], "DAPO's clip_high"


def test_rewards_without_a_verdict(trace):
    task = Digits(length)
    with traced(train_grpo) as tracer:
        rewards = {"rule": lambda completions, **_: [None, *map(length, completions[1:])]}
        train_grpo(tiny(), TOKENIZER, JudgedTask(task, rewards, {"rule": 1.0}), GRPOConfig(
            steps=1, prompts_per_step=1, group_size=3, max_new_tokens=8))
    data = describe("grpo", "grpo", "here", tracer.trace, TOKENIZER)
    assert data["rows"][0]["reward"] is None
    assert "none" in report(data, row=1)


def test_one_problem_keeps_the_tools_and_the_judges_of_its_task():
    task = with_tools(Products(1), [calculate])
    one = with_one_problem(task, "6*7=", None, seed=0)
    assert one.sample(2, random.Random(0)) == [Problem("6*7=", "42")] * 2
    assert tool_task(one) is task and one.name == task.name
    assert dict(one.weights) == dict(task.weights) and set(one.rewards) == set(task.rewards)
    drawn = with_one_problem(task, None, None, seed=3).sample(1, random.Random(9))
    assert drawn == task.sample(1, random.Random(3))


def test_the_printed_row(trace):
    data = describe("grpo", "grpo", "here", trace, TOKENIZER)
    shares = [sum(row["updates"][1]["gradient_share"]) for row in data["rows"]]
    most = max(range(3), key=lambda i: abs(shares[i])) + 1
    assert f"completion {most}, update 2 of 2" in report(data, None)
    assert "completion 2, update 2 of 2" in report(data, 2)


@pytest.mark.parametrize("preset", PRESETS["grpo"])
def test_every_number_has_an_equation_with_every_preset(trace, preset):
    names = list(EXPLAIN)
    texts = explanations("grpo", preset, trace, names)
    assert list(texts) == names and all(symbol and text for symbol, text in texts.values())
    used = {key for _, text in texts.values() for key in re.findall(r"\{(\w+)\}", text)}
    assert used <= {*names, "change"}


def test_the_equations_of_ppo(trace):
    from minirl.train.ppo import PPOConfig
    trace.config = PPOConfig()
    texts = explanations("ppo", "ppo", trace, list(EXPLAIN))
    assert "whitened" in texts["adv"][1] and "metric" in texts["kl"][1]
