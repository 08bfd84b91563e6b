"""InstructGPT's pipeline: supervised fine-tuning, a reward model from rankings, then PPO against
it; and DPO on the same rankings.

    Paper      InstructGPT, arXiv:2203.02155, section 3 and figure 2; appendices C.1 to C.4.
               DPO: arXiv:2305.18290

    base ── sft          16 epochs of demonstrations: the policy whose completions people rank
    base ── rl-init      2 epochs of demonstrations and 10 % of pretraining text: where RL starts
    sft ─── rm           the reward model, from rankings of sft's completions
    rl-init ─ ppo        PPO on the reward model's score, with a KL penalty to rl-init
    rl-init ─ dpo        DPO on the rankings, for comparison

Same as the paper  the order of the stages, and which model each starts from; 4 to 9 completions per
                   ranking; 16 epochs, dropout 0.2, a cosine to 10 % and no warm-up (C.1); 2 epochs
                   and 10 % of pretraining text (C.3).
Different          the learning rates; one round of rankings (the paper repeats stages 2 and 3).
Why                the model has 0.3 million parameters, not 175 billion.

Each stage is one call of a page, on a copy of the model it starts from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from minirl.equations.inference_time import best_of_n
from minirl.inference.collect import Counter, collect_in_parts
from minirl.inference.evaluate import distinct_problems, evaluate, text_loss
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.text import table
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.preferences import Ranking, draw_ranking
from minirl.tasks.problem import JudgedTask, Task
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.encoding import encode_pairs
from minirl.train.ppo import KLControl, PPOConfig, train_ppo
from minirl.train.reward_model import RewardModelConfig, as_reward, train_reward_model
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.stage import Stage, in_memory
from minirl.train.state import Log

Pair = tuple[str, str]                   # (prompt, completion)
Rankings = Callable[[], list[Ranking]]   # called when they are needed: people are asked then
FEWEST, MOST = 4, 9                      # completions in a ranking: InstructGPT, section 3.5
MAX_NEW_TOKENS = 16                      # of a completion that is ranked
# appendix C.1, but for the learning rate; and appendix C.3
DEMONSTRATIONS_SFT = SFTConfig(epochs=16, batch_size=32, lr=1e-3, min_lr_ratio=0.1, warmup_steps=0,
                               dropout=0.2, beta1=0.9, beta2=0.95)
RL_INIT_SFT = SFTConfig(epochs=2, lr=1e-3, min_lr_ratio=0.1, warmup_steps=0, beta2=0.95)


@dataclass(frozen=True)
class InstructGPTConfig:
    """The numbers of stages 2 and 3. Defaults: the tiny model, on a laptop."""

    rm: RewardModelConfig = field(default_factory=RewardModelConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)


def train_instructgpt(
        model: Transformer, tokenizer: Tokenizer, task: Task, config: InstructGPTConfig, *,
        demonstrations: Sequence[Pair], pretraining: Sequence[str],
        rank: Callable[[Transformer], list[Ranking]], seed: int = 0, log: Log | None = None,
        stage: Stage | None = None,
) -> Transformer:
    """Take a base model through all three stages and return PPO's policy. `model` does not change.

    rank(policy) returns people's rankings of its completions. stage runs a stage, and may keep its
    result; default: it copies the model and calls the page, with log(step, metrics). Raises
    ValueError where there is nothing to learn from.
    """
    stage = stage or in_memory(log)
    sft, start = supervise(model, tokenizer, demonstrations, pretraining, seed=seed, stage=stage)
    reward_model = learn_rewards(sft, tokenizer, lambda: rank(sft), config.rm,
                                 demonstrations=demonstrations, seed=seed, stage=stage)
    return reinforce(start, tokenizer, task, config.ppo, reward_model=reward_model,
                     pretraining=pretraining, seed=seed, stage=stage)


def supervise(model: Transformer, tokenizer: Tokenizer, demonstrations: Sequence[Pair],
              pretraining: Sequence[str], *, seed: int,
              stage: Stage) -> tuple[Transformer, Transformer]:
    """Stage 1: fine-tune a base model twice -> (the policy to rank, the policy where RL starts).

    A tenth of what the second one reads is pretraining text: a text for every nine demonstrations.
    Raises ValueError for fewer texts.
    """
    n = len(demonstrations) // 9
    if len(pretraining) < n:
        raise ValueError(f"pretraining has {len(pretraining)} texts for {len(demonstrations)} "
                         f"demonstrations: at least {n} are wanted, a tenth of all that is read")
    mixed = [*demonstrations, *(("", text) for text in pretraining[:n])]
    sft = stage("sft", DEMONSTRATIONS_SFT, model, lambda m, **hooks: train_sft(
        m, tokenizer, demonstrations, DEMONSTRATIONS_SFT, seed=seed, **hooks))
    start = stage("rl-init", RL_INIT_SFT, model, lambda m, **hooks: train_sft(
        m, tokenizer, mixed, RL_INIT_SFT, seed=seed, **hooks))
    return sft, start


def learn_rewards(sft: Transformer, tokenizer: Tokenizer, rankings: Rankings,
                  config: RewardModelConfig, *, demonstrations: Sequence[Pair] = (), seed: int,
                  stage: Stage) -> ScalarModel:
    """Stage 2: train a reward model, which scores demonstrations 0 on average."""
    return stage("rm", config, sft, lambda m, **hooks: train_reward_model(
        m, tokenizer, rankings(), config, demonstrations=demonstrations, seed=seed, **hooks))


def reinforce(start: Transformer, tokenizer: Tokenizer, task: Task, config: PPOConfig, *,
              reward_model: ScalarModel, pretraining: Sequence[str],
              kl_control: KLControl | None = None, seed: int, stage: Stage) -> Transformer:
    """Stage 3: PPO on the reward model's score. The task's own rewards are only reported."""
    judged = scored_by(reward_model, tokenizer, task)
    return stage("ppo", config, start, lambda m, **hooks: train_ppo(
        m, tokenizer, judged, config, value_model=reward_model, pretraining=pretraining,
        kl_control=kl_control, seed=seed, **hooks))


def prefer(start: Transformer, tokenizer: Tokenizer, rankings: Rankings, config: DPOConfig, *,
           seed: int, stage: Stage) -> Transformer:
    """DPO instead of stages 2 and 3."""
    return stage("dpo", config, start, lambda m, **hooks: train_dpo(
        m, tokenizer, rankings(), config, seed=seed, **hooks))


def scored_by(reward_model: ScalarModel, tokenizer: Tokenizer, task: Task) -> Task:
    """Return the task with the reward model's score as its reward; its own have weight 0."""
    rewards = {"reward_model": as_reward(reward_model, tokenizer), **task.rewards}
    return JudgedTask(task, rewards, {**dict.fromkeys(rewards, 0.0), "reward_model": 1.0})


def compare_epochs(checkpoints: Iterable[tuple[int, Transformer]], reward_model: ScalarModel,
                   tokenizer: Tokenizer, task: Task, *, validation: Sequence[Pair], n: int,
                   seed: int, progress: Counter | None = None) -> list[dict[str, Any]]:
    """Return an entry per SFT checkpoint (epoch, policy). One of them is "chosen": that with the
    best reward-model score on n held-out prompts.

    Paper      InstructGPT, appendix C.1: and not the one with the least validation loss.
    """
    judged = scored_by(reward_model, tokenizer, task)
    texts = encode_pairs(tokenizer, validation, reward_model.config.max_seq_len)
    entries: list[dict[str, Any]] = []
    for epoch, policy in checkpoints:
        result = evaluate(policy, tokenizer, judged, n=n, max_new_tokens=MAX_NEW_TOKENS,
                          seed=derive_seed(seed, "instruct", "epochs"))
        entries.append({"epoch": epoch, "validation_loss": text_loss(policy, tokenizer, texts),
                        "score": result.mean("reward_model"),
                        "true_reward": result.mean("true_reward"), "chosen": False})
        if progress is not None:
            progress.update()
    entries[best_of_n([entry["score"] for entry in entries])]["chosen"] = True
    return entries


def epochs_table(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return every other epoch, the chosen one, and the one that validation loss would choose."""
    least = min(epochs, key=lambda epoch: epoch["validation_loss"])
    names = "validation_loss", "score", "true_reward"
    rows: list[tuple[str, ...]] = [("SFT epoch", "validation loss", "reward model",
                                    "true reward", "")]
    for epoch in epochs:
        notes = ["chosen"] * epoch["chosen"] + ["least validation loss"] * (epoch is least)
        if epoch["epoch"] in (1, 2, 4, 8, 16) or notes:
            rows.append((str(epoch["epoch"]), *(f"{epoch[name]:.3f}" for name in names),
                         " and ".join(notes)))
    return table(rows)


def rank_completions(policy: Transformer, tokenizer: Tokenizer, task: Task, n: int, *, noise: float,
                     seed: int, split: str = "train", max_new_tokens: int = MAX_NEW_TOKENS,
                     progress: Counter | None = None) -> list[Ranking]:
    """Sample MOST completions of n problems and rank those of each problem, as a noisy labeller
    does who judges by the task's true_reward (see tasks.preferences.draw_ranking).

    Completions that were cut off are left out, and so are prompts with fewer than FEWEST different
    completions. Raises ValueError where nothing is left.
    """
    label_rng = random.Random(derive_seed(seed, "instruct", "labeller", split))
    sample_seed = derive_seed(seed, "instruct", "ranked", split)
    rng = random.Random(derive_seed(sample_seed, "problems"))
    problems = (distinct_problems(task, n, rng) if split == "test"
                else task.sample(n, rng, split=split))
    generator = torch.Generator(policy.device).manual_seed(derive_seed(sample_seed, "sample"))
    judged = JudgedTask(task, task.rewards, {"true_reward": 1.0})
    rankings = []
    for part in collect_in_parts(policy, tokenizer, judged, problems, group=MOST,
                                 max_new_tokens=max_new_tokens, generator=generator,
                                 progress=progress):
        ended = (~part.rollouts.truncated).tolist()
        for p, problem in enumerate(part.problems):
            rows = [row for row in range(p * MOST, (p + 1) * MOST) if ended[row]]
            ranking = draw_ranking(problem.prompt, [part.completions[row] for row in rows],
                                   [part.verdicts["true_reward"][row] for row in rows],
                                   label_rng, noise=noise)
            if ranking is not None and len(ranking.completions) >= FEWEST:
                rankings.append(ranking)
    if not rankings:
        raise ValueError(f"to none of {n} prompts did the policy give {FEWEST} different answers "
                         f"that end within {max_new_tokens} tokens: there is nothing to rank; "
                         "start from a policy that answers (--init)")
    return rankings
