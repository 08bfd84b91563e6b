"""Old rollouts on purpose: what each objective makes of them, in training and exactly.

    python benchmarks/off_policy.py --out FILE [--seeds 3]     train what FILE does not hold yet
    python benchmarks/off_policy.py --out FILE --draw          the table and the figure of what it
                                                               holds

In training, rollouts come from the policy of K steps ago (GRPO's off_policy), and there is one
update for each batch, so that nothing else is off-policy. At K = 0 all ratios are 1 and the methods
are one, which tests/test_off_policy.py asserts of their gradients; so one of them runs there.

Exactly: in a world whose 63 completions can be listed (minirl/testing/oracle.py), a policy π takes
gradient steps on E[r] away from the sampler μ. The expected gradient of each objective under μ is a
sum in float64, and so is the gradient that is wanted, that of E[r] under π. Their cosine, their
lengths and the noise of a single sample are no estimates. Where π learns by these gradients alone,
from policies of K steps ago, there is no noise, and no weight that two completions share.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import off_policy_report as report
from at_once import LENGTH, Sums, base_model, look
from minirl.lm.model import Transformer
from minirl.lm.tokenizer import Tokenizer
from minirl.testing.oracle import Oracle
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.objectives import (
    Objective,
    capped,
    clipped,
    score_function,
    sequence_ratio,
    trust_region,
)
from minirl.train.weights import token_weights
from study import FIGURES, add_record, records, study

AGES = (0, 4, 16)                  # K
GRPO = GRPOConfig(steps=60, prompts_per_step=8, group_size=16, lr=3e-4, warmup_steps=4,
                  min_lr_ratio=1.0, kl_coef=0.0, aggregate="token_mean", max_new_tokens=LENGTH)
LOOK_EVERY = 6                     # steps
WORLDS, WORLD = 16, (3, 5, 2)      # vocabulary, length, EOS
MOVES = (*range(8), *range(8, 41, 4))      # gradient steps away from the sampler
MOVE = 0.125                       # the length of one, in logits
UPDATES, RATE = 80, 0.5            # where it learns by each method's own gradient, K = AGES[-1]
DRIFTS = (0.05, 0.1, 0.4)          # |log π - log μ| of a sampled token, for the table


@dataclass(frozen=True)
class Method:
    """An objective, and the fields of GRPO's configuration that belong to it."""

    name: str
    what: str                      # the weight of A ∇ log π, ρ = π/μ; for the table
    objective: Objective
    numbers: dict[str, Any] = field(default_factory=dict)


SAMPLER: dict[str, Any] = {"old_logp": "sampler"}
METHODS = (
    Method("no correction", "1", score_function()),
    Method("PPO clip", "ρ_t, 0 where it has moved by 0.2 the way A points", clipped(0.2, 0.2),
           SAMPLER),
    Method("CISPO", "min(ρ_t, 5)", capped(4.0), SAMPLER),
    Method("DPPO", "ρ_t, 0 where π_t has moved by 0.2 the way A points", trust_region(0.2),
           SAMPLER),
    Method("GSPO", "(Π ρ_t)^(1/T), 0 where it has moved by 0.0003 the way A points",
           sequence_ratio(3e-4, 4e-4), SAMPLER),
    Method("IcePop", "ρ_t, 0 outside 0.5 to 5", score_function(),
           dict(importance="token_mask", importance_min=0.5, importance_max=5.0)),
    Method("whole ratio", "Π ρ_t", score_function(),
           dict(importance="sequence_truncate", importance_max=0.0)),
)
EXACT = METHODS[-1].name


def surrogate(method: Method, logp: Tensor, behavior_logp: Tensor, adv: Tensor,
              mask: Tensor) -> Tensor:
    """Return what train_grpo makes of a batch in its first update: objective times weights."""
    config = replace(GRPO, **method.numbers)
    old_logp = behavior_logp if config.old_logp == "sampler" else logp.detach()
    value = method.objective(logp, old_logp, adv, mask)  # (N, T)
    weights = token_weights(config)
    if weights is None:
        return value
    return value * weights(logp.detach(), old_logp, behavior_logp, adv, mask, mask)


# exactly

def exact_row(method: Method, oracle: Oracle, policy: Any, behavior_logp: Tensor,
              rewards: Tensor) -> dict[str, float]:
    """Compare the expected gradient of a method with the right one: cosine, length, and the noise
    of a single completion, in lengths of the right one."""
    logp, p = oracle.logp(policy), oracle.prob(behavior_logp)  # (N, T), (N,) under the sampler
    right = oracle.gradient(policy, oracle.mean(logp, rewards))
    adv = rewards - (p * rewards).sum()  # a group of infinite size
    value = values(method, oracle, logp, behavior_logp, adv)
    mean = oracle.gradient(policy, (p[:, None] * value).sum())
    slope, = torch.autograd.grad(value.sum(), logp, allow_unused=True)  # (N, T): of log π_t
    probs = oracle.logits(policy).detach().softmax(-1)  # (N, T, V)
    length = (probs.square().sum(-1) - 2 * logp.exp() + 1).detach()  # |∇ log π_t|²: its own logits
    squares = (p[:, None] * slope.square() * length * oracle.mask).sum()
    noise = (squares - mean.square().sum()).clamp(min=0).sqrt()
    return {"cosine": float(torch.cosine_similarity(mean, right, dim=0)),
            "length": float(mean.norm() / right.norm()), "noise": float(noise / right.norm())}


def values(method: Method, oracle: Oracle, logp: Tensor, behavior_logp: Tensor,
           adv: Tensor) -> Tensor:
    """Return a method's objective for every token of every completion; adv is (N,)."""
    spread = adv[:, None].expand_as(logp)  # (N, T)
    return torch.where(oracle.mask,
                       surrogate(method, logp, behavior_logp, spread, oracle.mask), 0)


def worlds() -> list[dict[str, Any]]:
    """Return a line for each world, step and method."""
    lines = []
    for seed in range(WORLDS):
        oracle, policy, rewards = world(seed)
        behavior_logp = oracle.logp(policy).detach()
        for step in range(MOVES[-1] + 1):
            logp = oracle.logp(policy)
            for method in METHODS if step in MOVES else ():
                lines.append({"world": seed, "step": step, "method": method.name,
                              "drift": drift(oracle, logp.detach(), behavior_logp),
                              **exact_row(method, oracle, policy, behavior_logp, rewards)})
            move(policy, oracle.gradient(policy, oracle.mean(logp, rewards)))
    return lines


def world(seed: int) -> tuple[Oracle, Any, Tensor]:
    """Return a world, a policy of random logits, and rewards: one completion in five is right."""
    oracle = Oracle(*WORLD)
    return oracle, oracle.table(seed=seed), (oracle.random(seed=100 + seed) > 0.8).double()


def learn_exactly(method: Method, seed: int, age: int) -> list[float]:
    """Return E[r] before each of UPDATES steps of a policy that learns by the expected gradient of
    a method under the policy of `age` steps ago, and after them. Advantages are GRPO's."""
    oracle, policy, rewards = world(seed)
    past, curve = [oracle.logp(policy).detach()] * age, []
    for _ in range(UPDATES):
        logp = oracle.logp(policy)
        past.append(logp.detach())
        behavior_logp = past.pop(0)
        p, mean = oracle.prob(behavior_logp), oracle.mean(behavior_logp, rewards)
        adv = (rewards - mean) / (mean * (1 - mean)).sqrt()  # r is 0 or 1
        value = values(method, oracle, logp, behavior_logp, adv)
        gradient = oracle.gradient(policy, (p[:, None] * value).sum())
        curve.append(oracle.mean(logp, rewards).item())
        policy.lm_head.weight.data += RATE * gradient.view_as(policy.lm_head.weight)
    return [*curve, oracle.mean(oracle.logp(policy), rewards).item()]


def drift(oracle: Oracle, logp: Tensor, behavior_logp: Tensor) -> float:
    """Return what training reports as sampling/sampling_logp_difference/mean: |log π - log μ| of a
    sampled token, as the mean over all that the sampler draws."""
    p = oracle.prob(behavior_logp)[:, None] * oracle.mask  # (N, T)
    return float((p * (logp - behavior_logp).abs()).sum() / p.sum())


@torch.no_grad()
def move(policy: Any, gradient: Tensor) -> None:
    """Take a step of one length in all worlds, as Adam's do not depend on the gradient's."""
    weight = policy.lm_head.weight
    weight += MOVE * gradient.view_as(weight) / gradient.norm()


# in training

def main() -> None:
    runs, figure = study(__doc__, one_seed, option="--figure", default=FIGURES / "off_policy.png")
    exact = worlds()
    learnt = {method.name: [learn_exactly(method, seed, AGES[-1]) for seed in range(WORLDS)]
              for method in METHODS}
    report.table(runs, METHODS, AGES)
    report.exact_table(exact, METHODS, DRIFTS)
    report.learning_table(learnt, AGES[-1])
    report.draw(runs, exact, METHODS, AGES, figure)


def one_seed(seed: int, out: Path) -> None:
    """Train what the file does not have, and add a line for each run."""
    finished = {(run["method"], run["age"]) for run in records(out) if run["seed"] == seed}
    wanted = [(method, age) for age in AGES for method in (METHODS if age else METHODS[:1])]
    missing = [(method, age) for method, age in wanted if (method.name, age) not in finished]
    if not missing:
        return
    base, tokenizer = base_model(seed)
    before = look(base, tokenizer, seed, 0)
    for method, age in missing:
        model, began = copy.deepcopy(base), time.process_time()
        looks, drifts = [before], []
        train_grpo(model, tokenizer, Sums(), replace(GRPO, off_policy=age, **method.numbers),
                   seed=seed, objective=watched(method.objective, drifts),
                   log=partial(watch, model, tokenizer, seed, looks, drifts))
        line = {"seed": seed, "method": method.name, "age": age, "looks": looks,
                "drift": drifts, "seconds": time.process_time() - began}
        add_record(out, line)
        accuracy = [round(entry["accuracy"], 3) for entry in looks]
        print(f"seed {seed}, K = {age}, {method.name}: {accuracy}, drift "
              f"{statistics.mean(drifts):.3f}, {line['seconds']:.1f} s", flush=True)


def watched(objective: Objective, drifts: list[float]) -> Objective:
    """Return an objective that keeps how far π is from π_old, |log π - log π_old| of a token. π_old
    is the sampler, or else it is π itself, and then the metrics say how far the sampler is."""
    def call(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
        drifts.append(float((logp - old_logp).detach().abs()[mask].mean()))
        return objective(logp, old_logp, adv, mask)

    return call


def watch(model: Transformer, tokenizer: Tokenizer, seed: int, looks: list[dict[str, float]],
          drifts: list[float], step: int, metrics: dict[str, float]) -> None:
    """Add how far π_old is from the sampler, and look at held-out sums from time to time."""
    drifts[-1] = round(drifts[-1] + metrics["sampling/sampling_logp_difference/mean"], 5)
    if step % LOOK_EVERY == 0:
        looks.append(look(model, tokenizer, seed, step))


if __name__ == "__main__":
    main()
