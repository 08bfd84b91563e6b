"""Proximal Policy Optimization against a reward model: sample an answer per prompt, and make those tokens likelier after which more came than was expected.

    Paper      InstructGPT, arXiv:2203.02155, section 3.5, eq. 2, and appendix C.4; PPO, arXiv:1707.06347, eqs. 7 and 9; GAE, arXiv:1506.02438, eq. 16
    Objective  maximise  E[ r(x, y) - beta log(pi / pi_SFT) ] + gamma E_pretrain[ log pi(x) ],  through the clipped surrogate of GAE's advantages

Same as the paper  the KL penalty to the SFT policy is part of every token's reward, and the score stands on the last sampled token; a value function
                   of its own, started from the reward model, with its own learning rate; no
                   discount; clip 0.2; a warm-up from a tenth, then constant; the average of the
                   weights is the result; PPO-ptx: pretraining text beside every mini-batch.
Different          an answer that was cut off is not over: the value of its last state stands for what was still to come, in place of its score, and
                   being cut off costs `missing_eos_penalty`; the gradient is clipped in length; the KL coefficient may follow a controller (Ziegler
                   et al., PPO section 4).
Why                where the budget of tokens ends is no end of the text, and no reward model has learnt to score halves. (At first the value function says
                   of a half what the reward model does, from which it starts.) But where every end is scored badly it would be best to put it off for
                   ever: hence the penalty, which is on by default.

Three columns of log-probs: behavior_logp (the sampler's), old_logp (the learner's before the update), logp (the learner's now).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minirl.equations.advantages import gae
from minirl.equations.kl import k1, k3, kl_shaped_rewards
from minirl.equations.objectives import clipped_surrogate, clipped_value_loss, ppo_objective, value_loss
from minirl.equations.reduce import aggregate, explained_variance, masked_whiten, normaliser
from minirl.equations.schedules import update_ema, warmup_to_constant
from minirl.lm.heads import ScalarModel, rollout_values
from minirl.lm.logprobs import rollout_logprobs, token_logprobs
from minirl.lm.rollouts import TOKEN_BUDGET, completion_batch, micro_batches
from minirl.lm.sampling import sample
from minirl.tasks.problem import columns
from minirl.tasks.rewards import judge, weighted_sum
from minirl.train.checks import check_fields
from minirl.train.encoding import encode_texts
from minirl.train.seeding import seeded
from minirl.train.state import (Sums, TrainState, check_finite, check_judged, check_weights,
                                clip_gradient, derive_seed, describe, freeze, make_optimizer,
                                mean_judged, set_lr, to_tensor, watch)

KLControl = Callable[[float, float, int], float]      # kl_coef, KL of a whole completion, completions -> the next step's kl_coef


@dataclass(frozen=True)
class PPOConfig:
    """Defaults: the tiny model, on a laptop. Papers' numbers: minirl/app/presets.py."""

    steps: int = 60
    episodes: int = 128                # per step; InstructGPT: 512
    minibatch_size: int = 64           # InstructGPT: 64
    epochs: int = 1                    # passes over one batch of episodes; InstructGPT: 1
    lr: float = 3e-4
    value_lr: float = 1e-3
    warmup_steps: int = 5              # InstructGPT: 10, from a tenth
    kl_coef: float = 0.1               # beta; InstructGPT: 0.02
    kl_target: float = 1.0             # nats per completion, what a controller of kl_coef aims at (presets with one); Ziegler et al.: 6
    kl_horizon: int = 1000             # completions over which it does; Ziegler et al.: 10,000
    gamma: float = 1.0                 # InstructGPT: no discount
    lam: float = 0.95                  # GAE; PPO's number, InstructGPT names none
    clip_low: float = 0.2              # InstructGPT: 0.2
    clip_high: float = 0.2
    value_clip: float = 0.2            # how far a value may move in an update; 0: no bound (in neither paper: OpenAI baselines)
    value_coef: float = 1.0            # of the value loss; with an optimizer of its own, value_lr is what counts
    entropy_coef: float = 0.0
    whiten_advantages: bool = True     # in neither paper: OpenAI baselines
    ptx_coef: float = 0.0              # gamma of eq. 2; InstructGPT: 27.8
    ptx_batch_size: int = 64           # pretraining texts per mini-batch; InstructGPT: 8 times as many as episodes
    ema_decay: float = 0.9             # of the weights, per mini-batch; InstructGPT: 0.992; 0: the last weights are the result
    missing_eos_penalty: float = 1.0   # what an answer that was cut off costs; its score does not count
    max_new_tokens: int = 16
    temperature: float = 1.0
    beta1: float = 0.9                 # InstructGPT, appendix C: Adam (0.9, 0.95)
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes memory and time, not the result

    def __post_init__(self):
        check_fields(self)


def train_ppo(model, tokenizer, task, config: PPOConfig, *, value_model: ScalarModel | None = None, pretraining: Sequence[str] = (), seed: int = 0,
              kl_control: KLControl | None = None, reward_weights: dict[str, float] | None = None, log: Callable[[int, dict], None] | None = None,
              save: Callable[[TrainState], None] | None = None, resume: dict | None = None):
    """Train `model` in place on a task's problems and rewards, and return it, in eval mode, with the average of its weights.

    value_model: what the value function starts from, the reward model (it is copied); left out, the policy with a fresh head. pretraining: texts for the
    second term of eq. 2, wanted where ptx_coef is not 0. kl_control gives the next step's kl_coef; left out, it stays. reward_weights, log, save and
    resume are as in train_grpo. Raises ValueError where a prompt does not fit the context or
    nothing was judged, NonFiniteError if a loss, gradient or weight leaves the finite numbers.

    The metrics `reward` and `reward_std` are of the task's rewards. What is trained on has TRL's
    names, each a mean over the completions that were judged: objective/scores stands on the last
    token, the reward or, of an answer that was cut off, -missing_eos_penalty; objective/kl is
    log(pi / pi_SFT) of a whole completion; objective/rlhf_reward is objective/scores - kl_coef *
    objective/kl.
    """
    model.set_dropout(0.0)                                   # dropout would make the learner another policy than the sampler
    model.eval()
    weights = reward_weights or dict.fromkeys(task.rewards, 1.0)
    before, after = encode_texts(tokenizer, pretraining, model.config.max_seq_len) if config.ptx_coef else ([], [])      # each text's first token, and the rest
    reference = freeze(copy.deepcopy(model))
    with seeded(derive_seed(seed, "ppo", "head"), model.device):
        value_model = copy.deepcopy(value_model or ScalarModel(model).to(model.device))
    value_model.eval().requires_grad_(True)
    value_model.set_dropout(0.0)
    average = freeze(copy.deepcopy(model).float())             # in float32, or small steps are lost
    adam = dict(betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)
    value_optimizer = make_optimizer(value_model, lr=config.value_lr, **adam)
    state = TrainState(model, make_optimizer(model, lr=config.lr, **adam), {"reference": reference, "value_model": value_model, "average": average,
                                                                            "value_optimizer": value_optimizer}, {"kl_coef": config.kl_coef})
    if resume is not None:
        state.load_state_dict(resume)

    while state.step < config.steps:
        began, sums, kl_coef = time.perf_counter(), Sums(), state.numbers["kl_coef"]

        # 1. sample one completion per prompt from pi_old
        problems = task.sample(config.episodes, random.Random(derive_seed(seed, "ppo", state.step, "problems")))
        generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "ppo", state.step, "sample"))
        rollouts = sample(model, [tokenizer.encode_prompt(p.prompt) for p in problems], max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                          eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id, generator=generator)
        completions = [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]                       # B texts

        # 2. score
        prompts = [p.prompt for p in problems]
        known = {**columns(problems), "completion_ids": rollouts.completion_ids()}
        verdicts = judge(task.rewards, weights, prompts, completions, **known)                                      # B numbers (None: no verdict) each
        verdict = to_tensor(weighted_sum(list(verdicts.values()), list(weights.values())))                          # (B,), NaN: no verdict
        check_judged(verdict)
        judged = (~verdict.isnan()).nonzero().squeeze(1).to(model.device)                                            # rows without a verdict are left out
        episodes, scores = rollouts.rows(judged), verdict.to(model.device)[judged]
        mask, cut = episodes.mask, episodes.truncated

        # 3. freeze what the update may not touch; compare what came with what was expected
        old_logp = rollout_logprobs(model, episodes, temperature=config.temperature, token_budget=config.token_budget)          # (B, T)
        ref_logp = rollout_logprobs(reference, episodes, temperature=config.temperature, token_budget=config.token_budget)
        old_values, end = rollout_values(value_model, episodes, token_budget=config.token_budget)                               # (B, T), (B,)
        final = torch.where(cut, -config.missing_eos_penalty, scores)
        rewards = kl_shaped_rewards(final, old_logp, ref_logp, mask, kl_coef)                                                   # (B, T)
        adv, returns = gae(rewards, old_values, mask, gamma=config.gamma, lam=config.lam, bootstrap=torch.where(cut, end, 0))
        explained = float(explained_variance(old_values, returns, mask))
        if config.whiten_advantages:
            adv = masked_whiten(adv, mask)
        kl = k1(old_logp, ref_logp).sum(1).mean()                                                                               # of whole completions

        # 4. update: surrogate - value_coef * value loss + entropy_coef * entropy + ptx_coef * log-likelihood of pretraining text
        warm = warmup_to_constant(state.step, warmup=config.warmup_steps)
        set_lr(state.optimizer, config.lr * warm)
        set_lr(value_optimizer, config.value_lr * warm)
        shuffle = torch.Generator().manual_seed(derive_seed(seed, "ppo", state.step, "shuffle"))
        for _ in range(config.epochs):
            for minibatch in torch.randperm(len(episodes), generator=shuffle).to(model.device).split(config.minibatch_size):
                total = normaliser(mask[minibatch], "token_mean")
                for part in micro_batches(episodes.lengths[minibatch], config.token_budget):
                    rows = minibatch[part]
                    batch = episodes.rows(rows)                                                                     # (b, T')
                    width = batch.tokens.shape[1]
                    logp, entropy = token_logprobs(model, batch.tokens, mask=batch.mask, temperature=config.temperature, return_entropy=True)
                    values, _ = value_model(batch.tokens, batch.mask)                                               # (b, T')
                    old, known_values, known_returns = (x[rows, :width] for x in (old_logp, old_values, returns))
                    surrogate = clipped_surrogate(logp, old, adv[rows, :width], clip_low=config.clip_low, clip_high=config.clip_high)
                    watch(sums, surrogate, logp, old, batch, adv[rows, :width], entropy)
                    missed = clipped_value_loss(values, known_values, known_returns, clip=config.value_clip) if config.value_clip else value_loss(values, known_returns)
                    objective = ppo_objective(surrogate, missed, entropy, value_coef=config.value_coef, entropy_coef=config.entropy_coef)
                    loss = -aggregate(objective, batch.mask, "token_mean", total=total)
                    check_finite(loss, state.step + 1, judged[rows], completions)
                    loss.backward()
                    sums.add("kl", k3(logp, ref_logp[rows, :width]), batch.mask)
                    sums.add("loss/value", missed, batch.mask)
                # the second term of eq. 2 (objectives.ptx_objective): its gradient is added before the step, as in appendix C.4
                read = torch.randint(len(before), (config.ptx_batch_size,), generator=shuffle) if config.ptx_coef else torch.zeros(0, dtype=torch.long)
                words = sum(len(after[i]) for i in read.tolist())
                for part in micro_batches(torch.tensor([1 + len(after[i]) for i in read.tolist()], dtype=torch.long), config.token_budget):
                    text, text_mask = completion_batch([before[i] for i in read[part]], [after[i] for i in read[part]], tokenizer.pad_id, model.device)
                    text_logp = token_logprobs(model, text, mask=text_mask)
                    loss = -config.ptx_coef * aggregate(text_logp, text_mask, "token_mean", total=words)
                    check_finite(loss, state.step + 1, read[part], pretraining)
                    loss.backward()
                    sums.add("loss/pretraining", -text_logp, text_mask)
                sums.add("grad_norm", torch.tensor(clip_gradient(model, config.max_grad_norm, step=state.step + 1)))
                clip_gradient(value_model, config.max_grad_norm, step=state.step + 1)
                for optimizer in (state.optimizer, value_optimizer):
                    optimizer.step()
                    optimizer.zero_grad()
                for trained in (model, value_model):
                    check_weights(trained, state.step + 1)
                update_ema(average.parameters(), model.parameters(), decay=config.ema_decay)
        state.step += 1
        state.num_tokens += int(rollouts.lengths.sum())
        if kl_control is not None:
            state.numbers["kl_coef"] = kl_control(kl_coef, float(kl), len(episodes))

        # 5. report
        if log is not None:
            each = {f"rewards/{name}/mean": mean_judged(found) for name, given in verdicts.items() if not (found := to_tensor(given)).isnan().all()}
            trained_on = {"objective/scores": float(final.mean()), "objective/kl": float(kl),
                          "objective/rlhf_reward": float(rewards.sum(1).mean())}
            log(state.step, {**describe(verdict, rollouts), **each, **sums.means(), **trained_on,
                             "kl_coef": kl_coef, "value/explained_variance": explained,
                             "learning_rate": config.lr * warm, "num_tokens": state.num_tokens,
                             "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    model.load_state_dict(average.state_dict())
    return model
