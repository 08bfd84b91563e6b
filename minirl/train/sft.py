"""Supervised fine-tuning: raise the probability of demonstrated completions.

    Paper      InstructGPT, arXiv:2203.02155, section 3.5 and appendix C.1
    Objective  maximise  1/N Σ log π(y_t | x, y_<t)  over the N completion tokens of a batch

Same as the paper  the loss. Preset "instructgpt": a cosine to 10 % of the learning rate, without
                   warm-up, residual dropout 0.2, 16 epochs.
Different          the default is for a model of 0.3 million parameters: one epoch over many short
                   sums, no dropout, a high learning rate, a warm-up and a cosine to 2 %; the
                   gradient norm is clipped.
Why                from scratch, many examples seen once teach more than few seen often.

The loss is on the completion alone, its EOS included; not on what a tool answered in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minirl.equations.reduce import aggregate
from minirl.equations.schedules import cosine_to_floor
from minirl.lm import world
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.seeds import derive_seed, seeded
from minirl.lm.tokenizer import Tokenizer
from minirl.train.checks import check
from minirl.train.encoding import Completion, encode_demonstrations, epoch_batch
from minirl.train.metrics import Sums, check_finite
from minirl.train.state import Log, Save, TrainState, apply_update, make_optimizer


@dataclass(frozen=True)
class SFTConfig:
    """Defaults: a tiny model from scratch, on a laptop. Papers' numbers: train/presets.py."""

    epochs: int = 1
    batch_size: int = 32               # demonstrations
    lr: float = 1e-2
    min_lr_ratio: float = 0.02         # InstructGPT, appendix C.1: cosine to 10 %
    warmup_steps: int = 20             # InstructGPT, appendix C.1: none
    dropout: float = 0.0
    beta1: float = 0.9                 # InstructGPT, appendix C: Adam (0.9, 0.95)
    beta2: float = 0.98
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes only memory and time

    def __post_init__(self) -> None:
        check(self)


def train_sft(
        model: Transformer, tokenizer: Tokenizer, pairs: Sequence[tuple[str, Completion]],
        config: SFTConfig, *, seed: int = 0,
        log: Log | None = None, save: Save | None = None, resume: dict | None = None,
) -> Transformer:
    """Train `model` in place on (prompt, completion) texts and return it, in eval mode.

    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError for no pairs, or for one that does not fit the context,
    NonFiniteError if a loss, gradient or weight is NaN or infinite.
    """
    prompts, completions, own_tokens = encode_demonstrations(tokenizer, pairs,
                                                             model.config.max_seq_len)
    model.set_dropout(config.dropout)
    model.train()
    state = TrainState(model, make_optimizer(model, config))
    if resume is not None:
        state.load_state_dict(resume)
    steps_per_epoch = math.ceil(len(pairs) / config.batch_size)
    steps = config.epochs * steps_per_epoch

    while state.step < steps:
        began, sums = time.perf_counter(), Sums()

        # 1. batch: the next demonstrations of this epoch's shuffle
        batch = world.share(epoch_batch(len(pairs), config.batch_size, state.step, seed, "sft"))
        lengths = torch.tensor([len(prompts[i]) + len(completions[i]) for i in batch])
        total = world.total(sum(sum(own_tokens[i]) for i in batch))

        # 2. update: the mean log-prob of all completion tokens, backward, clip, step
        lr = config.lr * cosine_to_floor(state.step, steps, floor=config.min_lr_ratio,
                                         warmup=min(config.warmup_steps, steps - 1))
        with seeded(derive_seed(seed, "sft", state.step, "dropout", *world.place()), model.device):
            for part in micro_batches(lengths, config.token_budget):
                rows = [batch[i] for i in part]
                tokens, mask = completion_batch([prompts[i] for i in rows],
                                                [completions[i] for i in rows],
                                                tokenizer.pad_id, model.device,
                                                own_tokens=[own_tokens[i] for i in rows])  # (b, T)
                logp = token_logprobs(model, tokens, mask=mask)  # (b, T)
                loss = -aggregate(logp, mask, "token_mean", total=total)
                check_finite(loss, state.step + 1, rows, pairs)
                state.backward(loss, rows, pairs)
                sums.add("loss", -logp, mask)
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
    model.set_dropout(0.0)
    return model.eval()
