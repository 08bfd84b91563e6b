"""Supervised fine-tuning: make the demonstrated completions likelier.

    Paper      InstructGPT, arXiv:2203.02155, section 3.5 and appendix C.1
    Objective  maximise  1/N sum over completion tokens of log pi(y_t | x, y_<t),  N = completion tokens of the batch

Same as the paper  the loss; a cosine; preset "instructgpt": to 10 % of the learning rate, without
                   a warm-up, residual dropout of 0.2, 16 epochs.
Different          the default preset is for a model of 0.3 million parameters: one pass over many
                   short sums, no dropout, a large learning rate, a warm-up and a cosine to 2 %;
                   the gradient is clipped in length.
Why                a model trained from nothing needs to see many examples once rather than few often.

The loss is on the completion alone, its EOS included: the mask is made from lengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minirl.equations.reduce import aggregate
from minirl.equations.schedules import cosine_to_floor
from minirl.lm.logprobs import token_logprobs
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.seeds import derive_seed, seeded
from minirl.train.checks import check_fields
from minirl.train.encoding import encode_pairs
from minirl.train.state import (NonFiniteError, Sums, TrainState, check_weights, clip_gradient,
                                make_optimizer, set_lr)


@dataclass(frozen=True)
class SFTConfig:
    """Defaults: a tiny model from nothing, on a laptop. Papers' numbers: SFT_PRESETS."""

    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-2
    min_lr_ratio: float = 0.02         # InstructGPT, appendix C.1: cosine to 10 %
    warmup_steps: int = 20             # InstructGPT, appendix C.1: none
    dropout: float = 0.0
    beta1: float = 0.9                 # InstructGPT, appendix C: Adam (0.9, 0.95)
    beta2: float = 0.98
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch

    def __post_init__(self):
        check_fields(self)


SFT_PRESETS = {
    "toy": {},
    # InstructGPT, appendix C.1: 16 epochs, dropout 0.2, cosine to 10 %, no warm-up, batch 32; lr 9.65e-6 is the 1.3B and 6B models'
    "instructgpt": dict(epochs=16, batch_size=32, lr=9.65e-6, min_lr_ratio=0.1, warmup_steps=0, dropout=0.2, beta1=0.9, beta2=0.95),
}


def train_sft(model, tokenizer, pairs: Sequence[tuple[str, str]], config: SFTConfig, *, seed: int = 0,
              log: Callable[[int, dict], None] | None = None, save: Callable[[TrainState], None] | None = None, resume: dict | None = None):
    """Train `model` in place on (prompt, completion) texts and return it, in eval mode.

    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError for no pairs, or for one that does not fit the context;
    NonFiniteError if loss, gradient or weights leave the finite numbers.
    """
    prompts, completions = encode_pairs(tokenizer, pairs, model.config.max_seq_len)
    model.set_dropout(config.dropout)
    model.train()
    state = TrainState(model, make_optimizer(model, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay))
    if resume is not None:
        state.load_state_dict(resume)
    steps_per_epoch = -(-len(pairs) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    while state.step < steps:
        began, sums = time.perf_counter(), Sums()

        # 1. sample: the next demonstrations of this epoch's shuffle
        epoch, position = divmod(state.step, steps_per_epoch)
        shuffle = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(derive_seed(seed, "sft", epoch, "shuffle")))
        batch = shuffle[position * config.batch_size:(position + 1) * config.batch_size]

        # 2. score: every token of a demonstration counts the same
        lengths = torch.tensor([len(prompts[i]) + len(completions[i]) for i in batch.tolist()])
        completion_tokens = sum(len(completions[i]) for i in batch.tolist())

        # 3. freeze: the step's learning rate
        lr = config.lr * cosine_to_floor(state.step, steps, floor=config.min_lr_ratio, warmup=min(config.warmup_steps, steps - 1))

        # 4. update
        with seeded(derive_seed(seed, "sft", state.step, "dropout"), model.device):
            for rows in micro_batches(lengths, config.token_budget):
                picked = batch[rows].tolist()
                tokens, mask = completion_batch([prompts[i] for i in picked],
                                                [completions[i] for i in picked],
                                                tokenizer.pad_id, model.device)         # (b, T)
                logp = token_logprobs(model, tokens, mask=mask)                         # (b, T)
                loss = -aggregate(logp, mask, "token_mean", total=completion_tokens)
                if not torch.isfinite(loss):
                    raise NonFiniteError(f"step {state.step + 1}: the loss is {loss.item()} on "
                                         f"pairs {picked[:8]}; the first is {pairs[picked[0]]!r}")
                loss.backward()
                sums.add("loss", -logp, mask)
        grad_norm = clip_gradient(model, config.max_grad_norm, step=state.step + 1)
        set_lr(state.optimizer, lr)
        state.optimizer.step()
        check_weights(model, state.step + 1)
        state.optimizer.zero_grad()
        state.step += 1
        state.num_tokens += int(lengths.sum())

        # 5. report
        if log is not None:
            log(state.step, {**sums.means(), "grad_norm": grad_norm, "learning_rate": lr, "epoch": state.step / steps_per_epoch,
                             "num_tokens": state.num_tokens, "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    model.set_dropout(0.0)
    return model.eval()
