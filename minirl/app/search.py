"""`minirl search`: what tokens buy at inference time, on sums of three lengths: votes, the best of
n by a verifier, and searches that a verifier leads; measured, and predicted from other samples.

    base/                    a policy that works sums out, and forgets a share of the carries
    solutions.jsonl          its solutions, a label for each step
    prm/, orm/               a process and an outcome reward model, which learn from them
    comparison-1.json, ...   what every method is worth, a file for each length
    search.png               accuracy against tokens

A policy that --init names is used instead of a new one, and a reward model that --reward names
instead of two new ones. The verifiers of `minirl eval` are opened here, too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import torch

from minirl.app.preflight import Start, refuse
from minirl.app.stages import Settings, Stages
from minirl.app.tasks import make_task
from minirl.equations.inference_time import SOLUTION_SCORES
from minirl.inference.candidates import StepVerifier, Verifier, solution_verifier
from minirl.inference.collect import check_prompts
from minirl.inference.comparison import Comparison, compare, number_of_candidates
from minirl.inference.comparison_figure import plot_comparison
from minirl.inference.comparison_tables import choice_table, comparison_report
from minirl.inference.evaluate import Evaluation, distinct_problems
from minirl.inference.points import measure_best, measure_vote, samples_of
from minirl.lm.checkpoint import load_reward_model
from minirl.lm.compiled import worth_compiling
from minirl.lm.files import read_json
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.precision import pick_device
from minirl.lm.progress import Progress
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import SYMBOLS, demonstrations
from minirl.tasks.problem import Task
from minirl.tasks.steps import Solution, load_solutions, save_solutions
from minirl.train.search import SearchConfig, label_tasks, read_slips, train_verifiers
from minirl.train.verifiers import outcome_verifier, step_verifier

LENGTHS = 3                              # tasks, each a digit longer than the one before
Verifiers = tuple["Verifier | None", "StepVerifier | None"]


@dataclass(frozen=True)
class SearchSettings(Settings):
    """Settings of minirl search: the common ones, the sums, and what verifiers learn from."""

    task: str = "addition"             # addition or multiplication (by one digit)
    digits: int = 2                    # 1 to 3, of the easiest sums; others have one and two more
    slip_share: float = 0.5            # of the carries are forgotten in what the base model reads
    labelled_problems: int = 250       # of each length, of which a solution is labelled
    step_samples: int = 8              # completions from each step
    eval_problems: int = 24            # held-out problems of each length
    reward: str | None = None          # a reward model's folder, instead of two new ones

    @property
    def task_fields(self) -> dict[str, Any]:
        return {"name": self.task, "digits": self.digits}

    @property
    def tasks(self) -> list[Task]:
        return [make_task({"name": self.task, "digits": self.digits + more})
                for more in range(LENGTHS)]

    @cached_property
    def opened_reward(self) -> Reward:
        """The reward model that --reward names, read once: when it is checked, or in a resumed run.
        """
        return open_reward(str(self.reward), device=pick_device(self.device))


def search(stages: Stages[SearchSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl search` does -> what it prints at the end."""
    settings, config, run = stages.settings, configs["search"], stages.run
    tokens = LENGTHS * config.max_new_tokens * settings.labelled_problems * settings.step_samples
    model.compiled = worth_compiling(settings.compile, model, tokens)
    policy = model if settings.init is not None else read_slips(
        stages, model, stages.tokenizer, settings.tasks,
        Random(derive_seed(settings.seed, "search", "demonstrations")),
        slip_share=settings.slip_share, seed=settings.seed)
    verifiers = (learnt(stages, policy, config) if settings.reward is None else
                 settings.opened_reward.verifiers)
    comparisons = [stages.file(f"comparison-{i}.json",
                               partial(compared, stages, policy, task, verifiers, config),
                               load_comparison, save_comparison)
                   for i, task in enumerate(settings.tasks, 1)]
    with run.replacing("search.png") as partial_file:
        plot_comparison(comparisons, partial_file)
    run.write_json("summary.json", summary(comparisons) | {"seconds": round(stages.seconds, 1)})
    reward = settings.reward or str(run.path / "prm" / "final")
    start = settings.init or str(run.path / "base" / "final")
    return (f"\n{comparison_report(comparisons)}\n\n{run.path}/ holds search.png, summary.json "
            "and, with all numbers, comparison-1.json, ....\nNext: minirl eval --voting 16 "
            f"--best-of 16 --init {shlex.quote(start)} --reward {shlex.quote(reward)}")


def learnt(stages: Stages[SearchSettings], policy: Transformer, config: SearchConfig) -> Verifiers:
    """Let two reward models learn from the policy's own solutions."""
    settings, tokenizer = stages.settings, stages.tokenizer

    def label() -> list[Solution]:
        n = LENGTHS * settings.labelled_problems
        with Progress("labelling solutions.jsonl", n, unit="solution") as progress:
            return label_tasks(policy, tokenizer, settings.tasks, settings.labelled_problems,
                               samples=settings.step_samples, seed=settings.seed,
                               max_new_tokens=config.max_new_tokens, progress=progress)

    prm, orm = train_verifiers(
        stages, policy, tokenizer,
        lambda: stages.file("solutions.jsonl", label, load_solutions, save_solutions),
        seed=settings.seed)
    return outcome_verifier(orm, tokenizer), step_verifier(prm, tokenizer)


def compared(stages: Stages[SearchSettings], policy: Transformer, task: Task, verifiers: Verifiers,
             config: SearchConfig) -> Comparison:
    """Measure every method on held-out problems of a task."""
    settings, (outcome, steps) = stages.settings, verifiers
    seed = derive_seed(settings.seed, "search", task.name)
    problems = distinct_problems(task, settings.eval_problems, Random(seed))
    n = number_of_candidates(len(problems), config.largest, config.expansions,
                             searches=steps is not None)
    with Progress(f"comparing on {task.name}", n, unit="candidate") as progress:
        return compare(policy, stages.tokenizer, task, problems, outcome=outcome, steps=steps,
                       largest=config.largest, expansions=config.expansions,
                       max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                       seed=seed, progress=progress)


def load_comparison(path: Path) -> Comparison:
    return Comparison.from_dict(read_json(path))


def save_comparison(comparison: Comparison, path: Path) -> None:
    path.write_text(json.dumps(comparison.as_dict()) + "\n", encoding="utf-8")


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the accuracy of every method at the largest n, and its tokens, by task."""
    return {comparison.task: {method: {"n": points[-1].n, "accuracy": points[-1].accuracy,
                                       "tokens": points[-1].tokens}
                              for method, points in comparison.methods.items()}
            for comparison in comparisons}


# reward models that a flag names

class Reward(NamedTuple):
    """A reward model, and whether it scores steps: how says how these make one score."""

    path: str
    model: ScalarModel
    tokenizer: Tokenizer
    how: str | None

    @property
    def verifiers(self) -> Verifiers:
        """As a verifier of outcomes or of steps. The other is None."""
        if self.how is None:
            return outcome_verifier(self.model, self.tokenizer), None
        return None, step_verifier(self.model, self.tokenizer)

    @property
    def solutions(self) -> Verifier:
        """As a verifier of whole solutions."""
        outcome, steps = self.verifiers
        return outcome or solution_verifier(cast(StepVerifier, steps), cast(str, self.how))

    def check(self, tokenizer: Tokenizer, task: Task, max_new_tokens: int) -> None:
        """Raise ValueError where it cannot read what a policy writes."""
        if not tokenizer.same_ids(self.tokenizer):
            raise ValueError(f"the reward model {self.path} and the policy have different "
                             f"tokenizers ({self.tokenizer.vocab_size} and {tokenizer.vocab_size} "
                             "tokens): it would read other words than the policy writes; name one "
                             "that was trained from this policy")
        check_prompts(tokenizer, task, max_new_tokens=max_new_tokens,
                      context=self.model.config.max_seq_len)


def open_reward(path: str, how: str | None = None, *, device: torch.device | str = "cpu"
                ) -> Reward:
    """Read a reward model. It scores steps where the config.json of its run says that minirl prm
    made it, or where --how says how to read them; otherwise it scores outcomes.

    Raises ValueError for a folder without one, and for --how where outcomes are scored.
    """
    model, tokenizer = load_reward_model(path, device=device)
    command = read_json(Path(path).parent / "config.json").get("command")
    if how is not None and command in ("rm", "orm"):
        raise ValueError(f"--how is given, but {path} scores whole solutions, and no steps: leave "
                         "it out")
    return Reward(path, model, tokenizer, how or (SOLUTION_SCORES[0] if command == "prm" else None))


def check_choosing(best_of: int | None, reward: str | None, how: str | None) -> None:
    """Raise ValueError for flags of minirl eval that make no sense together."""
    if (best_of is None) != (reward is None):
        raise ValueError("--best-of needs --reward, the model whose score decides, and --reward "
                         "--best-of: give both, or use --voting, which needs no model")
    if how is not None and reward is None:
        raise ValueError("--how is given without --reward, whose scores it is about: leave it out")


def choices(result: Evaluation, tokenizer: Tokenizer, voting: int | None, best_of: int | None,
            reward: Reward | None) -> str:
    """Return a table of ways to choose one of the samples that an evaluation has; "" for none."""
    if voting is best_of is None:
        return ""
    name = "" if reward is None else "outcome" if reward.how is None else f"steps, {reward.how}"
    samples = samples_of(result, tokenizer, {} if reward is None else {name: reward.solutions})
    points = []
    if samples.right and voting is not None:
        points.append(replace(measure_vote(samples, voting), method=f"majority of {voting}"))
    if samples.right and best_of is not None:
        points.append(replace(measure_best(samples, best_of, name),
                              method=f"best of {best_of}, by {name}"))
    return choice_table(points) if points else "no problem has a verdict: nothing to choose"


# before a run has a folder

def check_search(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl search` later."""
    settings, limit = configs["settings"], configs["search"].max_new_tokens
    if settings.task not in SYMBOLS:
        raise ValueError(f"task is {settings.task!r}: one of {', '.join(SYMBOLS)} is expected")
    if settings.digits > 3:
        raise ValueError(f"digits is {settings.digits}: 1 to 3 is wanted, as the longest sums have "
                         "two more")
    longest = settings.tasks[-1]
    if settings.init is None:
        demonstrations(longest, 1, Random(0), worked_share=1.0, slip_share=settings.slip_share)
    else:
        refuse(flags, ["slip_share"], "--init names a policy, and no base model is made")
    check_prompts(start.tokenizer, longest, max_new_tokens=limit, context=start.config.max_seq_len)
    if settings.reward is not None:
        refuse(flags, ["labelled_problems", "step_samples"],
               "--reward names a reward model, and none is trained")
        settings.opened_reward.check(start.tokenizer, longest, limit)
