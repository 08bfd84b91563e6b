"""Direct Preference Optimization: learn from comparisons without a reward model and without sampling.

    Paper      DPO, arXiv:2305.18290, section 4, eq. 7
    Objective  minimise  -log sigmoid(beta (h_w - h_l)),  h = log pi(y | x) - log ref(y | x), the mean over pairs

Same as the paper  the loss; the reference is the policy before the first step; preset "dpo": beta
                   0.1. Other losses of pairs (label smoothing, IPO, SimPO) are functions of
                   equations/preferences.py, and are passed as `loss`.
Different          pairs of one prompt are not shuffled apart: a batch holds whole rankings, with all C(K, 2) pairs each, as the reward model's does;
                   AdamW on a cosine (the paper: RMSprop, linear warm-up over 150 steps, then constant).
Why                DPO is here to be compared with a reward model and PPO on the same rankings.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from minirl.equations.preferences import dpo_loss, implicit_reward
from minirl.equations.schedules import cosine_to_floor
from minirl.lm.logprobs import token_logprobs
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.seeds import derive_seed
from minirl.tasks.preferences import Ranking
from minirl.train.checks import check_fields
from minirl.train.encoding import encode_rankings
from minirl.train.state import (NonFiniteError, Sums, TrainState, check_weights, clip_gradient,
                                freeze, make_optimizer, set_lr)

# logp_chosen, logp_rejected and, with a reference, ref_chosen, ref_rejected, (n,) each -> (n,)
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class DPOConfig:
    """Defaults: the tiny model, on a laptop. The paper's numbers: DPO_PRESETS."""

    epochs: int = 1
    batch_size: int = 16               # rankings, each with all its pairs
    lr: float = 1e-3
    min_lr_ratio: float = 0.1
    warmup_steps: int = 3
    beta: float = 0.3                  # DPO: 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; a prompt's completions stay together

    def __post_init__(self):
        check_fields(self)


DPO_PRESETS = {
    "toy": {},
    # DPO, appendix B: beta 0.1, batch 64, lr 1e-6 (RMSprop there), linear warm-up over 150 steps
    "dpo": dict(beta=0.1, batch_size=64, lr=1e-6, min_lr_ratio=1.0, warmup_steps=150),
}


def train_dpo(model, tokenizer, rankings: Sequence[Ranking], config: DPOConfig, *,
              loss: Loss | None = None, reference_free: bool = False, per_token: bool = False,
              seed: int = 0, log: Callable[[int, dict], None] | None = None,
              save: Callable[[TrainState], None] | None = None, resume: dict | None = None):
    """Train a policy in place on rankings (of two, where there are pairs), and return it, in eval mode.

    loss: an equation of pairs; left out, dpo_loss with the configuration's beta. It takes log-probs
    of completions, sums over their tokens or, with per_token=True, means. With reference_free=True
    there is no reference, and it takes the policy's two alone. SimPO is loss=simpo_loss with both.

    rewards/* in the metrics are config.beta (log pi - log ref) of what the loss takes, or
    config.beta log pi without a reference; logps/* are sums over tokens. All are means over
    comparisons.

    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError for no rankings, one that does not fit the context, or
    reference_free without a loss, NonFiniteError if loss, gradient or weights leave the finite
    numbers.
    """
    if loss is None and reference_free:
        raise ValueError("reference_free is given without a loss, and DPO's needs a reference: "
                         "pass a loss that takes two log-probs, such as simpo_loss")
    model.set_dropout(0.0)
    model.eval()
    loss = loss or partial(dpo_loss, beta=config.beta)
    prompts, completions = encode_rankings(tokenizer, rankings, model.config.max_seq_len)
    reference = None if reference_free else freeze(copy.deepcopy(model))
    optimizer = make_optimizer(model, lr=config.lr, betas=(config.beta1, config.beta2),
                               weight_decay=config.weight_decay)
    state = TrainState(model, optimizer, {} if reference is None else {"reference": reference})
    if resume is not None:
        state.load_state_dict(resume)
    steps_per_epoch = -(-len(rankings) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    while state.step < steps:
        began, sums = time.perf_counter(), Sums()

        # 1. sample: the next rankings of this epoch's shuffle
        epoch, position = divmod(state.step, steps_per_epoch)
        shuffle = torch.randperm(len(rankings), generator=torch.Generator().manual_seed(derive_seed(seed, "dpo", epoch, "shuffle")))
        batch = shuffle[position * config.batch_size:(position + 1) * config.batch_size]

        # 2. score: what people said is the order of a ranking's completions; every completion is a row, every pair of a prompt's rows a comparison
        sizes = torch.tensor([len(completions[i]) * len(prompts[i]) + sum(map(len, completions[i])) for i in batch.tolist()])
        comparisons = sum(math.comb(len(completions[i]), 2) for i in batch.tolist())

        # 3. freeze: the reference's log-probs are asked for beside the policy's; the step's learning rate
        lr = config.lr * cosine_to_floor(state.step, steps, floor=config.min_lr_ratio, warmup=min(config.warmup_steps, steps - 1))

        # 4. update
        for part in micro_batches(sizes, config.token_budget):
            rows = batch[part].tolist()
            tokens, mask = completion_batch([prompts[i] for i in rows for _ in completions[i]], [c for i in rows for c in completions[i]], tokenizer.pad_id, model.device)
            chosen, rejected = compared([len(completions[i]) for i in rows])                             # (n,) each: rows of tokens
            logp = token_logprobs(model, tokens, mask=mask).sum(1)                                       # log pi(y | x), a row each
            with torch.no_grad():
                ref_logp = torch.zeros_like(logp)
                if reference is not None:
                    ref_logp = token_logprobs(reference, tokens, mask=mask).sum(1)
            length = mask.sum(1) if per_token else 1
            policy, ref = logp / length, ref_logp / length
            constants = () if reference_free else (ref[chosen], ref[rejected])
            losses = loss(policy[chosen], policy[rejected], *constants)                     # (n,)
            total = losses.sum() / comparisons
            if not torch.isfinite(total):
                raise NonFiniteError(f"step {state.step + 1}: the loss is {total.item()} on rankings {rows[:8]}; the first is {rankings[rows[0]]!r}")
            total.backward()
            rewards = implicit_reward(policy.detach(), ref, beta=config.beta)
            sums.add("loss", losses)
            sums.add("rewards/chosen", rewards[chosen])
            sums.add("rewards/rejected", rewards[rejected])
            sums.add("rewards/margins", rewards[chosen] - rewards[rejected])
            sums.add("rewards/accuracies", (rewards[chosen] > rewards[rejected]).float())
            sums.add("logps/chosen", logp[chosen])
            sums.add("logps/rejected", logp[rejected])
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
    return model


def compared(sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which rows are compared, where rankings of these sizes stand one after another, best first: (chosen, rejected)."""
    chosen, rejected, start = [], [], 0
    for K in sizes:
        for better, worse in combinations(range(start, start + K), 2):
            chosen.append(better)
            rejected.append(worse)
        start += K
    return chosen, rejected
