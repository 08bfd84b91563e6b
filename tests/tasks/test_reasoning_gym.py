"""minirl/tasks/reasoning_gym.py"""

import importlib.util
import random
import sys
import types

import pytest

from minirl.tasks import reasoning_gym
from minirl.tasks.problem import columns, split_of
from minirl.tasks.reasoning_gym import ReasoningGym
from minirl.tasks.rewards import judge


class StandIn:
    """Has the two methods of reasoning-gym's data sets that are called."""

    def __init__(self, seed, size, step=1):
        assert step > 0, "step must be positive"
        self.seed, self.size, self.step = seed, size, step

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return {"question": f"{self.seed}+{i}?", "answer": str(self.seed + i), "metadata": {"i": i}}

    def score_answer(self, answer, entry):
        if answer == "raise":
            raise KeyError(answer)
        while answer == "hang":
            pass
        return 1.0 if answer == entry["answer"] else 0.25 if entry["answer"] in answer else 0.0


@pytest.fixture
def stand_in(monkeypatch):
    def create_dataset(name, **config):
        if name != "sums":
            raise ValueError(f"Dataset '{name}' not registered")
        return StandIn(**config)

    module = types.ModuleType("reasoning_gym")
    module.create_dataset = create_dataset
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


def judged(task, problem, *texts):
    return judge(task.rewards, task.weights, [problem.prompt] * len(texts), list(texts),
                 **columns([problem], repeat=len(texts)))


def test_a_data_set_is_a_task(stand_in, monkeypatch):
    task = ReasoningGym("sums", {"size": 50})
    assert task.name == "reasoning_gym:sums" and len(task.entries) == 50
    train = task.sample(200, random.Random(0))
    test = task.sample(200, random.Random(0), split="test")
    assert {split_of(p.prompt) for p in train} == {"train"}
    assert {split_of(p.prompt) for p in test} == {"test"}
    monkeypatch.setattr(StandIn, "__getitem__", None)                  # none is made twice
    assert train == task.sample(200, random.Random(0)) and isinstance(hash(task), int)
    problem = train[0]
    assert problem.prompt == f"0+{problem.answer}?" and problem.entry["metadata"]


def test_scores_by_hand(stand_in):
    task = ReasoningGym("sums")
    assert len(task.entries) == 10_000
    problem, = task.sample(1, random.Random(0))
    answer = problem.answer
    verdicts = judged(task, problem, f"<think></think><answer> {answer} </answer>",
                      f"#### {answer}",
                      rf"\boxed{{{answer}}}", f"<answer>it is {answer}</answer>", answer,
                      f"<answer>{answer}</answer><answer>-1</answer>", "<answer>x</answer>", "")
    assert verdicts["accuracy"] == [1.0, 1.0, 1.0, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert verdicts["format_reward"] == [1.0] + [0.0] * 7


def test_what_a_model_writes_neither_raises_nor_hangs(stand_in, monkeypatch):
    monkeypatch.setattr(reasoning_gym, "SECONDS", 0.1)
    task = ReasoningGym("sums")
    problem, = task.sample(1, random.Random(0))
    verdicts = judged(task, problem, "<answer>raise</answer>", "<answer>hang</answer>")
    assert verdicts["accuracy"] == [0.0, 0.0]


@pytest.mark.parametrize("name, config, says", [
    ("poems", {}, "reasoning_gym:poems cannot be made from {}: Dataset 'poems' not registered"),
    ("sums", {"pets": 3}, "cannot be made from {'pets': 3}: .*unexpected keyword argument 'pets'"),
    ("sums", {"step": 0}, "cannot be made from {'step': 0}: step must be positive")])
def test_what_cannot_be_made_is_named(name, config, says, stand_in):
    with pytest.raises(ValueError, match=says):
        ReasoningGym(name, config)


def test_without_reasoning_gym(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="not installed: python -m pip install reasoning-gym"):
        ReasoningGym("chain_sum")


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None,
                    reason="reasoning-gym is not installed")
@pytest.mark.parametrize("name, config", [("chain_sum", {"max_terms": 3}), ("basic_arithmetic", {}),
                                          ("countdown", {"size": 20}), ("spell_backward", {})])
def test_the_true_reasoning_gym(name, config):
    task = ReasoningGym(name, config)
    for problem in task.sample(3, random.Random(0)):
        verdicts = judged(task, problem, f"<answer>{problem.answer}</answer>", "<answer>?</answer>",
                          "<answer></answer>", "")
        assert verdicts["accuracy"][0] == 1.0 and max(verdicts["accuracy"][1:]) < 1.0
    with pytest.raises(ValueError, match="'no such thing' not registered"):
        ReasoningGym("no such thing")
