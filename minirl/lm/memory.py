"""What things take in memory, asked before they are made: a kernel that runs out of it kills without a word."""

from __future__ import annotations

import os

import torch

from minirl.lm.model import ModelConfig

GIB = 2 ** 30
ADAMW = 4                # copies of the weights that training holds: themselves, gradient, two moments


def check_room(need: float, device: torch.device, what: str) -> None:
    """Raise ValueError where `need` bytes are more than the device has in all."""
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[1]
    else:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > room:
        raise ValueError(f"{what} would take {need / GIB:,.0f} GiB, and the machine has {room / GIB:,.0f}: "
                         "take fewer or smaller ones")


def parameters_of(config: ModelConfig) -> int:
    """How many numbers the matrices of a model hold: all but its norms and biases."""
    c = config
    attention = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
    block = attention + 3 * c.hidden_size * c.intermediate_size
    return c.num_layers * block + (1 if c.tie_embeddings else 2) * c.vocab_size * c.hidden_size


def sampling_bytes(config: ModelConfig, rows: int, length: int) -> float:
    """What `rows` completions of `length` tokens take while they are sampled: their keys and values,
    one step's logits, and ids, draws and log-probs."""
    kept = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return 4.0 * rows * (length * (kept + 6) + 3 * config.vocab_size)
