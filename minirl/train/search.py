"""What a search at inference time needs: a policy, and verifiers that learn from its own solutions.

    Paper      labels of steps: Math-Shepherd, arXiv:2312.08935; of outcomes: Cobbe et al.,
               arXiv:2110.14168; what is done with them: Snell et al., arXiv:2408.03314

    policy ── solutions, a label per step ──┬── prm   learns every label
                                            └── orm   learns the last one of each solution

Same as the paper  both verifiers start from the policy and read its own samples; labels come from
                   completions; the outcome model learns whether the answer was right.
Different          one solution of each problem (Cobbe et al.: 100), read through a scalar head.
Why                labels of steps cost most of the time, and both models see the same solutions, so
                   that only the labels differ.

Each stage is one call of a page, on a copy of the model it starts from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minirl.inference.collect import Counter
from minirl.inference.comparison import check_expansions
from minirl.inference.evaluate import distinct_problems
from minirl.inference.steps import label_solutions
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import demonstrations
from minirl.tasks.problem import Task
from minirl.tasks.steps import Solution
from minirl.train.checks import SIDE_BY_SIDE, check
from minirl.train.process_reward import (
    OutcomeRewardConfig,
    ProcessRewardConfig,
    train_process_reward,
)
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.stage import Stage
from minirl.train.verifiers import outcomes_alone

EXAMPLES = 15_000                        # sums, worked out, that the policy reads
POLICY_SFT = SFTConfig()
PRM, ORM = ProcessRewardConfig(), OutcomeRewardConfig()


@dataclass(frozen=True)
class SearchConfig:
    """Defaults: the tiny model, on a laptop. Papers' numbers: train/presets.py."""

    largest: int = 64                  # candidates of a problem, at most; measured: 1, 2, 4, ...
    expansions: int = 4                # of each beam or tree, a power of two: n / 4 beams
    max_new_tokens: int = 80
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check(self, largest=SIDE_BY_SIDE, expansions=SIDE_BY_SIDE)
        check_expansions(self.expansions)


def read_slips(stage: Stage, model: Transformer, tokenizer: Tokenizer, tasks: Sequence[Task],
               rng: random.Random, *, slip_share: float, seed: int) -> Transformer:
    """Train a policy on sums of all tasks, worked out, in which a share of the carries is
    forgotten."""
    pairs = [pair for task in tasks for pair in demonstrations(
        task, EXAMPLES // len(tasks), rng, worked_share=1.0, slip_share=slip_share)]
    return stage("base", POLICY_SFT, model, lambda m, **hooks: train_sft(
        m, tokenizer, pairs, POLICY_SFT, seed=seed, **hooks))


def label_tasks(policy: Transformer, tokenizer: Tokenizer, tasks: Sequence[Task], n: int, *,
                samples: int, max_new_tokens: int, seed: int,
                progress: Counter | None = None) -> list[Solution]:
    """Sample a solution of each of n problems of each task, and label their steps."""
    rng = random.Random(derive_seed(seed, "search", "problems"))
    generator = torch.Generator(policy.device).manual_seed(derive_seed(seed, "search", "sample"))
    return [solution for task in tasks for solution in label_solutions(
        policy, tokenizer, task, distinct_problems(task, n, rng, split="train"), samples=samples,
        max_new_tokens=max_new_tokens, generator=generator, progress=progress)]


def train_verifiers(stage: Stage, policy: Transformer, tokenizer: Tokenizer,
                    solutions: Callable[[], list[Solution]], *, seed: int
                    ) -> tuple[ScalarModel, ScalarModel]:
    """Train a process reward model on all labels, and an outcome reward model on the last ones."""
    labelled = solutions()
    prm = stage("prm", PRM, policy, lambda m, **hooks: train_process_reward(
        m, tokenizer, labelled, PRM, seed=derive_seed(seed, "prm"), **hooks))
    orm = stage("orm", ORM, policy, lambda m, **hooks: train_process_reward(
        m, tokenizer, outcomes_alone(labelled), ORM, seed=derive_seed(seed, "orm"), **hooks))
    return prm, orm
