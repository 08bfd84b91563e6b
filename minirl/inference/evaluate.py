"""How good is a policy on held-out problems: accuracy, pass@k, majority voting, best-of-n, length,
and the distance from a reference."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from minirl.equations.inference_time import best_of_n, best_of_n_kl, majority_vote, pass_at_k
from minirl.inference.collect import ROWS, Collected, Counter, collect_in_parts
from minirl.inference.intervals import mean_interval, wilson_interval
from minirl.lm.logprobs import check_temperature, rollout_logprobs, token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import Rollouts, completion_batch, micro_batches
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.answers import vote_of
from minirl.tasks.problem import JudgedTask, Problem, Task

__all__ = ["Choose", "Evaluation", "best_of", "distinct_problems", "evaluate", "mean_interval",
           "text_loss", "vote", "wilson_interval"]

DRAWS = 4096            # problems that are drawn at a time, at most
PATIENCE = 8            # draws in a row without a new problem, per problem so far, before the end
FEWEST_PROBLEMS = 64    # PATIENCE counts at least this many problems

X = TypeVar("X")
Verdicts = Mapping[str, Sequence["float | None"]]      # for each reward one number per sample
Choose = Callable[[Sequence[str], Verdicts], int]      # a problem's samples -> the index of one


# choosing one of a problem's samples

def best_of(reward: str) -> Choose:
    """Best-of-n: choose the sample with the greatest verdict of a reward, the first of several.

    Samples without a verdict are chosen only where none has one.

    >>> best_of("score")(["3", "4", "5"], {"score": [0.1, 0.9, None]})
    1
    """
    def choose(completions: Sequence[str], verdicts: Verdicts) -> int:
        if reward not in verdicts:
            raise ValueError(f"best_of: there is no reward {reward!r}; the task has "
                             f"{', '.join(verdicts)}")
        return best_of_n([-math.inf if v is None else v for v in verdicts[reward]])

    return choose


def vote(completions: Sequence[str], verdicts: Verdicts) -> int:
    """Majority voting: choose the first sample that gives the answer which most samples give.

    Where no sample has an answer it is the first sample.

    >>> completions = [f"<answer>{answer}</answer>" for answer in (12, 13, 13)]
    >>> vote(completions, {})
    1
    """
    answers: list[Hashable] = [vote_of(completion) for completion in completions]
    return answers.index(majority_vote(answers))


# measuring a policy

@dataclass(frozen=True)
class Evaluation:
    """Completions of distinct problems. Each list has a row per problem, an entry per completion.

    completion_ids   the sampled ids, EOS included
    verdicts         of each of the task's rewards, None: no verdict
    lengths          sampled tokens, EOS included
    cut_off          whether a completion ran out of tokens before an EOS
    kl               distance from the reference in nats per completion, None: not measured
    kl_bound         where one of n samples was chosen, the most nats per completion that any choice
                     leads away from the sampled policy; None: nothing was chosen
    """

    problems: list[Problem]
    completions: list[list[str]]
    completion_ids: list[list[list[int]]]
    verdicts: dict[str, list[list[float | None]]]
    lengths: list[list[int]]
    cut_off: list[list[bool]]
    kl: float | None = None
    kl_bound: float | None = None

    def numbers(self, reward: str) -> list[float]:
        """One number per problem, the mean verdict of a reward; NaN where there is none."""
        return [_mean(row) for row in self.verdicts[reward]]

    def mean(self, reward: str) -> float:
        """The mean verdict of a reward over all completions; NaN where there is none."""
        return _mean(_flat(self.verdicts[reward]))

    @property
    def rewards(self) -> dict[str, float]:
        """The mean verdict of each reward."""
        return {name: self.mean(name) for name in self.verdicts}

    @property
    def mean_length(self) -> float:
        return _mean(_flat(self.lengths))

    @property
    def truncated(self) -> float:
        """Share of the completions that ran out of tokens."""
        return _mean(_flat(self.cut_off))

    @property
    def accuracy(self) -> float:
        """Share of right completions among those with a verdict; NaN where none has one."""
        verdicts = _flat(self.verdicts["accuracy"])
        return _mean(None if verdict is None else verdict == 1.0 for verdict in verdicts)

    @property
    def judged_problems(self) -> int:
        """Problems with at least one verdict of accuracy: the n of the accuracy's interval."""
        return sum(verdicts > 0 for _, verdicts in self._counts())

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, averaged over the problems with k verdicts; NaN where there are none.

        Paper      Codex, arXiv:2107.03374, eq. 1.
        """
        return _mean(pass_at_k(verdicts, right, k) for right, verdicts in self._counts()
                     if verdicts >= k)

    @property
    def majority(self) -> float:
        """Share of problems whose most frequent answer is right, among those with a verdict.

        Paper      Wang et al., arXiv:2203.11171 (self-consistency).

        A completion without an answer has no vote. A problem without votes is not solved.
        """
        return _mean(map(_majority, self.completions, self.verdicts["accuracy"]))

    def _counts(self) -> list[tuple[int, int]]:
        """For each problem how many completions are right, and how many have a verdict."""
        return [(sum(v == 1.0 for v in verdicts), sum(v is not None for v in verdicts))
                for verdicts in self.verdicts["accuracy"]]


def evaluate(model: Transformer, tokenizer: Tokenizer, task: Task, *, n: int, samples: int = 1,
             max_new_tokens: int = 80, temperature: float = 1.0, seed: int = 0, rows: int = ROWS,
             choose: Choose | None = None, reference: Transformer | None = None,
             progress: Counter | None = None) -> Evaluation:
    """Sample and judge `samples` completions of n distinct held-out problems, or of all there are.

    Raises     ValueError for a task without a reward "accuracy", for no problems or no samples, and
               for a reference at temperature 0.
    See        best_of and vote, which are values for `choose`.

    The problems depend on the seed alone. All of the task's rewards judge, whatever their weights.
    At most `rows` completions are sampled at a time, and progress.update(n) is called after each n
    of them.

    choose     which of a problem's samples counts; the evaluation then holds that one alone
    reference  .kl is the mean over completions of log π(y) - log π_ref(y) at this temperature. It
               is None where one of several samples is chosen: nothing gives a chosen sample's
               probability

    .kl_bound of a choice is best_of_n_kl(samples). It bounds the distance from the sampled policy,
    whatever `reference` is.
    """
    _check(task, n, samples, temperature, reference)
    problems = distinct_problems(task, n, random.Random(derive_seed(seed, "evaluate", "problems")))
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "evaluate", "sample"))
    watching = JudgedTask(task, task.rewards, dict.fromkeys(task.rewards, 1.0), name="evaluation")
    parts, distances = [], []
    for part in collect_in_parts(model, tokenizer, watching, problems, group=samples, rows=rows,
                                 progress=progress, max_new_tokens=max_new_tokens,
                                 temperature=temperature, generator=generator):
        parts.append(_table(part, samples, choose))
        if reference is not None and (choose is None or samples == 1):
            distances += _distances(model, reference, part.rollouts, temperature)
    return _join(parts, kl=_mean(distances) if distances else None,
                 kl_bound=None if choose is None else best_of_n_kl(samples))


def distinct_problems(task: Task, n: int, rng: random.Random, *,
                      split: str = "test") -> list[Problem]:
    """Return n problems that differ in prompt or answer, in the order in which they are drawn.

    A task draws with replacement, and asking the same problem twice tells nothing new. Fewer than n
    come back where PATIENCE draws per problem find no new one.

    Raises ValueError where the split has no problem.
    """
    problems: dict[tuple[str, str], Problem] = {}
    idle = 0
    while len(problems) < n and idle < PATIENCE * max(len(problems), FEWEST_PROBLEMS):
        batch = task.sample(min(n, DRAWS), rng, split=split)
        if not batch:
            break
        for problem in batch:
            key = problem.prompt, str(problem.answer)
            idle = idle + 1 if key in problems else 0
            problems.setdefault(key, problem)
    if not problems:
        raise ValueError(f"the task has no problem in its split {split!r}: at least one is wanted")
    return list(problems.values())[:n]


@torch.no_grad()
def text_loss(model: Transformer, tokenizer: Tokenizer,
              encoded: tuple[list[list[int]], list[list[int]]]) -> float:
    """The loss on texts, in nats per token.

    `encoded` holds prompts and completions as ids, as train.encoding.encode_pairs and encode_texts
    return them. The completions' tokens count, EOS included.
    """
    prompts, completions = encoded
    total = 0.0
    lengths = torch.tensor([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)])
    for rows in micro_batches(lengths):
        tokens, mask = completion_batch([prompts[i] for i in rows], [completions[i] for i in rows],
                                        tokenizer.pad_id, model.device)  # (b, T)
        total -= float(token_logprobs(model, tokens, mask=mask).double().sum())
    return total / sum(map(len, completions))


def _check(task: Task, n: int, samples: int, temperature: float,
           reference: Transformer | None) -> None:
    if n < 1 or samples < 1:
        raise ValueError(f"{n} problems and {samples} samples: at least one of each is wanted")
    if "accuracy" not in task.rewards:
        raise ValueError(f"the task has no reward named accuracy, which says what is right; it has "
                         f"{', '.join(task.rewards) or 'none'}: add one to its rewards")
    if reference is not None:
        check_temperature(temperature)


def _distances(model: Transformer, reference: Transformer, rollouts: Rollouts,
               temperature: float) -> list[float]:
    """log π(y) - log π_ref(y) of each completion: B numbers."""
    logp = rollout_logprobs(model, rollouts, temperature=temperature)  # (B, T)
    ref_logp = rollout_logprobs(reference, rollouts, temperature=temperature)  # (B, T)
    return (logp - ref_logp).sum(1).tolist()


def _table(part: Collected, samples: int, choose: Choose | None) -> Evaluation:
    """A part's completions with a row per problem: all `samples` of it, or the chosen one."""
    rows = [list(range(i, i + samples)) for i in range(0, len(part.completions), samples)]
    if choose is not None:
        for row in rows:
            verdicts = {name: [column[i] for i in row] for name, column in part.verdicts.items()}
            row[:] = [row[choose([part.completions[i] for i in row], verdicts)]]

    def table(column: Sequence[X]) -> list[list[X]]:
        return [[column[i] for i in row] for row in rows]

    return Evaluation(
        problems=list(part.problems),
        completions=table(part.completions),
        completion_ids=table(part.rollouts.completion_ids()),
        verdicts={name: table(column) for name, column in part.verdicts.items()},
        lengths=table(part.rollouts.completion_lengths.tolist()),
        cut_off=table(part.rollouts.truncated.tolist()))


def _join(parts: Sequence[Evaluation], *, kl: float | None,
          kl_bound: float | None) -> Evaluation:
    """One evaluation of all parts' problems."""
    return Evaluation(
        problems=_flat(part.problems for part in parts),
        completions=_flat(part.completions for part in parts),
        completion_ids=_flat(part.completion_ids for part in parts),
        verdicts={name: _flat(part.verdicts[name] for part in parts) for name in parts[0].verdicts},
        lengths=_flat(part.lengths for part in parts),
        cut_off=_flat(part.cut_off for part in parts),
        kl=kl, kl_bound=kl_bound)


def _majority(completions: Sequence[str], verdicts: Sequence[float | None]) -> float | None:
    """The verdict on the answer that most completions give: 1 right, 0 wrong, None no verdict."""
    index = vote(completions, {})
    if verdicts[index] is None:
        return None
    return float(verdicts[index] == 1.0 and vote_of(completions[index]) is not None)


def _flat(rows: Iterable[Iterable[X]]) -> list[X]:
    return [entry for row in rows for entry in row]


def _mean(numbers: Iterable[float | None]) -> float:
    """The mean of the numbers that are not None; NaN where there are none."""
    present = [number for number in numbers if number is not None]
    return sum(present) / len(present) if present else math.nan
