"""The policy: a decoder-only transformer of the Llama / Qwen2 / Qwen3 family, written to be read.

One block is two residual steps, attention and a gated feed-forward, each on the RMS-normalised stream:

    x = x + Attention(RMSNorm(x))        Vaswani et al. 2017, with RoPE (arXiv:2104.09864) and grouped queries (arXiv:2305.13245)
    x = x + SwiGLU(RMSNorm(x))           arXiv:2002.05202; RMSNorm is arXiv:1910.07467

Module names are those of Hugging Face's LlamaForCausalLM without the leading `model.`, so that a checkpoint maps one to one
(checkpoint.py). Shapes: B rows of T tokens, or N tokens in a list; d width, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minirl.lm.attention import KVCache, Rows
from minirl.lm.compiled import compiled
from minirl.lm.kernels import rms_norm
from minirl.lm.precision import compute_dtype
from minirl.lm.rope import MAX_POSITIONS, Rope, rotate


MANY = 1024      # tokens: on a CPU, fewer take no less time when compiled


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one Transformer. Llama: the defaults. Qwen2: `qkv_bias`. Qwen3: `qk_norm` and an explicit `head_dim`."""

    vocab_size: int
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int | None = None        # None: one per query head (no grouping)
    head_dim: int | None = None            # None: hidden_size / num_heads
    intermediate_size: int | None = None   # None: 4 * hidden_size
    max_seq_len: int = 128                 # context: prompt and completion together
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None       # {"rope_type": "llama3", ...} as in Llama 3.1's config.json
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    output_bias: bool = False              # bias of the attention's output projection
    qk_norm: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0                   # on the embedding and on what each block adds to the stream; SFT only
    initializer_range: float = 0.02

    def __post_init__(self):
        for name, default in (("num_kv_heads", self.num_heads), ("intermediate_size", 4 * self.hidden_size)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.head_dim is None and self.num_heads > 0:
            if self.hidden_size % self.num_heads:
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: "
                                 "change one of them, or give head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        for name in ("num_heads", "vocab_size", "hidden_size", "num_layers", "num_kv_heads", "head_dim", "intermediate_size", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ModelConfig.{name} is {value!r}: a whole number of at least 1 is wanted")
        if self.max_seq_len > MAX_POSITIONS:
            raise ValueError(f"ModelConfig.max_seq_len is {self.max_seq_len}: at most {MAX_POSITIONS} "
                             "positions are supported, as there is a table of all their angles")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                             "each key/value head serves the same number of query heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: RoPE turns the features in pairs, so an even number is wanted")
        _check_dropout(self.dropout)
        if self.output_bias and not self.qkv_bias:
            raise ValueError("output_bias without qkv_bias is a model that no family has, and that transformers would load wrongly: set both, or neither")
        if self.qk_norm and self.qkv_bias != self.output_bias:
            raise ValueError("qk_norm with qkv_bias and without output_bias is a model that no family "
                             "has: set both biases, or neither")


def _check_dropout(p: float) -> None:
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout is {p}: a share in [0, 1) is wanted")


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight. (..., d) -> (..., d). See kernels.rms_norm."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """The parameters of softmax(q k^T / sqrt(D)) v over the past, H query heads sharing K key/value heads (arXiv:2305.13245). See attention.py."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = config
        self.q_proj = nn.Linear(c.hidden_size, c.num_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.output_bias)
        if c.qk_norm:                                                       # Qwen3: one norm over each head's features
            self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)


class FeedForward(nn.Module):
    """The parameters of SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202, eq. 6)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class Weights(NamedTuple):
    """What one block computes with: matrices that multiply the same input are joined, so that there is one product for them."""

    norm: Tensor
    qkv: Tensor                   # ((H + 2 K) D, d)
    qkv_bias: Tensor | None
    qk_norm: Tensor | None        # (H + K, D)
    output: Tensor
    output_bias: Tensor | None
    second_norm: Tensor
    gate_up: Tensor               # (2 * intermediate, d)
    down: Tensor


class Block(nn.Module):
    """Two residual steps. What happens to each token by itself is in two functions, so that they can be compiled; between them tokens meet."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def weights(self, dtype: torch.dtype | None = None) -> Weights:
        """Joined, and with `dtype` the matrices cast to it. Outside autograd all are detached, so that frozen weights are compiled for no second time."""
        a, c, cast = self.self_attn, self.config, lambda x: x if x is None or dtype is None else x.to(dtype)
        qkv = (a.q_proj, a.k_proj, a.v_proj)
        w = Weights(
            norm=self.input_layernorm.weight, second_norm=self.post_attention_layernorm.weight,
            qkv=cast(torch.cat([p.weight for p in qkv])), qkv_bias=cast(torch.cat([p.bias for p in qkv])) if c.qkv_bias else None,
            qk_norm=torch.cat([a.q_norm.weight.expand(c.num_heads, -1), a.k_norm.weight.expand(c.num_kv_heads, -1)]) if c.qk_norm else None,
            output=cast(a.o_proj.weight), output_bias=cast(a.o_proj.bias),
            gate_up=cast(torch.cat([self.mlp.gate_proj.weight, self.mlp.up_proj.weight])), down=cast(self.mlp.down_proj.weight))
        return w if torch.is_grad_enabled() else Weights(*(x if x is None else x.detach() for x in w))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context, layer: int, w: Weights, compiled: bool) -> Tensor:
        before, after = (_compiled_before, _compiled_after) if compiled else (before_attention, after_attention)
        q, k, v = before(x, *rope, w, self.config.num_heads, self.config.num_kv_heads, self.config.rms_norm_eps)
        return after(x, context(layer, q, k, v), w, self.config.rms_norm_eps, self.dropout.p if self.training else 0.0)


def before_attention(x: Tensor, cos: Tensor, sin: Tensor, w: Weights, H: int, K: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, d) -> their queries (N, H, D), keys and values (N, K, D), normalised where the family does so, and turned by position."""
    qkv = F.linear(rms_norm(x, w.norm, eps), w.qkv, w.qkv_bias).unflatten(-1, (H + 2 * K, -1))
    qk, v = qkv.split([H + K, K], dim=1)
    if w.qk_norm is not None:
        qk = rms_norm(qk, w.qk_norm, eps)
    qk = rotate(qk, cos, sin).to(v.dtype)
    return qk[:, :H], qk[:, H:], v            # two readers, so that a compiler stores qk: with one, as a split is, it turns the query anew for every key


def after_attention(x: Tensor, attended: Tensor, w: Weights, eps: float, dropout: float) -> Tensor:
    """Add what attention found, (N, H * D), and what the feed-forward part makes of it, to the stream x (N, d)."""
    x = x + F.dropout(F.linear(attended, w.output, w.output_bias), dropout, training=dropout > 0)
    gate, up = F.linear(rms_norm(x, w.second_norm, eps), w.gate_up).chunk(2, dim=-1)
    return x + F.dropout(F.linear(F.silu(gate) * up, w.down), dropout, training=dropout > 0)


_compiled_before, _compiled_after = compiled(before_attention), compiled(after_attention)


class NoDraws(TorchFunctionMode):
    """While it is on, modules leave their weights as they are. On "meta" a draw has no result, but
    it loads the compiler, which takes seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.uniform_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


class Transformer(nn.Module):
    """Decoder-only language model. `forward` gives logits (B, T, V); `hidden` stops before them, for logprobs.py and heads.py."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.rope = Rope(config.head_dim, config.max_seq_len, theta=config.rope_theta, scaling=config.rope_scaling)
        self.compiled = False            # whether the blocks run as one compiled piece on either side of attention: see compiled.py
        self.apply(self._initialise)

    @classmethod
    def without_weights(cls, config: ModelConfig) -> Transformer:
        """A model for weights that are at hand: load_state_dict(weights, assign=True). Its own are
        on the device "meta", where they take no memory and no time, and have shapes alone; the
        tables of rope.py, which are computed and never loaded, are there."""
        with torch.device("meta"), NoDraws():
            return cls(config)

    def _initialise(self, module: nn.Module) -> None:
        """Normal(0, initializer_range); what a block adds to the stream starts smaller by sqrt(2 * layers), as GPT-2 does."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for projection in (module.self_attn.o_proj, module.mlp.down_proj):
                nn.init.normal_(projection.weight, std=self.config.initializer_range / math.sqrt(2 * self.config.num_layers))

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def set_dropout(self, p: float) -> None:
        """Dropout is a choice of the training stage, not of the weights: SFT sets it, reinforcement learning sets it to 0."""
        _check_dropout(p)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = p

    def hidden(self, tokens: Tensor, *, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Last hidden states, normalised: tokens (B, T) -> (B, T, d).

        With `cache`, `tokens` continue what it holds and are added to it. `starts` (B,) says at which slot each row starts, after padding on the
        left, which is neither seen nor counted. Padding on the right needs no word: no token looks ahead.
        """
        context = Rows(*tokens.shape, device=tokens.device, cache=cache, starts=starts)
        return self.hidden_of(tokens.flatten(), context, cache=cache).unflatten(0, tokens.shape)

    def hidden_of(self, tokens: Tensor, context, *, cache: KVCache | None = None) -> Tensor:
        """Last hidden states of a list of tokens, (N,) -> (N, d). `context` says which positions they have and who sees whom: see attention.py."""
        if context.longest > self.config.max_seq_len and int(context.positions.max()) >= self.config.max_seq_len:
            raise ValueError(f"{int(context.positions.max()) + 1} tokens do not fit the model's context of {self.config.max_seq_len}: "
                             "shorten the prompt or max_new_tokens, or build the model with a larger max_seq_len")
        if cache is None:
            weights = [block.weights() for block in self.layers]
        else:
            if cache.weights is None:
                cache.weights = [block.weights(compute_dtype(self)) for block in self.layers]
            weights = cache.weights
        compiled = self.compiled and not torch.compiler.is_compiling() and (tokens.is_cuda or len(tokens) >= MANY)
        x = self.dropout(self.embed_tokens(tokens))                                                   # (N, d)
        rope = self.rope(context.positions, x.dtype)
        for i, block in enumerate(self.layers):
            x = block(x, rope, context, i, weights[i], compiled)
        if cache is not None:
            cache.length = context.longest
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V); those at slot t are about token t + 1."""
        return self.lm_head(self.hidden(tokens))
