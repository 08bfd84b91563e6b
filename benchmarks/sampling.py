"""Sampling against transformers' `generate`, called as TRL calls it: the same weights, prompts,
completions and temperature, a call of each in turn.

    python benchmarks/sampling.py                     the table of RESULTS.md
    python benchmarks/sampling.py --device cuda

Needs the extra `parity`. Each prompt is sampled 8 times: ours reads it once, `generate` gets it 8
times. Where lengths are fixed, no token ends a completion on either side. In the lines with "ends",
one id in 32 of the vocabulary ends a completion, so lengths are random; tokens are counted up to
and with the one that ends. "float32" is both sides in float32. "best" is ours in bfloat16 against
the faster of theirs in float32 and bfloat16, all in the same turns. Ours is compiled unless
--no-compile is given; theirs runs as it comes. Two calls of each come before the counted ones.

For the largest model on a GPU there is also a line about memory. It has the bytes that one decode
step must read (weights, and the cache at its mean length), the time that takes at the bandwidth of
a large copy in the same run, and the measured time of a call over its tokens per row.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import (
    MODELS,
    commit,
    heading,
    in_turn,
    make_model,
    ratio,
    row,
    seconds,
    spread,
    table_head,
    word_tokenizer,
)
from minirl.lm.checkpoint import save_pretrained
from minirl.lm.model import Transformer
from minirl.lm.precision import DTYPES
from minirl.lm.rollouts import Rollouts
from minirl.lm.sampling import sample

GROUP = 8
WARMUP = 2
BOTH = ["float32", "bfloat16"]
# model, prompts, tokens of a prompt, of a completion, whether completions end, dtypes
CPU = [("0.86M", 16, 16, 16, False, BOTH), ("0.86M", 16, 16, 64, False, BOTH),
       ("0.86M", 16, 16, 64, True, BOTH), ("8.9M", 16, 16, 16, False, BOTH),
       ("8.9M", 16, 16, 64, False, BOTH), ("8.9M", 16, 64, 64, False, BOTH),
       ("8.9M", 16, 16, 64, True, BOTH)]
CUDA = [("0.5B", 16, 64, 512, False, ["bfloat16"]), ("10M", 128, 64, 256, False, BOTH),
        ("10M", 128, 64, 256, True, BOTH)]

Key = tuple[str, str]          # (side, dtype)


def ours(model: Transformer, prompts: Sequence[list[int]], completion: int,
         stops: list[int] | None) -> Rollouts:
    return sample(model, prompts, group=GROUP, max_new_tokens=completion, eos_id=stops, pad_id=0)


@torch.no_grad()
def generate(model: Any, prompts: Sequence[list[int]], completion: int,
             stops: list[int] | None) -> Tensor:
    """Return completions by transformers, (B, T)."""
    ids = torch.tensor([prompt for prompt in prompts for _ in range(GROUP)], device=model.device)
    nothing = [model.config.vocab_size]        # an id that does not exist ends no completion
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=completion,
                         do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                         eos_token_id=stops or nothing, pad_token_id=0)
    return out[:, ids.shape[1]:]


def tokens(result: Rollouts | Tensor, stops: list[int] | None) -> int:
    """Return the number of sampled tokens, each row's last one included."""
    if not isinstance(result, Tensor):
        return int(result.mask.sum())
    ends = torch.isin(result, torch.tensor(stops or [-1], device=result.device)).int()     # (B, T)
    return int((ends.cumsum(1) - ends == 0).sum())


class Comparison:
    """Both sides, timed in all dtypes: `times`, and `counts` of tokens, by (side, dtype)."""

    def __init__(self, name: str, prompts: int, prompt: int, completion: int, *, ends: bool,
                 dtypes: Sequence[str], device: str, compiled: bool, repeats: int) -> None:
        torch.compiler.reset()     # code is compiled for the sizes of one model, as in a run of it
        self.name, self.prompt, self.completion, self.ends = name, prompt, completion, ends
        self.rows = prompts * GROUP
        vocab, rng = MODELS[name]["vocab_size"], random.Random(0)
        stops = list(range(1, 1 + vocab // 32)) if ends else None
        ids = [[rng.randrange(vocab) for _ in range(prompt)] for _ in range(prompts)]
        calls = self.calls(dtypes, device, compiled, ids, stops)
        results: dict[Key, list[Any]] = {side: [] for side in calls}
        keep = {side: partial(lambda side: results[side].append(calls[side]()), side)
                for side in calls}
        self.times = in_turn(keep, repeats=repeats, warmup=WARMUP)
        self.counts = {side: [tokens(result, stops) for result in kept[WARMUP:]]
                       for side, kept in results.items()}

    def calls(self, dtypes: Sequence[str], device: str, compiled: bool, ids: Sequence[list[int]],
              stops: list[int] | None) -> dict[Key, Callable[[], Any]]:
        """Return what is timed: a function per side and dtype, all of the same weights."""
        from transformers import AutoModelForCausalLM

        functions: dict[Key, Callable[[], Any]] = {}
        context, vocab = self.prompt + self.completion, MODELS[self.name]["vocab_size"]
        with tempfile.TemporaryDirectory() as folder:
            weights = make_model(self.name, context=context, device=device)
            save_pretrained(weights, word_tokenizer(vocab), Path(folder))
            for dtype in dtypes:
                theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
                theirs.to(device).eval()
                self.model = make_model(self.name, context=context, device=device,
                                        dtype=DTYPES[dtype])
                self.model.compiled = compiled
                functions["generate", dtype] = partial(generate, theirs, ids, self.completion,
                                                       stops)
                functions["ours", dtype] = partial(ours, self.model, ids, self.completion, stops)
        return functions

    def line(self, label: str, their_dtypes: Sequence[str], our_dtype: str) -> str:
        """Return a line of the table: ours against the fastest of theirs."""
        fastest = min(their_dtypes, key=lambda d: statistics.median(self.times["generate", d]))
        theirs, mine = ("generate", fastest), ("ours", our_dtype)
        cells = [spread(self.times["generate", dtype], digits=3) for dtype in their_dtypes]
        if len(their_dtypes) > 1:
            cells = [f"{cell} {dtype}" for cell, dtype in zip(cells, their_dtypes, strict=True)]
        rates = [f"{sum(self.counts[side]) / sum(self.times[side]):.0f}" for side in (theirs, mine)]
        counts = [f"{statistics.mean(self.counts[side]):.0f}" for side in (theirs, mine)]
        completion = f"{self.completion}{', ends' if self.ends else ''}"
        return row(self.name, self.prompt, completion, label, "; ".join(cells),
                   spread(self.times[mine], digits=3), ratio(self.times[theirs], self.times[mine]),
                   " / ".join(rates), " / ".join(counts))

    def memory_bound(self, dtype: str) -> str:
        """Return a line about the bytes that a decode step must read, and the time that takes.

        All weights are read, as the embedding is the output matrix.
        """
        c, device = self.model.config, self.model.device
        weights = sum(p.nbytes for p in self.model.parameters())
        per_token = 2 * c.num_layers * c.num_kv_heads * c.head_dim * self.model.dtype.itemsize
        cache = self.rows * (self.prompt + self.completion / 2) * per_token
        speed = bandwidth(device)
        floor = (weights + cache) / speed
        steps = {side: statistics.median(self.times[side, dtype]) / self.completion
                 for side in ("generate", "ours")}
        measured = ", ".join(f"{side} {step * 1e3:.2f} ms ({step / floor:.1f} times that)"
                             for side, step in steps.items())
        return (f"{self.name}, {dtype}: a decode step reads {weights / 1e9:.3g} GB of weights and "
                f"{cache / 1e9:.3g} GB of cache; at {speed / 1e9:.0f} GB/s, as a copy reaches, "
                f"that takes {floor * 1e3:.2f} ms. Time of a call over its {self.completion} "
                f"tokens: {measured}")


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy."""
    size = 2 ** 32 if device.type == "cuda" else 2 ** 28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="do not compile our side")
    parser.add_argument("--only", default=None, choices=tuple(MODELS), help="one model")
    parser.add_argument("--prompts", type=int, default=None, help="another number of prompts")
    args = parser.parse_args()

    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    compiled = "as it is" if args.no_compile else "compiled"
    print(f"{heading(args.device)}, ours {compiled}, commit {commit()}; {args.repeats} calls of "
          f"each, {GROUP} completions per prompt\n")
    print(table_head("model", "prompt", "completion", "dtype", "generate, s", "ours, s", "ratio",
                     "tokens/s, generate / ours", "tokens, generate / ours"))
    bounds = []
    for name, prompts, prompt, completion, ends, dtypes in CUDA if args.device == "cuda" else CPU:
        if args.only not in (None, name):
            continue
        comparison = Comparison(name, args.prompts or prompts, prompt, completion, ends=ends,
                                dtypes=dtypes, device=args.device, compiled=not args.no_compile,
                                repeats=args.repeats)
        print(comparison.line(dtypes[0], dtypes[:1], dtypes[0]), flush=True)
        if len(dtypes) > 1:
            print(comparison.line("best", dtypes, "bfloat16"), flush=True)
        if name == "0.5B":
            bounds.append(comparison.memory_bound(dtypes[0]))
    print("\n".join(["", *bounds]) if bounds else "")


if __name__ == "__main__":
    main()
