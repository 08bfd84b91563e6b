"""How much memory things take, checked before they are made.

A machine that runs out of memory kills the process without an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from pathlib import Path

import torch

from minirl.lm.config import ModelConfig

GIB = 2 ** 30
M_MMAP_THRESHOLD = -3    # in glibc's malloc.h
ADAMW = 4                # copies of the weights in training: themselves, gradient, two moments


def check_room(need: float, device: torch.device, what: str,
               advice: str = "take fewer or smaller ones") -> None:
    """Raise ValueError where `need` bytes are more than the whole memory of the device."""
    room = memory_of(device)
    if need > room:
        raise ValueError(f"{what} would take {need / GIB:,.0f} GiB, and the machine has "
                         f"{room / GIB:,.0f}: {advice}")


def memory_of(device: torch.device) -> int:
    """Return the whole memory of the device, in bytes, whoever uses it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how much more memory this process may take: 0 where the system does not say.

    It is what the machine has free, or could free, within the limits of the process's container.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        free: float = next(1024 * int(line.split()[1]) for line in lines
                           if line.startswith("MemAvailable"))
        groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except (OSError, StopIteration):
        return 0
    for _, controllers, path in groups:
        if controllers in CONTAINERS:
            # a container may see its own group as the root
            for folder in (cgroups / controllers / path.lstrip("/"), cgroups / controllers):
                free = min(free, container_bytes(folder, *CONTAINERS[controllers]))
    return max(0, free)


# by the controllers of a group, version 2 and 1: the names of its limit, use, and what can be freed
CONTAINERS = {"": ("memory.max", "memory.current", "inactive_file"),
              "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}


def container_bytes(folder: Path, limit: str, used: str, freed: str) -> float:
    """Return how much more memory a control group may take, infinity without a limit."""
    try:
        numbers = [int((folder / name).read_text()) for name in (limit, used)]
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return numbers[0] - numbers[1] + int(stat[freed])
    except (OSError, ValueError, KeyError):
        return float("inf")


def return_freed_memory() -> None:
    """Let large pieces of memory go back to the system as soon as they are freed.

    glibc, the C library of most Linux systems, keeps pieces of up to 32 MB for later, and its
    aligned requests do not fit into holes of their own size: much memory is held that nobody uses.
    Does nothing on other systems.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2 ** 19)


@functools.cache
def process_bytes() -> int:
    """Return what this process holds at the first call, which should come before any model: Python,
    torch and other libraries."""
    return resident_bytes()


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was held so far: of the process or, on CUDA, of the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes("VmHWM")


def resident_bytes(field: str = "VmRSS") -> int:
    """Return the memory of this process, with "VmHWM" the most that it has held; 0 where the system
    does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def parameters_of(config: ModelConfig) -> int:
    """Return how many numbers the matrices of a model hold, without its norms and biases."""
    c = config
    attention = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
    block = attention + 3 * c.hidden_size * c.intermediate_size
    embeddings = 1 if c.tie_embeddings else 2
    return c.num_layers * block + embeddings * c.vocab_size * c.hidden_size


def sampling_bytes(config: ModelConfig, rows: int, length: int) -> float:
    """Return the bytes that sampling `rows` completions takes, `length` tokens with their prompts.

    These are keys and values, the logits of one step, and ids, draws and log-probs.
    """
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return 4.0 * rows * (length * (per_token + 6) + 3 * config.vocab_size)
