"""The sizes and switches of a transformer, checked when they are put together."""

from __future__ import annotations

from dataclasses import dataclass

from minirl.lm.rope import MAX_POSITIONS

SIZES = ("num_heads", "vocab_size", "hidden_size", "num_layers", "num_kv_heads", "head_dim",
         "intermediate_size", "max_seq_len")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one Transformer.

    The defaults are Llama's. Qwen2 sets `qkv_bias`. Qwen3 sets `qk_norm` and gives `head_dim`.
    """

    vocab_size: int
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = None  # type: ignore[assignment]  # None: num_heads, no grouping
    head_dim: int = None  # type: ignore[assignment]  # None: hidden_size / num_heads
    intermediate_size: int = None  # type: ignore[assignment]  # None: 4 * hidden_size
    max_seq_len: int = 128                 # context: prompt and completion together
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None       # as in Llama 3.1's config.json
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    output_bias: bool = False              # a bias in the attention's output projection
    qk_norm: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0                   # on the embedding and on each residual step; SFT only
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        if self.head_dim is None and self.num_heads > 0:
            if self.hidden_size % self.num_heads:
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads "
                                 f"{self.num_heads}: change one of them, or give head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        self._check_sizes()
        check_dropout(self.dropout)
        self._check_biases()

    def _check_sizes(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ModelConfig.{name} is {value!r}: expected a whole number of at "
                                 "least 1")
        if self.max_seq_len > MAX_POSITIONS:
            raise ValueError(f"ModelConfig.max_seq_len is {self.max_seq_len}: at most "
                             f"{MAX_POSITIONS} positions are supported, as the model keeps a table "
                             "of all their angles")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads "
                             f"{self.num_kv_heads}: each key/value head serves the same number of "
                             "query heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: RoPE turns the features in pairs, "
                             "so it must be even")

    def _check_biases(self) -> None:
        """Refuse combinations that no model family has, as other software could not load them."""
        if self.output_bias and not self.qkv_bias:
            raise ValueError("output_bias without qkv_bias is a model that no family has, and that "
                             "transformers would load wrongly: set both, or neither")
        if self.qk_norm and self.qkv_bias != self.output_bias:
            raise ValueError("qk_norm with qkv_bias and without output_bias is a model that no "
                             "family has: set both biases, or neither")


def check_dropout(p: float) -> None:
    """Raise ValueError unless p is a probability below 1."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout is {p}: expected a share in [0, 1)")
