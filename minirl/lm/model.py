"""The policy: a decoder-only transformer of the Llama / Qwen2 / Qwen3 family, written to be read.

One block is two residual steps, attention and a gated feed-forward, each on the RMS-normalised stream:

    x = x + Attention(RMSNorm(x))        Vaswani et al. 2017, with RoPE (arXiv:2104.09864) and grouped queries (arXiv:2305.13245)
    x = x + SwiGLU(RMSNorm(x))           arXiv:2002.05202; RMSNorm is arXiv:1910.07467

Module names are those of Hugging Face's LlamaForCausalLM without the leading `model.`, so that a checkpoint maps one to one
(checkpoint.py). Shapes: B rows, T tokens, S cached slots, d width, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirl.lm.kernels import rms_norm
from minirl.lm.rope import Rope, rotate


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
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"ModelConfig.{name} is {value!r}: a whole number of at least 1 is wanted")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: "
                             "each key/value head serves the same number of query heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: RoPE turns the features in pairs, so an even number is wanted")
        _check_dropout(self.dropout)
        if self.output_bias and not self.qkv_bias:
            raise ValueError("output_bias without qkv_bias is a model that no family has, and that transformers would load wrongly: set both, or neither")


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


class KVCache:
    """Keys and values of the tokens seen so far, preallocated: one (2, B, K, S, D) tensor per layer; `length` slots are filled."""

    def __init__(self, config: ModelConfig, rows: int, slots: int, *, device=None, dtype=None):
        shape = (2, rows, config.num_kv_heads, slots, config.head_dim)
        self.layers = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, D) behind the filled slots of one layer; return all keys and values up to them."""
        end = self.length + k.shape[2]
        store = self.layers[layer]
        store[0, :, :, self.length:end] = k
        store[1, :, :, self.length:end] = v
        return store[0, :, :, :end], store[1, :, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows, in that order; only the filled slots are copied."""
        for i, store in enumerate(self.layers):
            kept = store.new_empty((2, len(rows), *store.shape[2:]))
            kept[:, :, :, :self.length] = store[:, rows, :, :self.length]
            self.layers[i] = kept


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over the past, H query heads sharing K key/value heads (arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.q_proj = nn.Linear(c.hidden_size, c.num_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.output_bias)
        if c.qk_norm:                                                       # Qwen3: one norm over each head's features
            self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], visible: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        B, T, _ = x.shape
        H, K, D = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        weights, biases = zip(*((p.weight, p.bias) for p in (self.q_proj, self.k_proj, self.v_proj)))
        qkv = F.linear(x, torch.cat(weights), torch.cat(biases) if self.config.qkv_bias else None)      # one product, then one turn, for all heads
        qk, v = qkv.view(B, T, H + 2 * K, D).split([H + K, K], dim=2)
        if self.config.qk_norm:
            weight = torch.cat([self.q_norm.weight.expand(H, D), self.k_norm.weight.expand(K, D)])
            qk = rms_norm(qk, weight, self.config.rms_norm_eps)
        q, k = rotate(qk, *rope).transpose(1, 2).split([H, K], dim=1)       # (B, H, T, D), (B, K, T, D)
        v = v.transpose(1, 2)                                               # (B, K, T, D)
        if cache is not None:
            k, v = cache.append(layer, k, v)                                # (B, K, S, D)
        out = attend(q, k, v, visible)                                      # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


SHORT = 64      # queries: on a CPU, up to here two plain matrix products take less time than the fused kernel


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """q (B, H, T, D) over k, v (B, K, S, D); `visible` (B or 1, 1, T, S) or None: causal over S == T, or everything for one query."""
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    if T > 1 and (q.is_cuda or T > SHORT):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=H != K)
    if visible is None and T > 1:
        visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()[None, None]
    k, v = k.unsqueeze(2), v.unsqueeze(2)                                   # (B, K, 1, S, D): a key/value head serves H/K query heads
    scores = (q * D ** -0.5).reshape(B, K, H // K, T, D) @ k.transpose(3, 4)                            # (B, K, H/K, T, S)
    if visible is not None:
        scores = scores + torch.where(visible, 0.0, float("-inf")).to(scores.dtype).unsqueeze(2)
    return (scores.softmax(-1) @ v).reshape(B, H, T, D)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202, eq. 6)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope, visible, cache, layer: int) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rope, visible, cache, layer))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


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
        self.apply(self._initialise)

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

        With `cache`, `tokens` continue what it holds and are added to it. `starts` says at which slot the sequence of a token starts, where that
        is not 0: (B,) after padding on the left, (B, T) in rows that hold several sequences. A token sees and counts its own sequence only.
        Padding on the right needs no word: no token looks ahead.
        """
        T = tokens.shape[1]
        before = 0 if cache is None else cache.length
        slots = torch.arange(before, before + T, device=tokens.device)                                # (T,)
        if starts is None:
            positions, visible = slots, None
            if before and T > 1:
                visible = (torch.arange(before + T, device=tokens.device) <= slots[:, None])[None, None]   # (1, 1, T, S)
        else:
            starts = torch.minimum(starts if starts.dim() == 2 else starts[:, None], slots)           # (B, T): a padding slot sees itself, as an
            positions = slots - starts                                                                # empty softmax would be NaN
            keys = torch.arange(before + T, device=tokens.device)
            visible = ((keys <= slots[:, None]) & (keys >= starts[..., None])).unsqueeze(1)           # (B, 1, T, S)
        if before + T > self.config.max_seq_len and int(positions.max()) >= self.config.max_seq_len:
            raise ValueError(f"{int(positions.max()) + 1} tokens do not fit the model's context of {self.config.max_seq_len}: "
                             "shorten the prompt or max_new_tokens, or build the model with a larger max_seq_len")
        x = self.dropout(self.embed_tokens(tokens))                                                   # (B, T, d)
        rope = self.rope(positions, x.dtype)
        for i, block in enumerate(self.layers):
            x = block(x, rope, visible, cache, i)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V); those at slot t are about token t + 1."""
        return self.lm_head(self.hidden(tokens))
