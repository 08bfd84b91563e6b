"""What can be known before anything is made: asked in one place, before a run has a folder or a model
learns. Numbers, device, files, sizes and lengths are asked for here; each answer is a ValueError."""

from __future__ import annotations

import random
from collections.abc import Collection

from minirl.app.flags import flag
from minirl.app.instruct import InstructConfig, split_rankings
from minirl.app.measure import MAX_NEW_TOKENS, TASK
from minirl.app.presets import check_flags
from minirl.app.r1 import R1_WORDS, R1RunConfig, check_lengths
from minirl.app.training import BaseConfig, CommonConfig, RunConfig
from minirl.lm.checkpoint import inspect_pretrained, load_reward_model
from minirl.lm.memory import ADAMW, check_room, parameters_of, sampling_bytes
from minirl.lm.model import ModelConfig
from minirl.lm.precision import pick_device
from minirl.lm.sampling import check_context
from minirl.lm.tiny import SIZES, tiny_config
from minirl.lm.tokenizer import TAGS, Tokenizer, build_tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.instructions import WORDS
from minirl.tasks.preferences import load_demonstrations
from minirl.train.encoding import encode_pairs, encode_rankings

LOOKED_AT = 200          # problems whose lengths stand for all of a task's
MADE = ("examples", "worked_share", "guessed_share", "task", "digits", "eval_problems")
LABELLED = ("ranked_prompts", "labeller_noise")
DEMONSTRATED = ("demonstrations", "right_share")


def preflight(command: str, built: dict, preset: str, given: Collection[str]) -> None:
    """Raise ValueError for what would stop `minirl <command>` later.

    built: the configurations by name; given: the fields that were given as flags.
    """
    if command in ("grpo", "ppo"):
        check_flags(preset, given, built[command])
    check_read(command, built["run"], getattr(built.get("base"), "data", None), given)
    settings = built["run"]
    device = pick_device(settings.device)
    config, tokenizer = starting_point(settings, built.get("base", BaseConfig()))
    copies = ADAMW if command in ("sft", "dpo") else ADAMW + 1                   # and a reference
    check_room(4 * copies * parameters_of(config), device, f"training {parameters_of(config):,} weights")
    if isinstance(settings, RunConfig):
        check_sums(built, settings, config, tokenizer, device)
    elif isinstance(settings, R1RunConfig):
        check_lengths(built["r1"], settings, config, tokenizer)
    elif isinstance(settings, InstructConfig):
        check_instructions(built, settings, config, tokenizer)


def starting_point(settings: CommonConfig, base: BaseConfig) -> tuple[ModelConfig, Tokenizer]:
    """The sizes and the tokenizer of the model that a run starts from, read or as it will be made."""
    if settings.init is not None:
        return inspect_pretrained(settings.init)
    words = R1_WORDS if isinstance(settings, R1RunConfig) else WORDS if isinstance(settings, InstructConfig) else ()
    tokenizer = build_tokenizer(special_tokens=(*TAGS, *words))
    return tiny_config(base, tokenizer.vocab_size), tokenizer


def check_read(command: str, settings: CommonConfig, data: str | None, given: Collection[str]) -> None:
    """Raise ValueError for a flag that this run would not read."""
    def refuse(fields: tuple[str, ...], why: str) -> None:
        for field in fields:
            if field in given:
                raise ValueError(f"{flag(field)} is given, but {why}: leave it out")

    if command == "sft" and settings.init is not None:
        refuse(SIZES, "--init names a model, which has its sizes")
    if command == "sft" and data is not None:
        refuse(MADE, "--data names what is learnt from, and no sums are made")
    if isinstance(settings, InstructConfig):
        if settings.rankings is not None:
            refuse(LABELLED, "--rankings names rankings, and no labeller is asked")
            if settings.init is not None:
                refuse(DEMONSTRATED, "with --init and --rankings nobody writes demonstrations")
        if command == "rm":
            refuse(("best_of",), "minirl rm trains no policy to compare it with")
            if settings.reward_model is not None:
                raise ValueError("--reward-model is given to minirl rm, which trains one: leave it out, or use "
                                 "minirl ppo or minirl dpo")


def check_sums(built: dict, settings: RunConfig, config: ModelConfig, tokenizer: Tokenizer, device) -> None:
    """sft and grpo: the task, the data file, and whether prompts and completions fit the context."""
    rng, task = random.Random(0), Arithmetic(settings.task, settings.digits)
    grpo = built.get("grpo")
    if grpo is None and built["base"].data is not None:
        encode_pairs(tokenizer, load_demonstrations(built["base"].data), config.max_seq_len)
        return
    if grpo is None or settings.init is None:                                    # sums are read first
        pairs = demonstrations(task, LOOKED_AT, rng, worked_share=float(built["base"].worked_share > 0))
        encode_pairs(tokenizer, pairs, config.max_seq_len)
    if grpo is not None:
        check_prompts(tokenizer, task, grpo.max_new_tokens, config)
        rows = max(grpo.prompts_per_step * grpo.group_size, min(settings.eval_problems, 512))
        check_room(sampling_bytes(config, rows, grpo.max_new_tokens), device,
                   f"sampling {rows:,} completions of {grpo.max_new_tokens:,} tokens in a step")


def check_instructions(built: dict, settings: InstructConfig, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """rm, ppo and dpo: rankings, reward model, and whether prompts and completions fit the context."""
    check_prompts(tokenizer, TASK, max(MAX_NEW_TOKENS, getattr(built.get("ppo"), "max_new_tokens", 0)), config)
    if settings.rankings is not None:
        for rankings in split_rankings(settings):
            if rankings:
                encode_rankings(tokenizer, rankings, config.max_seq_len)
    if settings.reward_model is not None:
        check_tokenizers(settings, tokenizer)


def check_prompts(tokenizer: Tokenizer, task, max_new_tokens: int, config: ModelConfig) -> None:
    """Raise ValueError where a task's prompts leave no room for completions in the context."""
    rng = random.Random(0)
    problems = [p for split in ("train", "test") for p in task.sample(LOOKED_AT, rng, split=split)]
    longest = max((p.prompt for p in problems), key=lambda text: len(tokenizer.encode_prompt(text)))
    check_context(f"the prompt {longest!r}", len(tokenizer.encode_prompt(longest)), max_new_tokens, config.max_seq_len)


def check_tokenizers(settings: InstructConfig, tokenizer: Tokenizer) -> None:
    """A reward model must read the policy's ids: the same tokens, under the same numbers."""
    _, other = load_reward_model(settings.reward_model)
    if tokenizer.backend.get_vocab() != other.backend.get_vocab() or tokenizer.stop_ids != other.stop_ids:
        raise ValueError(f"the reward model {settings.reward_model} and the policy {settings.init or 'of this toy'} "
                         f"have different tokenizers ({other.vocab_size} and {tokenizer.vocab_size} tokens): it "
                         "would read other words than the policy writes; use a reward model that was trained "
                         "from this policy")
