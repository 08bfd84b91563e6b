"""Iterative GRPO with process supervision: the reward model goes on learning while the policy does.

    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1.4, algorithm 1; labels of steps from
               Math-Shepherd, arXiv:2312.08935

    policy ── solutions ── prm-1 ── grpo-1 ── solutions ── prm-2 ── grpo-2 ── ...

Same as the paper  in each outer iteration the reference is the policy that the iteration starts
                   from; the reward model is trained on samples of that policy, and on 10 % of
                   earlier ones; the advantages are those of process supervision (4.1.3).
Different          the reward model is trained before GRPO in an iteration, not after it; labels
                   come from completions of the policy.
Why                so there is one reward model for each policy, and the first needs no other
                   source; the order is the same from the second iteration on.

Each stage is one call of a page, on a copy of the model it starts from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from minirl.inference.collect import Counter
from minirl.inference.steps import COMPLETIONS, label_solutions
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import JudgedTask, Task
from minirl.tasks.steps import Solution
from minirl.train.checks import COUNT, SIDE_BY_SIDE, outside
from minirl.train.credit import process_credit
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.process_reward import (
    Estimate,
    ProcessRewardConfig,
    as_reward,
    as_step_rewards,
    train_process_reward,
)
from minirl.train.stage import Stage, in_memory
from minirl.train.state import Log

Label = Callable[[int, Transformer], list[Solution]]  # iteration 1, 2, ..., its policy -> solutions
INTERVALS = {"iterations": COUNT, "problems": SIDE_BY_SIDE, "samples": SIDE_BY_SIDE,
             "replay_share": "[0, 1)"}


@dataclass(frozen=True)
class IterativeGRPOConfig:
    """Defaults: the tiny model, on a laptop."""

    iterations: int = 3                # I: outer iterations
    problems: int = 512                # whose solutions are labelled in an iteration
    samples: int = COMPLETIONS         # N: completions from each step, for its label
    replay_share: float = 0.1          # of what the reward model reads: earlier solutions
    prm: ProcessRewardConfig = field(default_factory=ProcessRewardConfig)
    grpo: GRPOConfig = field(default_factory=lambda: GRPOConfig(steps=12))  # M steps

    def __post_init__(self) -> None:
        for name, interval in INTERVALS.items():
            if limit := outside(getattr(self, name), interval):
                raise ValueError(f"{name} is {getattr(self, name)}: {limit} is wanted")


def train_iterative_grpo(
        model: Transformer, tokenizer: Tokenizer, task: Task, config: IterativeGRPOConfig, *,
        reward_model: ScalarModel | None = None, label: Label | None = None,
        estimate: Estimate | None = None, seed: int = 0, log: Log | None = None,
        stage: Stage | None = None,
) -> Transformer:
    """Take a policy through all iterations and return the last policy. `model` does not change.

    reward_model is where the first process reward model starts from; default: the policy.
    label(iteration, policy) returns solutions with a label per step; default: label_policy. stage
    runs a stage, and may keep its result; default: it copies the model and calls the page, with
    log(step, metrics).
    """
    stage = stage or in_memory(log)
    policy, earlier = model, list[Solution]()
    start: Transformer | ScalarModel = reward_model or model  # of the next reward model
    for i in range(1, config.iterations + 1):
        solutions = (label(i, policy) if label is not None else
                     label_policy(policy, tokenizer, task, config, seed=derive_seed(seed, i)))
        reading = with_replay(solutions, earlier, config.replay_share,
                              random.Random(derive_seed(seed, "replay", i)))
        start = learned = learn_rewards(f"prm-{i}", start, tokenizer, reading, config.prm,
                                        estimate=estimate, seed=derive_seed(seed, "prm", i),
                                        stage=stage)
        policy = reinforce(f"grpo-{i}", policy, tokenizer, task, config.grpo,
                           reward_model=learned, seed=derive_seed(seed, "grpo", i), stage=stage)
        earlier += solutions
    return policy


def label_policy(policy: Transformer, tokenizer: Tokenizer, task: Task,
                 config: IterativeGRPOConfig, *, seed: int, split: str = "train",
                 progress: Counter | None = None) -> list[Solution]:
    """Sample a solution of each of config.problems problems, and label its steps."""
    problems = task.sample(config.problems, random.Random(derive_seed(seed, "problems")),
                           split=split)
    generator = torch.Generator(policy.device).manual_seed(derive_seed(seed, "sample"))
    return label_solutions(policy, tokenizer, task, problems, samples=config.samples,
                           max_new_tokens=config.grpo.max_new_tokens,
                           temperature=config.grpo.temperature, generator=generator,
                           progress=progress)


def with_replay(solutions: Sequence[Solution], earlier: Sequence[Solution], share: float,
                rng: random.Random) -> list[Solution]:
    """Return the new solutions, and so many of the earlier ones that these are `share` of all."""
    wanted = round(len(solutions) * share / (1 - share))
    return [*solutions, *rng.sample(list(earlier), min(wanted, len(earlier)))]


def learn_rewards(name: str, start: Transformer | ScalarModel, tokenizer: Tokenizer,
                  solutions: Sequence[Solution], config: ProcessRewardConfig, *,
                  estimate: Estimate | None = None, seed: int, stage: Stage) -> ScalarModel:
    """Each reward model goes on from the one before it; the first may start from a policy."""
    return stage(name, config, start, lambda m, **hooks: train_process_reward(
        m, tokenizer, solutions, config, estimate=estimate, seed=seed, **hooks))


def reinforce(name: str, policy: Transformer, tokenizer: Tokenizer, task: Task, config: GRPOConfig,
              *, reward_model: ScalarModel, seed: int, stage: Stage) -> Transformer:
    """GRPO with the reward model's score of each step, and the policy it starts from as the
    reference. The task's own rewards are only reported."""
    judged = scored_by(reward_model, tokenizer, task)
    credit = process_credit(as_step_rewards(reward_model, tokenizer), ddof=config.ddof)
    return stage(name, config, policy, lambda m, **hooks: train_grpo(
        m, tokenizer, judged, config, credit=credit, seed=seed, **hooks))


def scored_by(reward_model: ScalarModel, tokenizer: Tokenizer, task: Task) -> Task:
    """Return the task with the least score of a solution's steps as its reward."""
    rewards = {"process_reward": as_reward(reward_model, tokenizer), **task.rewards}
    return JudgedTask(task, rewards, {**dict.fromkeys(rewards, 0.0), "process_reward": 1.0})
