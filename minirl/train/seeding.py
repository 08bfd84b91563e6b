"""Dropout and fresh weights take torch's global generators: here a page sets their seed and puts
back what the caller had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators of the CPU and of `device` start from `seed`; afterwards they
    are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for own in devices:
            with torch.cuda.device(own):
                torch.cuda.manual_seed(seed)
        yield
