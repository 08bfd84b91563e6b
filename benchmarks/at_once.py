"""A toy for experiments with many short runs: sums of two digits, answered at once in three digits
("47+85=" "132").

The base model has read too few sums, one digit in ten of them wrong. So it is unsure of most sums,
and right answers are among its samples far more often than they are its most frequent answer.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

from minirl.inference.evaluate import evaluate
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem
from minirl.train.sft import SFTConfig, train_sft

SIZES = TinySizes(hidden_size=64, num_heads=4, intermediate_size=256, max_seq_len=16)
READ, SLIPS = 10_000, 0.1           # sums that the base model reads, and the share of wrong digits
LENGTH = 4                         # tokens of a completion: three digits and an EOS
SAMPLES, PROBLEMS = 16, 64         # in each look at held-out sums


class Sums:
    """Sums of two numbers of two digits, whose answer is three digits and nothing else."""

    name = "sums at once"

    def __init__(self) -> None:
        self.sums = Arithmetic("addition", 2)
        self.rewards, self.weights = {"accuracy": equal}, {"accuracy": 1.0}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        return self.sums.sample(n, rng, split=split)


def equal(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str],
          **_: Any) -> list[float | None]:
    return [float(text.isdecimal() and int(text) == int(right))
            for text, right in zip(completions, answer, strict=True)]


def base_model(seed: int) -> tuple[Transformer, Tokenizer]:
    """Return a model that has read sums, and its tokenizer."""
    model, tokenizer = make_base(SIZES, seed=seed, device="cpu")
    rng = random.Random(derive_seed(seed, "read"))

    def copied(digits: str) -> str:
        return "".join(rng.choice("0123456789") if rng.random() < SLIPS else d for d in digits)

    pairs = [(p.prompt, copied(p.written or p.answer)) for p in Sums().sample(READ, rng)]
    return train_sft(model, tokenizer, pairs, SFTConfig(), seed=seed), tokenizer


def look(model: Transformer, tokenizer: Tokenizer, seed: int, step: int) -> dict[str, float]:
    """Ask held-out sums many times each."""
    asked = evaluate(model, tokenizer, Sums(), n=PROBLEMS, samples=SAMPLES, max_new_tokens=LENGTH,
                     seed=seed)
    different = [len(set(answers)) for answers in asked.completions]
    return {"step": step, "accuracy": asked.accuracy, "pass": asked.pass_at(SAMPLES),
            "different": statistics.mean(different)}
