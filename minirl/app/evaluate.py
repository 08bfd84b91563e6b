"""How good is a policy on held-out problems: accuracy, pass@k and length from samples."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minirl.app.progress import Progress
from minirl.equations.inference_time import pass_at_k
from minirl.lm.sampling import sample
from minirl.lm.seeds import derive_seed
from minirl.tasks.problem import Problem, columns
from minirl.tasks.rewards import judge

DRAWS = 4096                      # problems that are drawn at a time, at most
PATIENCE = 8                      # draws without a new problem, for each that has come, ...
FEWEST = 64                       # ... or for so many, where fewer have


@dataclass(frozen=True)
class Evaluation:
    """`samples` completions of each of n distinct problems; a row per problem.

    correct[i]: how many completions were right; judged[i]: how many had a verdict, right or wrong
    (without `judged`: all). What has no verdict counts neither as right nor as wrong.
    """

    problems: list[Problem]
    completions: list[list[str]]
    correct: list[int]
    samples: int
    rewards: dict[str, float]         # mean of each of the task's rewards; NaN: no verdict at all
    mean_length: float                # tokens per completion, EOS included
    truncated: float                  # share that ran out of tokens
    judged: list[int] | None = None

    @property
    def verdicts(self) -> list[int]:
        return [self.samples] * len(self.correct) if self.judged is None else self.judged

    @property
    def judged_problems(self) -> int:
        """Problems with at least one verdict: what an interval of the accuracy counts."""
        return sum(n > 0 for n in self.verdicts)

    @property
    def accuracy(self) -> float:
        """Right completions among those with a verdict; NaN where none has one."""
        total = sum(self.verdicts)
        return sum(self.correct) / total if total else math.nan

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, averaged over the problems with k verdicts; NaN where there are none.

        Paper      Codex, arXiv:2107.03374, eq. 1.
        """
        rates = [pass_at_k(n, c, k) for n, c in zip(self.verdicts, self.correct) if n >= k]
        return sum(rates) / len(rates) if rates else math.nan


def evaluate(model, tokenizer, task, *, n: int, samples: int = 1, max_new_tokens: int = 80,
             temperature: float = 1.0, seed: int = 0, batch: int = 512,
             progress: Progress | None = None) -> Evaluation:
    """Sample `samples` completions of n distinct held-out problems, or of all that there are.

    The problems depend on the seed alone. More than `batch` rows are done in turn; `progress` is
    told of each. Raises ValueError for a task without a reward "accuracy".
    """
    if n < 1 or samples < 1:
        raise ValueError(f"{n} problems and {samples} samples: at least one of each is wanted")
    if "accuracy" not in task.rewards:
        raise ValueError(f"the task has no reward named accuracy, which says what is right; it has "
                         f"{', '.join(task.rewards) or 'none'}: add one to its rewards")
    problems = distinct_problems(task, n, random.Random(derive_seed(seed, "evaluate", "problems")))
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "evaluate", "sample"))
    completions, lengths, truncated = [], [], []
    size = max(1, batch // samples)
    for start in range(0, len(problems), size):
        prompts = [tokenizer.encode_prompt(p.prompt) for p in problems[start:start + size]]
        rollouts = sample(model, prompts, group=samples, max_new_tokens=max_new_tokens,
                          temperature=temperature, eos_id=tokenizer.stop_ids,
                          pad_id=tokenizer.pad_id, generator=generator)
        completions += [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]
        lengths += rollouts.completion_lengths.tolist()
        truncated += rollouts.truncated.tolist()
        if progress is not None:
            progress.update(len(prompts) * samples)
    known = columns(problems, repeat=samples)
    asked = [p.prompt for p in problems for _ in range(samples)]
    verdicts = judge(task.rewards, task.rewards, asked, completions, **known)
    groups = [slice(i * samples, (i + 1) * samples) for i in range(len(problems))]
    accuracy = verdicts["accuracy"]
    return Evaluation(problems, [completions[group] for group in groups],
                      [sum(v == 1.0 for v in accuracy[group]) for group in groups], samples,
                      {name: mean_verdict(values) for name, values in verdicts.items()},
                      sum(lengths) / len(lengths), sum(truncated) / len(truncated),
                      judged=[sum(v is not None for v in accuracy[group]) for group in groups])


def distinct_problems(task, n: int, rng: random.Random, *, split: str = "test") -> list[Problem]:
    """n problems that differ in prompt or answer, in the order in which they are drawn.

    A task draws with replacement, and a problem twice is no second opinion. Fewer come back where
    the task seems to have no more: where PATIENCE draws for each problem so far brought no new one.
    """
    problems, idle = {}, 0
    while len(problems) < n and idle < PATIENCE * max(len(problems), FEWEST):
        drawn = task.sample(min(n, DRAWS), rng, split=split)
        if not drawn:
            break
        for problem in drawn:
            key = problem.prompt, str(problem.answer)
            idle = idle + 1 if key in problems else 0
            problems.setdefault(key, problem)
    if not problems:
        raise ValueError(f"the task has no problem in its split {split!r}: one is wanted, at least")
    return list(problems.values())[:n]


def mean_verdict(values: Sequence[float | None]) -> float:
    verdicts = [value for value in values if value is not None]
    return sum(verdicts) / len(verdicts) if verdicts else math.nan
