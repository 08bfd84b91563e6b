"""Direct Preference Optimization: learn from comparisons, without a reward model and without
sampling.

    Paper      DPO, arXiv:2305.18290, section 4, eq. 7
    Objective  minimise  -log σ(β (h_w - h_l)),  h = log π(y | x) - log π_ref(y | x),
               the mean over pairs

Same as the paper  the loss; the reference is the policy before the first step. Preset "dpo": β 0.1.
                   Other losses of pairs (label smoothing, IPO, SimPO) are functions of
                   equations/preferences.py, passed as `loss`.
Different          a batch holds whole rankings, with all C(K, 2) pairs of each, as the reward
                   model's does; AdamW on a cosine (the paper: RMSprop, a linear warm-up over 150
                   steps, then a constant learning rate).
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
from minirl.lm import world
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.preferences import Ranking
from minirl.train.checks import check
from minirl.train.encoding import encode_rankings, epoch_batch
from minirl.train.metrics import Sums, check_finite
from minirl.train.state import Log, Save, TrainState, apply_update, freeze, make_optimizer

# logp_chosen, logp_rejected and, with a reference, ref_chosen, ref_rejected, (n,) each -> (n,)
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class DPOConfig:
    """Defaults: the tiny model, on a laptop. Papers' numbers: train/presets.py."""

    epochs: int = 1
    batch_size: int = 16               # rankings, each with all its pairs
    lr: float = 1e-3
    min_lr_ratio: float = 0.1
    warmup_steps: int = 3
    beta: float = 0.3                  # β; DPO: 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes only memory and time

    def __post_init__(self) -> None:
        check(self)


def train_dpo(
        model: Transformer, tokenizer: Tokenizer, rankings: Sequence[Ranking], config: DPOConfig, *,
        loss: Loss | None = None, reference_free: bool = False, per_token: bool = False,
        seed: int = 0, log: Log | None = None, save: Save | None = None,
        resume: dict | None = None,
) -> Transformer:
    """Train a policy in place on rankings (of two, where there are pairs) and return it, in eval
    mode.

    loss is an equation of pairs; left out, dpo_loss with the configuration's beta. It takes the
    log-probs of completions: sums over their tokens, or means with per_token=True. With
    reference_free=True there is no reference, and it takes the policy's two alone. SimPO is
    loss=simpo_loss with both.

    The metrics rewards/* are config.beta (log π - log π_ref) of what the loss takes, without a
    reference config.beta log π; logps/* are sums over tokens. All are means over comparisons.

    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError for no rankings, for one that does not fit the context, and for
    reference_free without a loss; NonFiniteError if a loss, gradient or weight is NaN or infinite.
    """
    if loss is None and reference_free:
        raise ValueError("reference_free is given without a loss, and DPO's needs a reference: "
                         "pass a loss that takes two log-probs, such as simpo_loss")
    model.set_dropout(0.0)
    model.eval()
    loss = loss or partial(dpo_loss, beta=config.beta)
    prompts, completions = encode_rankings(tokenizer, rankings, model.config.max_seq_len)
    reference = None if reference_free else freeze(copy.deepcopy(model))
    state = TrainState(model, make_optimizer(model, config),
                       {} if reference is None else {"reference": reference})
    if resume is not None:
        state.load_state_dict(resume)
    steps_per_epoch = math.ceil(len(rankings) / config.batch_size)
    steps = config.epochs * steps_per_epoch

    while state.step < steps:
        began, sums = time.perf_counter(), Sums()

        # 1. batch: the next rankings of this epoch's shuffle, every completion a row
        batch = world.share(epoch_batch(len(rankings), config.batch_size, state.step, seed, "dpo"))
        sizes = [len(completions[i]) for i in batch]
        lengths = torch.tensor([K * len(prompts[i]) + sum(map(len, completions[i]))
                                for i, K in zip(batch, sizes, strict=True)])
        total = world.total(sum(math.comb(K, 2) for K in sizes))

        # 2. update: the mean loss over comparisons, backward, clip, step
        lr = config.lr * cosine_to_floor(state.step, steps, floor=config.min_lr_ratio,
                                         warmup=min(config.warmup_steps, steps - 1))
        for part in micro_batches(lengths, config.token_budget):
            rows = [batch[i] for i in part]
            tokens, mask = completion_batch([prompts[i] for i in rows for _ in completions[i]],
                                            [y for i in rows for y in completions[i]],
                                            tokenizer.pad_id, model.device)  # (b, T)
            chosen, rejected = comparisons([len(completions[i]) for i in rows])  # (n,) each
            logp = token_logprobs(model, tokens, mask=mask).sum(1)  # (b,): log π(y | x)
            ref_logp = torch.zeros_like(logp)
            if reference is not None:
                with torch.no_grad():
                    ref_logp = token_logprobs(reference, tokens, mask=mask).sum(1)  # (b,)
            length = mask.sum(1) if per_token else 1
            policy, ref = logp / length, ref_logp / length
            constants = () if reference_free else (ref[chosen], ref[rejected])
            losses = loss(policy[chosen], policy[rejected], *constants)  # (n,)
            mean_loss = losses.sum() / total
            check_finite(mean_loss, state.step + 1, rows, rankings)
            state.backward(mean_loss, rows, rankings)
            rewards = implicit_reward(policy.detach(), ref, beta=config.beta)  # (b,)
            sums.add("loss", losses)
            sums.add("rewards/chosen", rewards[chosen])
            sums.add("rewards/rejected", rewards[rejected])
            sums.add("rewards/margins", rewards[chosen] - rewards[rejected])
            sums.add("rewards/accuracies", (rewards[chosen] > rewards[rejected]).float())
            sums.add("logps/chosen", logp[chosen])
            sums.add("logps/rejected", logp[rejected])
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
    return model


def comparisons(sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return which rows to compare, (chosen, rejected), where rankings of these sizes stand one
    after another, best first."""
    chosen, rejected, start = [], [], 0
    for K in sizes:
        for better, worse in combinations(range(start, start + K), 2):
            chosen.append(better)
            rejected.append(worse)
        start += K
    return chosen, rejected
