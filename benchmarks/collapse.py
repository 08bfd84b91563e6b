"""Entropy collapse on a toy, and what is said to help against it.

    python benchmarks/collapse.py --out FILE [--seeds 3]     train what FILE does not hold yet
    python benchmarks/collapse.py --out FILE --draw          the table and the figure of what it
                                                             holds

    Papers     clip-higher: DAPO, arXiv:2503.14476, section 3.1. Entropy bonus: PPO,
               arXiv:1707.06347, eq. 9. Adaptive bonus: Skywork-OR1, arXiv:2505.22312. Clip-Cov and
               KL-Cov: arXiv:2505.22617. A KL to the reference: DeepSeekMath, arXiv:2402.03300.

From one base model per seed (benchmarks/at_once.py), each arm is the same GRPO run but for its
remedy. Real runs read a fixed set of prompts many times over; so do these, 16 sums 120 times each.
The plain arm has no KL, four updates for each batch, and a constant learning rate. Each remedy has
the strength that did best in benchmarks/collapse_tuning.py, on a seed that is none of these. Two
arms are controls, which do nothing about entropy: one learns more slowly, one reads new sums in
every step.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import collapse_report as report
from at_once import LENGTH, Sums, base_model, look
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import GRPO_PRESETS
from study import FIGURES, add_record, records, study

GRPO = GRPOConfig(steps=240, prompts_per_step=8, group_size=16, minibatches=4, lr=6e-4,
                  warmup_steps=0, min_lr_ratio=1.0, kl_coef=0.0, aggregate="token_mean",
                  max_new_tokens=LENGTH)
PROMPTS = 16                       # that a run trains on
LOOK_EVERY = 24                    # steps
# what is kept of the metrics of every step
KEPT = ("reward", "entropy", "frac_reward_zero_std", "clip_ratio/low_mean", "clip_ratio/high_mean",
        "grad_norm", "kl", "entropy_coef")


class FixedSums(Sums):
    """A few sums to train on, always the same; held-out ones are any."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.fixed = super().sample(PROMPTS, random.Random(derive_seed(seed, "fixed")))

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        if split == "train":
            return rng.sample(self.fixed, n)
        return super().sample(n, rng, split=split)


# the arms

@dataclass(frozen=True)
class Arm:
    """A GRPO run: what differs from the plain one."""

    name: str
    what: str                      # for the table
    numbers: dict[str, Any] = field(default_factory=dict)
    preset: str = "grpo"
    fresh: bool = False            # new sums in every step

    @property
    def config(self) -> GRPOConfig:
        return replace(GRPO, **GRPO_PRESETS[self.preset].numbers | self.numbers)


ARMS = (
    Arm(report.PLAIN, "ε = 0.2, no KL, no bonus"),
    Arm("clip-higher", "ε_high = 0.5", dict(clip_high=0.5)),
    Arm("entropy bonus", "0.03 H", dict(entropy_coef=0.03)),
    Arm("adaptive bonus", "up to 0.1 H, while H ≤ 0.2",
        dict(entropy_target=0.2, entropy_coef_max=0.1)),
    Arm("strong adaptive bonus", "up to 0.3 H, while H ≤ 0.4",
        dict(entropy_target=0.4, entropy_coef_max=0.3, entropy_coef_delta=0.02)),
    Arm("Clip-Cov", "10 % of tokens, covariance above 0.1", dict(cov_share=0.1, cov_low=0.1),
        preset="clip-cov"),
    Arm("KL-Cov", "10 % of tokens", dict(cov_share=0.1), preset="kl-cov"),
    Arm("KL to the base", "1.0 k3", dict(kl_coef=1.0)),
    Arm("smaller steps", "a third of the learning rate", dict(lr=GRPO.lr / 3)),
    Arm("fresh sums", "new prompts in every step", fresh=True),
)


# running them

def main() -> None:
    runs, figure = study(__doc__, partial(one_seed, arms=ARMS), option="--figure",
                         default=FIGURES / "collapse.png")
    report.outcomes(runs, ARMS)
    report.draw(runs, ARMS, figure)


def one_seed(seed: int, out: Path, arms: Sequence[Arm]) -> None:
    """Train the arms that the file does not have, and add a line for each."""
    finished = {(run["arm"], run["what"]) for run in records(out) if run["seed"] == seed}
    missing = [arm for arm in arms if (arm.name, arm.what) not in finished]
    if not missing:
        return
    base, tokenizer = base_model(seed)
    before = look(base, tokenizer, seed, 0)
    for arm in missing:
        model, began = copy.deepcopy(base), time.process_time()
        steps: dict[str, list[float]] = {}
        looks = [before]
        train_grpo(model, tokenizer, Sums() if arm.fresh else FixedSums(seed), arm.config,
                   seed=seed, **GRPO_PRESETS[arm.preset].arguments(arm.config),
                   log=partial(watch, model, tokenizer, seed, steps, looks))
        line = {"seed": seed, "arm": arm.name, "what": arm.what, "looks": looks, "steps": steps,
                "seconds": time.process_time() - began}
        add_record(out, line)
        print(f"seed {seed}, {arm.name}, {arm.what}: entropy {steps['entropy'][-1]:.3f}, "
              f"{looks[-1]}", flush=True)


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
