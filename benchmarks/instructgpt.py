"""What InstructGPT and later papers claim, measured on instructions whose true preference is known.

    python benchmarks/instructgpt.py [--seeds 3] [--runs FOLDER] [--figure FILE]

For each seed: `minirl rm` trains the base model, the SFT models and the reward model. `minirl ppo`
then starts from the same policy and the same reward model, with several KL coefficients, and once
with pretraining text (PPO-ptx). The first of these runs also has DPO on the same rankings. GRPO
learns from the same reward model, with as many samples; best-of-n asks it without learning.

Prints a table per claim, with medians and ranges over seeds, and draws the figure. With --runs,
what is finished is kept and not made again, and a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import instructgpt_report as report
from common import commit, heading, run_minirl
from instructgpt_report import BETA_0, BETA_02, CHOSEN, EPISODES, FEW, PTX, SFT, Seed
from minirl.inference.evaluate import Evaluation, best_of, evaluate
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.files import read_json
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.instructions import Instructions, answer_to
from minirl.tasks.preferences import Ranking, load_rankings, pairs
from minirl.tasks.problem import Task
from minirl.train.adamw import AdamW
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.instructgpt import MAX_NEW_TOKENS, scored_by
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.reward_model import RewardModelConfig, score_texts, train_reward_model
from minirl.train.state import TrainState

TASK = Instructions()
PPO: dict[str, tuple[object, ...]] = {             # name -> flags; "PPO" has the defaults
    "PPO": (), BETA_02: ("--kl-coef", 0.02), PTX: ("--kl-coef", 0.02, "--ptx-coef", 0.2),
    BETA_0: ("--kl-coef", 0, "--steps", 120)}
GRPO = GRPOConfig(steps=60, prompts_per_step=EPISODES // 8, group_size=8, lr=3e-4, warmup_steps=5,
                  min_lr_ratio=1.0, kl_coef=0.05, max_new_tokens=MAX_NEW_TOKENS, beta2=0.95)
POLICIES = (CHOSEN, *PPO, "GRPO", "DPO")           # in the order of the table
HELD_OUT = 1024                                    # instructions that policies are measured on
BEST_OF = (1, 2, 4, 8, 16, 32, 64)
BEST_OF_HELD_OUT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=None, help="keep the runs here")
    parser.add_argument("--figure", type=Path,
                        default=Path(__file__).parent / "figures" / "instructgpt.png")
    args = parser.parse_args()
    print(f"{heading()}, commit {commit()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = args.runs or Path(folder)
        seeds = [one_seed(root / f"seed-{seed}", seed) for seed in range(args.seeds)]
        report.policies(seeds)
        report.equal_distance(seeds)
        report.pretraining_loss(seeds)
        report.against_grpo(seeds)
        report.reward_models(seeds)
        report.draw(seeds, args.figure)


# the runs of a seed, and what they are worth

def one_seed(folder: Path, seed: int) -> Seed:
    flags = ("--seed", seed, "--device", "cpu", "--eval-problems", HELD_OUT)
    rm = run_minirl("rm", folder / "rm", *flags)
    sft, start = rm.path / "sft" / "final", rm.path / "rl-init" / "final"
    same_start = ("--init", start, "--reward-model", rm.path / "final",
                  "--rankings", rm.path / "rankings.jsonl")
    runs = {name: run_minirl("ppo", folder / name, *flags, *same_start, *numbers)
            for name, numbers in PPO.items()}

    policy, tokenizer = load_pretrained(start)
    reward_model, _ = load_reward_model(rm.path / "final")
    task = scored_by(reward_model, tokenizer, TASK)
    grpo_steps: list[dict[str, float]] = []
    grpo = train_grpo(load_pretrained(start)[0], tokenizer, task, GRPO, seed=seed,
                      log=lambda step, metrics: grpo_steps.append(metrics))

    def measured(model: Transformer, n: int = HELD_OUT, **options: Any) -> Evaluation:
        return evaluate(model, tokenizer, task, n=n, max_new_tokens=MAX_NEW_TOKENS,
                        seed=derive_seed(seed, "instruct", "evaluate"), **options)

    epochs = read_json(rm.path / "sft-epochs.json")["epochs"]
    chosen = next(epoch["epoch"] for epoch in epochs if epoch["chosen"])
    folders = {CHOSEN: rm.path / "sft" / f"epoch-{chosen:02}",
               "DPO": runs["PPO"].path / "dpo" / "final"}
    folders |= {name: run.path / "final" for name, run in runs.items()}
    models = {"GRPO": grpo} | {name: load_pretrained(path)[0] for name, path in folders.items()}
    table = {SFT: measured(policy, reference=policy)}
    table |= {name: measured(models[name], reference=policy) for name in POLICIES}
    by_n = {n: measured(policy, BEST_OF_HELD_OUT, samples=n, choose=best_of("reward_model"))
            for n in BEST_OF}
    table["best of 16"] = by_n[16]

    rankings, held_out = (load_rankings(rm.path / name)
                          for name in ("rankings.jsonl", "held-out.jsonl"))
    result = Seed(runs=runs, grpo_steps=grpo_steps, table=table, best_of=by_n, epochs=epochs,
                  memory=memory(start, tokenizer, task, reward_model), reward_model=rm.summary,
                  ceiling=ceiling(held_out), batches=batches(rankings[:FEW], held_out, sft, seed))
    print(f"seed {seed}: done", flush=True)
    return result


def memory(start: Path, tokenizer: Tokenizer, task: Task,
           reward_model: ScalarModel) -> dict[str, float]:
    """Return the MB that PPO and GRPO keep from step to step."""
    states: list[TrainState] = []
    train_ppo(load_pretrained(start)[0], tokenizer, task, PPOConfig(steps=1),
              value_model=reward_model, save=states.append)
    train_grpo(load_pretrained(start)[0], tokenizer, task, replace(GRPO, steps=1),
               save=states.append)
    return dict(zip(("PPO", "GRPO"), map(megabytes, states), strict=True))


def megabytes(state: TrainState) -> float:
    """Return the MB of weights, of gradients where weights are trained, and of moments."""
    parts = [state.model, state.optimizer, *state.parts.values()]
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    optimizers = [part for part in parts if isinstance(part, AdamW)]
    weights = sum(p.nbytes * (2 if p.requires_grad else 1)
                  for module in modules for p in module.parameters())
    moments = sum(x.nbytes for optimizer in optimizers for values in optimizer.state.values()
                  for x in values.values())
    return (weights + moments) / 1e6


def ceiling(rankings: Sequence[Ranking]) -> float:
    """Return how often the true reward decides a comparison as the labeller did."""
    agrees = [true_reward_of(prompt, better) > true_reward_of(prompt, worse)
              for prompt, better, worse in pairs(rankings)]
    return statistics.mean(agrees)


def true_reward_of(prompt: str, completion: str) -> float:
    kind, content = prompt.removesuffix(":").split(" ", 1)
    reward, = TASK.rewards["true_reward"](prompts=[prompt], completions=[completion],
                                          answer=[answer_to(kind, content)])
    assert reward is not None
    return reward


def batches(rankings: Sequence[Ranking], held_out: Sequence[Ranking], sft: Path,
            seed: int) -> dict[str, dict[str, float]]:
    """Train for one epoch on few rankings, with batches of whole rankings or of single pairs."""
    size = RewardModelConfig.batch_size
    apart = [Ranking(prompt, (chosen, rejected)) for prompt, chosen, rejected in pairs(rankings)]
    kinds = {f"rankings, {size} per batch": (rankings, size),
             "pairs shuffled apart, as many comparisons per batch":
                 (apart, size * len(apart) // len(rankings)),
             f"pairs shuffled apart, {size} per batch": (apart, size)}
    results = {}
    for name, (elements, batch_size) in kinds.items():
        policy, tokenizer = load_pretrained(sft)
        losses: list[float] = []       # on each batch before it is learnt from

        def log(step: int, metrics: dict[str, float], losses: list[float] = losses) -> None:
            losses.append(metrics["loss"])

        model = train_reward_model(policy, tokenizer, elements,
                                   RewardModelConfig(batch_size=batch_size), seed=seed, log=log)
        seen, unseen = (margins(model, tokenizer, part) for part in (rankings, held_out))
        results[name] = {"steps": len(losses),
                         "coming": statistics.mean(losses[-max(1, len(losses) // 4):]),
                         "seen": float(-logsigmoid(seen).mean()),
                         "unseen": float(-logsigmoid(unseen).mean()),
                         "accuracy": float((unseen > 0).double().mean())}
    return results


def margins(model: ScalarModel, tokenizer: Tokenizer, rankings: Sequence[Ranking]) -> Tensor:
    """Return r(better) - r(worse) of every comparison: (N,)."""
    prompts, better, worse = zip(*pairs(rankings), strict=True)
    return (score_texts(model, tokenizer, prompts, better)
            - score_texts(model, tokenizer, prompts, worse))


if __name__ == "__main__":
    main()
