"""What runs look at beside training: the same held-out problems before, during and after it."""

from __future__ import annotations

from typing import Any

from minirl.app.progress import Progress
from minirl.app.rundir import RunDir
from minirl.app.stages import Look, Stages
from minirl.app.text import code_span
from minirl.inference.evaluate import Evaluation, evaluate
from minirl.lm.model import Transformer
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Task


def watched(title: str, model: Transformer, tokenizer: Tokenizer, task: Task, *, n: int,
            samples: int = 1, **options: Any) -> Evaluation:
    """Return evaluate(...), and show how far it is."""
    with Progress(title, n * samples, unit="completion") as progress:
        return evaluate(model, tokenizer, task, n=n, samples=samples, progress=progress, **options)


class BeforeAndAfter(Look):
    """Evaluate a policy before and after training, and write samples of it, also halfway.

    samples    problems that samples.md shows
    verdicts   rewards whose verdicts stand beside right and wrong there
    options    go to evaluate
    """

    def __init__(self, stages: Stages, task: Task, *, samples: int, verdicts: tuple[str, ...] = (),
                 **options: Any) -> None:
        self.n, self.samples, self.verdicts = stages.settings.eval_problems, samples, verdicts
        self.tokenizer, self.task, self.options = stages.tokenizer, task, options
        self.reference: Transformer | None = None      # what .last.kl is measured from

    def evaluate(self, title: str, model: Transformer, **more: Any) -> Evaluation:
        return watched(title, model, self.tokenizer, self.task, n=self.n, **self.options, **more)

    def before(self, run: RunDir, start: Transformer, *, resumed: bool) -> None:
        self.first = self.evaluate("measuring before", start)
        if not resumed:
            self.write_samples(run, 0, "before", self.first)

    def step(self, run: RunDir, model: Transformer, step: int, steps: int) -> None:
        if step == steps // 2:
            halfway = evaluate(model, self.tokenizer, self.task, n=self.samples, **self.options)
            self.write_samples(run, step, "halfway", halfway)

    def after(self, run: RunDir, model: Transformer, steps: int) -> dict[str, Any]:
        self.last = self.evaluate("measuring after", model, reference=self.reference)
        self.write_samples(run, steps, "after", self.last)
        return {"accuracy_before": self.first.accuracy, "accuracy_after": self.last.accuracy,
                "mean_length_before": self.first.mean_length,
                "mean_length_after": self.last.mean_length}

    def write_samples(self, run: RunDir, step: int, heading: str, evaluation: Evaluation) -> None:
        run.write_samples(step, heading, markdown(evaluation, self.samples, self.verdicts))


def verdict(evaluation: Evaluation, i: int) -> str:
    """Return what is said of the first completion of problem i."""
    accuracy = evaluation.verdicts["accuracy"][i][0]
    return "no verdict" if accuracy is None else "right" if accuracy == 1.0 else "wrong"


def markdown(evaluation: Evaluation, n: int, rewards: tuple[str, ...] = ()) -> str:
    """Return the first n problems with their first completions, as a list."""
    lines = []
    for i, problem in enumerate(evaluation.problems[:n]):
        words = [verdict(evaluation, i)]
        words += [f"{name.replace('_', ' ')} {evaluation.verdicts[name][i][0]:.2f}"
                  for name in rewards]
        lines += [f"- {code_span(problem.prompt)} (right: {code_span(problem.answer)})",
                  f"  - {', '.join(words)}: {code_span(evaluation.completions[i][0])}"]
    return "\n".join(lines)
