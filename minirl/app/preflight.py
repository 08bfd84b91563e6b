"""What can be checked before a run has a folder or a model learns: device, checkpoint and memory. A
check that fails raises ValueError."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from minirl.app.flags import LESS_MEMORY
from minirl.app.stages import Settings
from minirl.inference.collect import LOOKED_AT, ROWS
from minirl.inference.tool_use import encode_prompts
from minirl.lm.checkpoint import inspect_pretrained
from minirl.lm.memory import ADAMW, GIB, check_room, parameters_of, process_bytes
from minirl.lm.memory_plan import Plan, Work, memory_plan
from minirl.lm.model import ModelConfig
from minirl.lm.precision import pick_device
from minirl.lm.text import flag
from minirl.lm.tiny import TinySizes, tiny_config
from minirl.lm.tokenizer import TAGS, Tokenizer, build_tokenizer
from minirl.tasks.problem import Task
from minirl.train.presets import PRETRAINED_SIZE

TRAINING = ADAMW + 1     # copies of the weights: and the model that training starts from


@dataclass(frozen=True)
class Start:
    """The preset, and the first model's config, tokenizer and device, known before any weights
    load."""

    config: ModelConfig
    tokenizer: Tokenizer
    device: torch.device
    preset: str


def starting_point(settings: Settings, sizes: TinySizes, preset: str) -> Start:
    """Return what the run will start from. Raises ValueError where that, or memory, is missing."""
    device = pick_device(settings.device)
    if settings.init is not None:
        config, tokenizer = inspect_pretrained(settings.init)
    else:
        tokenizer = build_tokenizer(special_tokens=(*TAGS, *settings.words))
        config = tiny_config(sizes, tokenizer.vocab_size)
    weights = parameters_of(config)
    check_room(4 * TRAINING * weights, device, f"training {weights:,} weights")
    return Start(config, settings.conversing(tokenizer), device, preset)


def is_pretrained(init: str | None) -> bool:
    """Whether a run starts from a checkpoint that is too large for the tiny model's numbers."""
    return (init is not None
            and parameters_of(inspect_pretrained(init)[0]) >= PRETRAINED_SIZE)


def check_copies(start: Start, held: Mapping[str, int], advice: str) -> None:
    """Raise ValueError where a page that samples holds more copies of the weights than the memory.

    `held` are those beside what any training holds. On CUDA two samplers have copies of their own
    (lm/decoding.py): of the policy, and of the model that it started from and that was measured.
    """
    own = {"to train": TRAINING, **held, "in samplers": 2 if start.device.type == "cuda" else 0}
    copies, weights = sum(own.values()), parameters_of(start.config)
    parts = ", ".join(f"{count} {what}" for what, count in own.items() if count)
    check_room(4 * copies * weights, start.device,
               f"{copies} copies of {weights:,} weights ({parts})", advice)


def planned(settings: Settings, page: Any, tokenizer: Tokenizer, task: Task, config: ModelConfig,
            device: torch.device, *, copies: int, trained: int = 1) -> Plan:
    """Return the memory that a page takes which samples and learns.

    `copies` are those of the weights beside the models that are trained. Prompts count with the
    mean length of some, completions with the most that they may have.
    """
    problems = task.sample(LOOKED_AT, random.Random(0))
    prompts = encode_prompts(tokenizer, [problem.prompt for problem in problems])
    rows = (getattr(page, "episodes", 0)
            or page.prompts_per_step * getattr(page, "group_size", 1))
    return memory_plan(config, Work(
        rows, prompt=sum(map(len, prompts)) // len(prompts), completion=page.max_new_tokens,
        group=getattr(page, "group_size", 1), measured=min(settings.eval_problems, ROWS),
        token_budget=page.token_budget, copies=copies, trained=trained, device=device.type,
        dtype=settings.dtype, gradient_checkpointing=settings.gradient_checkpointing),
        process=process_bytes() if device.type == "cpu" else 0)


def check_plan(plan: Plan, device: torch.device) -> None:
    """Raise ValueError, with all parts, where a run would need more memory than there is."""
    parts = ", ".join(f"{x / GIB:.1f} {name}" for name, x in plan.parts.items() if x > GIB / 20)
    check_room(plan.total, device, f"this run, at its peak ({parts}),", LESS_MEMORY)


def refuse(flags: Collection[str], fields: Collection[str], why: str) -> None:
    """Raise ValueError for a flag that a run would not read."""
    for field in fields:
        if field in flags:
            raise ValueError(f"{flag(field)} is given, but {why}: leave it out")
