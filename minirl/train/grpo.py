"""Group Relative Policy Optimization: sample a group of completions per prompt, and raise the
probability of those that score above their group's mean.

    Paper      DeepSeekMath, arXiv:2402.03300, section 4.1, eqs. 3 and 4; algorithm 1: our comment 1
               is its lines 5 to 7, comment 2 lines 8 and 9, comment 4 lines 10 and 11
    Objective  maximise  1/G Σ_i 1/|o_i| Σ_t { min(ρ A, clip(ρ, 1-ε, 1+ε) A) - β k3 },  ρ = π/π_old

Same as the paper  the objective; outcome supervision, or process supervision (`credit`); k3, eq. 4,
                   against a reference that is replaced every `ref_sync_steps` steps (the paper's
                   outer loop; DeepSeek-R1: 25); μ passes over a batch of rollouts (`iterations`).
Different          rewards come from rules, as in DeepSeek-R1, arXiv:2501.12948, section 2.2; the
                   gradient norm is clipped; the learning rate follows a cosine (the papers, and
                   their presets, keep it constant).
Why                a rule cannot be over-optimised as a reward model can; one bad batch must not
                   undo a hundred good ones.
Options            what the field added since, all off: train/options.py, tutorials/TRL.md.

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

from minirl.equations.advantages import group_advantages
from minirl.equations.reduce import aggregate, normaliser
from minirl.equations.schedules import cosine_to_floor
from minirl.inference.collect import collect
from minirl.lm import world
from minirl.lm.logprobs import rollout_logprobs, token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import TOKEN_BUDGET, micro_batches
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.environment import EnvironmentFactory, Tool, with_tools
from minirl.tasks.problem import Task
from minirl.train.checks import check
from minirl.train.credit import Advantages, Credit, outcome_credit
from minirl.train.groups import score
from minirl.train.metrics import Sums, check_finite, describe, watch
from minirl.train.objectives import Objective, clipped
from minirl.train.options import GRPOOptions, check_options
from minirl.train.regularisers import KL_ESTIMATORS, EntropyBonus
from minirl.train.state import Log, Save, TrainState, apply_update, freeze, make_optimizer
from minirl.train.weights import Weights, counted_tokens, token_weights


@dataclass(frozen=True)
class GRPOConfig(GRPOOptions):
    """Defaults: the tiny model, on a laptop. Papers' numbers and variants: train/presets.py."""

    steps: int = 44                    # batches of rollouts
    prompts_per_step: int = 16         # P
    group_size: int = 8                # G, at least 2: each completion is compared with the others
    iterations: int = 1                # μ: passes over one batch of rollouts
    minibatches: int = 1               # optimizer steps per pass
    lr: float = 4e-4
    warmup_steps: int = 3
    min_lr_ratio: float = 0.1          # the cosine ends at this share of lr; 1: a constant lr
    kl_coef: float = 0.01              # β
    ref_sync_steps: int = 0            # 0: the reference stays the first model
    clip_low: float = 0.2              # ε: PPO, arXiv:1707.06347, section 6.1
    clip_high: float = 0.2             # DAPO, arXiv:2503.14476: 0.28
    aggregate: str = "sequence_mean"   # eq. 3; see reduce.aggregate for the others
    scale: str = "group"               # advantages are divided by the std of: group, batch or none
    max_new_tokens: int = 80
    temperature: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999               # a short memory would scale up late gradients, often near 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes only memory and time

    def __post_init__(self) -> None:
        check(self)
        check_options(self)


def train_grpo(
        model: Transformer, tokenizer: Tokenizer, task: Task, config: GRPOConfig, *,
        objective: Objective | None = None, advantages: Advantages | None = None,
        credit: Credit = outcome_credit, weights: Weights | None = None, seed: int = 0,
        tools: Sequence[Tool] | None = None, environment_factory: EnvironmentFactory | None = None,
        log: Log | None = None, save: Save | None = None, resume: dict | None = None,
) -> Transformer:
    """Train `model` in place on a task's problems and rewards, and return it, in eval mode.

    objective and advantages are equations; default: clipped_surrogate, and group_advantages with
    the configuration's scale and ddof. credit gives tokens their advantages (train/credit.py),
    weights says what they count for (train/weights.py). Completions may call tools, and the methods
    of an environment (tasks/environment.py).
    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError where a prompt does not fit the context or no completion got a
    verdict, NonFiniteError if a loss, gradient or weight is NaN or infinite.

    A completion without a verdict has advantage 0, and still counts in the means and the KL. If
    every group is dropped, nothing is updated, and the update's metrics are not logged.
    """
    model.set_dropout(0.0)  # with dropout, the learner would be another policy than the sampler
    model.eval()
    task = with_tools(task, tools, environment_factory)
    objective = objective or clipped(config.clip_low, config.clip_high, config.dual_clip)
    advantages = advantages or partial(group_advantages, scale=config.scale, ddof=config.ddof)
    reference = freeze(copy.deepcopy(model)) if config.kl_coef > 0 else None
    past = {f"past-{i}": freeze(copy.deepcopy(model)) for i in range(config.off_policy)}
    policies = [*past.values(), model]  # the oldest first: it samples
    state = TrainState(model, make_optimizer(model, config),
                       parts=past | ({} if reference is None else {"reference": reference}))
    weights, bonus = weights or token_weights(config), EntropyBonus(config, state.numbers)
    if resume is not None:
        state.load_state_dict(resume)
    logprobs = partial(rollout_logprobs, temperature=config.temperature,
                       token_budget=config.token_budget)
    on_policy = config.iterations == config.minibatches == 1  # one update: old_logp is logp
    P, G = config.prompts_per_step, config.group_size

    while state.step < config.steps:
        began, sums = time.perf_counter(), Sums()
        seed_of = partial(derive_seed, seed, "grpo", state.step)

        # 1. sample G completions per prompt from π_old, and judge them
        problems = world.share(task.sample(P, random.Random(seed_of("problems"))))
        answers = collect(
            policies[0], tokenizer, task, problems, group=G, **config.filters,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            generator=torch.Generator(model.device).manual_seed(seed_of("sample", *world.place())))

        # 2. score: the rewards, and which rows to learn from
        answers, rewards, chosen = score(answers, policies[0], tokenizer, task, config, seed_of,
                                         sums)  # DAPO's dynamic sampling draws more
        rollouts = answers.rollouts.rows(chosen)
        adv = credit(world.of_all(advantages)(rewards), answers)[chosen]  # (B', T)
        rollouts = rollouts.without(rollouts.truncated) if config.mask_truncated else rollouts

        # 3. freeze what the update may not touch
        old_logp = rollouts.behavior_logp if config.old_logp == "sampler" else (
            None if on_policy else logprobs(model, rollouts))  # (B', T)
        ref_logp = None if reference is None else logprobs(reference, rollouts)  # (B', T)
        counted = counted_tokens(model, rollouts, config)  # (B', T) bool: whose surrogate counts
        for older, newer in zip(policies, policies[1:], strict=False):
            older.load_state_dict(newer.state_dict())

        # 4. update: surrogate and its other terms, aggregate, backward, clip, step
        lr = config.lr * cosine_to_floor(state.step, config.steps, floor=config.min_lr_ratio,
                                         warmup=min(config.warmup_steps, config.steps - 1))
        shuffle = torch.Generator().manual_seed(seed_of("shuffle"))
        for _ in range(config.iterations):
            order = torch.randperm(len(rollouts), generator=shuffle).to(model.device)
            for minibatch, B in world.minibatches(order.tensor_split(config.minibatches)):
                total = world.total(normaliser(rollouts.mask[minibatch], config.aggregate,
                                               max_length=config.max_new_tokens))
                bonus.begin(counted[minibatch])
                for part in micro_batches(rollouts.lengths[minibatch], config.token_budget):
                    rows = minibatch[part]
                    batch = rollouts.rows(rows)
                    T = batch.tokens.shape[1]  # the longest of these rows; the rest is padding
                    logp, entropy = token_logprobs(model, batch.tokens, mask=batch.mask,
                                                   temperature=config.temperature,
                                                   return_entropy=True)  # (b, T)
                    old = logp.detach() if old_logp is None else old_logp[rows, :T]
                    surrogate = objective(logp, old, adv[rows, :T], batch.mask)  # (b, T)
                    watch(sums, surrogate, logp, old, batch, adv[rows, :T], entropy)  # metrics
                    if weights is not None:
                        weight = weights(logp.detach(), old, batch.behavior_logp, adv[rows, :T],
                                         counted[rows, :T], batch.mask)  # (b, T)
                        sums.add_weights(weight, batch.mask)
                        surrogate = surrogate * weight
                    if ref_logp is not None:
                        kl = KL_ESTIMATORS[config.kl_estimator](logp, old, ref_logp[rows, :T])
                        sums.add("kl", kl, batch.mask)
                        surrogate = surrogate - config.kl_coef * kl
                    loss = -aggregate(surrogate, batch.mask, config.aggregate, total=total)
                    loss = loss - bonus.of(entropy, counted[rows, :T])
                    check_finite(loss, state.step + 1, chosen[rows], answers.completions)
                    sums.add("loss", loss, count=len(rows) / B)
                    state.backward(loss, chosen[rows], answers.completions)
                apply_update(state, lr, config.max_grad_norm, sums)
                bonus.adapt(sums)
        state.step += 1
        state.num_tokens += world.total(int(answers.rollouts.lengths.sum()))  # prompts included
        if reference and config.ref_sync_steps and state.step % config.ref_sync_steps == 0:
            for ref, new in zip(reference.parameters(), model.parameters(), strict=True):
                ref.lerp_(new.detach(), config.ref_mixup)  # α = 1: a copy

        # 5. report
        if log is not None:
            log(state.step, {**describe(answers), **sums.means(), "learning_rate": lr,
                             "num_tokens": state.num_tokens,
                             "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    return model
