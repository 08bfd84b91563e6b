"""Compute spent on training and on answering, who decides how long to think, and what guesses do
to a reward: three studies on sums.

    python benchmarks/test_time.py --runs FOLDER [--study axes|thinking|guessing] [--seeds 3]
    python benchmarks/test_time_report.py FOLDER

axes       One GRPO run. At several steps each held-out sum is answered many times: how accuracy
           grows with the compute of training, and with that of voting.
thinking   Sums of 1 to 3 digits. Three base models read chains of thought of 2 columns, of 1 to 4
           at random, or none at all; then GRPO on each, where a right answer pays for its tokens.
           How long does each think about easy and hard sums? What are chains worth, what votes?
guessing   The same sums as open and as yes-or-no questions (tasks/yes_no.py): one base model that
           read both, and GRPO on either.

All that is computed is kept under --runs and not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import test_time_report as report
from common import heading
from minirl.inference.budget_forcing import budget_forcing
from minirl.inference.collect import Collected
from minirl.inference.evaluate import distinct_problems, evaluate
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.problem import JudgedTask, Problem, Task
from minirl.tasks.rewards import accuracy, answer_of, normalise_answer
from minirl.tasks.steps import CLOSE
from minirl.tasks.yes_no import YesNo, right_work, yes_no_demonstrations
from minirl.train.credit import outcome_credit
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft

Pairs = Sequence[tuple[str, str]]
Json = dict[str, Any]
SUMS = {digits: Arithmetic("addition", digits) for digits in (1, 2, 3)}
# a constant learning rate: no checkpoint is one of a run that was about to end
GRPO = GRPOConfig(steps=96, min_lr_ratio=1.0)

# axes: half of the sums are worked out, with 2 of 5 carries forgotten; the rest are answered at
# once, half of them by a guess
READ: Json = dict(n=12_000, worked_share=0.5, guessed_share=0.5, slip_share=0.4)
LOOKS = (0, 4, 8, 16, 32, 64, 96)                  # steps
PREDICTED = (0, 16, 96)                               # those with a second set of samples
PROBLEMS = 128

# thinking: what the base models read; columns, at least and at most
CHAINS = {"one length": (2, 2), "any length": (1, 4), "none": (0, 0)}
EXAMPLES, COST = 16_000, 0.004                        # a right answer is worth 1, less its tokens
BUDGETS = (1, 6, 10, 15, 20, 25, 31, 37, 43)          # tokens; 10, 20, 31 and 43: whole columns
TRAINED: dict[str, tuple[str, float]] = {             # arm -> what its base read, cost of a token
    "one length, RL": ("one length", COST), "any length, RL at no cost": ("any length", 0.0),
    "any length, RL": ("any length", COST), "none, RL": ("none", COST)}
LEARN = replace(GRPO, steps=48)
TO_VOTE = ("none", "none, RL", "any length", "any length, RL")

# guessing
FORMS: dict[str, Task] = {"open": SUMS[2], "yes or no": YesNo(2)}
OF_A_FORM = 24_000                                    # examples; comparing digits takes many
GUESS = replace(GRPO, steps=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(heading() + "\n", flush=True)
    for seed in range(args.seeds):
        for study in args.study:
            STUDIES[study](args.runs / f"seed-{seed}", seed)


# train compute and test compute

def axes(folder: Path, seed: int) -> None:
    """Train one model, and let it answer at each of LOOKS."""
    def run() -> Json:
        model, tokenizer = base_model(folder / "axes", seed, lambda rng: demonstrations(
            SUMS[3], rng=rng, **READ))
        looks: list[Json] = []

        def look(step: int, metrics: dict[str, float]) -> None:
            if step in LOOKS:
                samples = report.SAMPLES * (2 if step in PREDICTED else 1)
                asked = ask(model, tokenizer, SUMS[3], derive_seed(seed, "axes"), samples)
                looks.append({"step": step, "trained": metrics["num_tokens"], "asked": asked})

        look(0, {"num_tokens": 0})
        train_grpo(model, tokenizer, by_accuracy(SUMS[3]), GRPO, seed=seed, log=look)
        return {"parameters": sum(p.numel() for p in model.parameters()), "looks": looks}

    def predicted() -> Json:
        looks = json.loads((folder / "axes.json").read_text())["looks"]
        return {look["step"]: [report.predicted_majority(look["asked"], n) for n in report.NS]
                for look in looks if look["step"] in PREDICTED}

    kept(folder / "axes.json", run)
    kept(folder / "predicted.json", predicted)


# how long to think

class SumsOfAnySize:
    """Sums of 1 to 3 digits. A right answer is worth 1, less `cost` for each token.

    Only right answers pay (Arora and Zanette, arXiv:2502.04463): where wrong ones paid, too, a
    group without a right answer would teach nothing but to be short.
    """

    name = "sums of 1 to 3 digits"

    def __init__(self, cost: float = 0.0) -> None:
        self.rewards = {"accuracy": accuracy, "price": price}
        self.weights = {"accuracy": 1.0, "price": -cost}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        return [problem for _ in range(n)
                for problem in SUMS[rng.choice(list(SUMS))].sample(1, rng, split=split)]


def price(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str],
          completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
    """The tokens of a right completion; 0 of a wrong one."""
    return [len(ids) * (right or 0.0) for ids, right in
            zip(completion_ids, accuracy(prompts, completions, answer), strict=True)]


def chain(problem: Problem, columns: int) -> str:
    """Return a completion with so many columns. Where the sum has more, the rest is answered at
    once; where it has fewer, empty ones follow: 7+5+0=12, goes on with _+_+1=012,"""
    steps = problem.worked.split(",")
    while len(steps) < columns:
        written = steps[-1].partition("=")[2]
        steps.append(f"_+_+{written[0]}=0{written}")
    work = "".join(f"{step}," for step in steps[:columns])
    return f"<think>{work}</think><answer>{problem.written}</answer>"


def chains(rng: random.Random, least: int, most: int) -> Pairs:
    return [(problem.prompt, chain(problem, rng.randint(least, most)))
            for problem in SumsOfAnySize().sample(EXAMPLES, rng)]


def thinking(folder: Path, seed: int) -> None:
    """Train all arms, and measure by the sums' digits how long each thinks and how often it is
    right, and on the hardest sums what votes and forced budgets are worth."""
    def by_digits(model: Transformer, tokenizer: Tokenizer) -> Json:
        return {digits: ask(model, tokenizer, task, derive_seed(seed, "thinking"), 16, n=64)
                for digits, task in SUMS.items()}

    for name, (least, most) in CHAINS.items():
        path = folder / f"read-{slug(name)}"
        model, tokenizer = base_model(path, seed, partial(chains, least=least, most=most))
        kept(folder / f"thinking-{slug(name)}.json", partial(by_digits, model, tokenizer))
    for name, (base, cost) in TRAINED.items():
        model, tokenizer = trained_model(folder / slug(name), folder / f"read-{slug(base)}",
                                         SumsOfAnySize(cost), seed)
        kept(folder / f"thinking-{slug(name)}.json", partial(by_digits, model, tokenizer))
    for name in TO_VOTE:
        path = folder / (f"read-{slug(name)}" if name in CHAINS else slug(name))
        kept(folder / f"votes-{slug(name)}.json", lambda path=path: ask(
            *load_pretrained(path), SUMS[3], derive_seed(seed, "votes"), report.SAMPLES))
    base, trained = (folder / slug(name) for name in ("read any length", "any length, RL"))
    kept(folder / "budgets.json", lambda: {
        "cut, before RL": [forced(base, seed, most=budget) for budget in BUDGETS],
        "cut, after RL": [forced(trained, seed, most=budget) for budget in BUDGETS],
        **{f"Wait, {n} x": [forced(path, seed, most=70, extensions=n)
                            for path in (base, trained)] for n in (0, 1, 2)}})


def forced(path: Path, seed: int, *, most: int, extensions: int = 0) -> Json:
    """Let a model think about 3-digit sums: for `most` tokens at most, and on, after "Wait,", where
    it ends."""
    model, tokenizer = load_pretrained(path)
    problems = distinct_problems(SUMS[3], PROBLEMS, random.Random(derive_seed(seed, "votes")))
    answered = budget_forcing(
        model, tokenizer, [tokenizer.encode_prompt(p.prompt) for p in problems], n=4, most=most,
        extensions=extensions, then="<answer>", max_new_tokens=most + 20,
        generator=torch.Generator().manual_seed(derive_seed(seed, "forced")))
    right = sum(row.count(normalise_answer(problem.answer)) for problem, row in
                zip(problems, answered.answers(tokenizer), strict=True))
    return {"most": most, "tokens": answered.kept / (4 * PROBLEMS), "right": right / (4 * PROBLEMS)}


# open questions, and questions that a guess answers

def both_forms(rng: random.Random) -> Pairs:
    """Half open, half yes or no; most worked out with slips, the rest guessed."""
    shares = dict(worked_share=0.75, slip_share=READ["slip_share"])
    pairs = [*demonstrations(SUMS[2], OF_A_FORM, rng, guessed_share=1.0, **shares),
             *yes_no_demonstrations(YesNo(2), OF_A_FORM, rng, **shares)]
    rng.shuffle(pairs)
    return pairs


def guessing(folder: Path, seed: int) -> None:
    """Train on either form -> accuracy on both, and at each step which completions were rewarded
    and which of them were worked out."""
    def measured(model: Transformer, tokenizer: Tokenizer) -> Json:
        return {form: ask(model, tokenizer, task, derive_seed(seed, "guessing"), 4, n=256)
                for form, task in FORMS.items()}

    model, tokenizer = base_model(folder / "guessing", seed, both_forms)
    kept(folder / "guessing-base.json", partial(measured, model, tokenizer))
    for form, task in FORMS.items():
        def run(task: Task = task) -> Json:
            policy, steps = copy.deepcopy(model), []

            def credit(adv: Tensor, answers: Collected) -> Tensor:
                steps.append({"right": answers.verdicts["accuracy"],
                              "work": answers.verdicts["right_work"]})
                return outcome_credit(adv, answers)

            train_grpo(policy, tokenizer, by_accuracy(task), GUESS, credit=credit, seed=seed)
            return {"steps": steps, "after": measured(policy, tokenizer)}

        kept(folder / f"guessing-{slug(form)}.json", run)


# what the studies share

def by_accuracy(task: Task) -> Task:
    """Pay for right answers alone; whether the work is right, too, is watched."""
    return JudgedTask(task, {**task.rewards, "right_work": right_work},
                      {"accuracy": 1.0, "right_work": 0.0})


def base_model(path: Path, seed: int, read: Callable[[random.Random], Pairs]
               ) -> tuple[Transformer, Tokenizer]:
    """Return a model that has read these pairs, from the folder where it was kept."""
    if not path.exists():
        model, tokenizer = make_base(TinySizes(), seed=seed, device="cpu")
        pairs = read(random.Random(derive_seed(seed, "demonstrations")))
        train_sft(model, tokenizer, pairs, SFTConfig(), seed=seed)
        save_pretrained(model, tokenizer, path)
        print(f"seed {seed}: {path.name} has read {len(pairs)} examples", flush=True)
    return load_pretrained(path)


def trained_model(path: Path, base: Path, task: Task, seed: int) -> tuple[Transformer, Tokenizer]:
    """Return the base model after GRPO, from the folder where it was kept."""
    if not path.exists():
        model, tokenizer = load_pretrained(base)
        train_grpo(model, tokenizer, task, LEARN, seed=seed)
        save_pretrained(model, tokenizer, path)
        print(f"seed {seed}: {path.name} is trained", flush=True)
    return load_pretrained(path)


def ask(model: Transformer, tokenizer: Tokenizer, task: Task, seed: int, samples: int,
        n: int = PROBLEMS) -> list[Json]:
    """Return for each held-out problem the right answer, and of each sample the answer, its tokens,
    those of its thinking (a token is a byte), and whether its work is right."""
    table = evaluate(model, tokenizer, by_accuracy(task), n=n, samples=samples, seed=seed)
    return [{"right": normalise_answer(problem.answer), "answers": list(map(answer_of, texts)),
             "tokens": lengths, "work": work,
             "thought": [len(text.partition(CLOSE)[0].removeprefix("<think>")) for text in texts]}
            for problem, texts, lengths, work in
            zip(table.problems, table.completions, table.lengths, table.verdicts["right_work"],
                strict=True)]


def kept(file: Path, make: Callable[[], Any]) -> None:
    """Make what the file does not hold yet."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(make()))
        os.replace(unfinished, file)
        print(f"{file.parent.name}: {file.stem}", flush=True)


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-").lower()


STUDIES = {"axes": axes, "thinking": thinking, "guessing": guessing}

if __name__ == "__main__":
    main()
