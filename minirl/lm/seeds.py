"""Seeds: one for each purpose, and torch's global generators set for the length of a block."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, *names: object) -> int:
    """Return an independent 63-bit seed for each purpose: derive_seed(0, "grpo", step, "sample").

    >>> derive_seed(0, "grpo", 0, "sample")
    4968650417455394554
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Start the global generators of the CPU and of `device` from `seed`; restore them at the end.

    Dropout and the initial weights of a module draw from the global generators.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for own in devices:
            with torch.cuda.device(own):
                torch.cuda.manual_seed(seed)
        yield
