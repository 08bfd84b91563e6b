"""One model on four corpora, at one budget of tokens, as DeepSeekMath compares four.

    python benchmarks/corpora.py [--seeds 2] [--runs FOLDER] [--figure FILE]

The tiny model learns from scratch: from the raw synthetic web, from what round 1 of mining it
keeps, from what round 4 keeps, and from four parts of that and one of code. Then it reads pages of
another web, completes sentences and answers sums. With --runs what is finished is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from common import heading, row, table_head
from corpus import medians, mined
from minirl.corpus.pages import Corpus, Page
from minirl.corpus.web import MATHS, OTHER, SENTENCES, web
from minirl.lm.figures import COLOURS, new_figure, save, tidy
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import completion_batch
from minirl.lm.sampling import sample
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.train.encoding import encode_texts
from minirl.train.sft import SFTConfig, train_sft

OTHER_WEB = 1000             # added to a seed: a web that nothing was learnt from
BUDGET = 400_000             # bytes, which are the tiny model's tokens
PIECE = 120                  # of a page, so that it fits the model's context
CODE_SHARE = 0.2
FAR = "proofs", "Korean maths"                   # what the seeds are furthest from
CORPORA = ("the raw web", "round 1", "round 4", "round 4, a fifth code")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    print(heading() + "\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        args.runs = args.runs or Path(folder)
        compare(args)


def compare(args: argparse.Namespace) -> None:
    file = args.runs / "corpora.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for seed in range(args.seeds):
        for name in CORPORA:
            if f"{name}, seed {seed}" not in results:
                results[f"{name}, seed {seed}"] = trained_on(name, mined(args.runs, seed), seed)
                file.write_text(json.dumps(results))
    columns = {"mathematics": "{:.3f}", "far": "{:.3f}", "other": "{:.3f}", "sentences": "{:.0%}",
               "sums": "{:.0%}"}
    print(table_head("corpus", "loss on held-out mathematics", f"of it on {FAR[0]} and {FAR[1]}",
                     "loss on other pages", "sentences completed", "sums answered"))
    for name in CORPORA:
        of_seeds = [results[f"{name}, seed {seed}"] for seed in range(args.seeds)]
        print(row(name, *(medians([r[c] for r in of_seeds], f) for c, f in columns.items())))
    if args.figure:
        draw_corpora(results, args.seeds, args.figure)


def trained_on(name: str, folder: Path, seed: int) -> dict[str, float]:
    """Train the tiny model on BUDGET tokens of a corpus -> what it is worth."""
    rng = random.Random(seed)
    code = [p for p in Corpus([folder / "web.jsonl"]) if p.fields["topic"] == "code"]
    sources: dict[str, Callable[[], list[str]]] = {
        "the raw web": lambda: pieces(Corpus([folder / "web.jsonl"]), BUDGET, rng),
        "round 1": lambda: pieces(Corpus([folder / "round-1" / "corpus.jsonl"]), BUDGET, rng),
        "round 4": lambda: pieces(Corpus([folder / "round-4" / "corpus.jsonl"]), BUDGET, rng),
        "round 4, a fifth code": lambda: (
            pieces(Corpus([folder / "round-4" / "corpus.jsonl"]), BUDGET * (1 - CODE_SHARE), rng)
            + pieces(code, BUDGET * CODE_SHARE, rng))}
    texts = sources[name]()
    model, tokenizer = make_base(TinySizes(), seed=seed, device="cpu")
    train_sft(model, tokenizer, [("", text) for text in texts],
              SFTConfig(batch_size=8, lr=5e-3), seed=seed)
    held_out = list(web(4000, seed + OTHER_WEB))
    worth = {"sums": sums(model, tokenizer), "sentences": sentences(model, tokenizer)}
    for column, topics in (("mathematics", MATHS), ("far", FAR), ("other", OTHER)):
        pages = [page for page in held_out if page.fields["topic"] in topics]
        worth[column] = loss(model, tokenizer, pieces(pages, 40_000, rng))
    print(f"  {name}, seed {seed}: {len(texts)} texts, {worth}", file=sys.stderr)
    return worth


def pieces(pages: Iterable[Page], budget: float, rng: random.Random) -> list[str]:
    """Return pieces of random pages with `budget` bytes together, over again if they are few."""
    pages, texts, size = list(pages), list[str](), 0
    while True:
        for page in rng.sample(pages, len(pages)):
            for text in cut(page.text):
                if size >= budget:
                    return texts
                texts.append(text)
                size += len(text.encode())


def cut(text: str) -> Iterable[str]:
    """Yield whole sentences, or lines of code, of at most PIECE bytes together. A longer one is
    left out."""
    piece = ""
    for sentence in text.replace(". ", ".\0 ").replace("\n", "\0\n").split("\0"):
        if len(sentence.encode()) > PIECE:
            continue
        if piece and len((piece + sentence).encode()) > PIECE:
            yield piece
            piece = ""
        piece = piece + sentence if piece else sentence.strip()
    if piece:
        yield piece


@torch.no_grad()
def loss(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Return the mean of -log p per token."""
    prompts, completions = encode_texts(tokenizer, texts, model.config.max_seq_len)
    total, count = 0.0, 0.0
    for i in range(0, len(texts), 64):
        tokens, mask = completion_batch(prompts[i:i + 64], completions[i:i + 64], tokenizer.pad_id,
                                        model.device)
        total -= float((token_logprobs(model, tokens, mask=mask) * mask).sum())
        count += float(mask.sum())
    return total / count


def sentences(model: Transformer, tokenizer: Tokenizer) -> float:
    """Return the share of mathematical sentences that the model ends as the web does, from their
    first half: of those without numbers, which have one end."""
    whole = [text for topic in MATHS for text in SENTENCES[topic] if "{" not in text]
    halves = [" ".join(text.split()[:(len(text.split()) + 1) // 2]) for text in whole]
    ends = completions(model, tokenizer, halves, 60)
    return sum((half + end).startswith(text) for half, end, text
               in zip(halves, ends, whole, strict=True)) / len(whole)


def completions(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str],
                length: int) -> list[str]:
    """Return the likeliest completion of each text, token by token."""
    prompts = tokenizer.encode_prompts(texts)
    rollouts = sample(model, prompts, max_new_tokens=length, temperature=0,
                      eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    return [tokenizer.decode(ids[len(prompt):])
            for ids, prompt in zip(rollouts.tokens.tolist(), prompts, strict=True)]


def sums(model: Transformer, tokenizer: Tokenizer) -> float:
    """Return the share of the 81 sums of two digits, in two spellings, that the model completes."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)] * 2
    texts = [f"The sum of {a} and {b} is" if i < 81 else f"{a} + {b} ="
             for i, (a, b) in enumerate(pairs)]
    ends = completions(model, tokenizer, texts, 4)
    return sum(end.startswith((f" {a + b}.", f" {a + b},"))
               for (a, b), end in zip(pairs, ends, strict=True)) / len(pairs)


def draw_corpora(results: dict[str, dict[str, float]], seeds: int, out: Path) -> None:
    figure, axes = new_figure(1, 3, (11, 2.4))
    for axis, column in zip(axes, ("mathematics", "far", "sentences"), strict=True):
        for at, (name, colour) in enumerate(zip(CORPORA, COLOURS, strict=False)):
            values = [results[f"{name}, seed {seed}"][column] for seed in range(seeds)]
            axis.barh(at, statistics.median(values), color=colour, alpha=0.5)
            axis.plot(values, [at] * seeds, "o", color=colour, markersize=4)
        axis.set_yticks(range(len(CORPORA)), CORPORA if axis is axes[0] else [""] * len(CORPORA))
        axis.invert_yaxis()
    tidy(axes[0], "Loss per token on held-out mathematics")
    tidy(axes[1], f"The same, of {FAR[0]} and {FAR[1]}")
    tidy(axes[2], "Sentences completed")
    save(figure, out)


if __name__ == "__main__":
    main()
