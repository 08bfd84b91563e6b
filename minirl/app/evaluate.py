"""How good is a policy on held-out problems: accuracy, pass@k and length from samples, with confidence intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minirl.equations.test_time import pass_at_k
from minirl.lm.sampling import sample
from minirl.tasks.problem import Problem, columns
from minirl.tasks.rewards import judge
from minirl.train.state import derive_seed


@dataclass(frozen=True)
class Evaluation:
    """`samples` completions of each of n problems. correct[i]: how many were right; completions[i]: their texts; a row per problem."""

    problems: list[Problem]
    completions: list[list[str]]
    correct: list[int]
    samples: int
    rewards: dict[str, float]         # mean of each of the task's rewards
    mean_length: float                # tokens per completion, EOS included
    truncated: float                  # share that ran out of tokens

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / (len(self.correct) * self.samples)

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, averaged over the problems (Codex, arXiv:2107.03374, eq. 1)."""
        return sum(pass_at_k(self.samples, c, k) for c in self.correct) / len(self.correct)


def evaluate(model, tokenizer, task, *, n: int, samples: int = 1, max_new_tokens: int = 80, temperature: float = 1.0, seed: int = 0,
             batch: int = 512) -> Evaluation:
    """Sample `samples` completions of n held-out problems. The problems depend on the seed alone; more than `batch` rows are done in turn."""
    if n < 1 or samples < 1:
        raise ValueError(f"{n} problems and {samples} samples: at least one of each is wanted")
    problems = task.sample(n, random.Random(derive_seed(seed, "evaluate", "problems")), split="test")
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "evaluate", "sample"))
    completions, lengths, truncated = [], [], []
    size = max(1, batch // samples)
    for start in range(0, n, size):
        prompts = [tokenizer.encode_prompt(p.prompt) for p in problems[start:start + size]]
        rollouts = sample(model, prompts, group=samples, max_new_tokens=max_new_tokens, temperature=temperature, eos_id=tokenizer.stop_ids,
                          pad_id=tokenizer.pad_id, generator=generator)
        completions += [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]
        lengths += rollouts.completion_lengths.tolist()
        truncated += rollouts.truncated.tolist()
    known = columns(problems, repeat=samples)
    verdicts = judge(task.rewards, task.rewards, [p.prompt for p in problems for _ in range(samples)], completions, **known)
    right = [v == 1.0 for v in verdicts["accuracy"]]
    return Evaluation(problems, [completions[i * samples:(i + 1) * samples] for i in range(n)],
                      [sum(right[i * samples:(i + 1) * samples]) for i in range(n)], samples,
                      {name: sum(v for v in values if v is not None) / max(1, sum(v is not None for v in values)) for name, values in verdicts.items()},
                      sum(lengths) / len(lengths), sum(truncated) / len(truncated))


def wilson_interval(mean: float, n: int, *, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a mean of n numbers in [0, 1] (Wilson 1927); it stays inside [0, 1], also at a mean of 0 or 1.

    For several samples per problem take n = problems: numbers between 0 and 1 vary at most as much as yes and no do, so it is then wide enough.
    """
    centre, spread = (mean + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, min(mean, centre - spread)), min(1.0, max(mean, centre + spread))      # the mean is inside, whatever was rounded


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)
