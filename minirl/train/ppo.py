"""Proximal Policy Optimization: sample a completion per prompt, and raise the probability of the
tokens after which more reward came than a value function expected.

    Paper      InstructGPT, arXiv:2203.02155, section 3.5, eq. 2, and appendix C.4; PPO,
               arXiv:1707.06347, eqs. 7 and 9; GAE, arXiv:1506.02438, eq. 16
    Objective  maximise  E[ r(x, y) - β log(π / π_SFT) ] + γ E_pretrain[ log π(x) ]

Same as the paper  the KL penalty to the SFT policy is part of every token's reward, and the score
                   stands on the last sampled token; a value function of its own, initialised from
                   the reward model; a warm-up from a tenth; averaged weights; PPO-ptx.
Different          a completion that was cut off is scored by a penalty, and its last state's value
                   stands for what was to come; the gradient is clipped; kl_coef may adapt.
Why                half a completion cannot be scored, and never ending must not pay.

Three log-probs per token: behavior_logp (what the sampler computed), old_logp (the learner before
the update), logp (the learner now).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minirl.equations.advantages import gae
from minirl.equations.kl import k1, k3, kl_shaped_rewards
from minirl.equations.objectives import clipped_surrogate, clipped_value_loss, ppo_objective
from minirl.equations.reduce import aggregate, explained_variance, masked_whiten, normaliser
from minirl.equations.schedules import update_ema, warmup_to_constant
from minirl.inference.collect import collect
from minirl.lm import world
from minirl.lm.heads import ScalarModel, rollout_values, value_model_from
from minirl.lm.logprobs import rollout_logprobs, token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import TOKEN_BUDGET, micro_batches
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Task
from minirl.train.checks import check
from minirl.train.metrics import Sums, check_finite, check_judged, describe, watch
from minirl.train.pretraining import Pretraining
from minirl.train.state import Log, Save, TrainState, apply_update, freeze, make_optimizer

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # logp, old, adv, mask -> (b, T)
KLControl = Callable[[float, float, int], float]  # kl_coef, KL per completion, completions -> next


@dataclass(frozen=True)
class PPOConfig:
    """Defaults: the tiny model, on a laptop. Papers' numbers and variants: train/presets.py."""

    steps: int = 60
    episodes: int = 128                # P: prompts per step, each with one completion
    epochs: int = 1                    # passes over one batch of rollouts
    minibatch_size: int = 64
    lr: float = 3e-4
    value_lr: float = 1e-3
    warmup_steps: int = 5
    kl_coef: float = 0.1               # β
    kl_target: float = 1.0             # nats per completion, for presets that adapt kl_coef
    kl_horizon: int = 1000             # completions over which they adapt it
    clip_low: float = 0.2              # ε: PPO, arXiv:1707.06347, section 6.1
    clip_high: float = 0.2
    aggregate: str = "token_mean"      # see reduce.aggregate for the others
    gamma: float = 1.0                 # InstructGPT: no discount
    lam: float = 0.95                  # λ of GAE: PPO's number; InstructGPT names none
    value_clip: float = 0.2            # how far a value may move in a step; 0: no bound (baselines)
    value_coef: float = 1.0            # of the value loss; with its own optimizer, value_lr counts
    entropy_coef: float = 0.0
    whiten_advantages: bool = True     # in neither paper: OpenAI baselines
    ptx_coef: float = 0.0              # γ of eq. 2
    ptx_batch_size: int = 64           # pretraining texts per minibatch
    ema_decay: float = 0.9             # of the averaged weights, per minibatch; 0: no average
    missing_eos_penalty: float = 1.0   # what a completion that was cut off costs
    max_new_tokens: int = 16
    temperature: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes memory and time alone

    def __post_init__(self) -> None:
        check(self)


def train_ppo(
        model: Transformer, tokenizer: Tokenizer, task: Task, config: PPOConfig, *,
        value_model: ScalarModel | None = None, pretraining: Sequence[str] = (),
        objective: Objective | None = None, kl_control: KLControl | None = None, seed: int = 0,
        log: Log | None = None, save: Save | None = None, resume: dict | None = None,
) -> Transformer:
    """Train `model` in place on a task's problems and rewards, and return it, in eval mode.

    value_model is where the value function starts; left out, the policy with a fresh head.
    pretraining: texts for eq. 2's second term. kl_control gives the next step's kl_coef.
    objective is an equation; left out, the clipped surrogate.
    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError where a prompt does not fit the context or no completion got a
    verdict, NonFiniteError if a loss, gradient or weight is NaN or infinite.

    Metrics are means over the completions with a verdict: objective/scores of what stands on the
    last token, objective/kl of Σ_t log(π / π_SFT), objective/rlhf_reward of scores - kl_coef * kl.
    """
    model.set_dropout(0.0)             # with dropout the learner would not be the sampler's policy
    model.eval()
    objective = objective or (lambda logp, old, adv, mask: clipped_surrogate(
        logp, old, adv, clip_low=config.clip_low, clip_high=config.clip_high))
    reference = freeze(copy.deepcopy(model))
    value_model = value_model_from(value_model, model, seed=derive_seed(seed, "ppo", "head"))
    value_optimizer = make_optimizer(value_model, config, lr=config.value_lr)
    average = freeze(copy.deepcopy(model).float())  # in float32: bfloat16 would lose small steps
    state = TrainState(model, make_optimizer(model, config),
                       {"reference": reference, "value_model": value_model, "average": average,
                        "value_optimizer": value_optimizer}, {"kl_coef": config.kl_coef})
    if resume is not None:
        state.load_state_dict(resume)
    logprobs = partial(rollout_logprobs, temperature=config.temperature,
                       token_budget=config.token_budget)
    texts = Pretraining(model, tokenizer, pretraining, config)
    P, G = config.episodes, 1

    while state.step < config.steps:
        began, sums = time.perf_counter(), Sums()
        seeds = partial(derive_seed, seed, "ppo", state.step)

        # 1. sample G completions per prompt from π_old
        problems = task.sample(P, random.Random(seeds("problems")))
        answers = collect(model, tokenizer, task, problems, group=G,
                          max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                          generator=torch.Generator(model.device).manual_seed(seeds("sample")))

        # 2. score
        rewards = check_judged(answers.rewards).to(model.device)  # (P,), NaN: no verdict
        chosen = (~rewards.isnan()).nonzero().squeeze(1)  # (B,)
        rollouts = answers.rollouts.rows(chosen)
        scores = torch.where(rollouts.truncated, -config.missing_eos_penalty, rewards[chosen])

        # 3. freeze what the update may not touch
        old_logp = logprobs(model, rollouts)  # (B, T)
        ref_logp = logprobs(reference, rollouts)  # (B, T)
        old_values, end = rollout_values(value_model, rollouts, token_budget=config.token_budget)
        kl_coef, mask = state.numbers["kl_coef"], rollouts.mask
        shaped = kl_shaped_rewards(scores, old_logp, ref_logp, mask, kl_coef)  # (B, T)
        adv, returns = gae(shaped, old_values, mask, gamma=config.gamma, lam=config.lam,
                           bootstrap=torch.where(rollouts.truncated, end, 0))  # (B, T) each
        explained = float(explained_variance(old_values, returns, mask))
        adv = masked_whiten(adv, mask) if config.whiten_advantages else adv
        distance = float(k1(old_logp, ref_logp).sum(1).mean())  # nats per completion

        # 4. update: surrogate and its other terms, aggregate, backward, clip, step
        warmup = warmup_to_constant(state.step, warmup=config.warmup_steps)
        lr, value_lr = config.lr * warmup, config.value_lr * warmup
        shuffle = torch.Generator().manual_seed(seeds("shuffle"))
        for _ in range(config.epochs):
            order = torch.randperm(len(rollouts), generator=shuffle).to(model.device)
            for minibatch in order.split(config.minibatch_size):
                total = world.total(normaliser(rollouts.mask[minibatch], config.aggregate,
                                               max_length=config.max_new_tokens))
                for part in micro_batches(rollouts.lengths[minibatch], config.token_budget):
                    rows = minibatch[part]
                    batch = rollouts.rows(rows)
                    T = batch.tokens.shape[1]
                    logp, entropy = token_logprobs(model, batch.tokens, mask=batch.mask,
                                                   temperature=config.temperature,
                                                   return_entropy=True)  # (b, T)
                    old = old_logp[rows, :T]
                    surrogate = objective(logp, old, adv[rows, :T], batch.mask)  # (b, T)
                    watch(sums, surrogate, logp, old, batch, adv[rows, :T], entropy)
                    sums.add("kl", k3(logp, ref_logp[rows, :T]), batch.mask)
                    values, _ = value_model(batch.tokens, batch.mask)  # (b, T)
                    error = clipped_value_loss(values, old_values[rows, :T], returns[rows, :T],
                                               clip=config.value_clip or float("inf"))
                    sums.add("loss/value", error, batch.mask)
                    surrogate = ppo_objective(surrogate, error, entropy,
                                              value_coef=config.value_coef,
                                              entropy_coef=config.entropy_coef)
                    loss = -aggregate(surrogate, batch.mask, config.aggregate, total=total)
                    check_finite(loss, state.step + 1, chosen[rows], answers.completions)
                    loss.backward()
                texts.add_gradient(shuffle, sums, state.step + 1)  # eq. 2's second term
                sums.add("grad_norm", apply_update(state, lr, config.max_grad_norm,
                                                   (value_model, value_optimizer, value_lr)))
                update_ema(average.parameters(), model.parameters(), decay=config.ema_decay)
        state.step += 1
        state.num_tokens += int(answers.rollouts.lengths.sum())
        if kl_control is not None:
            state.numbers["kl_coef"] = kl_control(kl_coef, distance, len(rollouts))

        # 5. report
        if log is not None:
            log(state.step, {**describe(answers), **sums.means(), "learning_rate": lr,
                             "objective/scores": float(scores.mean()), "objective/kl": distance,
                             "objective/rlhf_reward": float(shaped.sum(1).mean()),
                             "kl_coef": kl_coef, "value/explained_variance": explained,
                             "num_tokens": state.num_tokens,
                             "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    model.load_state_dict(average.state_dict())
    return model
