"""Reward modelling: a model that scores completions as the people did who ranked them.

    Paper      InstructGPT, arXiv:2203.02155, section 3.5, eq. 1, and appendix C.2
    Objective  minimise  -1/C(K, 2) Σ_{i ranked before j} log σ(r(x, y_i) - r(x, y_j)),
               the mean over prompts

Same as the paper  the SFT model with its unembedding replaced by a scalar, read behind the last
                   token; all C(K, 2) pairs of a prompt are one element of the batch, so each
                   completion is read once; one epoch, a cosine to 10 %, no warm-up (preset
                   "instructgpt": lr 9e-6, 64 prompts); scores are shifted so that demonstrations
                   score 0 on average, before RL.
Different          the default is for a model of 0.3 million parameters: a higher learning rate.
Why                a tiny model has further to move than one of 6 billion parameters.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirl.equations.preferences import ranking_loss
from minirl.equations.rewards import reward_bias
from minirl.equations.schedules import cosine_to_floor
from minirl.lm import world
from minirl.lm.heads import ScalarModel, score_ids
from minirl.lm.model import Transformer
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.seeds import derive_seed, seeded
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.preferences import Ranking, pairs
from minirl.tasks.problem import RewardFunction
from minirl.tasks.rewards import text
from minirl.train.checks import check
from minirl.train.encoding import encode_rankings, epoch_batch, with_eos
from minirl.train.metrics import Sums, check_finite
from minirl.train.state import Log, Save, TrainState, apply_update, make_optimizer


@dataclass(frozen=True)
class RewardModelConfig:
    """Defaults: the tiny model, on a laptop. Papers' numbers: train/presets.py."""

    epochs: int = 1                    # InstructGPT, appendix C.2: more epochs overfit
    batch_size: int = 8                # prompts, each with all its completions
    lr: float = 2e-3
    min_lr_ratio: float = 0.1          # cosine to 10 %
    beta1: float = 0.9                 # InstructGPT, appendix C: Adam (0.9, 0.95)
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes only memory and time

    def __post_init__(self) -> None:
        check(self)


def train_reward_model(
        model: Transformer | ScalarModel, tokenizer: Tokenizer, rankings: Sequence[Ranking],
        config: RewardModelConfig, *, demonstrations: Sequence[tuple[str, str]] = (), seed: int = 0,
        log: Log | None = None, save: Save | None = None, resume: dict | None = None,
) -> ScalarModel:
    """Train a policy's transformer, in place, or a ScalarModel on rankings, and return the
    ScalarModel, in eval mode.

    demonstrations are (prompt, completion) pairs that score 0 on average afterwards.
    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError for no rankings or one that does not fit the context,
    NonFiniteError if a loss, gradient or weight is NaN or infinite.

    The metrics `loss`, `accuracy` and `margin` are means over prompts, each the mean over its
    pairs; `mean_reward` is over completions, of scores before the shift.
    """
    if not isinstance(model, ScalarModel):
        with seeded(derive_seed(seed, "rm", "head"), model.device):
            model = ScalarModel(model).to(model.device)
    model.set_dropout(0.0)
    model.train()
    prompts, completions = encode_rankings(tokenizer, rankings, model.config.max_seq_len)
    state = TrainState(model, make_optimizer(model, config))
    if resume is not None:
        state.load_state_dict(resume)
    steps_per_epoch = math.ceil(len(rankings) / config.batch_size)
    steps = config.epochs * steps_per_epoch

    while state.step < steps:
        began, sums = time.perf_counter(), Sums()

        # 1. batch: the next rankings of this epoch's shuffle; those of one K are compared together
        batch = world.share(epoch_batch(len(rankings), config.batch_size, state.step, seed, "rm"))
        total = world.total(len(batch))
        by_size: dict[int, list[int]] = defaultdict(list)
        for i in batch:
            by_size[len(completions[i])].append(i)

        # 2. update: the mean ranking loss over prompts, backward, clip, step
        lr = config.lr * cosine_to_floor(state.step, steps, floor=config.min_lr_ratio)
        for K, members in by_size.items():
            lengths = torch.tensor([K * len(prompts[i]) + sum(map(len, completions[i]))
                                    for i in members])
            for part in micro_batches(lengths, config.token_budget):
                rows = [members[i] for i in part]
                tokens, mask = completion_batch([prompts[i] for i in rows for _ in range(K)],
                                                [y for i in rows for y in completions[i]],
                                                tokenizer.pad_id, model.device)  # (p * K, T)
                scores = model.scores(tokens, mask).view(len(rows), K)  # (p, K), best first
                losses = ranking_loss(scores)  # (p,)
                loss = losses.sum() / total
                check_finite(loss, state.step + 1, rows, rankings)
                state.backward(loss, rows, rankings)
                better, worse = torch.triu_indices(K, K, offset=1)  # all C(K, 2) pairs
                sums.add("loss", losses)
                sums.add("accuracy", (scores[:, better] > scores[:, worse]).float().mean(1))
                sums.add("margin", (scores[:, better] - scores[:, worse]).mean(1))
                sums.add("mean_reward", scores)
        apply_update(state, lr, config.max_grad_norm, sums)
        state.step += 1
        state.num_tokens += world.total(sum(len(prompts[i]) + len(y)
                                            for i in batch for y in completions[i]))

        # 3. report
        if log is not None:
            log(state.step, {**sums.means(), "learning_rate": lr,
                             "epoch": state.step / steps_per_epoch,
                             "num_tokens": state.num_tokens,
                             "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    model.eval()
    if demonstrations:
        scores = score_texts(model, tokenizer, [pair[0] for pair in demonstrations],
                             [pair[1] for pair in demonstrations])
        model.shift(reward_bias(scores).to(model.device))
    return model


def score_texts(model: ScalarModel, tokenizer: Tokenizer, prompts: Sequence[str],
                completions: Sequence[str]) -> Tensor:
    """Return a reward model's scores of whole completions (EOS is appended to each): (N,), on the
    CPU."""
    prompt_ids, ids = tokenizer.encode_pairs(list(zip(prompts, completions, strict=True)))
    return score_ids(model, prompt_ids, [with_eos(tokenizer, row) for row in ids], tokenizer.pad_id)


def preference_margins(model: ScalarModel, tokenizer: Tokenizer,
                       rankings: Sequence[Ranking]) -> Tensor:
    """Return r(better) - r(worse) of every comparison: positive where the model agrees. (N,)"""
    comparisons = pairs(rankings)
    prompts = [prompt for prompt, _, _ in comparisons]
    better, worse = (score_texts(model, tokenizer, prompts, [pair[i] for pair in comparisons])
                     for i in (1, 2))
    return better - worse


def as_reward(model: ScalarModel, tokenizer: Tokenizer) -> RewardFunction:
    """Return a reward model as a reward function.

    It reads the very ids that were sampled, `completion_ids`: a completion that was cut off has no
    EOS for it either. Without them it reads texts.
    """
    def reward_model(prompts: Sequence[str], completions: Sequence,
                     completion_ids: Sequence[Sequence[int]] | None = None,
                     **_: Any) -> list[float | None]:
        if completion_ids is None:
            return score_texts(model, tokenizer, prompts, [text(y) for y in completions]).tolist()
        prompt_ids = [tokenizer.encode_prompt(x) for x in prompts]
        return score_ids(model, prompt_ids, completion_ids, tokenizer.pad_id).tolist()

    return reward_model
