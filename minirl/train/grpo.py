"""Group Relative Policy Optimization: sample a group of answers per question, and make those likelier that beat their group.

    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1, eqs. 3 and 4, algorithm 1; rule rewards: DeepSeek-R1, arXiv:2501.12948, section 2.2
    Objective  maximise  1/G sum_i 1/|o_i| sum_t { min(rho A, clip(rho) A) - beta k3 }

Same as the paper  the objective; outcome supervision; k3 against a frozen reference; mu inner iterations (`iterations`); the reference
                   replaced every `ref_sync_steps` rollouts (the paper's outer loop; DeepSeek-R1: 25).
Different          rewards come from rules and not from a reward model, as in DeepSeek-R1; the gradient is clipped in length, and the
                   learning rate falls on a cosine (constant in the papers, and in their presets).
Why                a rule cannot be fooled by what it has not seen; one bad batch must not undo a hundred good ones.

Three columns of log-probs: behavior_logp (the sampler's), old_logp (the learner's before the update), logp (the learner's now).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minirl.equations.advantages import dynamic_sampling, group_advantages, zero_spread
from minirl.equations.kl import k3
from minirl.equations.objectives import clipped_surrogate
from minirl.equations.reduce import AGGREGATIONS, aggregate, normaliser
from minirl.equations.rewards import overlong_penalty
from minirl.equations.schedules import cosine_to_floor
from minirl.lm.logprobs import rollout_logprobs, token_logprobs
from minirl.lm.rollouts import TOKEN_BUDGET, micro_batches
from minirl.lm.sampling import sample
from minirl.tasks.problem import columns
from minirl.tasks.rewards import judge, weighted_sum
from minirl.train.checks import ROWS, check_fields
from minirl.train.state import (Sums, TrainState, check_finite, check_judged, check_weights,
                                clip_gradient, derive_seed, describe, freeze, make_optimizer,
                                mean_judged, set_lr, to_tensor, watch)

Advantages = Callable[[Tensor], Tensor]                             # rewards (P, G) -> (P, G)
Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]      # logp, old_logp, adv, mask, all (b, T) -> (b, T), to be maximised


@dataclass(frozen=True)
class GRPOConfig:
    """Defaults: the tiny model on sums, on a laptop. Papers' numbers and other variants: minirl/app/presets.py."""

    steps: int = 44
    prompts_per_step: int = 16
    group_size: int = 8                # G, at least 2: each is compared with the others
    iterations: int = 1                # mu: passes over one batch of rollouts
    minibatches: int = 1               # optimizer steps per pass
    lr: float = 4e-4
    warmup_steps: int = 3
    min_lr_ratio: float = 0.1          # half a cosine down to this share of lr; 1 keeps it constant, as the papers do
    kl_coef: float = 0.01              # beta
    clip_low: float = 0.2              # epsilon: PPO, arXiv:1707.06347, section 6.1
    clip_high: float = 0.2             # preset cispo: weights are capped at 1 + clip_high
    aggregate: str = "sequence_mean"   # eq. 3; see reduce.aggregate for the others
    scale: str = "group"               # advantages over the group's std; see advantages.group_advantages
    ddof: int = 1
    dynamic_sampling: bool = False     # DAPO, arXiv:2503.14476, eq. 11: only groups that differ
    overlong_cache: int = 0            # DAPO, eq. 13: over how many of max_new_tokens the punishment of length rises to -1; 0: none
    max_new_tokens: int = 80
    temperature: float = 1.0
    ref_sync_steps: int = 0            # 0: the reference stays the first model
    beta1: float = 0.9
    beta2: float = 0.999               # a long memory: late steps, in which few groups differ, stay small
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes memory and time, not the result

    def __post_init__(self):
        check_fields(self)
        rows = self.prompts_per_step * self.group_size
        if rows > ROWS:
            raise ValueError(f"prompts_per_step is {self.prompts_per_step} and group_size "
                             f"{self.group_size}: at most {ROWS:,} completions a step are wanted")
        if self.minibatches > rows:
            raise ValueError(f"minibatches is {self.minibatches}, but a step has {rows} "
                             "completions: at most as many are wanted")
        if self.overlong_cache > self.max_new_tokens:
            raise ValueError(f"overlong_cache is {self.overlong_cache} and max_new_tokens "
                             f"{self.max_new_tokens}: at most as many are wanted")
        group_advantages(torch.zeros(1, 2), scale=self.scale)           # refuses an unknown scale
        if self.aggregate not in AGGREGATIONS:
            raise ValueError(f"aggregate is {self.aggregate!r}: one of {', '.join(AGGREGATIONS)} is wanted")


def train_grpo(model, tokenizer, task, config: GRPOConfig, *, advantages: Advantages | None = None, objective: Objective | None = None, seed: int = 0,
               reward_weights: dict[str, float] | None = None, log: Callable[[int, dict], None] | None = None,
               save: Callable[[TrainState], None] | None = None, resume: dict | None = None):
    """Train `model` in place on a task's problems and rule rewards, and return it, in eval mode.

    advantages and objective are equations; left out, they are GRPO's, with the configuration's scale, ddof and clip. reward_weights None gives
    each of the task's rewards weight 1. log(step, metrics) and save(state) are called after every step; resume is an
    earlier state's state_dict(). Raises ValueError where a prompt does not fit the context or
    nothing was judged, NonFiniteError if a loss, gradient or weight leaves the finite numbers.

    The metrics `reward`, `reward_std` and `frac_reward_zero_std` are of the task's rewards, at
    which dynamic sampling looks, too. An overlong penalty is added for the advantages alone, and
    is logged as rewards/overlong_penalty/mean. Where no group is left, a step changes nothing,
    and what an update reports (grad_norm, kl, entropy, ...) is not logged.
    """
    model.set_dropout(0.0)                                   # dropout would make the learner another policy than the sampler
    model.eval()
    weights = reward_weights or dict.fromkeys(task.rewards, 1.0)
    advantages = advantages or partial(group_advantages, scale=config.scale, ddof=config.ddof)
    objective = objective or (lambda logp, old_logp, adv, mask: clipped_surrogate(logp, old_logp, adv, clip_low=config.clip_low, clip_high=config.clip_high))
    reference = freeze(copy.deepcopy(model)) if config.kl_coef > 0 else None
    state = TrainState(model, make_optimizer(model, lr=config.lr, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay),
                       {} if reference is None else {"reference": reference})
    if resume is not None:
        state.load_state_dict(resume)
    P, G = config.prompts_per_step, config.group_size
    on_policy = config.iterations == config.minibatches == 1

    while state.step < config.steps:
        began, sums = time.perf_counter(), Sums()

        # 1. sample G completions per prompt from pi_old                                     DeepSeekMath, algorithm 1, lines 5-7
        problems = task.sample(P, random.Random(derive_seed(seed, "grpo", state.step, "problems")))
        generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "grpo", state.step, "sample"))
        rollouts = sample(model, [tokenizer.encode_prompt(p.prompt) for p in problems], group=G, max_new_tokens=config.max_new_tokens,
                          temperature=config.temperature, eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id, generator=generator)
        completions = [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]                       # B = P * G texts

        # 2. score, then compare inside each group                                           lines 8-9
        prompts = [p.prompt for p in problems for _ in range(G)]
        known = {**columns(problems, repeat=G), "completion_ids": rollouts.completion_ids()}
        verdicts = judge(task.rewards, weights, prompts, completions, **known)                                      # B numbers (None: no verdict) each
        rewards = to_tensor(weighted_sum(list(verdicts.values()), list(weights.values()))).view(P, G)               # (P, G), NaN: no verdict
        check_judged(rewards)
        shaped = rewards
        if config.overlong_cache:
            lengths = rollouts.completion_lengths.cpu().view(P, G)
            penalty = overlong_penalty(lengths, max_length=config.max_new_tokens,
                                       cache=config.overlong_cache)                     # (P, G)
            sums.add("rewards/overlong_penalty/mean", penalty)
            shaped = rewards + penalty
        adv = advantages(shaped).view(P * G).to(model.device)                           # (B,)
        chosen = dynamic_sampling(rewards).repeat_interleave(G).nonzero().squeeze(1) if config.dynamic_sampling else torch.arange(P * G)

        # 3. freeze what the update may not touch
        old_logp = None if on_policy else rollout_logprobs(model, rollouts, temperature=config.temperature, token_budget=config.token_budget)
        ref_logp = None if reference is None else rollout_logprobs(reference, rollouts, temperature=config.temperature,
                                                                   token_budget=config.token_budget)                # (B, T)

        # 4. update: surrogate - kl_coef * kl, aggregate, backward, clip, step               lines 10-11
        lr = config.lr * cosine_to_floor(state.step, config.steps, floor=config.min_lr_ratio, warmup=min(config.warmup_steps, config.steps - 1))
        set_lr(state.optimizer, lr)
        shuffle = torch.Generator().manual_seed(derive_seed(seed, "grpo", state.step, "shuffle"))
        for _ in range(config.iterations):
            for minibatch in chosen[torch.randperm(len(chosen), generator=shuffle)].to(model.device).tensor_split(config.minibatches):
                if len(minibatch) == 0:
                    continue
                total = normaliser(rollouts.mask[minibatch], config.aggregate, max_length=config.max_new_tokens)
                for part in micro_batches(rollouts.lengths[minibatch], config.token_budget):
                    rows = minibatch[part]
                    batch = rollouts.rows(rows)                                                                     # (b, T')
                    width = batch.tokens.shape[1]
                    logp, entropy = token_logprobs(model, batch.tokens, mask=batch.mask, temperature=config.temperature, return_entropy=True)
                    old = logp.detach() if on_policy else old_logp[rows, :width]
                    surrogate = objective(logp, old, adv[rows, None].expand_as(logp), batch.mask)                   # (b, T')
                    watch(sums, surrogate, logp, old, batch, adv[rows, None], entropy)
                    if reference is not None:
                        kl = k3(logp, ref_logp[rows, :width])
                        surrogate = surrogate - config.kl_coef * kl
                        sums.add("kl", kl, batch.mask)
                    loss = -aggregate(surrogate, batch.mask, config.aggregate, total=total)
                    check_finite(loss, state.step + 1, rows, completions)
                    loss.backward()
                sums.add("grad_norm", torch.tensor(clip_gradient(model, config.max_grad_norm, step=state.step + 1)))
                state.optimizer.step()
                check_weights(model, state.step + 1)
                state.optimizer.zero_grad()
        state.step += 1
        state.num_tokens += int(rollouts.lengths.sum())
        if reference is not None and config.ref_sync_steps and state.step % config.ref_sync_steps == 0:
            reference.load_state_dict(model.state_dict())

        # 5. report
        if log is not None:
            rules = {f"rewards/{name}/mean": mean_judged(judged) for name, verdict in verdicts.items() if not (judged := to_tensor(verdict)).isnan().all()}
            log(state.step, {**describe(rewards, rollouts), "frac_reward_zero_std": float(zero_spread(rewards).float().mean()), **rules, **sums.means(),
                             "learning_rate": lr, "num_tokens": state.num_tokens, "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    return model
