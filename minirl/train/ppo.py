"""Proximal Policy Optimization: sample a completion per prompt, and raise the probability of the
tokens after which more reward came than a value function expected.

    Paper      InstructGPT, arXiv:2203.02155, eq. 2, appendix C.4; PPO, arXiv:1707.06347, eqs. 7, 9
    Objective  maximise  E[ r(x, y) - β log(π / π_SFT) ] + γ E_pretrain[ log π(x) ], per token by
               min(ρ A, clip(ρ, 1-ε, 1+ε) A) - c_1 L_VF + c_2 S,  ρ = π/π_old

Same as the paper  the KL penalty in each token's reward, the score at the last token; a separate
                   value function, initialised from the reward model; averaged weights; PPO-ptx.
Different          a cut-off completion scores -missing_eos_penalty, and GAE starts from the value
                   of its last state; the gradient norm is clipped; kl_coef may adapt.
Why                half a completion has no score, and a policy must not gain by never stopping.

Log-probs of every sampled token: behavior_logp, the sampler's (a metric compares it); old_logp, the
policy's before the update; ref_logp, the reference's; logp, the policy's now, with a gradient.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from minirl.equations.advantages import gae
from minirl.equations.kl import k1, k3, kl_shaped_rewards
from minirl.equations.objectives import clipped_value_loss, ppo_objective
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
from minirl.train.objectives import Objective, clipped
from minirl.train.pretraining import Pretraining
from minirl.train.regularisers import KLControl
from minirl.train.state import Log, Save, TrainState, apply_update, freeze, make_optimizer


@dataclass(frozen=True)
class PPOConfig:
    """Defaults: the tiny model, on a laptop. Papers' numbers and variants: train/presets.py."""

    steps: int = 60                    # batches of rollouts
    episodes: int = 128                # P: prompts per step, each with one completion
    epochs: int = 1                    # passes over one batch of rollouts
    minibatch_size: int = 64
    lr: float = 3e-4
    value_lr: float = 1e-3
    warmup_steps: int = 5
    kl_coef: float = 0.1               # β
    kl_target: float = 1.0             # nats per completion; read by a preset's kl_control alone
    kl_horizon: int = 1000             # completions; read by a preset's kl_control alone
    clip_low: float = 0.2              # ε: PPO, arXiv:1707.06347, section 6.1
    clip_high: float = 0.2             # DAPO, arXiv:2503.14476: 0.28
    aggregate: str = "token_mean"      # see reduce.aggregate for the others
    gamma: float = 1.0                 # the discount, not eq. 2's γ; InstructGPT: none
    lam: float = 0.95                  # λ of GAE: PPO's number; InstructGPT names none
    value_clip: float = 0.2            # how far a value may move in a step; 0: no bound (baselines)
    value_coef: float = 1.0            # c_1 of PPO's eq. 9; AdamW rescales it, so value_lr counts
    entropy_coef: float = 0.0          # c_2
    whiten_advantages: bool = True     # in neither paper: OpenAI baselines
    ptx_coef: float = 0.0              # γ of eq. 2
    ptx_batch_size: int = 64           # pretraining texts per minibatch
    ema_decay: float = 0.9             # of the averaged weights, per minibatch; 0: no average
    missing_eos_penalty: float = 1.0   # a cut-off completion scores minus this, whatever its reward
    max_new_tokens: int = 16
    temperature: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes only memory and time

    def __post_init__(self) -> None:
        check(self)


def train_ppo(
        model: Transformer, tokenizer: Tokenizer, task: Task, config: PPOConfig, *,
        value_model: ScalarModel | None = None, pretraining: Sequence[str] = (),
        objective: Objective | None = None, kl_control: KLControl | None = None, seed: int = 0,
        log: Log | None = None, save: Save | None = None, resume: dict | None = None,
) -> Transformer:
    """Train `model` in place on a task's problems and rewards, and return it, in eval mode.

    Its weights are then the average. The value function starts as a copy of value_model; default:
    the policy with a new head. pretraining are eq. 2's texts. kl_control gives the next kl_coef.
    objective is an equation, maximised; default: clipped_surrogate.
    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError where a prompt does not fit the context or no completion got a
    verdict, NonFiniteError if a loss, gradient or weight is NaN or infinite.

    Means over completions with a verdict: objective/scores (reward, or -missing_eos_penalty),
    objective/kl (Σ_t log(π / π_SFT)) and objective/rlhf_reward (scores - kl_coef * kl).
    """
    model.set_dropout(0.0)  # with dropout, the learner would be another policy than the sampler
    model.eval()
    objective = objective or clipped(config.clip_low, config.clip_high)
    reference = freeze(copy.deepcopy(model))
    value_model = value_model_from(value_model, model, seed=derive_seed(seed, "ppo", "head"))
    value_optimizer = make_optimizer(value_model, config, lr=config.value_lr)
    average = freeze(copy.deepcopy(model).float())  # in float32: bfloat16 would lose small steps
    state = TrainState(model, make_optimizer(model, config),
                       parts={"reference": reference, "value_model": value_model,
                              "value_optimizer": value_optimizer, "average": average},
                       numbers={"kl_coef": config.kl_coef})
    if resume is not None:
        state.load_state_dict(resume)
    logprobs = partial(rollout_logprobs, temperature=config.temperature,
                       token_budget=config.token_budget)
    ptx = Pretraining(state, tokenizer, pretraining, config)
    P, G = config.episodes, 1

    while state.step < config.steps:
        began, sums = time.perf_counter(), Sums()
        seed_of = partial(derive_seed, seed, "ppo", state.step)

        # 1. sample G completions per prompt from π_old, and judge them
        problems = world.share(task.sample(P, random.Random(seed_of("problems"))))
        answers = collect(
            model, tokenizer, task, problems, group=G,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            generator=torch.Generator(model.device).manual_seed(seed_of("sample", *world.place())))

        # 2. score: the rewards, and which rows to learn from
        rewards = check_judged(answers.rewards).to(model.device)  # (P,), NaN: no verdict
        chosen = (~rewards.isnan()).nonzero().squeeze(1)  # (B',)
        rollouts = answers.rollouts.rows(chosen)
        scores = torch.where(rollouts.truncated, -config.missing_eos_penalty, rewards[chosen])

        # 3. freeze what the update may not touch
        old_logp = logprobs(model, rollouts)  # (B', T)
        ref_logp = logprobs(reference, rollouts)  # (B', T)
        old_values, v_end = rollout_values(value_model, rollouts, token_budget=config.token_budget)
        kl_coef, mask = state.numbers["kl_coef"], rollouts.mask
        shaped = kl_shaped_rewards(scores, old_logp, ref_logp, mask, kl_coef)  # (B', T)
        adv, returns = gae(shaped, old_values, mask, gamma=config.gamma, lam=config.lam,
                           bootstrap=torch.where(rollouts.truncated, v_end, 0))  # (B', T) each
        adv = world.over_tokens(masked_whiten)(adv, mask) if config.whiten_advantages else adv
        explained = world.over_tokens(explained_variance)(old_values, returns, mask)
        score, kl = map(world.mean, (scores, k1(old_logp, ref_logp).sum(1)))  # kl: of a completion

        # 4. update: surrogate and its other terms, aggregate, backward, clip, step
        warmup = warmup_to_constant(state.step, warmup=config.warmup_steps)
        lr, value_lr = config.lr * warmup, config.value_lr * warmup
        shuffle = torch.Generator().manual_seed(seed_of("shuffle"))
        for _ in range(config.epochs):
            order = torch.randperm(len(rollouts), generator=shuffle).to(model.device)
            for minibatch, B in world.minibatches(world.split(order, config.minibatch_size)):
                total = world.total(normaliser(rollouts.mask[minibatch], config.aggregate,
                                               max_length=config.max_new_tokens))
                for part in micro_batches(rollouts.lengths[minibatch], config.token_budget):
                    rows = minibatch[part]
                    batch = rollouts.rows(rows)
                    T = batch.tokens.shape[1]  # the longest of these rows; the rest is padding
                    logp, entropy = token_logprobs(model, batch.tokens, mask=batch.mask,
                                                   temperature=config.temperature,
                                                   return_entropy=True)  # (b, T)
                    old = old_logp[rows, :T]
                    surrogate = objective(logp, old, adv[rows, :T], batch.mask)  # (b, T)
                    watch(sums, surrogate, logp, old, batch, adv[rows, :T], entropy)  # metrics
                    sums.add("kl", k3(logp, ref_logp[rows, :T]), batch.mask)
                    values, _ = value_model(batch.tokens, batch.mask)  # (b, T)
                    vf = clipped_value_loss(values, old_values[rows, :T], returns[rows, :T],
                                                clip=config.value_clip or float("inf"))
                    sums.add("loss/value", vf, batch.mask)
                    surrogate = ppo_objective(surrogate, vf, entropy, value_coef=config.value_coef,
                                              entropy_coef=config.entropy_coef)
                    loss = -aggregate(surrogate, batch.mask, config.aggregate, total=total)
                    check_finite(loss, state.step + 1, chosen[rows], answers.completions)
                    sums.add("loss", loss, count=len(rows) / B)
                    state.backward(loss, chosen[rows], answers.completions)
                ptx.add_gradient(shuffle, sums, state.step + 1)  # eq. 2's second term
                apply_update(state, lr, config.max_grad_norm, sums,
                             (value_model, value_optimizer, value_lr))
                update_ema(average.parameters(), model.parameters(), decay=config.ema_decay)
        state.step += 1
        state.num_tokens += world.total(int(answers.rollouts.lengths.sum()))  # prompts included
        if kl_control is not None:
            state.numbers["kl_coef"] = kl_control(kl_coef, kl, world.total(len(rollouts)))

        # 5. report
        if log is not None:
            log(state.step, {**describe(answers), **sums.means(), "learning_rate": lr,
                             "objective/scores": score, "objective/kl": kl,
                             "objective/rlhf_reward": score - kl_coef * kl, "kl_coef": kl_coef,
                             "value/explained_variance": float(explained),
                             "num_tokens": state.num_tokens,
                             "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    model.load_state_dict(average.state_dict())
    return model
