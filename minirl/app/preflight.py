"""What can be checked before a run has a folder or a model learns: device, checkpoint, memory and
flags. A check that fails raises ValueError."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from minirl.app.flags import flag
from minirl.app.stages import Settings
from minirl.lm.checkpoint import inspect_pretrained
from minirl.lm.memory import ADAMW, check_room, parameters_of
from minirl.lm.model import ModelConfig
from minirl.lm.precision import pick_device
from minirl.lm.tiny import TinySizes, tiny_config
from minirl.lm.tokenizer import TAGS, Tokenizer, build_tokenizer
from minirl.train.presets import PRESETS

# a field, and the value of another field with which no page reads it
UNREAD = {"ref_sync_steps": ("kl_coef", 0), "ddof": ("scale", "none"),
          "ptx_batch_size": ("ptx_coef", 0)}


@dataclass(frozen=True)
class Start:
    """The first model's config, tokenizer and device, known before any weights load."""

    config: ModelConfig
    tokenizer: Tokenizer
    device: torch.device


def starting_point(settings: Settings, sizes: TinySizes, words: tuple[str, ...]) -> Start:
    """Return what the run will start from. Raises ValueError where that, or memory, is missing."""
    device = pick_device(settings.device)
    if settings.init is not None:
        config, tokenizer = inspect_pretrained(settings.init)
    else:
        tokenizer = build_tokenizer(special_tokens=(*TAGS, *words))
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


def check_flags(command: str, preset: str, flag_names: Collection[str],
                config: Any = None) -> None:
    """Raise ValueError for a field that was given as a flag and that a run of this preset does not
    read. With the finished configuration, also for a field that its other numbers leave unread, a
    controller that could change nothing, and a penalty that the advantages could not take."""
    presets = PRESETS[command]
    for name in flag_names:
        readers = [other for other in presets if name in presets[other].reads]
        if readers and preset not in readers:
            raise ValueError(f"{flag(name)} is not read by preset {preset}: leave it out, or "
                             f"choose one that reads it ({', '.join(readers)})")
        if config is not None and name in UNREAD:
            other, value = UNREAD[name]
            if getattr(config, other) == value:
                raise ValueError(f"{flag(name)} is not read where {other} is {value}: leave it "
                                 f"out, or give another {flag(other)}")
    if config is None:
        return
    if "kl_control" in presets[preset].functions and config.kl_coef == 0:
        raise ValueError("kl_coef is 0 and would stay 0, as this preset's controller multiplies"
                         " it: give a positive one, or choose a preset without a controller")
    if getattr(config, "overlong_cache", 0):
        try:
            presets[preset].arguments(config)["advantages"](torch.tensor([[0.0, -1.0]]))
        except ValueError as error:
            raise ValueError(f"{flag('overlong_cache')} gives rewards below 0, which preset "
                             f"{preset} cannot take: leave it out ({error})") from error
