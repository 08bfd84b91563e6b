"""Tiny models for the tests of minirl.lm, one per variant of the Llama / Qwen family."""

import torch

from minirl.lm.model import ModelConfig, Transformer

SIZES = {"vocab_size": 23, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
         "intermediate_size": 48, "max_seq_len": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
VARIANTS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "qwen2": {"num_kv_heads": 2, "qkv_bias": True},
    "qwen3": {"num_kv_heads": 1, "qk_norm": True, "head_dim": 12, "tie_embeddings": False},
    "untied": {"tie_embeddings": False},
    "biased": {"qkv_bias": True, "output_bias": True},
    "llama3": {"num_kv_heads": 2, "max_seq_len": 48, "rope_scaling": LLAMA3},
}


def build_model(variant="grouped", *, seed=0, **overrides):
    """A model in eval mode, with weights large enough that every part matters.

    The usual initial weights have std 0.02 and give nearly uniform outputs, which would hide a
    wrong position or a lost head.
    """
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**{**SIZES, **VARIANTS[variant], **overrides}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(std=0.3)
    return model.eval()
