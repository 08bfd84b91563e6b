"""Process reward modelling: a model that says of each step how likely a right answer is from there.

    Paper      Math-Shepherd, arXiv:2312.08935, section 3.3; labels from completions, not from
               people, as in Let's Verify Step by Step, arXiv:2305.20050
    Objective  minimise  -Σ_j (y_j log σ(s_j) + (1 - y_j) log(1 - σ(s_j))), y_j the label of step j,
               the mean over steps

Same as the paper  a label per step, from N completions of the policy behind it: hard (any is right)
                   or soft (the share that is right); cross entropy.
Different          a scalar head, read behind the last token of each step, in place of two words of
                   the vocabulary, good and bad; the default label is soft; the mean is over steps,
                   so that a long solution counts for more than a short one.
Why                a scalar is what the other reward models have, and σ of it the same probability;
                   a soft label is the value of a state, whatever N is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirl.equations.inference_time import solution_score
from minirl.equations.process import process_reward_loss
from minirl.equations.schedules import cosine_to_floor
from minirl.inference.collect import Collected
from minirl.inference.steps import StepRewards, padded_steps, step_ends
from minirl.lm import world
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.rollouts import TOKEN_BUDGET, micro_batches
from minirl.lm.seeds import derive_seed, seeded
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import RewardFunction
from minirl.tasks.steps import Solution
from minirl.train.checks import check
from minirl.train.encoding import encode_solutions, epoch_batch
from minirl.train.metrics import Sums, check_finite
from minirl.train.state import Log, Save, TrainState, apply_update, make_optimizer
from minirl.train.verifiers import score_steps, step_probabilities

Estimate = Callable[[Tensor], Tensor]  # labels in [0, 1], NaN: none -> what is learnt


@dataclass(frozen=True)
class ProcessRewardConfig:
    """Defaults: the tiny model, on a laptop. Papers' numbers: train/presets.py."""

    epochs: int = 2                    # of a thousand solutions one teaches too little
    batch_size: int = 8                # solutions, each with all its steps
    lr: float = 5e-3
    min_lr_ratio: float = 0.1          # cosine to 10 %
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes only memory and time

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OutcomeRewardConfig(ProcessRewardConfig):
    """Of a model that learns the label of each solution's last step alone: an outcome reward model,
    arXiv:2110.14168."""


def train_process_reward(
        model: Transformer | ScalarModel, tokenizer: Tokenizer, solutions: Sequence[Solution],
        config: ProcessRewardConfig, *, estimate: Estimate | None = None, seed: int = 0,
        log: Log | None = None, save: Save | None = None, resume: dict | None = None,
) -> ScalarModel:
    """Train a policy's transformer, in place, or a ScalarModel on solutions with a label per step,
    and return the ScalarModel, in eval mode.

    estimate makes of the labels what is learnt; default: the labels themselves, which are soft
    estimates; equations.process.hard_estimate is the other.
    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError for no labels or a solution that does not fit the context,
    NonFiniteError if a loss, gradient or weight is NaN or infinite.

    The metrics `loss`, `accuracy` (score and label on the same side of 1/2) and `mean_reward` (σ of
    the score) are means over steps with a label.
    """
    if not isinstance(model, ScalarModel):
        with seeded(derive_seed(seed, "prm", "head"), model.device):
            model = ScalarModel(model).to(model.device)
    model.set_dropout(0.0)
    model.train()
    prompts, completions, ends = encode_solutions(tokenizer, solutions, model.config.max_seq_len)
    labels = padded_steps([solution.labels for solution in solutions])  # (N, S), NaN: none
    labels = labels if estimate is None else estimate(labels)
    if bool(labels.isnan().all()):
        raise ValueError(f"no step of {len(solutions)} solutions has a label: at least one is "
                         "wanted")
    state = TrainState(model, make_optimizer(model, config))
    if resume is not None:
        state.load_state_dict(resume)
    steps_per_epoch = math.ceil(len(solutions) / config.batch_size)
    steps = config.epochs * steps_per_epoch

    while state.step < steps:
        began, sums = time.perf_counter(), Sums()

        # 1. batch: the next solutions of this epoch's shuffle
        batch = torch.tensor(world.share(epoch_batch(
            len(solutions), config.batch_size, state.step, seed, "prm")), dtype=torch.long)
        total = world.total(float((~labels[batch].isnan()).sum()))  # steps with a label
        lengths = torch.tensor([len(prompts[i]) + len(completions[i]) for i in batch.tolist()])

        # 2. update: the mean loss over steps, backward, clip, step
        lr = config.lr * cosine_to_floor(state.step, steps, floor=config.min_lr_ratio)
        for part in micro_batches(lengths, config.token_budget):
            rows = batch[part].tolist()
            scores = score_steps(model, [prompts[i] for i in rows], [completions[i] for i in rows],
                                 [ends[i] for i in rows], tokenizer.pad_id)  # (b, S)
            targets = labels[rows, :scores.shape[1]].to(scores.device)  # (b, S)
            losses = process_reward_loss(scores, targets)  # (b, S)
            loss = losses.sum() / max(1.0, total)
            check_finite(loss, state.step + 1, rows, solutions)
            state.backward(loss, rows, solutions)
            judged = ~targets.isnan()
            sums.add("loss", losses, judged)
            sums.add("accuracy", (scores > 0) == (targets > 0.5), judged)
            sums.add("mean_reward", scores.sigmoid(), judged)
        apply_update(state, lr, config.max_grad_norm, sums)
        state.step += 1
        state.num_tokens += world.total(int(lengths.sum()))

        # 3. report
        if log is not None:
            log(state.step, {**sums.means(), "learning_rate": lr,
                             "epoch": state.step / steps_per_epoch,
                             "num_tokens": state.num_tokens,
                             "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    return model.eval()


# a process reward model at work

def solution_chances(model: ScalarModel, tokenizer: Tokenizer,
                     solutions: Sequence[Solution]) -> list[list[float]]:
    """Return how likely a right answer is behind each step of these solutions."""
    encoded = encode_solutions(tokenizer, solutions, model.config.max_seq_len)
    return step_probabilities(model, *encoded, tokenizer.pad_id)


def as_step_rewards(model: ScalarModel, tokenizer: Tokenizer, separator: str = ",") -> StepRewards:
    """Return a process reward model as the rewards of steps, for train.credit.process_credit."""
    def rewards(answers: Collected) -> tuple[list[list[int]], list[list[float]]]:
        ids = answers.rollouts.completion_ids()
        group = len(ids) // len(answers.problems)
        prompts = [tokenizer.encode_prompt(problem.prompt) for problem in answers.problems
                   for _ in range(group)]
        ends = [step_ends(tokenizer, row, separator) for row in ids]
        return ends, step_probabilities(model, prompts, ids, ends, tokenizer.pad_id)

    return rewards


def as_reward(model: ScalarModel, tokenizer: Tokenizer, *, how: str = "min",
              separator: str = ",") -> RewardFunction:
    """Return a process reward model as a reward function: one score for a whole solution, by
    equations.inference_time.solution_score. It reads the very ids that were sampled."""
    def process_reward_model(prompts: Sequence[str], completions: Sequence,
                             completion_ids: Sequence[Sequence[int]], **_: Any
                             ) -> list[float | None]:
        prompt_ids = [tokenizer.encode_prompt(x) for x in prompts]
        ends = [step_ends(tokenizer, ids, separator) for ids in completion_ids]
        chances = step_probabilities(model, prompt_ids, completion_ids, ends, tokenizer.pad_id)
        return solution_score(padded_steps(chances), how).tolist()

    return process_reward_model
