"""How much of the machine a training step uses: log-probs and entropy of a batch, backward, and the
optimizer's step.

    python benchmarks/train_step.py                                          on a CPU
    python benchmarks/train_step.py --device cuda --dtype bfloat16

On a CPU: 8.9M parameters, 4,096 tokens. On a GPU: 0.5B (the shape of Qwen2.5-0.5B), 16,384 tokens.

Model FLOPs are those of the model alone: per parameter of a matrix and token two forward and four
backward, with the output matrix, and those of attention. What is computed twice to save memory
counts once. Utilisation is their rate as a share of the rate of one large matrix product in the
same dtype and run. Every row is one sequence, and all tokens but the first are learnt from. The
first line is uncompiled, the second compiled.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from common import (
    MODELS,
    commit,
    heading,
    in_turn,
    make_model,
    product_rate,
    row,
    spread,
    table_head,
)
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.train.grpo import GRPOConfig
from minirl.train.state import make_optimizer


def model_flops(model: Transformer, B: int, T: int) -> float:
    """Return the FLOPs of a forward and a backward pass over B rows of T tokens."""
    c = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters()
                   if p.dim() == 2 and "embed" not in name and "lm_head" not in name)
    # of a row: q k^T and the sum of values, causal
    attention = 4 * c.num_heads * c.head_dim * c.num_layers * T * (T + 1) / 2
    logits = 2 * c.hidden_size * c.vocab_size * (T - 1)
    return 3 * B * (2 * matrices * T + attention + logits)


def training_step(model: Transformer, tokens: Tensor, dtype: str) -> Callable[[], None]:
    """Return a function that does one step on `tokens`, (B, T)."""
    optimizer = make_optimizer(model, GRPOConfig(lr=1e-6))

    def step() -> None:
        with compute_in(dtype, model.device):
            logp, _ = token_logprobs(model, tokens, return_entropy=True)       # (B, T)
            (-logp.sum() / tokens.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--model", default=None, choices=tuple(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    on_cuda = args.device == "cuda"
    name = args.model or ("0.5B" if on_cuda else "8.9M")
    B, T = (32, 512) if on_cuda else (32, 128)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(MODELS[name]["vocab_size"], (B, T), generator=generator)
    tokens = tokens.to(args.device)
    steps = {}
    for label in ("as it is", "compiled"):
        model = make_model(name, context=T, device=args.device)
        model.compiled = label == "compiled"
        steps[label] = training_step(model, tokens, args.dtype)
    times = in_turn(steps, repeats=args.repeats, warmup=2)

    rate = product_rate(8192 if on_cuda else 2048, args.device, args.dtype)
    flops = model_flops(model, B, T)
    print(f"{heading(args.device)}, {args.dtype}, commit {commit()}; {name}, {B} rows of {T} "
          f"tokens; {flops / 1e12:.3g} TFLOP a step, a large product reaches {rate / 1e12:.3g} "
          "TFLOP/s\n")
    print(table_head("", "step, s", "tokens/s", "TFLOP/s", "utilisation"))
    for label, durations in times.items():
        middle = statistics.median(durations)
        print(row(label, spread(durations, digits=3), f"{B * T / middle:.0f}",
                  f"{flops / middle / 1e12:.3g}", f"{flops / middle / rate:.0%}"))
    if on_cuda:
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(f"\npeak memory {peak:.1f} GB, with both models and both optimizers")


if __name__ == "__main__":
    main()
