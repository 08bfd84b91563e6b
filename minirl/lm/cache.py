"""What a model keeps from one step of sampling to the next: keys, values, and joined weights.

Shapes: width d, H query heads, K key/value heads, head width D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minirl.lm.config import ModelConfig
from minirl.lm.panels import panels


class Weights(NamedTuple):
    """What one block computes with. Matrices with the same input are joined into one product, or
    stand side by side: model.products."""

    norm: Tensor  # (d,)
    qkv: tuple[Tensor, ...]  # ((H + 2 K) D, d) in all
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # (H + K, D)
    output: Tensor  # (d, H D)
    output_bias: Tensor | None
    second_norm: Tensor  # (d,)
    gate_up: tuple[Tensor, ...]  # (2 * intermediate, d) in all
    down: Tensor  # (d, intermediate)


class KVCache:
    """Keys and values of the tokens so far: for each layer one tensor (B, K, S, D) of each.

    `length` of the S slots are filled. Where `slot` (1,) is set, it says on the device where the
    next token goes, and all slots are read. Then no step depends on a number that the host must
    know, and a step can be recorded once and played again (decoding.py).

    `weights` are the blocks' weights, joined and cast, and `head` is the output matrix, cast. The
    first forward pass with the cache fills them in, and later ones read them. So a cache is good
    for as long as the model's weights stay as they are.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], *, length: int,
                 slot: Tensor | None = None, weights: list[Weights | None] | None = None,
                 head: Tensor | None = None) -> None:
        self.keys, self.values, self.length, self.slot = keys, values, length, slot
        self.weights: list[Weights | None] = [None] * len(keys) if weights is None else weights
        self.head = head

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, slots: int, *,
              device: torch.device | None = None, dtype: torch.dtype | None = None,
              by_slot: bool = False) -> KVCache:
        """Return a cache with nothing in it.

        With `by_slot`, memory is ordered slot by slot, so a step reads and writes one stretch each.
        This makes a compiled step faster, which is one pass over all filled slots, and matrix
        products slower.
        """
        K, D = config.num_kv_heads, config.head_dim

        def store() -> Tensor:
            if not by_slot:
                return torch.empty(rows, K, slots, D, device=device, dtype=dtype)
            # One row too many. With strides that are multiples of `rows`, the compiler would
            # make code for exactly `rows` rows, and other code when some rows have left.
            memory = torch.empty(slots, rows + 1, K, D, device=device, dtype=dtype)
            return memory[:, :rows].permute(1, 2, 0, 3)

        keys, values = ([store() for _ in range(config.num_layers)] for _ in range(2))
        return cls(keys, values, length=0)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, D) after a layer's filled slots; return all its keys and values."""
        keys, values = self.keys[layer], self.values[layer]
        if self.slot is not None:
            keys.index_copy_(2, self.slot, k.to(keys.dtype))
            values.index_copy_(2, self.slot, v.to(values.dtype))
            return keys, values
        end = self.length + k.shape[2]
        keys[:, :, self.length:end] = k
        values[:, :, self.length:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def take(self, source: KVCache, rows: Tensor) -> None:
        """Copy the given rows of another cache, its filled slots only, to the rows of this one."""
        self.length = source.length
        for own, other in zip(self.keys + self.values, source.keys + source.values, strict=True):
            own[:, :, :self.length] = other[:, :, :self.length].index_select(0, rows)

    def take_weights(self, source: KVCache) -> None:
        """Keep another cache's weights, in the memory of those kept before, if there are any."""
        if self.head is None:
            self.weights, self.head = source.weights, source.head
            return
        for own, other in zip(self._tensors(), source._tensors(), strict=True):
            own.copy_(other)

    def use_panels(self) -> None:
        """Keep the matrices in panels: panels.py."""
        self.weights = [None if w is None else w._replace(
            qkv=tuple(map(panels, w.qkv)), output=panels(w.output),
            gate_up=tuple(map(panels, w.gate_up)), down=panels(w.down)) for w in self.weights]
        self.head = None if self.head is None else panels(self.head)

    def _tensors(self) -> list[Tensor]:
        tensors = [x for w in self.weights if w is not None for part in w if part is not None
                   for x in (part if isinstance(part, tuple) else (part,))]
        return tensors if self.head is None else [*tensors, self.head]

    def move(self, rows: Tensor, to: Tensor) -> None:
        """Copy `rows` over the rows `to`."""
        for store in self.keys + self.values:
            filled = store[:, :, :self.length]
            filled.index_copy_(0, to, filled.index_select(0, rows))    # half the time of indexing


def cache_dtype(dtype: torch.dtype, device: torch.device, compiled: bool) -> torch.dtype:
    """Return the dtype of keys and values.

    On a CPU, unless compiled, it is at least float32, as small batched products are slower in less.
    """
    if device.type == "cpu" and not compiled:
        return torch.promote_types(dtype, torch.float32)
    return dtype
