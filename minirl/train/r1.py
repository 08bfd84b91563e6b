"""DeepSeek-R1's pipeline: reinforcement learning alone, then a cold start, reinforcement learning,
rejection sampling, fine-tuning, and reinforcement learning again.

    Paper      DeepSeek-R1, arXiv:2501.12948v2 (Nature 2025): rule rewards, eq. 4; language reward,
               eq. 7; the last stage's rewards, eqs. 8 to 10. The outer loop of the last stage:
               DeepSeekMath, arXiv:2402.03300, algorithm 1

    base ── r1-zero          GRPO on right answers and format: reasoning grows, in mixed languages
    base ── cold-start       SFT on R1-Zero's right outputs, rewritten in one language
             └─ rl-1         GRPO on right answers, format and language consistency (eq. 7)
                 └─ rejection sampling: right, in the format and in one language
    base ── sft              SFT on what was kept, and on general data
             └─ rl-2         GRPO on reasoning once more
                 └─ prefer   GRPO on reasoning by the rules and general prompts by a reward model,
                             in `rounds`; between them the reward model learns on
    base ── rm-1             the reward model, from rankings of completions of general prompts
    small ─ distilled        SFT of a smaller base model on the last policy's completions, beside
                             small-rl, R1-Zero on that model (see `distill`)

Same as the paper  the order of the stages and which policy each starts from: the second half starts
                   from the base model again, not from rl-1; the cold start comes from R1-Zero's
                   outputs, filtered and rewritten; the preference reward and general prompts come
                   in the last part alone; the numbers of `rl_numbers`, but for one factor.
Different          GRPO has DeepSeekMath's token ratio, clipped at 0.2 (the paper: the sequence's,
                   at 10 in rl-1); one reward model, for helpfulness, and none for safety; general
                   completions need no format; the last part has several rounds (the paper: one);
                   students learn from the last policy (the paper: from the SFT stage's data).
Why                the token ratio is train/grpo.py's; the toy has no harmful prompts; rounds show
                   DeepSeekMath's outer loop.

Each stage is one call of another page, on a copy of the model it starts from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from minirl.inference.collect import collect_in_parts
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.mixture import Mixture
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import JudgedTask, Problem, Task, columns
from minirl.tasks.rewards import judge
from minirl.train.checks import check
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.reward_model import RewardModelConfig, as_reward, train_reward_model
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.stage import Stage, in_memory
from minirl.train.state import Log

Pair = tuple[str, str]                                     # (prompt, completion)
Rewrite = Callable[[Any, str], str]                        # problem, completion -> in one language
RULES = {"accuracy": 1.0, "format_reward": 1.0}            # DeepSeek-R1, eq. 4: equal weights
LANGUAGE = "language_consistency"                          # eq. 7
COLD_START_SFT = SFTConfig(epochs=4, lr=1e-3, warmup_steps=0, min_lr_ratio=0.1)
# DeepSeek-R1: 2 to 3 epochs, a cosine to a tenth
SECOND_SFT = SFTConfig(epochs=3, lr=2e-3, warmup_steps=0, min_lr_ratio=0.1)
# of all earlier rankings, in each later round of the reward model: DeepSeekMath, section 4.1.4
REPLAY = 0.1
PART = 512                                                 # problems that are sampled together


def rl_numbers(scale: float) -> dict[str, Any]:
    """Return DeepSeek-R1-Zero's numbers for GRPOConfig, with `scale` times fewer samples and
    `scale` times larger steps. A scale of 1 is the paper.

    The paper: lr 3e-6, KL 0.001, temperature 1, 16 samples per question, rollouts of 8192 outputs
    in 16 minibatches, one inner epoch, the reference replaced every 400 minibatches, which is
    every 25 rollouts. So lr times the steps between two references, about how far the policy can
    get from one, stays the same up to a scale of 25; beyond it each rollout has its own reference.
    """
    if not 1 <= scale <= 512:
        raise ValueError(f"scale is {scale}: 1 (the paper's 512 questions in a rollout) to 512 "
                         "(one) is wanted")
    return dict(lr=3e-6 * scale, min_lr_ratio=1.0, warmup_steps=0, kl_coef=0.001, temperature=1.0,
                group_size=16, prompts_per_step=round(512 / scale), iterations=1, minibatches=16,
                ref_sync_steps=max(1, round(25 / scale)))


@dataclass(frozen=True)
class R1Config:
    """Defaults: the tiny model on sums in two languages, on a laptop. RL steps are rollouts."""

    scale: float = 32.0                # divides the samples and multiplies lr; 1: the paper
    zero_steps: int = 60               # rollouts of R1-Zero; the paper: 650
    cold_start_problems: int = 512     # R1-Zero's outputs for them start the second policy; 0: none
    reasoning_steps: int = 60          # rollouts of rl-1
    language_weight: float = 1.0       # of the language reward; right answers and format: 1 each
    kept_problems: int = 2048          # problems for rejection sampling
    kept_samples: int = 4              # completions of each, of which the first good one is kept
    final_steps: int = 30              # rollouts of rl-2, by the rules; the paper: 1300 of 1700
    final_temperature: float = 0.7     # of rl-2 and the last part: the paper's
    preference_steps: int = 24         # rollouts of the last part in all; the paper: 400 of 1700
    general_share: float = 0.5         # of general prompts in the last part
    rounds: int = 2                    # of GRPO and the reward model: DeepSeekMath's algorithm 1
    max_new_tokens: int = 48           # per completion

    def __post_init__(self) -> None:
        check(self)
        rl_numbers(self.scale)
        if self.preference_steps < self.rounds:
            raise ValueError(f"preference_steps is {self.preference_steps} and rounds "
                             f"{self.rounds}: at least one step in each round is wanted")

    def grpo(self, steps: int, **changes: Any) -> GRPOConfig:
        numbers = {**rl_numbers(self.scale), "max_new_tokens": self.max_new_tokens, **changes}
        return GRPOConfig(steps=steps, **numbers)


@dataclass(frozen=True)
class General:
    """General prompts, and the people who say what a good completion is."""

    task: Task
    demonstrations: Sequence[Pair]                         # completions that they wrote
    compare: Callable[[Transformer, int], list[Ranking]]   # compare(policy, seed): their rankings


def train_r1(
        model: Transformer, tokenizer: Tokenizer, task: Task, config: R1Config, *,
        general: General, cold_start: Sequence[Pair] = (), rewrite: Rewrite | None = None,
        seed: int = 0, log: Log | None = None, stage: Stage | None = None,
) -> Transformer:
    """Take a base model through all stages and return the last stage's model, in eval mode. `model`
    itself does not change.

    task.rewards has accuracy, format_reward and language_consistency. The cold start learns from
    R1-Zero's own outputs, which `rewrite` puts in one language, and from the pairs of `cold_start`.
    stage runs a stage, and may keep its result; left out, it copies the model and calls the page,
    with log(step, metrics). Raises ValueError where there is nothing to learn from.
    """
    if config.cold_start_problems == 0 and not cold_start:
        raise ValueError("cold_start_problems is 0, and cold_start has no pairs: nothing could "
                         "start the second policy; ask R1-Zero, or give demonstrations")
    stage = stage or in_memory(log)
    rules, with_language = by_rules(task), by_rules(task, config.language_weight)

    def reinforce(name: str, start: Transformer, numbers: GRPOConfig, task: Task) -> Transformer:
        return stage(name, numbers, start, lambda m, **hooks: train_grpo(
            m, tokenizer, task, numbers, seed=derive_seed(seed, name), **hooks))

    def fine_tune(name: str, numbers: SFTConfig, pairs: Callable[[], list[Pair]]) -> Transformer:
        return stage(name, numbers, model, lambda m, **hooks: train_sft(
            m, tokenizer, pairs(), numbers, seed=derive_seed(seed, name), **hooks))

    # one entry per round of the last part: cache asks people once, when they are first needed
    rankings = [cache(lambda: general.compare(model, derive_seed(seed, "compare", 1)))]

    def learn_rewards(name: str, start: Transformer | ScalarModel) -> ScalarModel:
        numbers = RewardModelConfig()
        return stage(name, numbers, start, lambda m, **hooks: train_reward_model(
            m, tokenizer, with_replay([ask() for ask in rankings], seed), numbers,
            demonstrations=general.demonstrations, seed=derive_seed(seed, name), **hooks))

    # 1. reinforcement learning alone: R1-Zero
    zero = reinforce("r1-zero", model, config.grpo(config.zero_steps), rules)

    # 2. a cold start, then reinforcement learning with a reward for one language          eq. 7
    cold = fine_tune("cold-start", COLD_START_SFT, lambda: [
        *cold_start_pairs(zero, tokenizer, task, config, rewrite, required=not cold_start,
                          seed=derive_seed(seed, "readable")), *cold_start])
    first = reinforce("rl-1", cold, config.grpo(config.reasoning_steps), with_language)

    # 3. rejection sampling; the base model learns what was kept, and general data
    second = fine_tune("sft", SECOND_SFT, lambda: [
        *rejection_sample(first, tokenizer, task, config, seed=derive_seed(seed, "kept")),
        *general.demonstrations])

    # 4. reinforcement learning once more, by the rules
    final = config.grpo(config.final_steps, temperature=config.final_temperature)
    policy = reinforce("rl-2", second, final, with_language)

    # 5. its last part: general prompts, by preference      eqs. 8 to 10; DeepSeekMath, algorithm 1
    reward_model = learn_rewards("rm-1", model)
    for n in range(1, config.rounds + 1):
        # algorithm 1, lines 3 to 11: the reference is the policy at the start of the round
        judged = by_preference(task, general.task, reward_model, tokenizer, config)
        steps = share_of(config.preference_steps, n, config.rounds)
        policy = reinforce(f"prefer-{n}", policy, preference_config(config, steps), judged)
        if n < config.rounds:
            # line 12: the reward model learns on, from the policy's completions and a replay
            rankings.append(cache(partial(general.compare, policy,
                                          derive_seed(seed, "compare", n + 1))))
            reward_model = learn_rewards(f"rm-{n + 1}", reward_model)
    return policy


def distill(teacher: Transformer, student: Transformer, tokenizer: Tokenizer, task: Task,
            config: R1Config, *, seed: int = 0, log: Log | None = None,
            stage: Stage | None = None) -> tuple[Transformer, Transformer]:
    """Train a smaller base model in two ways: by reinforcement learning, as R1-Zero, and by SFT on
    the teacher's kept completions -> (policy of RL, policy of SFT).

    Paper      DeepSeek-R1, arXiv:2501.12948v2: distilled models are fine-tuned on a teacher's
               samples alone, without reinforcement learning.
    """
    stage, numbers = stage or in_memory(log), config.grpo(config.zero_steps)
    rules = by_rules(task)

    def teacher_pairs() -> list[Pair]:
        return rejection_sample(teacher, tokenizer, task, config, seed=derive_seed(seed, "taught"))

    alone = stage("small-rl", numbers, student, lambda m, **hooks: train_grpo(
        m, tokenizer, rules, numbers, seed=derive_seed(seed, "small-rl"), **hooks))
    distilled = stage("distilled", SECOND_SFT, student, lambda m, **hooks: train_sft(
        m, tokenizer, teacher_pairs(), SECOND_SFT, seed=derive_seed(seed, "distilled"), **hooks))
    return alone, distilled


def over_optimise(start: Transformer, reward_model: ScalarModel, tokenizer: Tokenizer, task: Task,
                  config: R1Config, *, general: Task, factor: int, seed: int,
                  stage: Stage) -> Transformer:
    """Train rl-2's policy as the last part does, but with the first reward model alone and for
    `factor` times as many steps: reward hacking."""
    numbers = preference_config(config, factor * config.preference_steps)
    judged = by_preference(task, general, reward_model, tokenizer, config)
    return stage("too-long", numbers, start, partial(
        train_grpo, tokenizer=tokenizer, task=judged, config=numbers,
        seed=derive_seed(seed, "too-long")))


def by_rules(task: Task, language_weight: float = 0.0) -> JudgedTask:
    """Return the task, judged by the rules (eq. 4) and by the language of its reasoning (eq. 7)."""
    return JudgedTask(task, task.rewards, {**RULES, LANGUAGE: language_weight})


def by_preference(task: Task, general: Task, reward_model: ScalarModel, tokenizer: Tokenizer,
                  config: R1Config) -> Mixture:
    """Return the last part's tasks: reasoning by the rules, general prompts by a reward model."""
    return Mixture(by_rules(task, config.language_weight), general,
                   as_reward(reward_model, tokenizer), config.general_share)


def preference_config(config: R1Config, steps: int) -> GRPOConfig:
    """Return the numbers of the last part's GRPO, with one reference for all its steps."""
    return config.grpo(steps, temperature=config.final_temperature, ref_sync_steps=0)


def share_of(steps: int, n: int, rounds: int) -> int:
    """Return how many of the steps are in round n of 1 to `rounds`."""
    return steps * n // rounds - steps * (n - 1) // rounds


def with_replay(rounds: Sequence[list[Ranking]], seed: int) -> list[Ranking]:
    """Return the last round's rankings, and a share REPLAY of all earlier ones."""
    *earlier, new = rounds
    old = [ranking for rankings in earlier for ranking in rankings]
    rng = random.Random(derive_seed(seed, "replay", len(rounds)))
    return [*new, *rng.sample(old, round(REPLAY * len(old)))]


def rejection_sample(model: Transformer, tokenizer: Tokenizer, task: Task, config: R1Config, *,
                     seed: int) -> list[Pair]:
    """Return (prompt, completion) pairs that are right, in the format and in one language: the
    first such completion of each problem. Raises ValueError where there is none."""
    kept = good_completions(model, tokenizer, task, config, (*RULES, LANGUAGE), seed=seed,
                            problems=config.kept_problems)
    if not kept:
        raise ValueError(f"of {config.kept_problems * config.kept_samples} completions none was "
                         "right, in form and in one language: there is nothing to learn from; "
                         "train rl-1 longer, or sample more")
    return [(problem.prompt, completion) for problem, completion in kept]


def cold_start_pairs(zero: Transformer, tokenizer: Tokenizer, task: Task, config: R1Config,
                     rewrite: Rewrite | None, *, seed: int, required: bool = True) -> list[Pair]:
    """Return R1-Zero's own reasoning, made readable: right and in the format, rewritten where it
    mixes languages, and in one language after that.

    Paper      DeepSeek-R1, arXiv:2501.12948v2, section 3, cold-start data: outputs of R1-Zero are
               filtered for right answers and readable formats, and refined.
    Raises     ValueError where nothing is left and it is `required`.
    """
    kept = good_completions(zero, tokenizer, task, config, tuple(RULES), seed=seed,
                            problems=config.cold_start_problems)
    rewritten = [(problem, completion if rewrite is None else rewrite(problem, completion))
                 for problem, completion in kept]
    problems = [problem for problem, _ in rewritten]
    pairs = [(problem.prompt, completion) for problem, completion in rewritten]
    if pairs:
        prompts, completions = zip(*pairs, strict=True)
        languages = judge(dict(task.rewards), [LANGUAGE], prompts, completions, **columns(problems))
        pairs = [pair for pair, share in zip(pairs, languages[LANGUAGE], strict=True)
                 if share == 1.0]
    if required and not pairs:
        raise ValueError(f"of R1-Zero's {config.cold_start_problems * config.kept_samples} outputs "
                         "none was right, in form and in one language: there is nothing to start "
                         "from; train R1-Zero longer, ask it more, or give demonstrations")
    return pairs


def good_completions(model: Transformer, tokenizer: Tokenizer, task: Task, config: R1Config,
                     required: Sequence[str], *, problems: int,
                     seed: int) -> list[tuple[Problem, str]]:
    """Sample `kept_samples` completions of each problem -> for each prompt the first that has its
    EOS and a verdict of 1 by all required rewards."""
    questions = task.sample(problems, random.Random(derive_seed(seed, "problems")))
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "sample"))
    kept: dict[str, tuple[Problem, str]] = {}
    judged = JudgedTask(task, task.rewards, dict.fromkeys(required, 1.0))
    for part in collect_in_parts(model, tokenizer, judged, questions, group=config.kept_samples,
                                 rows=PART * config.kept_samples,
                                 max_new_tokens=config.max_new_tokens, generator=generator):
        whole = (~part.rollouts.truncated).tolist()
        verdicts = zip(*part.verdicts.values(), strict=True)
        for row, (completion, ended, good) in enumerate(zip(part.completions, whole, verdicts,
                                                            strict=True)):
            problem = part.problems[row // config.kept_samples]
            if ended and all(verdict == 1.0 for verdict in good):
                kept.setdefault(problem.prompt, (problem, completion))
    return list(kept.values())
