"""How much of the machine a training step uses: log-probs and entropy of a batch, backward, and the optimizer's step.

    python benchmarks/train_step.py                                          8.9M parameters, 4,096 tokens, a CPU
    python benchmarks/train_step.py --device cuda --dtype bfloat16           0.5B (the shape of Qwen2.5-0.5B), 16,384 tokens

Model FLOPs are those of the model alone: two per parameter of a matrix and token forwards and four backwards, the output matrix among them, and
attention's; what is computed twice to save memory counts once. Utilisation is their rate as a share of that of one large matrix product in
the same dtype and run. Every row is a sequence of its own, and all but its first token is learnt from. The first line is as it is, the second compiled.
"""

from __future__ import annotations

import argparse

import torch
from common import MODELS, commit, heading, in_turn, make_model, row, spread, table_head
from scaling import product_rate

from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.train.state import make_optimizer


def model_flops(model, B: int, T: int) -> float:
    """Of a forward and a backward pass over B rows of T tokens."""
    c = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name and "lm_head" not in name)
    attention = 4 * c.num_heads * c.head_dim * c.num_layers * T * (T + 1) / 2                      # a row's: q k^T and the sum of values, causal
    return 3 * B * (2 * matrices * T + attention + 2 * c.hidden_size * c.vocab_size * (T - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--model", default=None, choices=tuple(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    name = args.model or ("0.5B" if args.device == "cuda" else "8.9M")
    B, T = (32, 512) if args.device == "cuda" else (32, 128)
    tokens = torch.randint(MODELS[name]["vocab_size"], (B, T), generator=torch.Generator().manual_seed(0)).to(args.device)
    steps = {}
    for label in ("as it is", "compiled"):
        model = make_model(name, context=T, device=args.device)
        model.compiled = label == "compiled"
        optimizer = make_optimizer(model, lr=1e-6, betas=(0.9, 0.95))

        def step(model=model, optimizer=optimizer):
            with compute_in(args.dtype, model.device):
                logp, _ = token_logprobs(model, tokens, return_entropy=True)
                (-logp.sum() / tokens.numel()).backward()
            optimizer.step()
            optimizer.zero_grad()
        steps[label] = step
    times = in_turn(steps, repeats=args.repeats, warmup=2)
    rate = product_rate(8192 if args.device == "cuda" else 2048, args.device, args.dtype)
    flops = model_flops(model, B, T)
    print(f"{heading(args.device)}, {args.dtype}, commit {commit()}; {name}, {B} rows of {T} tokens; {flops / 1e12:.3g} TFLOP a step, "
          f"a large product reaches {rate / 1e12:.3g} TFLOP/s\n")
    print(table_head("", "step, s", "tokens/s", "TFLOP/s", "utilisation"))
    for label, found in times.items():
        best = sorted(found)[len(found) // 2]
        print(row(label, spread(found, digits=3), f"{B * T / best:.0f}", f"{flops / best / 1e12:.3g}", f"{flops / best / rate:.0%}"))
    if args.device == "cuda":
        print(f"\npeak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, both models and optimizers in it")


if __name__ == "__main__":
    main()
