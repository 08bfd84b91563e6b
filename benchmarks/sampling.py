"""Sampling against transformers' `generate`, as TRL calls it: the same weights, prompts, completions and temperature, a call of each in turn.

    python benchmarks/sampling.py                     the table of RESULTS.md
    python benchmarks/sampling.py --device cuda

Needs the extra `parity`. Each prompt is sampled 8 times: ours reads it once, `generate` is given it 8 times. Fixed lengths: no token ends a
completion on either side. "Ends": one id in 32 of the vocabulary does, so that completions have random lengths, and tokens are counted up to and with
the one that ends. Float32 is both sides in it. "Best" is ours in bfloat16 against the faster of theirs in float32 and bfloat16, all measured in the
same turns. Ours is compiled unless --no-compile is given, theirs runs as it comes; two calls of each come before the counted ones.

For the largest model on a GPU there is also a line about its memory: the bytes that one decode step must read, weights and the cache at its mean
length, at the bandwidth that a large copy reaches in the same run, beside the time of a call over its tokens per row.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import MODELS, commit, heading, in_turn, make_model, ratio, row, seconds, spread, table_head, word_tokenizer
from torch import Tensor

from minirl.lm.checkpoint import save_pretrained
from minirl.lm.precision import DTYPES
from minirl.lm.sampling import sample

GROUP = 8
WARMUP = 2


def ours(model, prompts: list[list[int]], completion: int, stops: list[int] | None):
    return sample(model, prompts, group=GROUP, max_new_tokens=completion, eos_id=stops, pad_id=0)


@torch.no_grad()
def generate(model, prompts: list[list[int]], completion: int, stops: list[int] | None) -> Tensor:
    ids = torch.tensor([prompt for prompt in prompts for _ in range(GROUP)], device=model.device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=completion, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                         eos_token_id=stops or [model.config.vocab_size], pad_token_id=0)            # an id that does not exist ends nothing
    return out[:, ids.shape[1]:]


def tokens(result, stops: list[int] | None) -> int:
    """Sampled tokens, each row's last one included."""
    if not isinstance(result, Tensor):
        return int(result.mask.sum())
    ended = torch.isin(result, torch.tensor(stops or [-1], device=result.device)).int()
    return int((ended.cumsum(1) - ended == 0).sum())


class Comparison:
    """Both sides in the given dtypes, timed: `times` and `counts` (tokens) by (side, dtype)."""

    def __init__(self, name: str, prompts: int, prompt: int, completion: int, *, ends: bool, dtypes: list[str], device: str, compiled: bool,
                 repeats: int):
        from transformers import AutoModelForCausalLM

        torch.compiler.reset()                      # a model's compiled code is for its own sizes, as in a run of its own
        vocab, rng = MODELS[name]["vocab_size"], random.Random(0)
        stops = list(range(1, 1 + vocab // 32)) if ends else None
        given = [[rng.randrange(vocab) for _ in range(prompt)] for _ in range(prompts)]
        self.name, self.prompt, self.completion, self.ends, self.rows = name, prompt, completion, ends, prompts * GROUP
        calls, results = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(make_model(name, context=prompt + completion, device=device), word_tokenizer(vocab), Path(folder))
            for dtype in dtypes:
                theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).to(device).eval()
                self.model = make_model(name, context=prompt + completion, device=device, dtype=DTYPES[dtype])
                self.model.compiled = compiled
                calls["generate", dtype] = partial(generate, theirs, given, completion, stops)
                calls["ours", dtype] = partial(ours, self.model, given, completion, stops)
        results = {side: [] for side in calls}
        self.times = in_turn({side: lambda side=side: results[side].append(calls[side]()) for side in calls}, repeats=repeats, warmup=WARMUP)
        self.counts = {side: [tokens(result, stops) for result in kept[WARMUP:]] for side, kept in results.items()}

    def line(self, label: str, their_dtypes: list[str], our_dtype: str) -> str:
        best = ("generate", min(their_dtypes, key=lambda dtype: statistics.median(self.times["generate", dtype])))
        mine = ("ours", our_dtype)
        cells = [f"{spread(self.times['generate', d], digits=3)}{f' {d}' if len(their_dtypes) > 1 else ''}" for d in their_dtypes]
        rates = [f"{sum(self.counts[side]) / sum(self.times[side]):.0f}" for side in (best, mine)]
        counts = [f"{statistics.mean(self.counts[side]):.0f}" for side in (best, mine)]
        return row(self.name, self.prompt, f"{self.completion}{', ends' if self.ends else ''}", label, "; ".join(cells),
                   spread(self.times[mine], digits=3), ratio(self.times[best], self.times[mine]), " / ".join(rates), " / ".join(counts))

    def memory_bound(self, dtype: str) -> str:
        """Bytes a decode step must read (the embedding is the output matrix, so that all weights are read), and the time that takes at least."""
        c, device = self.model.config, self.model.device
        weights = sum(p.nbytes for p in self.model.parameters())
        cache = self.rows * (self.prompt + self.completion / 2) * 2 * c.num_layers * c.num_kv_heads * c.head_dim * self.model.dtype.itemsize
        speed = bandwidth(device)
        floor = (weights + cache) / speed
        steps = {side: statistics.median(self.times[side, dtype]) / self.completion for side in ("generate", "ours")}
        return (f"{self.name}, {dtype}: a decode step reads {weights / 1e9:.3g} GB of weights and {cache / 1e9:.3g} GB of cache; "
                f"at {speed / 1e9:.0f} GB/s, as a copy reaches, that takes {floor * 1e3:.2f} ms. Time of a call over its {self.completion} tokens: "
                + ", ".join(f"{side} {step * 1e3:.2f} ms ({step / floor:.1f} times that)" for side, step in steps.items()))


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.zeros(2 ** 32 if device.type == "cuda" else 2 ** 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="ours as it runs without --compile on")
    parser.add_argument("--only", default=None, choices=tuple(MODELS), help="one model")
    parser.add_argument("--prompts", type=int, default=None, help="another number of prompts")
    args = parser.parse_args()

    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # model, prompts, tokens of a prompt, of a completion, whether completions end, dtypes
    both = ["float32", "bfloat16"]
    cases = [("0.86M", 16, 16, 16, False, both), ("0.86M", 16, 16, 64, False, both), ("0.86M", 16, 16, 64, True, both),
             ("8.9M", 16, 16, 16, False, both), ("8.9M", 16, 16, 64, False, both), ("8.9M", 16, 64, 64, False, both),
             ("8.9M", 16, 16, 64, True, both)]
    if args.device == "cuda":
        cases = [("0.5B", 16, 64, 512, False, ["bfloat16"]), ("10M", 128, 64, 256, False, both), ("10M", 128, 64, 256, True, both)]
    print(f"{heading(args.device)}, ours {'as it is' if args.no_compile else 'compiled'}, commit {commit()}; "
          f"{args.repeats} calls of each, {GROUP} completions per prompt\n")
    print(table_head("model", "prompt", "completion", "dtype", "generate, s", "ours, s", "ratio", "tokens/s, generate / ours",
                     "tokens, generate / ours"))
    bounds = []
    for name, prompts, prompt, completion, ends, dtypes in cases:
        if args.only in (None, name):
            found = Comparison(name, args.prompts or prompts, prompt, completion, ends=ends, dtypes=dtypes, device=args.device,
                               compiled=not args.no_compile, repeats=args.repeats)
            print(found.line(dtypes[0], dtypes[:1], dtypes[0]), flush=True)
            if len(dtypes) > 1:
                print(found.line("best", dtypes, "bfloat16"), flush=True)
            if name == "0.5B":
                bounds.append(found.memory_bound(dtypes[0]))
    print("\n".join(["", *bounds]) if bounds else "")


if __name__ == "__main__":
    main()
