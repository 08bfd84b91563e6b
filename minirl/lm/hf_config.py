"""Hugging Face's config.json to ModelConfig and back.

Each field is read with its type, and has the default of transformers. What this model does not have
is refused, with the field's name.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import torch

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.rope import MAX_POSITIONS
from minirl.lm.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "qwen3": "Qwen3ForCausalLM"}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of a model that cannot be built here."""


class Fields:
    """The fields of a JSON object in a file, each read with its type: fields("vocab_size", int).

    Raises CheckpointError, naming file and field, for a field that is missing and has no default,
    for null where the default is not None, for another type, and for a number out of range.
    """

    REQUIRED: Any = object()
    WANTED = {int: "a whole number", float: "a finite number", bool: "true or false",
              str: "a text", dict: "an object", list: "a list"}

    def __init__(self, values: dict, where: object) -> None:
        self.values, self.where = values, where

    def __call__(self, name: str, kind: type, default: Any = REQUIRED, *,
                 low: float = -math.inf, high: float = math.inf) -> Any:
        value = self.values.get(name, default)
        if value is self.REQUIRED:
            raise CheckpointError(f"{self.where} lacks {name!r}: a complete Hugging Face "
                                  "configuration is wanted")
        if value is None and default is None:
            return None
        number = kind in (int, float)
        fits = type(value) is kind or kind is float and type(value) is int
        if fits and (not number or low <= value <= high and abs(value) <= sys.float_info.max):
            return kind(value)
        limits = [f"{word} {limit}" for word, limit in (("from", low), ("to", high))
                  if number and math.isfinite(limit)]
        raise CheckpointError(f"{self.where}: {name} is {json.dumps(value):.60}: "
                              f"{' '.join([self.WANTED[kind], *limits])} is wanted")


def named_dtype(fields: Fields) -> torch.dtype | None:
    """Return the dtype that config.json names, None where it names none."""
    name = fields("dtype", str, None) or fields("torch_dtype", str, None)
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    if name is not None and name.removeprefix("torch.") not in dtypes:
        raise CheckpointError(f"{fields.where} names the dtype {name!r:.60}: one of "
                              f"{', '.join(dtypes)} is wanted")
    return None if name is None else dtypes[name.removeprefix("torch.")]


def to_hf_config(model: Transformer, tokenizer: Tokenizer) -> dict:
    """Return the content of config.json for a model and its tokenizer."""
    c, stops = model.config, tokenizer.stop_ids
    kind = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias and not c.output_bias else "llama"
    return {
        "architectures": [ARCHITECTURES[kind]], "model_type": kind,
        "dtype": str(model.dtype).removeprefix("torch."), "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len, "rope_theta": c.rope_theta,
        "rope_scaling": c.rope_scaling, "rms_norm_eps": c.rms_norm_eps,
        "attention_bias": c.qkv_bias, "mlp_bias": False, "hidden_act": "silu",
        "tie_word_embeddings": c.tie_embeddings, "initializer_range": c.initializer_range,
        "attention_dropout": 0.0, "use_cache": True,
        "pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops if len(stops) > 1 else tokenizer.eos_id,
    }


def from_hf_config(fields: Fields) -> ModelConfig:
    """Return the ModelConfig of a config.json, with the defaults of transformers."""
    kind = fields("model_type", str, None)
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{fields.where} is of a model of type {kind!r:.60}: "
                              f"{', '.join(ARCHITECTURES)} are supported")
    act, mlp_bias = fields("hidden_act", str, "silu"), fields("mlp_bias", bool, False)
    if act != "silu" or mlp_bias:
        raise CheckpointError(f"{fields.where} has hidden_act {act!r:.60}, mlp_bias {mlp_bias}: "
                              "silu without bias is supported")
    sizes = {name: fields(key, int, low=1) for name, key in (
        ("vocab_size", "vocab_size"), ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("num_layers", "num_hidden_layers"), ("num_heads", "num_attention_heads"))}
    context = fields("max_position_embeddings", int, low=1, high=MAX_POSITIONS)
    if kind != "llama":
        check_full_attention(fields, sizes["num_layers"], context)
    theta, scaling = read_rope(fields, context)
    bias = fields("attention_bias", bool, False) and kind != "qwen2"
    try:
        return ModelConfig(
            **sizes, num_kv_heads=fields("num_key_value_heads", int, None, low=1),
            head_dim=fields("head_dim", int, 128 if kind == "qwen3" else None, low=1),
            max_seq_len=context, rope_theta=theta, rope_scaling=scaling,
            rms_norm_eps=fields("rms_norm_eps", float, 1e-6, low=0),
            initializer_range=fields("initializer_range", float, 0.02, low=0),
            qkv_bias=bias or kind == "qwen2", output_bias=bias, qk_norm=kind == "qwen3",
            tie_embeddings=fields("tie_word_embeddings", bool, False))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{fields.where}: {error}") from error


def check_full_attention(fields: Fields, layers: int, context: int) -> None:
    """Raise CheckpointError if a Qwen layer would see only a part of the context."""
    slides = fields("use_sliding_window", bool, False)
    window = fields("sliding_window", int, None, low=1) if slides else None
    first, types = fields("max_window_layers", int, 28), fields("layer_types", list, None)
    if types is None:
        types = ["sliding_attention"] if window and first < layers else []
    elif len(types) != layers:
        raise CheckpointError(f"{fields.where}: layer_types lists {len(types)} layers, "
                              f"num_hidden_layers is {layers}: the same number is wanted")
    full = {"full_attention", "attention"}
    if window and window >= context:
        full.add("sliding_attention")
    others = sorted({str(kind) for kind in types} - full)
    if others:
        raise CheckpointError(f"{fields.where}: use_sliding_window, max_window_layers or "
                              f"layer_types ask for {', '.join(others)[:60]}: only full attention "
                              "is supported; choose a checkpoint without sliding windows")


def read_rope(fields: Fields, context: int) -> tuple[float, dict | None]:
    """Return RoPE's theta and scaling.

    transformers 5 writes both into one object, `rope_parameters`, with an inner one for each type
    of layer where a model has several. Before, theta stood outside.
    """
    key = "rope_scaling" if fields("rope_scaling", dict, None) else "rope_parameters"
    rope = Fields(fields(key, dict, None) or {}, f"{fields.where}: {key}")
    if "full_attention" in rope.values:
        rope = Fields(rope("full_attention", dict), f"{rope.where}: full_attention")
    theta = rope("rope_theta", float, fields("rope_theta", float, 10_000.0, low=1), low=1)
    kind = rope("rope_type", str, rope("type", str, "default"))
    if kind not in ("default", "llama3"):
        raise CheckpointError(f"{rope.where} is of the type {kind!r:.60}: default and llama3 are "
                              "supported")
    if rope("partial_rotary_factor", float, fields("partial_rotary_factor", float, 1.0)) != 1:
        raise CheckpointError(f"{rope.where}: partial_rotary_factor is not 1: only whole heads are "
                              "turned here")
    if kind == "default":
        return theta, None
    numbers = {name: rope(name, float, low=low) for name, low in
               (("factor", 1), ("low_freq_factor", 0), ("high_freq_factor", 0))}
    if numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        raise CheckpointError(f"{rope.where}: low_freq_factor is not below high_freq_factor")
    name = "original_max_position_embeddings"
    original = fields(name, int, rope(name, int, context, low=1), low=1)
    return theta, {"rope_type": kind, **numbers, name: original}
