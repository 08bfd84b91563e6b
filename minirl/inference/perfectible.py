"""A perfectible set: problems that a policy solves at times, and so could learn to solve always.

    Paper      FP16 against the mismatch, arXiv:2510.26788, section 4: the sanity test

A problem that a policy always solves teaches nothing, and one that it never solves may be too hard
for it. Without both, a method that works must bring the accuracy on the set close to 1. One that
stays below, or falls, is at fault, and not the problems.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minirl.inference.collect import Counter, collect_in_parts
from minirl.inference.evaluate import distinct_problems
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import JudgedTask, Problem, Task, check_share, weights_of


@dataclass(frozen=True)
class PerfectibleSet(JudgedTask):
    """The problems of a task that are left of those that a policy was asked; a task itself.

    problems    the kept ones, which are the train split; the test split is the task's own
    accuracies  the share of right completions to each of them
    asked       how many problems the policy was asked
    """

    problems: Sequence[Problem] = ()
    accuracies: Sequence[float] = ()
    asked: int = 0

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> Sequence[Problem]:
        """Draw n of the problems, evenly and with replacement."""
        if split != "train":
            return self.task.sample(n, rng, split=split)
        return rng.choices(self.problems, k=n)


def perfectible_set(model: Transformer, tokenizer: Tokenizer, task: Task, *, n: int,
                    samples: int = 40, low: float = 0.2, high: float = 0.8,
                    max_new_tokens: int = 80, temperature: float = 1.0, seed: int = 0,
                    progress: Counter | None = None) -> PerfectibleSet:
    """Ask n distinct training problems `samples` times each, and keep those of which the policy
    solves a share in [low, high].

    Paper      arXiv:2510.26788, section 4: 40 samples, 20 % to 80 %; 1,460 problems of MATH.
    Raises     ValueError where nothing is kept, for a task without a reward "accuracy", and for
               numbers out of range.

    A problem counts as solved where the verdict of "accuracy" is 1. One of whose completions none
    has a verdict is left out. progress.update(n) is called after each n completions.
    """
    _check(task, n, samples, low, high)
    problems = distinct_problems(task, n, random.Random(derive_seed(seed, "perfectible")),
                                 split="train")
    judged = JudgedTask(task, {"accuracy": task.rewards["accuracy"]}, {"accuracy": 1.0})
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "perfectible", "ask"))
    kept, shares = [], []
    for part in collect_in_parts(model, tokenizer, judged, problems, group=samples,
                                 max_new_tokens=max_new_tokens, temperature=temperature,
                                 generator=generator, progress=progress):
        verdicts = part.verdicts["accuracy"]
        for i, problem in enumerate(part.problems):
            own = [v for v in verdicts[i * samples:(i + 1) * samples] if v is not None]
            if own:
                shares.append(sum(verdict == 1.0 for verdict in own) / len(own))
                if low <= shares[-1] <= high:
                    kept.append((problem, shares[-1]))
    if not kept:
        below = sum(share < low for share in shares)
        raise ValueError(
            f"of {len(problems)} problems none is solved in {low:.0%} to {high:.0%} of {samples} "
            f"samples: {below} are solved less often, {len(shares) - below} more often, and "
            f"{len(problems) - len(shares)} got no verdict; ask more problems, or choose easier "
            "or harder ones")
    return PerfectibleSet(
        task, task.rewards, weights_of(task), name=f"{len(kept)} problems of {task.name}",
        problems=[problem for problem, _ in kept], accuracies=[share for _, share in kept],
        asked=len(problems))


def _check(task: Task, n: int, samples: int, low: float, high: float) -> None:
    if n < 1 or samples < 1:
        raise ValueError(f"{n} problems and {samples} samples: at least one of each is wanted")
    check_share("low", low)
    check_share("high", high)
    if low > high:
        raise ValueError(f"low is {low} and high {high}: a lower bound that is not above the upper "
                         "one is wanted")
    if "accuracy" not in task.rewards:
        raise ValueError(f"the task has no reward named accuracy, which says what is right; it has "
                         f"{', '.join(task.rewards) or 'none'}: add one to its rewards")
