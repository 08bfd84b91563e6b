"""Reward modelling: a model that scores completions as the people did who ranked them.

    Paper      InstructGPT, arXiv:2203.02155, section 3.5, eq. 1, and appendix C.2
    Objective  minimise  -1 / C(K, 2) sum_{i ranked before j} log sigmoid(r(x, y_i) - r(x, y_j)),  the mean over prompts

Same as the paper  the SFT model with its unembedding replaced by a scalar, read behind the last token; all C(K, 2) pairs of a prompt are one
                   element of the batch, so each completion is read once; one epoch, cosine to 10 %, no warm-up (preset "instructgpt": lr 9e-6,
                   64 prompts); scores are shifted so that demonstrations score 0 on average, before RL.
Different          the default preset is for a model of 0.3 million parameters: a larger learning rate.
Why                a tiny model has to move further than one of 6 billion parameters.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minirl.equations.preferences import ranking_loss
from minirl.equations.rewards import reward_bias
from minirl.equations.schedules import cosine_to_floor
from minirl.lm.heads import ScalarModel, score_ids
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.seeds import derive_seed, seeded
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import RewardFunction
from minirl.tasks.rewards import text
from minirl.train.checks import check_fields
from minirl.train.encoding import encode_rankings, with_eos
from minirl.train.state import (NonFiniteError, Sums, TrainState, check_weights, clip_gradient,
                                make_optimizer, set_lr)


@dataclass(frozen=True)
class RewardModelConfig:
    """Defaults: the tiny model, on a laptop. The paper's numbers: REWARD_MODEL_PRESETS."""

    epochs: int = 1                    # InstructGPT, appendix C.2: more overfit
    batch_size: int = 8                # prompts, each with all its completions
    lr: float = 2e-3
    min_lr_ratio: float = 0.1          # cosine to 10 %
    beta1: float = 0.9                 # InstructGPT, appendix C: Adam (0.9, 0.95)
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; a prompt's completions stay together

    def __post_init__(self):
        check_fields(self)


REWARD_MODEL_PRESETS = {
    "toy": {},
    # InstructGPT, appendix C.2: 6B, one epoch, lr 9e-6, cosine to 10 %, batches of 64 prompts (K from 4 to 9: up to 2,304 comparisons)
    "instructgpt": dict(epochs=1, batch_size=64, lr=9e-6, min_lr_ratio=0.1),
}


def train_reward_model(model, tokenizer, rankings: Sequence[Ranking], config: RewardModelConfig, *, demonstrations: Sequence[tuple[str, str]] = (), seed: int = 0,
                       log: Callable[[int, dict], None] | None = None, save: Callable[[TrainState], None] | None = None, resume: dict | None = None) -> ScalarModel:
    """Train a policy's transformer (which this changes), or a ScalarModel, on rankings, and return the ScalarModel, in eval mode.

    demonstrations: (prompt, completion) pairs that shall score 0 on average afterwards. log(step, metrics) and save(state) are called after every
    step; resume is an earlier state's state_dict(). Raises ValueError for no rankings or one that
    does not fit the context, NonFiniteError if loss, gradient or weights leave the finite numbers.

    Of the metrics, `loss`, `accuracy` and `margin` are means over prompts, each the mean over its
    pairs; `mean_reward` is over completions, of scores before the shift.
    """
    if not isinstance(model, ScalarModel):
        with seeded(derive_seed(seed, "rm", "head"), model.device):
            model = ScalarModel(model).to(model.device)
    model.set_dropout(0.0)
    model.train()
    prompts, completions = encode_rankings(tokenizer, rankings, model.config.max_seq_len)
    state = TrainState(model, make_optimizer(model, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay))
    if resume is not None:
        state.load_state_dict(resume)
    steps_per_epoch = -(-len(rankings) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    while state.step < steps:
        began, sums = time.perf_counter(), Sums()

        # 1. sample: the next rankings of this epoch's shuffle
        epoch, position = divmod(state.step, steps_per_epoch)
        shuffle = torch.randperm(len(rankings), generator=torch.Generator().manual_seed(derive_seed(seed, "rm", epoch, "shuffle")))
        batch = shuffle[position * config.batch_size:(position + 1) * config.batch_size]

        # 2. score: what people said is the order of a ranking's completions; rankings of one K are compared in one call
        by_size = defaultdict(list)
        for i in batch.tolist():
            by_size[len(completions[i])].append(i)

        # 3. freeze: the step's learning rate
        lr = config.lr * cosine_to_floor(state.step, steps, floor=config.min_lr_ratio)

        # 4. update
        for K, members in by_size.items():
            sizes = torch.tensor([K * len(prompts[i]) + sum(map(len, completions[i])) for i in members])
            for part in micro_batches(sizes, config.token_budget):
                rows = [members[i] for i in part]
                tokens, mask = completion_batch([prompts[i] for i in rows for _ in range(K)], [c for i in rows for c in completions[i]], tokenizer.pad_id, model.device)
                scores = model.scores(tokens, mask).view(len(rows), K)                                   # (p, K), best first
                losses = ranking_loss(scores)                                                            # (p,)
                loss = losses.sum() / len(batch)
                if not torch.isfinite(loss):
                    raise NonFiniteError(f"step {state.step + 1}: the loss is {loss.item()} on rankings {rows[:8]}; the first is {rankings[rows[0]]!r}")
                loss.backward()
                better, worse = torch.triu_indices(K, K, offset=1)
                sums.add("loss", losses)
                sums.add("accuracy", (scores[:, better] > scores[:, worse]).float().mean(1))             # each prompt counts the same, as in the loss
                sums.add("margin", (scores[:, better] - scores[:, worse]).mean(1))
                sums.add("mean_reward", scores)
        grad_norm = clip_gradient(model, config.max_grad_norm, step=state.step + 1)
        set_lr(state.optimizer, lr)
        state.optimizer.step()
        check_weights(model, state.step + 1)
        state.optimizer.zero_grad()
        state.step += 1
        state.num_tokens += sum(len(prompts[i]) + len(c) for i in batch.tolist() for c in completions[i])

        # 5. report
        if log is not None:
            log(state.step, {**sums.means(), "grad_norm": grad_norm, "learning_rate": lr, "epoch": state.step / steps_per_epoch,
                             "num_tokens": state.num_tokens, "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    model.eval()
    if demonstrations:
        scores = score_texts(model, tokenizer, [demonstration[0] for demonstration in demonstrations], [demonstration[1] for demonstration in demonstrations])
        model.shift(reward_bias(scores).to(model.device))
    return model


def score_texts(model: ScalarModel, tokenizer, prompts: Sequence[str], completions: Sequence[str]) -> torch.Tensor:
    """A reward model's scores of whole completions (an EOS is put behind each): (N,), on the CPU."""
    before, after = tokenizer.encode_pairs(list(zip(prompts, completions, strict=True)))
    return score_ids(model, before, [with_eos(tokenizer, ids) for ids in after], tokenizer.pad_id)


def as_reward(model: ScalarModel, tokenizer) -> RewardFunction:
    """A reward model in the signature of rule rewards. It reads the very ids that were sampled, `completion_ids`, so that an answer that was cut off has no
    EOS for it either; without them, texts."""
    def reward_model(prompts, completions, completion_ids=None, **_) -> list[float]:
        if completion_ids is None:
            return score_texts(model, tokenizer, prompts, [text(c) for c in completions]).tolist()
        return score_ids(model, [tokenizer.encode_prompt(p) for p in prompts], completion_ids, tokenizer.pad_id).tolist()

    return reward_model
