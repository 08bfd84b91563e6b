"""The people of the toys: they follow instructions, rightly or not, and rank completions."""

from __future__ import annotations

import random
from pathlib import Path

from minirl.app.progress import Progress
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.instructions import Instructions, answers, pretraining_text
from minirl.tasks.preferences import Ranking, load_rankings
from minirl.train.instructgpt import MOST, rank_completions

TASK = Instructions()
READ = {"answers": 42_000, "texts": 6_000}         # what InstructGPT's base model reads
Pairs = list[tuple[str, str]]                      # (prompt, completion)


def follow(n: int, rng: random.Random, *, right_share: float, split: str = "train") -> Pairs:
    """Return n instructions with what somebody answered, in all ways of speaking."""
    return answers(TASK, n, rng, right_share=right_share, frame_weights=(1, 1, 1, 1), split=split)


def reading(seed: int) -> Pairs:
    """Return what a base model reads: instructions, six of ten of them followed, and sentences."""
    rng = random.Random(derive_seed(seed, "instruct", "reading"))
    texts = follow(READ["answers"], rng, right_share=0.6)
    texts += [("", text) for text in pretraining_text(READ["texts"], rng)]
    rng.shuffle(texts)
    return texts


def demonstrations(n: int, seed: int, *, right_share: float, split: str = "train") -> Pairs:
    """Return what people wrote for others to learn from."""
    rng = random.Random(derive_seed(seed, "instruct", "demonstrations", split))
    return follow(n, rng, right_share=right_share, split=split)


def pretraining(seed: int, n: int = 2000, split: str = "train") -> list[str]:
    """Return text that has nothing to do with instructions."""
    return pretraining_text(n, random.Random(derive_seed(seed, "instruct", "pretraining", split)))


def rank(policy: Transformer, tokenizer: Tokenizer, n: int, *, seed: int, noise: float,
         split: str = "train") -> list[Ranking]:
    """Return how people rank a policy's completions of n instructions, and show how far it is."""
    with Progress("answering what is ranked", n * MOST, unit="completion") as progress:
        return rank_completions(policy, tokenizer, TASK, n, split=split, seed=seed, noise=noise,
                                progress=progress)


def split_rankings(file: str | Path) -> tuple[list[Ranking], list[Ranking]]:
    """Return the rankings of a file, and those held out: every tenth prompt, with all its lines."""
    rankings = load_rankings(file)
    prompts = list(dict.fromkeys(ranking.prompt for ranking in rankings))
    if len(prompts) < 2:
        raise ValueError(f"{file} has rankings of {len(prompts)} prompt: at least two are wanted, "
                         "as one in ten is held out")
    held_out = set(prompts[::10])
    return ([ranking for ranking in rankings if ranking.prompt not in held_out],
            [ranking for ranking in rankings if ranking.prompt in held_out])
