"""Ways to spend tokens at inference time, side by side: a vote, the best of n by a verifier, and
searches that a verifier leads, with 1, 2, 4, ... candidates; what theory predicts of them; and how
the best of n goes on pleasing its verifier.

Half of the samples are measured on. Theory reads the other half, so that its error is that of
estimating a distribution from finitely many samples, and not that of a number that predicts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from minirl.equations.inference_time import SOLUTION_SCORES
from minirl.inference.candidates import (
    Candidates,
    Ids,
    StepVerifier,
    Verifier,
    solution_verifier,
)
from minirl.inference.collect import Counter
from minirl.inference.points import (
    Point,
    Samples,
    Search,
    draw_samples,
    measure_any,
    measure_best,
    measure_search,
    measure_vote,
    measure_weighted,
    over_optimisation,
    predict_any,
    predict_best,
    predict_vote,
    sizes,
)
from minirl.inference.tree_search import beam_search, diverse_tree_search
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem, Task

OUTCOME = "ORM"
STEPS = {f"PRM {how}": how for how in SOLUTION_SCORES}
VOTING = (OUTCOME, "PRM min")               # whose scores are weights: the latter as Math-Shepherd


@dataclass(frozen=True)
class Comparison:
    """All methods on the problems of one task.

    points   a point for each method and number of candidates
    pleased  for each verifier n, its score of the best of n, and how often that is right: see
             points.over_optimisation
    """

    task: str
    problems: int
    points: list[Point]
    pleased: dict[str, list[tuple[int, float, float]]]

    @property
    def methods(self) -> dict[str, list[Point]]:
        """The points of each method, by n."""
        methods: dict[str, list[Point]] = {}
        for point in self.points:
            methods.setdefault(point.method, []).append(point)
        return methods

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Comparison:
        """Return what as_dict gave, also by way of JSON, which has no tuples."""
        points = [Point(**point) for point in fields["points"]]
        pleased = {name: [(n, score, right) for n, score, right in rows]
                   for name, rows in fields["pleased"].items()}
        return cls(fields["task"], fields["problems"], points, pleased)


def compare(policy: Transformer, tokenizer: Tokenizer, task: Task, problems: Sequence[Problem], *,
            outcome: Verifier | None = None, steps: StepVerifier | None = None, largest: int = 64,
            expansions: int = 4, separator: str = ",", max_new_tokens: int,
            temperature: float = 1.0, seed: int = 0, progress: Counter | None = None) -> Comparison:
    """Measure every method with 1, 2, 4, ... up to `largest` candidates.

    Raises     ValueError for no problems, numbers below 1, a task without a reward "accuracy", and
               as the searches do.

    outcome     a verifier of whole completions; None: no method that needs one
    steps       a verifier of steps, which also leads the searches
    expansions  of each beam or tree, a power of two; n candidates are n / expansions beams or trees
    progress    .update(n) is called after each part of n candidates, of number_of_candidates
    """
    if not problems or min(largest, expansions) < 1 or "accuracy" not in task.rewards:
        raise ValueError(f"{len(problems)} problems, largest = {largest}, expansions = {expansions}"
                         f", rewards {', '.join(task.rewards) or 'none'}: at least one of each is "
                         "wanted, and a reward named accuracy")
    check_expansions(expansions)
    most = sizes(largest)[-1]
    generator = torch.Generator().manual_seed(derive_seed(seed, "compare", "samples"))
    samples = draw_samples(policy, tokenizer, task, problems, _verifiers(outcome, steps),
                           n=2 * most, max_new_tokens=max_new_tokens, temperature=temperature,
                           generator=generator, progress=progress)
    points = choices(samples.part(slice(most)), samples.part(slice(most, None)))
    if steps is not None:
        by_name = _searches(policy, tokenizer, steps, expansions, separator=separator,
                            max_new_tokens=max_new_tokens, temperature=temperature)
        for n in sizes(most):
            for method, search in by_name.items():
                if method == "DVTS" and n <= expansions:      # one tree is one beam
                    points.append(replace(points[-1], method=method))
                    continue
                draws = torch.Generator().manual_seed(derive_seed(seed, "compare", method, n))
                points.append(measure_search(method, search, tokenizer, task, problems, n,
                                             generator=draws, progress=progress))
    pleased = {name: over_optimisation(samples, name) for name in samples.scores}
    return Comparison(task.name, len(problems), points, pleased)


def check_expansions(expansions: int) -> None:
    """Raise ValueError unless 1, 2, 4, ... candidates are whole beams."""
    if expansions.bit_count() != 1:
        raise ValueError(f"expansions is {expansions}: a power of two is wanted, such as 4, so "
                         "that 2, 4, 8, ... candidates are whole beams")


def choices(measured: Samples, reference: Samples) -> list[Point]:
    """Measure what chooses among samples, and predict it from the reference."""
    points = []
    for n in sizes(len(measured.right[0])):
        points.append(replace(measure_vote(measured, n), predicted=predict_vote(reference, n)))
        for name in measured.scores:
            points.append(replace(measure_best(measured, n, name),
                                  predicted=predict_best(reference, n, name)))
        points += [measure_weighted(measured, n, name) for name in VOTING
                   if name in measured.scores]
        points.append(replace(measure_any(measured, n), predicted=predict_any(reference, n)))
    return points


def number_of_candidates(problems: int, largest: int, expansions: int, *, searches: bool) -> int:
    """Return how many candidates compare draws."""
    numbers = sizes(largest)
    drawn = 2 * numbers[-1]
    if searches:
        drawn += sum(numbers) + sum(n for n in numbers if n > expansions)
    return problems * drawn


def remembered(verifier: StepVerifier) -> StepVerifier:
    """Return the verifier with a memory: what it was asked once it is not asked again."""
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], Sequence[float | None]] = {}

    def scores(prompts: Sequence[Ids], completions: Sequence[Ids]
               ) -> list[Sequence[float | None]]:
        keys = [(tuple(p), tuple(c)) for p, c in zip(prompts, completions, strict=True)]
        new = list(dict.fromkeys(key for key in keys if key not in known))
        if new:
            rows = verifier([p for p, _ in new], [c for _, c in new])
            known.update(zip(new, rows, strict=True))
        return [known[key] for key in keys]

    return scores


def _verifiers(outcome: Verifier | None, steps: StepVerifier | None) -> dict[str, Verifier]:
    verifiers = {} if outcome is None else {OUTCOME: outcome}
    if steps is not None:
        asked_once = remembered(steps)
        verifiers |= {name: solution_verifier(asked_once, how) for name, how in STEPS.items()}
    return verifiers


def _searches(policy: Transformer, tokenizer: Tokenizer, steps: StepVerifier, expansions: int,
              **options: Any) -> dict[str, Search]:
    """Searches with n rows for each problem. With fewer than `expansions` there is one beam."""
    def beams(prompts: Sequence[Ids], n: int, generator: torch.Generator) -> Candidates:
        m = min(expansions, n)
        return beam_search(policy, tokenizer, prompts, steps, beams=n // m, expansions=m,
                           generator=generator, **options)

    def trees(prompts: Sequence[Ids], n: int, generator: torch.Generator) -> Candidates:
        m = min(expansions, n)
        return diverse_tree_search(policy, tokenizer, prompts, steps, trees=n // m, expansions=m,
                                   generator=generator, **options)

    return {"beam search": beams, "DVTS": trees}
