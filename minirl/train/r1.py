"""DeepSeek-R1's pipeline: reinforcement learning alone, then a cold start, reinforcement learning, rejection sampling, fine-tuning, and reinforcement learning again.

    Paper      DeepSeek-R1, arXiv:2501.12948v2 (Nature 2025): rule rewards, eq. 4; language reward, eq. 7; the last stage's rewards, eqs. 8 to 10.
               The outer loop of the last stage: DeepSeekMath, arXiv:2402.03300, algorithm 1

    base ── r1-zero          GRPO, right answers and format alone: reasoning grows, and nothing keeps it in one language
    base ── cold-start       SFT on a few hundred clean long reasonings
             └─ rl-1         GRPO, right answers + format + language consistency (eq. 7)
                 └─ kept, by rejection sampling: right, in form, in one language
    base ── sft              on what was kept and on general data
             └─ rl-2         GRPO once more, on reasoning
                 └─ prefer   the last part: reasoning by the rules and general prompts by the reward model, in `rounds`; between them the reward model learns on
    base ── rm-1             that reward model, from rankings of the base model's answers to general prompts
    small ─ distilled        SFT of a smaller base model on what the last policy says, beside small-rl, R1-Zero on it (`distill`)

Same as the paper  the order of the stages and which policy each starts from: the SFT of the second half starts from the base model again, not from rl-1; rewards by
                   preference, and general prompts in reinforcement learning, in the last part alone; the numbers of `rl_numbers`, but for one factor.
Different          all RL has the tokens' ratio of DeepSeekMath's eq. 3, and clips it at 0.2 (the paper: the whole sequence's, and 10 in rl-1); one reward model, for
                   helpfulness, and none for safety; general answers have no reasoning, and so no reward for its format; the last part may have several rounds
                   (the paper: one); students are taught by the last policy alone (the paper: by the data of the SFT stage).
Why                the tokens' ratio is the one of train/grpo.py; the toy has no harmful prompts; rounds show DeepSeekMath's outer loop.

Each stage is one call of another page, on a copy of what it starts from.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from minirl.lm.sampling import sample
from minirl.lm.seeds import derive_seed
from minirl.tasks.instructions import Instructions
from minirl.tasks.mixture import Mixture
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import columns
from minirl.tasks.rewards import judge
from minirl.train.checks import check_fields
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.reward_model import RewardModelConfig, as_reward, train_reward_model
from minirl.train.sft import SFTConfig, train_sft

Page = Callable[..., object]                               # page(model, log=, save=, resume=) -> the trained model
Stage = Callable[[str, object, object, Page], object]      # stage(name, the page's configuration, model to start from, page) -> the trained model
RULES = {"accuracy": 1.0, "format_reward": 1.0}            # DeepSeek-R1, eq. 4: equal weights
COLD_START_SFT = SFTConfig(epochs=4, lr=1e-3, warmup_steps=0, min_lr_ratio=0.1)
SECOND_SFT = SFTConfig(epochs=3, lr=2e-3, warmup_steps=0, min_lr_ratio=0.1)              # the paper: 2 to 3 epochs, cosine to a tenth
REPLAY = 0.1                                               # of all earlier rankings, in each of the reward model's later rounds: DeepSeekMath, section 4.1.4


def rl_numbers(scale: float) -> dict:
    """DeepSeek-R1-Zero's numbers for GRPOConfig, scaled by one factor: so many times fewer samples and so many times longer steps; a scale of 1 is the paper.

    lr 3e-6, KL 0.001, temperature 1, 16 samples per question, rollouts of 8192 outputs in 16 mini-batches, one inner epoch, the reference replaced every 400
    steps of one mini-batch: 25 rollouts. So lr times the steps between two references, about as far as the policy can get from one, stays the same, up to a scale
    of 25; from there on every rollout has a reference of its own.
    """
    if not 1 <= scale <= 512:
        raise ValueError(f"scale is {scale}: 1 (the paper's 512 questions in a rollout) to 512 (one) is wanted")
    return dict(lr=3e-6 * scale, min_lr_ratio=1.0, warmup_steps=0, kl_coef=0.001, temperature=1.0, group_size=16, prompts_per_step=round(512 / scale), iterations=1,
                minibatches=16, ref_sync_steps=max(1, round(25 / scale)))


@dataclass(frozen=True)
class R1Config:
    """Defaults: the tiny model on sums told in two languages, on a laptop. Steps of reinforcement learning are rollouts."""

    scale: float = 32.0                # so many times fewer samples and longer steps than the paper's (1)
    zero_steps: int = 60               # rollouts of R1-Zero; the paper: 650
    reasoning_steps: int = 60          # rollouts of rl-1
    language_weight: float = 1.0       # of the language reward, beside 1 for right answers and 1 for format
    kept_problems: int = 2048          # problems from which reasonings are kept
    kept_samples: int = 4              # completions of each, of which the first good one is kept
    final_steps: int = 30              # rollouts of rl-2, by the rules alone; the paper: 1300 steps, of 1700
    final_temperature: float = 0.7     # of rl-2 and of the last part: the paper's
    preference_steps: int = 24         # rollouts of the last part, all rounds together; the paper: 400 steps, of 1700
    general_share: float = 0.5         # share of general prompts in the last part
    rounds: int = 2                    # of GRPO and of the reward model in the last part: DeepSeekMath's algorithm 1
    max_new_tokens: int = 48           # per completion

    def __post_init__(self):
        check_fields(self)
        rl_numbers(self.scale)
        if not self.preference_steps >= self.rounds:
            raise ValueError(f"preference_steps is {self.preference_steps} and rounds {self.rounds}: at least one step in each round is wanted")

    def grpo(self, steps: int, **changes) -> GRPOConfig:
        return GRPOConfig(**{**rl_numbers(self.scale), "steps": steps, "max_new_tokens": self.max_new_tokens, **changes})


@dataclass(frozen=True)
class General:
    """General prompts, and the people who say what a good answer is."""

    task: Instructions
    demonstrations: Sequence[tuple[str, str]]                        # (prompt, completion): answers that they wrote
    compare: Callable[[object, int], list[Ranking]]                  # compare(policy, seed): how they rank what a policy answers


def train_r1(model, tokenizer, task, config: R1Config, *, cold_start: Sequence[tuple[str, str]], general: General, seed: int = 0,
             log: Callable[[int, dict], None] | None = None, stage: Stage | None = None):
    """Lead a base model through all stages, and return the last stage's model, in eval mode. `model` itself is not changed.

    task.rewards has accuracy, format_reward and language_consistency. cold_start has (prompt, completion) pairs. stage runs a stage, and may keep what came of it;
    left out, it copies the model and calls the page. log(step, metrics) is given to every page then. Raises ValueError where nothing is kept.
    """
    stage = stage or in_memory(log)
    spoken = {**RULES, "language_consistency": config.language_weight}

    def reinforce(name: str, start, numbers: GRPOConfig, weights: dict[str, float], task=task):
        return stage(name, numbers, start, lambda m, **hooks: train_grpo(m, tokenizer, task, numbers, reward_weights=weights, seed=derive_seed(seed, name), **hooks))

    def fine_tune(name: str, start, numbers: SFTConfig, pairs: Callable[[], list]):
        return stage(name, numbers, start, lambda m, **hooks: train_sft(m, tokenizer, pairs(), numbers, seed=derive_seed(seed, name), **hooks))

    # 1. reinforcement learning alone: R1-Zero
    reinforce("r1-zero", model, config.grpo(config.zero_steps), {**RULES, "language_consistency": 0.0})

    # 2. a cold start, and reinforcement learning with a reward for keeping to one language     eq. 7
    cold = fine_tune("cold-start", model, COLD_START_SFT, lambda: list(cold_start))
    first = reinforce("rl-1", cold, config.grpo(config.reasoning_steps), spoken)

    # 3. rejection sampling, and a fine-tuning of the base model on what was kept and on general data
    second = fine_tune("sft", model, SECOND_SFT, lambda: rejection_sample(first, tokenizer, task, config, seed=derive_seed(seed, "kept")) + list(general.demonstrations))

    # 4. reinforcement learning once more, by the rules
    policy = reinforce("rl-2", second, config.grpo(config.final_steps, temperature=config.final_temperature), spoken)

    # 5. its last part: general prompts by preference, too     eqs. 8 to 10; DeepSeekMath, algorithm 1
    rankings = [cache(lambda: general.compare(model, derive_seed(seed, "compare", 1)))]            # one for each round; people are asked only when they are needed

    def learn_rewards(name: str, start):
        numbers = RewardModelConfig()
        return stage(name, numbers, start, lambda m, **hooks: train_reward_model(m, tokenizer, with_replay([ask() for ask in rankings], seed), numbers,
                                                                                 demonstrations=general.demonstrations, seed=derive_seed(seed, name), **hooks))

    reward_model = learn_rewards("rm-1", model)
    for n in range(1, config.rounds + 1):
        # algorithm 1, lines 3 to 11: the reference is the policy that a round starts from, to its end
        judged = Mixture(task, general.task, as_reward(reward_model, tokenizer), config.general_share)
        steps = config.preference_steps * n // config.rounds - config.preference_steps * (n - 1) // config.rounds
        policy = reinforce(f"prefer-{n}", policy, config.grpo(steps, temperature=config.final_temperature, ref_sync_steps=0), watched(judged, spoken), judged)
        if n < config.rounds:
            # line 12: the reward model learns on, from what the policy says now and a tenth of what was ranked before
            rankings.append(cache(lambda policy=policy, n=n: general.compare(policy, derive_seed(seed, "compare", n + 1))))
            reward_model = learn_rewards(f"rm-{n + 1}", reward_model)
    return policy


def distill(teacher, student, tokenizer, task, config: R1Config, *, seed: int = 0, log: Callable[[int, dict], None] | None = None, stage: Stage | None = None) -> tuple:
    """A smaller base model by reinforcement learning, as R1-Zero, and by SFT on a teacher's kept reasonings -> (the one, the other).

    Paper      DeepSeek-R1, arXiv:2501.12948v2: distilled models are fine-tuned on a teacher's samples alone, without reinforcement learning.
    """
    stage, numbers = stage or in_memory(log), config.grpo(config.zero_steps)
    weights = {**RULES, "language_consistency": 0.0}

    def learn(m, **hooks):
        kept = rejection_sample(teacher, tokenizer, task, config, seed=derive_seed(seed, "taught"))
        return train_sft(m, tokenizer, kept, SECOND_SFT, seed=derive_seed(seed, "distilled"), **hooks)

    alone = stage("small-rl", numbers, student, lambda m, **hooks: train_grpo(m, tokenizer, task, numbers, reward_weights=weights, seed=derive_seed(seed, "small-rl"), **hooks))
    taught = stage("distilled", SECOND_SFT, student, learn)
    return alone, taught


def in_memory(log) -> Stage:
    return lambda name, config, start, page: page(copy.deepcopy(start), log=log, save=None, resume=None)


def watched(task: Mixture, weights: dict[str, float]) -> dict[str, float]:
    """The rules' weights, 1 for the preference, and 0 for what is only looked at."""
    return {**dict.fromkeys(task.rewards, 0.0), **weights, "preference": 1.0}


def with_replay(rounds: Sequence[list[Ranking]], seed: int) -> list[Ranking]:
    """The last round's rankings, and a share REPLAY of all earlier ones."""
    *earlier, new = rounds
    old = [ranking for rankings in earlier for ranking in rankings]
    return [*new, *random.Random(derive_seed(seed, "replay", len(rounds))).sample(old, round(REPLAY * len(old)))]


def rejection_sample(model, tokenizer, task, config: R1Config, *, seed: int) -> list[tuple[str, str]]:
    """(prompt, completion) pairs that are right, in form and in one language: of each problem the first such completion. Raises ValueError where there is none."""
    problems = task.sample(config.kept_problems, random.Random(derive_seed(seed, "problems")))
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "sample"))
    kept: dict[str, str] = {}
    for part in (problems[i:i + 512] for i in range(0, len(problems), 512)):
        rollouts = sample(model, [tokenizer.encode_prompt(p.prompt) for p in part], group=config.kept_samples, max_new_tokens=config.max_new_tokens,
                          eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id, generator=generator)
        completions = [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]
        prompts, known = [p.prompt for p in part for _ in range(config.kept_samples)], columns(part, repeat=config.kept_samples)
        verdicts = judge(task.rewards, (*RULES, "language_consistency"), prompts, completions, **known)
        for prompt, completion, cut, *judged in zip(prompts, completions, rollouts.truncated.tolist(), *verdicts.values()):
            if not cut and all(verdict == 1.0 for verdict in judged):
                kept.setdefault(prompt, completion)
    if not kept:
        raise ValueError(f"of {len(problems) * config.kept_samples} completions none was right, in form and in one language: there is nothing to learn from; train "
                         "rl-1 longer, or sample more")
    return list(kept.items())
