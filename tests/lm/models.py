"""Tiny models for the tests of minirl.lm: each variant of the Llama / Qwen family, and a table."""

import torch
from torch import nn

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


class Markov(nn.Module):
    """A model that is no Transformer: the next token depends on the last one alone.

    Row i of `table` holds the logits after token i.
    """

    def __init__(self, table):
        super().__init__()
        V = len(table)
        self.config = ModelConfig(V, hidden_size=V * 2, num_heads=1, max_seq_len=64)
        self.lm_head = nn.Linear(V, V, bias=False)
        self.lm_head.weight.data = torch.tensor(table).T.contiguous()
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def hidden(self, tokens, *, cache=None, starts=None):
        return torch.eye(self.config.vocab_size)[tokens]
