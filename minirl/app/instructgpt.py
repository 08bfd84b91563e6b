"""`minirl rm`, `minirl ppo` and `minirl dpo`: InstructGPT in miniature, on instructions whose true
preference is known.

    base/            a model that has read instructions, followed or not, and other text
    sft/             stage 1: 16 epochs of demonstrations, in minirl rm with a checkpoint of each
    rl-init/         where reinforcement learning starts: 2 epochs, and pretraining text
    rankings.jsonl   completions of the SFT model, ranked by a labeller; held-out.jsonl: held out
    rm/              stage 2: the reward model (of minirl rm: the run itself)
    the run itself   stage 3: PPO; or DPO on the same rankings

Only the labeller knows the true reward. What a run prints of it is evaluation. A model or a file
that --init, --rankings or --reward-model names is used instead of a new one.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from minirl.app.looks import Agreement, Comparison, KeepEpochs, pretraining, rank
from minirl.app.preflight import Start, check_copies, refuse
from minirl.app.rundir import RunDir
from minirl.app.stages import Settings, Stages
from minirl.inference.collect import check_prompts
from minirl.inference.evaluate import Evaluation, best_of
from minirl.inference.tables import comparison
from minirl.lm.checkpoint import load_reward_model
from minirl.lm.compiled import worth_compiling
from minirl.lm.files import read_json
from minirl.lm.heads import ScalarModel
from minirl.lm.memory import ADAMW
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.tasks.instructions import WORDS, Instructions, answers, base_texts
from minirl.tasks.preferences import Ranking, load_rankings, save_rankings, split_rankings
from minirl.train import instructgpt as pipeline
from minirl.train.dpo import DPOConfig
from minirl.train.encoding import encode_rankings
from minirl.train.instructgpt import MAX_NEW_TOKENS, MOST, Pair, epochs_table
from minirl.train.presets import PRESETS
from minirl.train.reward_model import RewardModelConfig
from minirl.train.sft import SFTConfig, train_sft

HELD_OUT = 200                 # rankings of held-out prompts
BASE_SFT = SFTConfig(batch_size=64)
READ = {"n_answers": 42_000, "n_texts": 6_000}         # what the base model reads


@dataclass(frozen=True)
class InstructSettings(Settings):
    """Settings of minirl rm, ppo and dpo: the common ones, and those of InstructGPT."""

    demonstrations: int = 512          # prompts with an answer that a person wrote
    right_share: float = 0.7           # of those answers are right: people err
    ranked_prompts: int = 2000         # prompts whose completions are ranked
    labeller_noise: float = 0.4        # odds of a before b are exp((r_a - r_b) / noise)
    rankings: str | None = None        # JSONL of rankings (TRL's prompt, chosen, rejected)
    reward_model: str | None = None    # folder of a reward model; without it one is trained
    best_of: int = 16                  # n of best-of-n, for comparison

    @property
    def words(self) -> tuple[str, ...]:
        return WORDS

    @property
    def task_fields(self) -> dict[str, Any]:
        return {"name": "instructions"}

    @cached_property
    def rankings_in_file(self) -> list[Ranking]:
        """What --rankings holds, read once."""
        return load_rankings(str(self.rankings))


# stages 1 and 2

@dataclass(frozen=True)
class ModelsAndRankings:
    """What stage 1 leaves, and what people say of it.

    The sft model writes the completions that are ranked; start is what stage 3 changes.
    """

    sft: Transformer
    start: Transformer
    rankings: list[Ranking]
    held_out: list[Ranking]


def first_stage(stages: Stages[InstructSettings], model: Transformer, *,
                tokens: int) -> ModelsAndRankings:
    """Train the SFT models, and let people rank completions.

    A model or file that a flag names is used instead. The command's own page learns from so many
    tokens: they decide whether all models are compiled.
    """
    settings = stages.settings
    model.compiled = worth_compiling(settings.compile, model, tokens)
    seed, sft, start = settings.seed, model, model
    if settings.init is None:
        rng = random.Random(derive_seed(seed, "instruct", "reading"))
        base = stages("base", BASE_SFT, model, lambda m, **hooks: train_sft(
            m, stages.tokenizer, base_texts(Instructions(), rng, **READ), BASE_SFT, seed=seed,
            **hooks))
        sft, start = pipeline.supervise(base, stages.tokenizer, demonstrations(settings),
                                        pretraining(seed, n=settings.demonstrations), seed=seed,
                                        stage=stages)
    if settings.rankings is not None:
        return ModelsAndRankings(sft, start, *given_rankings(settings))

    def labelled_file(name: str, n: int, split: str) -> list[Ranking]:
        ask = partial(rank, sft, stages.tokenizer, n, split=split, seed=seed,
                      noise=settings.labeller_noise)
        return stages.file(name, ask, load_rankings, save_rankings)

    return ModelsAndRankings(
        sft, start, rankings=labelled_file("rankings.jsonl", settings.ranked_prompts, "train"),
        held_out=labelled_file("held-out.jsonl", HELD_OUT, "test"))


def second_stage(stages: Stages[InstructSettings], stage_1: ModelsAndRankings,
                 config: RewardModelConfig) -> ScalarModel:
    """Return the reward model that --reward-model names, or train one."""
    settings = stages.settings
    if settings.reward_model is not None:
        return load_reward_model(settings.reward_model, device=stages.device)[0]
    stages.looks["rm"] = Agreement(stages, stage_1.rankings, stage_1.held_out,
                                   demonstrations(settings, "test"))
    return pipeline.learn_rewards(
        stage_1.sft, stages.tokenizer, lambda: stage_1.rankings, config, seed=settings.seed,
        demonstrations=demonstrations(settings) if settings.rankings is None else [], stage=stages)


def demonstrations(settings: InstructSettings, split: str = "train") -> list[Pair]:
    """Return what people wrote for others to learn from."""
    rng = random.Random(derive_seed(settings.seed, "instruct", "demonstrations", split))
    return answers(Instructions(), settings.demonstrations, rng, right_share=settings.right_share,
                   split=split)


def given_rankings(settings: InstructSettings) -> tuple[list[Ranking], list[Ranking]]:
    """Read --rankings; hold out a tenth of its prompts unless --reward-model is given."""
    if settings.reward_model is not None:
        return settings.rankings_in_file, []
    try:
        return split_rankings(settings.rankings_in_file)
    except ValueError as error:
        raise ValueError(f"{settings.rankings} has {error}") from error


# stage 3

def train_by_dpo(stages: Stages[InstructSettings], stage_1: ModelsAndRankings, config: DPOConfig,
                 look: Comparison) -> Transformer:
    """DPO on the rankings. The look's reward model is asked for evaluation only."""
    stages.looks["dpo"] = look
    return pipeline.prefer(stage_1.start, stages.tokenizer, lambda: stage_1.rankings, config,
                           seed=stages.settings.seed, stage=stages)


# the commands

def rm(stages: Stages[InstructSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl rm` does, stages 1 and 2 -> what it prints at the end."""
    run, settings = stages.run, stages.settings
    stages.looks["sft"] = KeepEpochs(stages.tokenizer, pipeline.DEMONSTRATIONS_SFT.epochs)
    tokens = configs["rm"].epochs * tokens_of_rankings(settings)
    second_stage(stages, first_stage(stages, model, tokens=tokens), configs["rm"])
    summary, epochs = run.summary, read_json(run.path / "sft-epochs.json").get("epochs")
    return (f"\n{summary['rankings']} rankings, {summary['comparisons']} comparisons; of "
            f"{summary['held_out_comparisons']} held-out comparisons the reward model decides "
            f"{summary['pair_accuracy']:.1%} as the labeller did\n"
            + (f"\n{epochs_table(epochs)}\n" if epochs else "")
            + f"\n{stages.seconds:.0f} s. {run.path}/ holds calibration.png, curves.png, "
              "summary.json, metrics.jsonl and final/"
            + (", sft-epochs.png and rankings.jsonl.\n" if epochs else ".\n")
            + f"Next: minirl ppo {same_start(run, settings, own=run.path / 'final')}")


def ppo(stages: Stages[InstructSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl ppo` does, all three stages, and DPO beside them -> what it prints."""
    run, settings, config = stages.run, stages.settings, configs["ppo"]
    stage_1 = first_stage(stages, model,
                          tokens=config.steps * config.episodes * config.max_new_tokens)
    reward_model = second_stage(stages, stage_1, RewardModelConfig())
    look = stages.looks["ppo"] = Comparison(
        stages, reward_model, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    dpo_policy = train_by_dpo(stages, stage_1, DPOConfig(), look)
    variant = PRESETS["ppo"][run.config["preset"]].arguments(config)
    pipeline.reinforce(stage_1.start, stages.tokenizer, Instructions(), config,
                       reward_model=reward_model, pretraining=pretraining(settings.seed),
                       seed=settings.seed, stage=stages, **variant)
    rows = compare(stages, stage_1.start, look, {"DPO": dpo_policy}) | {"PPO": look.last}
    return (f"{report(stages, rows)}\nNext, from the same start ({same_start(run, settings)}):\n"
            "minirl ppo --kl-coef 0  (what happens without the penalty)  |  "
            "minirl ppo --preset ppo-ptx  |  minirl plot")


def dpo(stages: Stages[InstructSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl dpo` does -> what it prints at the end."""
    run, settings = stages.run, stages.settings
    stage_1 = first_stage(stages, model,
                          tokens=configs["dpo"].epochs * tokens_of_rankings(settings))
    look = Comparison(stages, second_stage(stages, stage_1, RewardModelConfig()))
    train_by_dpo(stages, stage_1, configs["dpo"], look)
    rows = compare(stages, stage_1.start, look, {}) | {"DPO": look.last}
    return f"{report(stages, rows)}\nNext, from the same start: minirl ppo " \
           f"{same_start(run, settings)}"


def tokens_of_rankings(settings: InstructSettings) -> int:
    """Return about how many tokens the rankings have, at most one per character of --rankings.

    The labeller is asked after this is needed. Until then it is the longest that rankings can be,
    with prompts as long as completions.
    """
    if settings.rankings is None:
        return settings.ranked_prompts * MOST * 2 * MAX_NEW_TOKENS
    return sum(len(ranking.prompt) + len(completion) for ranking in settings.rankings_in_file
               for completion in ranking.completions)


def same_start(run: RunDir, settings: InstructSettings, own: Path | None = None) -> str:
    """Return the flags with which another run has the same policy, reward model and rankings.

    `own` is the reward model of minirl rm, which is the run itself.
    """
    flags = {"init": settings.init or run.path / "rl-init" / "final",
             "reward-model": own or settings.reward_model or run.path / "rm" / "final",
             "rankings": settings.rankings or run.path / "rankings.jsonl"}
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())


# what they print

def compare(stages: Stages[InstructSettings], start: Transformer, look: Comparison,
            policies: Mapping[str, Transformer]) -> dict[str, Evaluation]:
    """Evaluate the start, best-of-n of it, and other policies, on the same held-out prompts."""
    settings = stages.settings
    best = f"best of {settings.best_of}"
    with settings.precision(stages.device):
        rows = {"SFT": replace(look.first, kl=0.0),
                best: look.evaluate(f"measuring {best}", start, samples=settings.best_of,
                                    choose=best_of("reward_model"), reference=start)}
        return rows | {name: look.evaluate(f"measuring {name}", policy, reference=start)
                       for name, policy in policies.items()}


def report(stages: Stages[InstructSettings], rows: Mapping[str, Evaluation]) -> str:
    return (f"\n{comparison(rows)}\n\n{stages.seconds:.0f} s. {stages.run.path}/ holds "
            "curves.png, samples.md, summary.json, metrics.jsonl"
            "\nand final/, a checkpoint in Hugging Face layout.")


# before a run has a folder

def check_instructions(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl rm`, `minirl ppo` or `minirl dpo` later."""
    settings: InstructSettings = configs["settings"]
    if settings.rankings is not None:
        refuse(flags, ("ranked_prompts", "labeller_noise"),
               "--rankings names rankings, and no labeller is asked")
        if settings.init is not None:
            refuse(flags, ("demonstrations", "right_share"),
                   "with --init and --rankings nobody writes demonstrations")
    if "rm" in configs:
        refuse(flags, ["best_of"], "minirl rm trains no policy to compare it with")
        if settings.reward_model is not None:
            raise ValueError("--reward-model is given to minirl rm, which trains one: leave it out,"
                             " or use minirl ppo or minirl dpo")
    if "ppo" in configs:
        check_copies(start, {"of the value function": ADAMW, "as the reference and the average": 2,
                             "as the reward model": 1, "trained by DPO": 1},
                     "name a smaller --init")
    longest = max(MAX_NEW_TOKENS, getattr(configs.get("ppo"), "max_new_tokens", 0))
    check_prompts(start.tokenizer, Instructions(), max_new_tokens=longest,
                  context=start.config.max_seq_len)
    if settings.rankings is not None:
        for rankings in given_rankings(settings):
            if rankings:
                encode_rankings(start.tokenizer, rankings, start.config.max_seq_len)
    check_reward_model(settings, start)


def check_reward_model(settings: InstructSettings, start: Start) -> None:
    """Raise ValueError for a --reward-model that cannot read what the policy writes."""
    if settings.reward_model is None:
        return
    own, (_, other) = start.tokenizer, load_reward_model(settings.reward_model)
    if not own.same_ids(other):
        raise ValueError(f"the reward model {settings.reward_model} and the policy "
                         f"{settings.init or 'of this toy'} have different tokenizers "
                         f"({other.vocab_size} and {own.vocab_size} tokens): it would read "
                         "other words than the policy writes; use a reward model that was "
                         "trained from this policy")
