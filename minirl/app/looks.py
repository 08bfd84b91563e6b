"""What runs look at beside training: held-out problems before, during and after it; of InstructGPT
also every epoch of SFT, and what a reward model makes of held-out comparisons."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.nn.functional import logsigmoid

from minirl.app.pipeline_figures import plot_calibration, plot_epochs
from minirl.app.rundir import RunDir
from minirl.app.stages import Look, Stages
from minirl.inference.evaluate import Evaluation, evaluate, text_loss
from minirl.inference.tables import markdown
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.progress import Progress
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.instructions import Instructions, pretraining_text
from minirl.tasks.preferences import Ranking, pairs
from minirl.tasks.problem import Task, weights_of
from minirl.train.encoding import encode_texts
from minirl.train.instructgpt import (
    MAX_NEW_TOKENS,
    MOST,
    Pair,
    compare_epochs,
    rank_completions,
    scored_by,
)
from minirl.train.reward_model import preference_margins


def watched(title: str, model: Transformer, tokenizer: Tokenizer, task: Task, *, n: int,
            samples: int = 1, **options: Any) -> Evaluation:
    """Return evaluate(...), and show how far it is."""
    with Progress(title, n * samples, unit="completion") as progress:
        return evaluate(model, tokenizer, task, n=n, samples=samples, progress=progress, **options)


def rank(policy: Transformer, tokenizer: Tokenizer, n: int, *, seed: int, noise: float,
         split: str = "train") -> list[Ranking]:
    """Return how people rank a policy's completions of n instructions, and show how far it is."""
    with Progress("answering what is ranked", n * MOST, unit="completion") as progress:
        return rank_completions(policy, tokenizer, Instructions(), n, split=split, seed=seed,
                                noise=noise, progress=progress)


def pretraining(seed: int, n: int = 2000, split: str = "train") -> list[str]:
    """Return text that has nothing to do with instructions."""
    return pretraining_text(n, random.Random(derive_seed(seed, "instruct", "pretraining", split)))


class BeforeAndAfter(Look):
    """Evaluate a policy before and after training, and write samples of it, also halfway.

    samples    problems that samples.md shows
    verdicts   rewards shown beside right or wrong
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
        say_where_nothing_pays(self.task, self.first)
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


def say_where_nothing_pays(task: Task, evaluation: Evaluation) -> None:
    """Print a line where no completion got anything of the rewards that count."""
    counts = [name for name, weight in weights_of(task).items() if weight]
    if any(any(verdicts) for name in counts for verdicts in evaluation.verdicts[name]):
        return
    cut = f"{evaluation.truncated:.0%} were cut off (--max-new-tokens)"
    print(f"note: no completion got a reward ({' and '.join(counts)}), and a group in which all "
          f"fail teaches nothing. {cut}; does the prompt say what an answer looks like, or a chat "
          "model's --system-prompt, such as \"End with #### and the number.\"?", flush=True)


# of InstructGPT

class KeepEpochs(Look):
    """Keep the SFT model after each of `epochs`: sft/epoch-01/, ..."""

    def __init__(self, tokenizer: Tokenizer, epochs: int) -> None:
        self.tokenizer, self.epochs = tokenizer, epochs

    def step(self, run: RunDir, model: Transformer, step: int, steps: int) -> None:
        epoch, rest = divmod(step * self.epochs, steps)
        if rest == 0:
            with run.replacing_folder(f"epoch-{epoch:02}") as folder:
                save_pretrained(model, self.tokenizer, folder)


class Agreement(Look):
    """How often a reward model decides held-out comparisons as the labeller did, and how sure.

    Where the epochs of SFT were kept, the reward model chooses one of them.
    validation   held-out demonstrations, for the epochs' validation loss
    """

    def __init__(self, stages: Stages, rankings: Sequence[Ranking], held_out: Sequence[Ranking],
                 validation: Sequence[Pair]) -> None:
        self.stages, self.rankings, self.held_out = stages, rankings, held_out
        self.validation = validation

    def after(self, run: RunDir, model: ScalarModel, steps: int) -> dict[str, Any]:
        margins = preference_margins(model, self.stages.tokenizer, self.held_out)
        with run.replacing("calibration.png") as partial:
            plot_calibration(margins.tolist(), partial)
        if folders := sorted((run.path / "sft").glob("epoch-??")):
            epochs = self.compare_epochs(folders, model)
            with run.replacing("sft-epochs.png") as partial:
                plot_epochs(epochs, partial)
            run.write_json("sft-epochs.json", {"epochs": epochs})
        return {"rankings": len(self.rankings), "comparisons": len(pairs(self.rankings)),
                "held_out_comparisons": len(margins),
                "pair_accuracy": float((margins > 0).double().mean()),
                "pair_loss": float(-logsigmoid(margins).mean())}

    def compare_epochs(self, folders: Sequence[Path],
                       reward_model: ScalarModel) -> list[dict[str, Any]]:
        settings, device = self.stages.settings, self.stages.device
        checkpoints = ((int(folder.name[-2:]), load_pretrained(folder, device=device)[0])
                       for folder in folders)
        with Progress("choosing the SFT epoch", len(folders), unit="epoch") as progress:
            return compare_epochs(checkpoints, reward_model, self.stages.tokenizer, Instructions(),
                                  validation=self.validation, n=settings.eval_problems,
                                  seed=settings.seed, progress=progress)


class Comparison(BeforeAndAfter):
    """A policy before and after preference learning: what people think, what the reward model does,
    how far the policy went, and what it lost on other text.

    It may look at several stages from one start. A policy that was measured is not measured again.
    """

    def __init__(self, stages: Stages, reward_model: ScalarModel, *,
                 max_new_tokens: int = MAX_NEW_TOKENS, temperature: float = 1.0) -> None:
        seed = stages.settings.seed
        task = scored_by(reward_model, stages.tokenizer, Instructions())
        super().__init__(stages, task, samples=4,
                         verdicts=("true_reward", "reward_model"), max_new_tokens=max_new_tokens,
                         temperature=temperature, seed=derive_seed(seed, "instruct", "evaluate"))
        self.texts = pretraining(seed, 1000, "test")
        self.evaluations: dict[tuple[Transformer, int], Evaluation] = {}

    def evaluate(self, title: str, model: Transformer, *, samples: int = 1,
                 **more: Any) -> Evaluation:
        key = model, samples
        if key not in self.evaluations:
            self.evaluations[key] = super().evaluate(title, model, samples=samples, **more)
        return self.evaluations[key]

    def loss_on_text(self, model: Transformer) -> float:
        texts = encode_texts(self.tokenizer, self.texts, model.config.max_seq_len)
        return text_loss(model, self.tokenizer, texts)

    def before(self, run: RunDir, start: Transformer, *, resumed: bool) -> None:
        super().before(run, start, resumed=resumed)
        self.reference, self.text_before = start, self.loss_on_text(start)

    def after(self, run: RunDir, model: Transformer, steps: int) -> dict[str, Any]:
        results = super().after(run, model, steps)
        for name, reward in (("true_reward", "true_reward"), ("score", "reward_model")):
            results |= {f"{name}_before": self.first.mean(reward),
                        f"{name}_after": self.last.mean(reward)}
        return {**results, "kl_after": self.last.kl, "pretraining_loss_before": self.text_before,
                "pretraining_loss_after": self.loss_on_text(model)}
