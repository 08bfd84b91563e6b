"""Entropy collapse on a toy, and what is said to help against it.

    python benchmarks/collapse.py --out FILE [--seeds 3]     train what FILE does not hold yet
    python benchmarks/collapse.py --out FILE --draw          the tables and the figure of what it
                                                             holds

    Papers     clip-higher: DAPO, arXiv:2503.14476, section 3.1. Entropy bonus: PPO,
               arXiv:1707.06347, eq. 9. Adaptive bonus: Skywork-OR1, arXiv:2505.22312. Clip-Cov and
               KL-Cov: arXiv:2505.22617. A KL to the reference: DeepSeekMath, arXiv:2402.03300.

From one base model per seed (benchmarks/at_once.py), each arm is the same GRPO run but for its
remedy. The plain one has no KL, four updates for each batch, and a constant learning rate that is
too high. The last arm is a control: it does nothing about entropy but learns more slowly.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import collapse_report as report
from at_once import LENGTH, Sums, base_model, look
from minirl.equations.entropy import clip_cov_mask, kl_cov_mask, token_covariance
from minirl.equations.objectives import clipped_surrogate
from minirl.lm.model import Transformer
from minirl.lm.tokenizer import Tokenizer
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.objectives import Objective
from study import FIGURES, add_record, records, study

GRPO = GRPOConfig(steps=96, prompts_per_step=8, group_size=16, minibatches=4, lr=1e-3,
                  warmup_steps=0, min_lr_ratio=1.0, kl_coef=0.0, aggregate="token_mean",
                  max_new_tokens=LENGTH)
LOOK_EVERY = 12                    # steps
SHARE = 0.02                       # of the tokens, for Clip-Cov and KL-Cov: 3 of an update's 128
# what is kept of the metrics of every step
KEPT = ("reward", "entropy", "frac_reward_zero_std", "frac_unique_completions",
        *(f"entropy/quarter_{i}" for i in (1, 2, 3, 4)), "clip_ratio/low_mean",
        "clip_ratio/high_mean", "grad_norm", "kl", "entropy_coef")


# the arms

def clip_cov(seed: int) -> Objective:
    """PPO's clip, and no gradient for a few of the tokens whose covariance is large."""
    generator = torch.Generator().manual_seed(seed)

    def objective(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
        kept = clip_cov_mask(token_covariance(logp, adv, mask), mask, share=SHARE,
                             generator=generator)
        return clipped_surrogate(logp, old_logp, adv) * kept

    return objective


def kl_cov(seed: int) -> Objective:
    """No clip, and a penalty on how far the tokens with the largest covariance move. The penalty
    estimates the KL by |log ρ|, so in the first of several updates it has no gradient."""
    def objective(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
        chosen = kl_cov_mask(token_covariance(logp, adv, mask), mask, share=SHARE)
        return (logp - old_logp).exp() * adv - chosen * (logp - old_logp).abs()

    return objective


@dataclass(frozen=True)
class Arm:
    """A GRPO run: what differs from the plain one."""

    name: str
    what: str                      # for the table
    numbers: dict[str, Any] = field(default_factory=dict)
    objective: Callable[[int], Objective] | None = None        # of the seed


ARMS = (
    Arm(report.PLAIN, "ε = 0.2, no KL, no bonus"),
    Arm("clip-higher", "ε_high = 0.28", dict(clip_high=0.28)),
    Arm("entropy bonus", "0.01 H", dict(entropy_coef=0.01)),
    Arm("large bonus", "0.05 H", dict(entropy_coef=0.05)),
    Arm("adaptive bonus", "up to 0.1 H, while H ≤ 0.4",
        dict(entropy_target=0.4, entropy_coef_max=0.1)),
    Arm("Clip-Cov", "2 % of tokens without gradient", objective=clip_cov),
    Arm("KL-Cov", "2 % of tokens penalised, no clip", objective=kl_cov),
    Arm("KL to the base", "0.05 k3", dict(kl_coef=0.05)),
    Arm("smaller steps", "a third of the learning rate", dict(lr=GRPO.lr / 3)),
)


# running them

def main() -> None:
    runs, figure = study(__doc__, one_seed, option="--figure", default=FIGURES / "collapse.png")
    report.outcomes(runs, ARMS)
    report.positions(runs, ARMS)
    report.draw(runs, ARMS, figure)


def one_seed(seed: int, out: Path) -> None:
    """Train the arms that the file does not have, and add a line for each."""
    finished = {run["arm"] for run in records(out) if run["seed"] == seed}
    missing = [arm for arm in ARMS if arm.name not in finished]
    if not missing:
        return
    base, tokenizer = base_model(seed)
    before = look(base, tokenizer, seed, 0)
    for arm in missing:
        model, began = copy.deepcopy(base), time.process_time()
        steps: dict[str, list[float]] = {}
        looks = [before]
        train_grpo(model, tokenizer, Sums(), replace(GRPO, **arm.numbers), seed=seed,
                   objective=arm.objective and arm.objective(seed),
                   log=partial(watch, model, tokenizer, seed, steps, looks))
        line = {"seed": seed, "arm": arm.name, "looks": looks, "steps": steps,
                "seconds": time.process_time() - began}
        add_record(out, line)
        print(f"seed {seed}, {arm.name}: entropy {steps['entropy'][-1]:.3f}, {looks[-1]}",
              flush=True)


def watch(model: Transformer, tokenizer: Tokenizer, seed: int, steps: dict[str, list[float]],
          looks: list[dict[str, float]], step: int, metrics: dict[str, float]) -> None:
    """Keep a step's metrics, and look at held-out sums from time to time."""
    for name in KEPT:
        if name in metrics:
            steps.setdefault(name, []).append(round(metrics[name], 5))
    if step % LOOK_EVERY == 0:
        looks.append(look(model, tokenizer, seed, step))


if __name__ == "__main__":
    main()
