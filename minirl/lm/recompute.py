"""Gradient checkpointing: less memory for more time.

    Paper      Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174, section 4

A backward pass needs what the forward pass computed, so each block of a transformer keeps some
twenty numbers per token and feature until its gradient is computed. With gradient checkpointing it
keeps its input alone, and is computed a second time when its gradient is wanted: one more forward
pass for each backward pass, a third more time, and the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_active: ContextVar[bool] = ContextVar("gradient_checkpointing", default=False)


@contextmanager
def gradient_checkpointing(on: bool = True) -> Iterator[None]:
    """Let every Transformer recompute its blocks in the backward pass, for the length of a block.

    >>> from minirl.lm.model import ModelConfig, Transformer
    >>> model = Transformer(ModelConfig(vocab_size=10))
    >>> with gradient_checkpointing():
    ...     model(torch.tensor([[3, 1, 4]])).logsumexp(-1).sum().backward()
    """
    before = _active.set(on)
    try:
        yield
    finally:
        _active.reset(before)


def recomputed(block: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return block(*args), to be computed again in the backward pass where there will be one and
    gradient checkpointing is on."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not _active.get():
        return block(*args)
    context = copy_context()    # a GPU's backward pass is in another thread
    return checkpoint(lambda *again: context.run(block, *again), *args, use_reentrant=False)
