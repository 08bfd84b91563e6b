"""minirl/train/iterative_grpo.py"""

import copy
import random
from dataclasses import replace

import pytest
import torch

from minirl.lm.heads import ScalarModel
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.steps import Solution
from minirl.train.grpo import GRPOConfig
from minirl.train.iterative_grpo import (
    IterativeGRPOConfig,
    label_policy,
    scored_by,
    train_iterative_grpo,
    with_replay,
)
from minirl.train.process_reward import ProcessRewardConfig
from tests.train.small import TOKENIZER, Log, tiny, weights

TASK = Arithmetic("addition", 1)
CONFIG = IterativeGRPOConfig(
    iterations=3, problems=20, samples=2,
    prm=ProcessRewardConfig(batch_size=10, lr=1e-2),
    grpo=GRPOConfig(steps=2, prompts_per_step=2, group_size=4, max_new_tokens=8, lr=1e-2))


def solution(i):
    return Solution("1+1=", (f"{i},", "2"), (1.0, 0.0))


def labels(calls, n=20):
    """Return a `label` that keeps which policy it was asked about, and n solutions of its own."""
    def label(i, policy):
        calls.append((i, weights(policy).clone()))
        return [solution(100 * i + j) for j in range(n)]

    return label


def run(seed=0, **options):
    """Return what each stage started from and read, by name, and the last policy."""
    stages, model = {}, tiny()

    def stage(name, config, start, page):
        trained = page(copy.deepcopy(start), log=None, save=None, resume=None)
        stages[name] = start, trained
        return trained

    last = train_iterative_grpo(model, TOKENIZER, TASK, CONFIG, seed=seed, stage=stage, **options)
    return stages, last


def test_each_iteration_starts_from_the_models_of_the_one_before():
    """Algorithm 1: the policy goes on, so does the reward model, and labels are the policy's."""
    calls = []
    stages, last = run(label=labels(calls))
    assert list(stages) == ["prm-1", "grpo-1", "prm-2", "grpo-2", "prm-3", "grpo-3"]
    assert last is stages["grpo-3"][1]
    for i in (2, 3):
        assert stages[f"grpo-{i}"][0] is stages[f"grpo-{i - 1}"][1]
        assert stages[f"prm-{i}"][0] is stages[f"prm-{i - 1}"][1]
        assert isinstance(stages[f"prm-{i}"][0], ScalarModel)
    assert [i for i, _ in calls] == [1, 2, 3]
    assert torch.equal(calls[0][1], weights(tiny()))
    assert torch.equal(calls[2][1], weights(stages["grpo-2"][1]))
    assert not torch.equal(calls[1][1], calls[2][1])


def test_the_first_reward_model_may_be_there_already():
    """Algorithm 1 takes one. It goes on learning, as a copy."""
    given = ScalarModel(tiny())
    before = weights(given).clone()
    stages, _ = run(label=labels([]), reward_model=given)
    assert stages["prm-1"][0] is given
    assert torch.equal(weights(given), before)


def test_the_reference_is_the_policy_that_an_iteration_starts_from(monkeypatch):
    """The KL of the first step of each iteration is 0: line 3 of algorithm 1."""
    log = Log()
    train_iterative_grpo(tiny(), TOKENIZER, TASK, CONFIG, label=labels([]), log=log)
    kls = [metrics["kl"] for metrics in log if "kl" in metrics]
    assert len(kls) == 6
    assert kls[0::2] == pytest.approx([0.0] * 3, abs=1e-9)
    assert min(kls[1::2]) > 1e-7


def test_a_tenth_of_what_the_reward_model_reads_is_old(monkeypatch):
    """18 new solutions and 2 of the iterations before; in the first there are none."""
    read = []

    def page(m, tokenizer, solutions, *_, **__):
        read.append([int(s.steps[0][:-1]) // 100 for s in solutions])
        return m if isinstance(m, ScalarModel) else ScalarModel(m)

    monkeypatch.setattr("minirl.train.iterative_grpo.train_process_reward", page)
    run(label=labels([], n=18))
    assert read[0] == [1] * 18
    assert read[1] == [2] * 18 + [1] * 2
    assert read[2][:18] == [3] * 18 and len(read[2]) == 20 and set(read[2][18:]) <= {1, 2}


@pytest.mark.parametrize("new, old, share, wanted", [
    (18, 100, 0.1, 2), (9, 100, 0.5, 9), (10, 3, 0.5, 3), (10, 0, 0.1, 0), (10, 5, 0.0, 0),
])
def test_how_many_earlier_solutions_are_read_again(new, old, share, wanted):
    news, olds = [[solution(start + i) for i in range(n)] for start, n in ((0, new), (500, old))]
    mixed = with_replay(news, olds, share, random.Random(0))
    assert mixed[:new] == news
    assert len(mixed) - new == wanted == len(set(mixed[new:]) & set(olds))


def test_twice_is_the_same_and_the_model_does_not_change():
    model = tiny()
    short = replace(CONFIG, iterations=1)
    first, again, other = (weights(train_iterative_grpo(model, TOKENIZER, TASK, short, seed=seed))
                           for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(weights(model), weights(tiny()))


def test_the_policys_solutions_are_of_other_problems_each_time():
    first, again, other = (label_policy(tiny(), TOKENIZER, TASK, CONFIG, seed=seed)
                           for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 20


def test_the_task_pays_by_the_least_step_and_reports_its_own_rewards():
    task = scored_by(ScalarModel(tiny()).eval(), TOKENIZER, TASK)
    assert task.weights == {"process_reward": 1.0, "accuracy": 0.0, "format_reward": 0.0}
    assert list(task.rewards) == list(task.weights)


@pytest.mark.parametrize("changes, message", [
    (dict(iterations=0), "iterations is 0: at least 1"),
    (dict(problems=0), "problems is 0: at least 1"),
    (dict(samples=0), "samples is 0: at least 1"),
    (dict(replay_share=1.0), "replay_share is 1.0: less than 1"),
    (dict(replay_share=-0.1), "replay_share is -0.1: at least 0"),
])
def test_numbers_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        IterativeGRPOConfig(**changes)
