"""The policy: a decoder-only transformer of the Llama / Qwen2 / Qwen3 family.

A block is two residual steps, attention and a gated feed-forward layer:

    x = x + Attention(RMSNorm(x))    Vaswani et al. 2017, with RoPE (arXiv:2104.09864) and grouped
                                     queries (arXiv:2305.13245)
    x = x + SwiGLU(RMSNorm(x))       arXiv:2002.05202; RMSNorm is arXiv:1910.07467

Modules have the names of Hugging Face's LlamaForCausalLM without the leading `model.`, so that a
checkpoint maps one to one (checkpoint.py).

Parameters are read only inside the forward of the module that owns them: a block's in
Block.forward, all others in Transformer.forward. FSDP, which spreads the parameters over several
processes, gathers a module's parameters when its forward begins and frees them when it ends. What
needs the output matrix too, such as log-probs, is passed to forward as `head`.

Shapes: B rows of T tokens, or N tokens in a list; width d, H query heads, K key/value heads, head
width D, vocabulary V.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minirl.lm import batch_invariant
from minirl.lm.attention import Context, Rows
from minirl.lm.cache import KVCache, Weights
from minirl.lm.compiled import compiled
from minirl.lm.config import ModelConfig, check_dropout
from minirl.lm.kernels import rms_norm, swiglu
from minirl.lm.panels import linear
from minirl.lm.precision import compute_dtype
from minirl.lm.recompute import recomputed
from minirl.lm.rope import Rope, rotate

MANY = 1024      # tokens: fewer are not faster when compiled, on a CPU
WIDE = 512       # features: from here on a copy of the weights costs more than two more calls

Head = Callable[[Tensor, Tensor], Any]    # of hidden states (..., d), output matrix (V, d)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) * weight. (..., d) -> (..., d). See kernels.rms_norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """The parameters of attention: H query heads share K key/value heads (arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.q_proj = nn.Linear(c.hidden_size, c.num_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.output_bias)
        if c.qk_norm:  # Qwen3: a norm over the features of each head
            self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)


class FeedForward(nn.Module):
    """The parameters of SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202, eq. 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class Block(nn.Module):
    """Two residual steps.

    Two functions do what concerns each token alone, so that they can be compiled; tokens meet in
    the attention between them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: Context, layer: int,
                cache: KVCache | None, compiled: bool) -> Tensor:
        """x (N, d) -> (N, d). With a cache, the weights are joined once, by its first call."""
        w: Weights | None
        if cache is None:
            w = self.weights(join=self.config.hidden_size < WIDE or batch_invariant.active())
        elif (w := cache.weights[layer]) is None:
            w = cache.weights[layer] = self.weights(compute_dtype(x.dtype, x.device))
        before, after = before_attention, after_attention
        if compiled:
            before, after = _compiled_before, _compiled_after
        c, dropout = self.config, self.dropout.p if self.training else 0.0
        q, k, v = before(x, *rope, w, c.num_heads, c.num_kv_heads, c.rms_norm_eps)
        return after(x, context(layer, q, k, v), w, c.rms_norm_eps, dropout)

    def weights(self, dtype: torch.dtype | None = None, *, join: bool = True) -> Weights:
        """Return the weights, the matrices cast to `dtype` where one is named, and those with the
        same input joined, unless their copy would not be worth its memory.

        Without autograd they are detached, so that frozen weights do not make the compiler run a
        second time.
        """
        def own(x: Tensor) -> Tensor:
            return x if torch.is_grad_enabled() else x.detach()

        def cast(x: Tensor) -> Tensor:
            return own(x if dtype is None else x.to(dtype))

        def joined(*layers: nn.Linear) -> tuple[Tensor, ...]:
            matrices = [layer.weight for layer in layers]
            return tuple(map(cast, [torch.cat(matrices)] if join else matrices))

        c, a, mlp = self.config, self.self_attn, self.mlp
        qkv = (a.q_proj, a.k_proj, a.v_proj)
        qkv_bias = qk_norm = output_bias = None
        if c.qkv_bias:
            qkv_bias = cast(torch.cat([p.bias for p in qkv]))
        if c.qk_norm:
            qk_norm = own(torch.cat([a.q_norm.weight.expand(c.num_heads, -1),
                                     a.k_norm.weight.expand(c.num_kv_heads, -1)]))
        if c.output_bias:
            output_bias = cast(a.o_proj.bias)
        return Weights(norm=own(self.input_layernorm.weight),
                       qkv=joined(*qkv), qkv_bias=qkv_bias,
                       qk_norm=qk_norm, output=cast(a.o_proj.weight), output_bias=output_bias,
                       second_norm=own(self.post_attention_layernorm.weight),
                       gate_up=joined(mlp.gate_proj, mlp.up_proj),
                       down=cast(mlp.down_proj.weight))


def before_attention(x: Tensor, cos: Tensor, sin: Tensor, w: Weights, H: int, K: int, eps: float
                     ) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, d) -> queries (N, H, D), keys (N, K, D) and values (N, K, D).

    Queries and keys are normalised, where the family does so, and turned by their position.
    """
    qkv = products(rms_norm(x, w.norm, eps), w.qkv, w.qkv_bias).unflatten(-1, (H + 2 * K, -1))
    qk, v = qkv.split([H + K, K], dim=1)
    if w.qk_norm is not None:
        qk = rms_norm(qk, w.qk_norm, eps)
    qk = rotate(qk, cos, sin).to(v.dtype)
    # Two slices of qk make the compiler store it. With one split, it turns the query for every key.
    return qk[:, :H], qk[:, H:], v


def after_attention(x: Tensor, heads: Tensor, w: Weights, eps: float, dropout: float) -> Tensor:
    """Tokens x (N, d), what they read in attention (N, H D) -> tokens after both residual steps."""
    x = x + F.dropout(linear(heads, w.output, w.output_bias), dropout, training=dropout > 0)
    gate, up = products(rms_norm(x, w.second_norm, eps), w.gate_up).chunk(2, dim=-1)
    return x + F.dropout(linear(swiglu(gate, up), w.down), dropout, training=dropout > 0)


def products(x: Tensor, weights: tuple[Tensor, ...], bias: Tensor | None = None) -> Tensor:
    """Return x (N, d) times each of some matrices (n, d), side by side: (N, sum of all n)."""
    if len(weights) == 1:
        return linear(x, weights[0], bias)
    y = torch.cat([linear(x, weight) for weight in weights], dim=-1)
    return y if bias is None else y + bias.to(y.dtype)


_compiled_before, _compiled_after = compiled(before_attention), compiled(after_attention)


class Transformer(nn.Module):
    """Decoder-only language model: see `forward`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        if c.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.rope = Rope(c.head_dim, c.max_seq_len, theta=c.rope_theta, scaling=c.rope_scaling)
        self.compiled = False    # whether a block's two functions are compiled: see compiled.py
        self.apply(self._initialise)

    @classmethod
    def without_weights(cls, config: ModelConfig) -> Transformer:
        """Return a model for load_state_dict(weights, assign=True).

        Its parameters are on the device "meta", where they take no memory and no time. The tables
        of rope.py, which are computed and never loaded, are complete.
        """
        with torch.device("meta"), NoDraws():
            return cls(config)

    def _initialise(self, module: nn.Module) -> None:
        """Draw weights from Normal(0, initializer_range), biases 0.

        The matrices that add to the residual stream get a standard deviation smaller by
        sqrt(2 * layers), as in GPT-2.
        """
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for projection in (module.self_attn.o_proj, module.mlp.down_proj):
                nn.init.normal_(projection.weight, std=std / math.sqrt(2 * self.config.num_layers))

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def set_dropout(self, p: float) -> None:
        """Set dropout everywhere. It belongs to a training stage: SFT uses it, RL sets it to 0."""
        check_dropout(p)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = p

    def forward(self, tokens: Tensor, *, context: Context | None = None,
                cache: KVCache | None = None, starts: Tensor | None = None,
                head: Head | None = None) -> Any:
        """Return logits (slot t scores token t + 1), or head(hidden, weight) where one is passed.

        `hidden` are the last hidden states, normalised, and `weight` is the output matrix (V, d).

        Shapes     tokens (B, T) -> hidden (B, T, d), logits (B, T, V)
                   with a context: tokens (N,) -> hidden (N, d), logits (N, V)

        `context` says which positions the tokens have and which tokens each one sees: attention.py.
        Without one, tokens are rows. With `cache`, they continue what it holds and are added to it.
        `starts` (B,) is the slot at which each row starts after padding on the left, which is
        neither seen nor counted. Padding on the right needs nothing, as no token looks ahead.
        """
        if context is None:
            context = Rows(*tokens.shape, device=tokens.device, cache=cache, starts=starts)
        self._check_context(context)
        few = not tokens.is_cuda and tokens.numel() < MANY
        compiled = self.compiled and not few and not torch.compiler.is_compiling()
        x = self.dropout(self.embed_tokens(tokens.flatten()))  # (N, d)
        rope = self.rope(context.positions, x.dtype)
        for i, block in enumerate(self.layers):
            x = recomputed(block, x, rope, context, i, cache, compiled)
        hidden, weight = self.norm(x).unflatten(0, tokens.shape), self.lm_head.weight
        if cache is not None:
            cache.length = context.longest
            if cache.head is None:
                cache.head = weight.to(compute_dtype(weight.dtype, weight.device))
            weight = cache.head
        return F.linear(hidden, weight) if head is None else head(hidden, weight)

    def hidden(self, tokens: Tensor, *, cache: KVCache | None = None, starts: Tensor | None = None
               ) -> Tensor:
        """Return the last hidden states, normalised: tokens (B, T) -> (B, T, d). See forward."""
        return self(tokens, cache=cache, starts=starts, head=hidden_alone)

    def _check_context(self, context: Context) -> None:
        limit = self.config.max_seq_len
        if context.longest > limit and int(context.positions.max()) >= limit:
            raise ValueError(f"{int(context.positions.max()) + 1} tokens do not fit the model's "
                             f"context of {limit}: shorten the prompt or max_new_tokens, or build "
                             "the model with a larger max_seq_len")


def hidden_alone(hidden: Tensor, weight: Tensor) -> Tensor:
    """The head that returns the hidden states."""
    return hidden


def with_head(model: Transformer, tokens: Tensor, head: Head, **options: Any) -> Any:
    """Return head(last hidden states, output matrix), computed inside the model's forward.

    A model that is no Transformer, such as a table of logits in a test, has `hidden` and
    `lm_head` instead.
    """
    if isinstance(model, Transformer):
        return model(tokens, head=head, **options)
    return head(model.hidden(tokens, **options), model.lm_head.weight)


class NoDraws(TorchFunctionMode):
    """While it is active, modules do not draw initial weights.

    On the device "meta" a draw has no result, but it loads the compiler, which takes seconds.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.uniform_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)
