"""Distillation: raise the probability of the tokens that a teacher finds likelier than the student
does, on completions that the student itself samples.

    Paper      On-policy distillation: GKD, arXiv:2306.13649, algorithm 1; MiniLLM, arXiv:2306.08543
    Objective  minimise  KL(π || π_T) at each token of the student's samples, in one of two forms:
               sampled   maximise  ρ_t A_t,  A_t = log π_T - log π of the sampled token, ρ = π/μ
               exact     minimise  D(π, π_T)  over the whole vocabulary, D given: lm/divergence.py

Same as the paper  GKD: a batch comes from the student with probability λ (`on_policy_share`), else
                   from the teacher; D is a generalised Jensen-Shannon divergence; no gradient goes
                   through the sampling. Sampled form: discount 0, an advantage is that of its own
                   token (Thinking Machines 2025, "On-policy distillation").
Different          the teacher's completions are sampled as they are needed (GKD: a fixed set).
Why                a toy samples faster than it reads, and no text is seen twice.

Self-distillation. The teacher may read another prompt: the question with a demonstration or with
feedback, for example (SDFT, arXiv:2601.19897; SDPO, arXiv:2601.20802). It may then be the policy
itself: what it can do with help, it learns to do without.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from minirl.equations.distillation import distillation_advantages
from minirl.equations.kl import k1
from minirl.equations.mismatch import importance_ratio
from minirl.equations.reduce import aggregate, normaliser
from minirl.equations.schedules import cosine_to_floor, update_ema
from minirl.inference.collect import collect
from minirl.lm import world
from minirl.lm.divergence import Divergence, check_same_vocabulary, token_divergence
from minirl.lm.logprobs import fill_slots, rollout_logprobs, token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import TOKEN_BUDGET, micro_batches, with_prompts
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem, Task
from minirl.train.checks import check
from minirl.train.metrics import Sums, check_finite, describe
from minirl.train.state import Log, Save, TrainState, apply_update, freeze, make_optimizer

TeacherPrompt = Callable[[Problem], str]  # what the teacher reads in place of the prompt


@dataclass(frozen=True)
class DistillConfig:
    """Defaults: the tiny model, on a laptop. Variants: train/presets.py."""

    steps: int = 44                    # batches of completions
    prompts_per_step: int = 128        # each with one completion
    on_policy_share: float = 1.0       # λ: of the batches that the student samples
    minibatches: int = 1               # optimizer steps per batch
    lr: float = 2e-3
    warmup_steps: int = 3
    min_lr_ratio: float = 0.1          # the cosine ends at this share of lr; 1: a constant lr
    aggregate: str = "token_mean"      # see reduce.aggregate for the others
    jsd_beta: float = 0.5              # β of GKD's divergence; read by preset gkd alone
    teacher_decay: float = 1.0         # the teacher follows the student's average; 1: it stays
    max_new_tokens: int = 80
    temperature: float = 1.0           # of both policies
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = TOKEN_BUDGET   # tokens per micro-batch; changes only memory and time

    def __post_init__(self) -> None:
        check(self)


def train_distill(
        model: Transformer, tokenizer: Tokenizer, task: Task, config: DistillConfig, *,
        teacher: Transformer | None = None, teacher_prompt: TeacherPrompt | None = None,
        divergence: Divergence | None = None, seed: int = 0,
        log: Log | None = None, save: Save | None = None, resume: dict | None = None,
) -> Transformer:
    """Train `model` in place to do on a task's problems as the teacher does, and return it, in eval
    mode. The teacher itself does not change.

    teacher has the model's tokenizer; default: the policy as it is at the start. teacher_prompt is
    what it reads in place of a problem's prompt. divergence, of (logits, teacher's logits), makes
    the exact form, such as kl.exact_kl (reverse KL); default: the sampled form.
    log(step, metrics) and save(state) are called after every step; resume is an earlier state's
    state_dict(). Raises ValueError where a prompt does not fit the context or nothing could be
    learnt, NonFiniteError if a loss, gradient or weight is NaN or infinite.

    The task's rewards are reported, and nothing is learnt from them. `teacher_kl` is k1's estimate
    of KL(π || π_T) in nats per token, of batches that the student sampled.
    """
    check_distillation(model, config, teacher, teacher_prompt, divergence)
    model.set_dropout(0.0)  # with dropout, the learner would be another policy than the sampler
    model.eval()
    teacher = freeze(copy.deepcopy(model if teacher is None else teacher))
    state = TrainState(model, make_optimizer(model, config),
                       parts={"teacher": teacher} if config.teacher_decay < 1 else {})
    if resume is not None:
        state.load_state_dict(resume)

    while state.step < config.steps:
        began, sums = time.perf_counter(), Sums()
        seed_of = partial(derive_seed, seed, "distill", state.step)

        # 1. sample a completion of each prompt, from the student or from the teacher
        problems = world.share(task.sample(config.prompts_per_step,
                                           random.Random(seed_of("problems"))))
        on_policy = random.Random(seed_of("author")).random() < config.on_policy_share
        answers = collect(model if on_policy else teacher, tokenizer, task, problems,
                          max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                          generator=torch.Generator(model.device).manual_seed(
                              seed_of("sample", *world.place())))
        rollouts = answers.rollouts

        # 2. score: the teacher reads the same completions, behind its own prompts if it has any
        teacher_rollouts = rollouts if teacher_prompt is None else with_prompts(
            rollouts, [tokenizer.encode_prompt(teacher_prompt(p)) for p in problems],
            tokenizer.pad_id)

        # 3. freeze what the update may not touch
        by_teacher = rollout_logprobs(teacher, teacher_rollouts, temperature=config.temperature,
                                      token_budget=config.token_budget)
        teacher_logp = fill_slots(by_teacher[teacher_rollouts.mask], rollouts.mask)  # (B, T)
        if on_policy:
            sums.add("teacher_kl", k1(rollouts.behavior_logp, teacher_logp), rollouts.mask)

        # 4. update: towards the teacher, aggregate, backward, clip, step
        lr = config.lr * cosine_to_floor(state.step, config.steps, floor=config.min_lr_ratio,
                                         warmup=min(config.warmup_steps, config.steps - 1))
        shuffle = torch.Generator().manual_seed(seed_of("shuffle"))
        order = torch.randperm(len(rollouts), generator=shuffle).to(model.device)
        for minibatch, B in world.minibatches(order.tensor_split(config.minibatches)):
            total = world.total(normaliser(rollouts.mask[minibatch], config.aggregate,
                                           max_length=config.max_new_tokens))
            for part in micro_batches(rollouts.lengths[minibatch], config.token_budget):
                rows = minibatch[part]
                batch, theirs = rollouts.rows(rows), teacher_rollouts.rows(rows)
                if divergence is None:
                    logp = token_logprobs(model, batch.tokens, mask=batch.mask,
                                          temperature=config.temperature)  # (b, T)
                    adv = distillation_advantages(
                        logp, teacher_logp[rows, :batch.tokens.shape[1]])  # (b, T)
                    value = importance_ratio(logp, batch.behavior_logp) * adv  # (b, T)
                else:
                    value = -token_divergence(
                        model, teacher, batch.tokens, batch.mask, divergence,
                        teacher_tokens=theirs.tokens, teacher_mask=theirs.mask,
                        temperature=config.temperature)  # (b, T)
                loss = -aggregate(value, batch.mask, config.aggregate, total=total)
                check_finite(loss, state.step + 1, rows, answers.completions)
                sums.add("loss", loss, count=len(rows) / B)
                state.backward(loss, rows, answers.completions)
            apply_update(state, lr, config.max_grad_norm, sums)
        state.step += 1
        state.num_tokens += world.total(int(rollouts.lengths.sum()))  # prompts included
        if config.teacher_decay < 1:
            update_ema(teacher.parameters(), model.parameters(), decay=config.teacher_decay)

        # 5. report
        if log is not None:
            log(state.step, {**describe(answers), **sums.means(), "learning_rate": lr,
                             "num_tokens": state.num_tokens,
                             "step_time": time.perf_counter() - began})
        if save is not None:
            save(state)
    return model


def check_distillation(model: Transformer, config: DistillConfig, teacher: Transformer | None,
                       teacher_prompt: TeacherPrompt | None, divergence: Divergence | None) -> None:
    """Raise ValueError for what could not be learnt, or not rightly."""
    if teacher is not None:
        check_same_vocabulary(model, teacher)
        if config.teacher_decay < 1 and teacher.config != model.config:
            raise ValueError(f"teacher_decay is {config.teacher_decay}, but the teacher has other "
                             "weights than the policy: only one of the same sizes can follow it; "
                             "set it to 1")
    if teacher is None and teacher_prompt is None:
        raise ValueError("there is neither a teacher nor a teacher_prompt, and the policy agrees "
                         "with itself: give another policy, or what the same one reads to do "
                         "better")
    if config.on_policy_share < 1 and divergence is None:
        raise ValueError(f"on_policy_share is {config.on_policy_share}, but the sampled form is the"
                         " KL on the student's own samples alone: give a divergence, or set it to "
                         "1")
    if config.on_policy_share < 1 and teacher_prompt is not None:
        raise ValueError(f"on_policy_share is {config.on_policy_share}, but a teacher with a prompt"
                         " of its own writes no completions for the student's prompts: set it to "
                         "1")
