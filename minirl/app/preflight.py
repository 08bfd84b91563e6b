"""What can be checked before a run has a folder or a model learns: device, checkpoint and memory. A
check that fails raises ValueError."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from minirl.app.stages import Settings
from minirl.lm.checkpoint import inspect_pretrained
from minirl.lm.memory import ADAMW, check_room, parameters_of
from minirl.lm.model import ModelConfig
from minirl.lm.precision import pick_device
from minirl.lm.text import flag
from minirl.lm.tiny import TinySizes, tiny_config
from minirl.lm.tokenizer import TAGS, Tokenizer, build_tokenizer


@dataclass(frozen=True)
class Start:
    """The first model's config, tokenizer and device, known before any weights load."""

    config: ModelConfig
    tokenizer: Tokenizer
    device: torch.device


def starting_point(settings: Settings, sizes: TinySizes) -> Start:
    """Return what the run will start from. Raises ValueError where that, or memory, is missing."""
    device = pick_device(settings.device)
    if settings.init is not None:
        config, tokenizer = inspect_pretrained(settings.init)
    else:
        tokenizer = build_tokenizer(special_tokens=(*TAGS, *settings.words))
        config = tiny_config(sizes, tokenizer.vocab_size)
    weights = parameters_of(config)
    copies = ADAMW + 1                                 # and the model that training starts from
    check_room(4 * copies * weights, device, f"training {weights:,} weights")
    return Start(config, tokenizer, device)


def refuse(flags: Collection[str], fields: Collection[str], why: str) -> None:
    """Raise ValueError for a flag that a run would not read."""
    for field in fields:
        if field in flags:
            raise ValueError(f"{flag(field)} is given, but {why}: leave it out")
