"""SFT, RFT, online RFT, DPO, PPO and GRPO as one method: who answers the prompts, who judges the
answers, and which number each answer's gradient is multiplied by.

    python benchmarks/unified.py --out FILE [--seeds 3]     train what FILE does not hold yet
    python benchmarks/unified.py --out FILE --draw          tables and figures of what it holds

    Paper      DeepSeekMath, arXiv:2402.03300, section 5.2.1, eq. 5, and appendix A.1 (the view);
               section 5.2.2 (Maj@K against Pass@K)

Each method is a row of METHODS and trains by a page of minirl/train. From one base model per seed,
all of them see the same prompts, in as many optimizer steps of the same AdamW: STEPS batches of
PROMPTS prompts, for each of which GROUP completions are sampled (SFT: one demonstration). The
reward is accuracy alone, for PPO and GRPO, too, which in the paper ask a reward model. The base
model is that of `minirl grpo`, but it has read half as much, and what it read has slips: so the
answer that it gives most often is not always right.

tests/test_unified.py shows that each page's loss has the coefficient of its row.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unified_report as report
from common import Listed
from minirl.equations.inference_time import majority_vote
from minirl.equations.objectives import policy_gradient
from minirl.inference.collect import collect_in_parts
from minirl.inference.evaluate import Evaluation, evaluate
from minirl.inference.steps import true_steps
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import Arithmetic, completion, demonstrations
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import Problem
from minirl.tasks.rewards import accuracy, answer_of, normalise_answer
from minirl.train.credit import process_credit
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state import Log
from study import add_record, records, study

TASK = Arithmetic("addition", 3)
# what the base model reads: sums, half of them worked out, and there a share of wrong digits
READ: dict[str, Any] = dict(n=12_000, worked_share=0.5, guessed_share=0.5, slip_share=0.15)
STEPS, PROMPTS, GROUP = 60, 16, 8
ROWS = PROMPTS * GROUP             # completions per step
LENGTH = 80                        # tokens of a completion, at most
# the same for all methods: AdamW with a constant learning rate after the warm-up
ADAMW: dict[str, Any] = dict(lr=2e-4, warmup_steps=3, beta1=0.9, beta2=0.999)
CONSTANT: dict[str, Any] = dict(min_lr_ratio=1.0)          # PPO's page has no other schedule
BETA = 0.01                        # β of the KL, in PPO's reward and in GRPO's loss
GRPO = GRPOConfig(steps=STEPS, prompts_per_step=PROMPTS, group_size=GROUP, kl_coef=BETA,
                  max_new_tokens=LENGTH, **ADAMW, **CONSTANT)
LOOK_EVERY, LOOK_AT = 6, 256       # steps between two looks, held-out sums in each
PROBLEMS, KS = 128, (1, 2, 4, 8, 16, 32, 64)               # for Maj@K and Pass@K


@dataclass(frozen=True)
class Run:
    """What a method starts from: the base model, which it trains in place, and the prompts."""

    model: Transformer
    tokenizer: Tokenizer
    problems: Sequence[Problem]    # STEPS * PROMPTS of them
    seed: int
    log: Log

    def asked(self, times: int = 1) -> Listed:
        """Return the prompts as a task, each `times` times in a row, judged by accuracy."""
        problems = [problem for problem in self.problems for _ in range(times)]
        return Listed(problems, {"accuracy": accuracy})


# one function per method

def sft(run: Run) -> None:
    pairs = [(p.prompt, completion(p, worked=True)) for p in run.problems]
    fine_tune(run, pairs)


def rft(run: Run) -> None:
    pairs = [(problem.prompt, answer) for problem, right, _ in own_answers(run) for answer in right]
    fine_tune(run, pairs)


def online_rft(run: Run) -> None:
    train_grpo(run.model, run.tokenizer, run.asked(), replace(GRPO, kl_coef=0.0), seed=run.seed,
               advantages=right_or_not, objective=log_likelihood, log=run.log)


def dpo(run: Run) -> None:
    rankings = [Ranking(problem.prompt, pair) for problem, right, wrong in own_answers(run)
                for pair in zip(right, wrong, strict=False)]       # as many as there are of both
    batch = len(rankings) // STEPS
    config = DPOConfig(batch_size=batch, beta=0.1, **ADAMW, **CONSTANT)
    train_dpo(run.model, run.tokenizer, rankings[:STEPS * batch], config, seed=run.seed,
              log=run.log)


def ppo(run: Run) -> None:
    config = PPOConfig(steps=STEPS, episodes=ROWS, minibatch_size=ROWS, kl_coef=BETA, lam=1.0,
                       ema_decay=0.0, missing_eos_penalty=0.0, max_new_tokens=LENGTH, **ADAMW)
    train_ppo(run.model, run.tokenizer, run.asked(GROUP), config, seed=run.seed, log=run.log)


def grpo(run: Run) -> None:
    train_grpo(run.model, run.tokenizer, run.asked(), GRPO, seed=run.seed, log=run.log)


def grpo_by_steps(run: Run) -> None:
    train_grpo(run.model, run.tokenizer, run.asked(), GRPO, seed=run.seed, log=run.log,
               credit=process_credit(true_steps(run.tokenizer)))


@dataclass(frozen=True)
class Method:
    """A row of the paper's table of methods: the three things in which they differ."""

    name: str
    source: str                    # who answers the prompts
    reward: str                    # who judges the answers
    coefficient: str               # of ∇ log π: see equations/coefficients.py
    train: Callable[[Run], None]


METHODS = (
    Method("SFT", "people", "none", "1", sft),
    Method("RFT", "the base model", "rule", "1 if right, else 0", rft),
    Method("online RFT", "the policy", "rule", "1 if right, else 0", online_rft),
    Method("DPO", "the base model, pairs", "rule", "±σ(β h_l - β h_w)", dpo),
    Method("PPO", "the policy", "rule", "A_t, against a value function", ppo),
    Method("GRPO, outcome", "the policy", "rule", "A_i + β (ref/π - 1)", grpo),
    Method("GRPO, process", "the policy", "rule, step by step", "A_t + β (ref/π - 1)",
           grpo_by_steps),
)


# what the methods share

def log_likelihood(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
    return policy_gradient(logp, adv)


def right_or_not(rewards: Tensor) -> Tensor:
    """Online RFT's advantage: the reward itself, 1 or 0."""
    return rewards


def fine_tune(run: Run, pairs: Sequence[tuple[str, str]]) -> None:
    """Train on the pairs in one epoch of STEPS equal batches."""
    batch = len(pairs) // STEPS
    train_sft(run.model, run.tokenizer, pairs[:STEPS * batch],
              SFTConfig(batch_size=batch, **ADAMW, **CONSTANT), seed=run.seed, log=run.log)


def own_answers(run: Run) -> list[tuple[Problem, list[str], list[str]]]:
    """Sample GROUP completions of each prompt from the model -> the problem, its right completions
    and its wrong ones. Those that were cut off are left out."""
    generator = torch.Generator().manual_seed(derive_seed(run.seed, "own answers"))
    answers = []
    for part in collect_in_parts(run.model, run.tokenizer, run.asked(), run.problems, group=GROUP,
                                 max_new_tokens=LENGTH, generator=generator):
        ended = (~part.rollouts.truncated).tolist()
        rows = list(zip(part.completions, part.verdicts["accuracy"], ended, strict=True))
        for i, problem in enumerate(part.problems):
            own = rows[i * GROUP:(i + 1) * GROUP]
            right = [text for text, verdict, whole in own if whole and verdict == 1]
            wrong = [text for text, verdict, whole in own if whole and verdict == 0]
            answers.append((problem, right, wrong))
    return answers


# running them

def main() -> None:
    runs, figures = study(__doc__, one_seed)
    seeds = len(report.of(runs, report.BASE))
    methods = [method for method in METHODS if len(report.of(runs, method.name)) == seeds]
    report.methods(runs, methods)
    report.votes(runs, methods, KS)
    report.draw_curves(runs, methods, figures / "unified.png")
    report.draw_votes(runs, methods, KS, figures / "unified_maj_pass.png")


def one_seed(seed: int, out: Path) -> None:
    """Train and measure what the file does not have, and add a line for each."""
    finished = {run["method"] for run in records(out) if run["seed"] == seed}
    missing = [method for method in METHODS if method.name not in finished]
    if not missing and report.BASE in finished:
        return
    base, tokenizer = make_base(TinySizes(), seed=seed, device="cpu")
    rng = random.Random(derive_seed(seed, "demonstrations"))
    train_sft(base, tokenizer, demonstrations(TASK, rng=rng, **READ), SFTConfig(), seed=seed)
    problems = TASK.sample(STEPS * PROMPTS, random.Random(derive_seed(seed, "unified")))

    def keep(name: str, model: Transformer, curve: list[tuple[int, float]], began: float) -> None:
        line: dict[str, Any] = {"seed": seed, "method": name, "curve": curve,
                                "seconds": time.perf_counter() - began}
        line |= measured(model, tokenizer, seed)
        add_record(out, line)
        print(f"seed {seed}, {name}: {line['pass'][0]:.3f}", flush=True)

    if report.BASE not in finished:
        keep(report.BASE, base, [(0, look(base, tokenizer, seed))], time.perf_counter())
    for method in missing:
        model, began = copy.deepcopy(base), time.perf_counter()
        curve: list[tuple[int, float]] = []
        method.train(Run(model, tokenizer, problems, seed, partial(watch, model, tokenizer, seed,
                                                                   curve)))
        keep(method.name, model, curve, began)


def watch(model: Transformer, tokenizer: Tokenizer, seed: int, curve: list[tuple[int, float]],
          step: int, metrics: dict[str, float]) -> None:
    """Look at the model from time to time: the `log` of every page."""
    if step % LOOK_EVERY == 0:
        curve.append((step * ROWS, look(model, tokenizer, seed)))


def look(model: Transformer, tokenizer: Tokenizer, seed: int) -> float:
    return evaluate(model, tokenizer, TASK, n=LOOK_AT, max_new_tokens=LENGTH, seed=seed).accuracy


def measured(model: Transformer, tokenizer: Tokenizer, seed: int) -> dict[str, list[float]]:
    """Return Maj@K and Pass@K for each of KS, from as many samples per problem as the last K."""
    table = evaluate(model, tokenizer, TASK, n=PROBLEMS, samples=KS[-1], max_new_tokens=LENGTH,
                     seed=derive_seed(seed, "votes"))
    return {"majority": [majority_at(table, k) for k in KS],
            "pass": [table.pass_at(k) for k in KS]}


def majority_at(table: Evaluation, k: int) -> float:
    """Maj@K without bias: the share of right votes among disjoint groups of k samples."""
    right = []
    for problem, samples in zip(table.problems, table.completions, strict=True):
        answers = [answer_of(sample) for sample in samples]
        right += [majority_vote(answers[i:i + k]) == normalise_answer(problem.answer)
                  for i in range(0, len(answers) - k + 1, k)]
    return statistics.mean(right)


if __name__ == "__main__":
    main()
