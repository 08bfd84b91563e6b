"""A tiny transformer, made from nothing, that learns arithmetic on a CPU in about a minute."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.seeds import derive_seed, seeded
from minirl.lm.tokenizer import TAGS, Tokenizer, build_tokenizer


@dataclass(frozen=True)
class TinySizes:
    """The sizes of the tiny model."""

    hidden_size: int = 96
    num_layers: int = 2
    num_heads: int = 6
    intermediate_size: int = 384
    max_seq_len: int = 128


SIZE_NAMES = tuple(asdict(TinySizes()))


def tiny_config(sizes: TinySizes, vocab_size: int) -> ModelConfig:
    """Return the configuration of the model that make_base makes.

    To add two numbers, attention must find a column by its position, and the feed-forward layers
    must learn a table of sums. A short RoPE wavelength, q/k norms, large initial weights and a
    wide feed-forward layer make the model learn this several times sooner than the defaults,
    which are chosen for large models.
    """
    chosen = {name: getattr(sizes, name) for name in SIZE_NAMES}
    return ModelConfig(vocab_size, **chosen, rope_theta=100.0, qk_norm=True, initializer_range=0.15)


def make_base(sizes: TinySizes, *, seed: int, device: torch.device | str,
              words: tuple[str, ...] = (), tokenizer: Tokenizer | None = None
              ) -> tuple[Transformer, Tokenizer]:
    """Return a model with fresh weights, and its tokenizer.

    The tokenizer encodes bytes and has one token for each tag and for each of `words`, unless
    `tokenizer` is given. The initial weights depend on `seed`, on the sizes and on the size of
    the vocabulary, and on nothing else.
    """
    tokenizer = tokenizer or build_tokenizer(special_tokens=(*TAGS, *words))
    with seeded(derive_seed(seed, "init"), torch.device("cpu")):
        model = Transformer(tiny_config(sizes, tokenizer.vocab_size))
    return model.to(device), tokenizer
