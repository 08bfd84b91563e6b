"""What benchmarks/instructgpt.py prints and draws: a table per claim, and one figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from common import row, spread, table_head, title
from minirl.app.rundir import RunDir
from minirl.equations.inference_time import best_of_n_kl
from minirl.inference.evaluate import Evaluation
from minirl.inference.intervals import mean_interval
from minirl.lm.figures import COLOURS, smooth, tidy
from minirl.tasks.instructions import KINDS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

SFT, CHOSEN = "SFT, start of the others", "SFT, 16 epochs, chosen by score"
BETA_02, PTX, BETA_0 = "PPO, beta 0.02", "PPO-ptx, beta 0.02", "PPO, beta 0"
EPISODES = 128                 # completions in a step of PPO and of GRPO
FEW = 75                       # rankings for the comparison of batches


@dataclass
class Seed:
    """Everything that is measured for one seed."""

    runs: dict[str, RunDir]                        # of PPO, by name
    grpo_steps: list[dict[str, float]]             # GRPO's metrics
    table: dict[str, Evaluation]                   # by policy
    best_of: dict[int, Evaluation]                 # by n
    memory: dict[str, float]                       # MB that PPO and GRPO hold
    epochs: list[dict[str, Any]]                   # of SFT
    reward_model: dict[str, float]                 # the summary of `minirl rm`
    ceiling: float                                 # how often the true reward agrees
    batches: dict[str, dict[str, float]]           # by what a batch is made of


# the tables

def over(values: Iterable[float], digits: int = 3) -> str:
    """Return the median (smallest to largest) of a number per seed."""
    return spread(list(values), digits)


def true_reward(seed: Seed, policy: str) -> float:
    return seed.table[policy].mean("true_reward")


def policies(seeds: Sequence[Seed]) -> None:
    table = seeds[0].table
    interval = mean_interval(table["PPO"].numbers("true_reward")).split()[-1]
    print(f"\nEvery policy on {len(table['PPO'].problems)} held-out instructions (best-of-n: "
          f"{len(table['best of 16'].problems)}), median (smallest to largest) of {len(seeds)} "
          f"seeds; 95 % interval of one seed's true reward: about +- {interval}\n")
    print(table_head("policy", "true reward", "right", "reward model's score",
                     "KL, nats per completion", "tokens"))
    for name in table:
        print(row(name, *policy_cells(seeds, name),
                  over((s.table[name].mean_length for s in seeds), 1)))
    better = sum(true_reward(s, "PPO") > max(true_reward(s, SFT), true_reward(s, CHOSEN))
                 for s in seeds)
    print(f"\nPPO above both SFT models in true reward: {better} of {len(seeds)} seeds.")
    print("\nShare right by kind of instruction\n")
    print(table_head("policy", *KINDS))
    for name in (SFT, "PPO", BETA_0):
        print(row(name, *(over(right(s.table[name], kind) for s in seeds) for kind in KINDS)),
              flush=True)


def policy_cells(seeds: Sequence[Seed], name: str) -> list[str]:
    """Return true reward, share right, score and KL (of best-of-n its bound) of a policy."""
    results = [s.table[name] for s in seeds]
    distances = (result.kl_bound if result.kl is None else result.kl for result in results)
    return [over(result.mean("true_reward") for result in results),
            over(result.accuracy for result in results),
            over(result.mean("reward_model") for result in results),
            over(distances, 2)]


def right(evaluation: Evaluation, kind: str) -> float:
    """Return the share of right completions of one kind of instruction."""
    return statistics.mean(accuracy for problem, accuracy in zip(
        evaluation.problems, evaluation.numbers("accuracy"), strict=True)
        if problem.prompt.startswith(kind))


def equal_distance(seeds: Sequence[Seed]) -> None:
    """Compare best-of-n with PPO without a penalty, on its way, where both are equally far from the
    policy that they start from."""
    print("\nBest-of-n and PPO without a penalty, on its way, at the same KL; true reward and "
          "score, medians (smallest to largest) over seeds\n")
    print(table_head("n", "KL (bound)", "best-of-n, true", "PPO, true", "best-of-n, score",
                     "PPO, score"))
    for n in list(seeds[0].best_of)[1:]:
        points = [on_the_way(s.runs[BETA_0].metrics(), best_of_n_kl(n)) for s in seeds]
        reached = [point for point in points if point is not None]
        if len(reached) < len(seeds):
            continue
        cells = []
        for reward in ("true_reward", "reward_model"):
            cells += [over(s.best_of[n].mean(reward) for s in seeds),
                      over(point[reward] for point in reached)]
        print(row(n, f"{best_of_n_kl(n):.2f}", *cells))
    curves = [curve(s, "true_reward") for s in seeds]
    peak, end = over(map(max, curves)), over(values[-1] for values in curves)
    print(f"\nWithout a penalty the true reward rises to {peak} and falls to {end} after "
          f"{len(curves[0])} steps, while the reward model's score goes on rising.", flush=True)


def on_the_way(metrics: Sequence[dict[str, Any]], kl: float) -> dict[str, float] | None:
    """Return the mean rewards around the first step that is so far from the start, None: never."""
    distances = smooth([m["objective/kl"] for m in metrics])
    step = next((i for i, distance in enumerate(distances) if distance >= kl), None)
    if step is None:
        return None
    near = metrics[max(0, step - 3):step + 4]
    return {reward: statistics.mean(m[f"rewards/{reward}/mean"] for m in near)
            for reward in ("true_reward", "reward_model")}


def curve(seed: Seed, reward: str) -> list[float]:
    """Return a reward over the steps of PPO without a penalty, smoothed."""
    return smooth([m[f"rewards/{reward}/mean"] for m in seed.runs[BETA_0].metrics()])


def text_losses(seed: Seed) -> list[float]:
    """Return the loss on pretraining text: before, after PPO and after PPO-ptx."""
    plain, ptx = seed.runs[BETA_02].summary, seed.runs[PTX].summary
    return [plain["pretraining_loss_before"], plain["pretraining_loss_after"],
            ptx["pretraining_loss_after"]]


def pretraining_loss(seeds: Sequence[Seed]) -> None:
    print("\nLoss on 1,000 sentences of pretraining text, nats per token\n")
    print(table_head("seed", "before", BETA_02, PTX, "true reward, PPO", "PPO-ptx"))
    for number, s in enumerate(seeds):
        print(row(number, *(f"{loss:.4f}" for loss in text_losses(s)),
                  *(f"{true_reward(s, name):.3f}" for name in (BETA_02, PTX))), flush=True)


def against_grpo(seeds: Sequence[Seed]) -> None:
    print(f"\nPPO and GRPO on the same reward model, {len(seeds[0].grpo_steps)} steps of "
          f"{EPISODES} completions each\n")
    print(table_head("", "true reward", "score", "KL", "seconds a step",
                     "weights, gradients and moments, MB", "true reward by seed"))
    for name in ("PPO", "GRPO"):
        reward, _, score, kl = policy_cells(seeds, name)
        print(row(name, reward, score, kl, over(step_time(s, name) for s in seeds),
                  over((s.memory[name] for s in seeds), 1),
                  " / ".join(f"{true_reward(s, name):.3f}" for s in seeds)))
    print(flush=True)


def step_time(seed: Seed, name: str) -> float:
    steps = seed.grpo_steps if name == "GRPO" else seed.runs[name].metrics()
    return statistics.median(m["step_time"] for m in steps)


def reward_models(seeds: Sequence[Seed]) -> None:
    rankings = over((s.reward_model["rankings"] for s in seeds), 0)
    agreement = over(s.reward_model["pair_accuracy"] for s in seeds)
    print(f"The reward model ({rankings} rankings) agrees with the labeller on {agreement} of "
          f"held-out comparisons; the true reward itself on {over(s.ceiling for s in seeds)}.")
    print(f"\nOne epoch over {FEW} rankings. Loss on the batches of its last quarter as they come, "
          f"before they are learnt from; then on all {FEW}, and on held-out ones\n")
    print(table_head("batches of", "steps", "loss, as they come", "loss, seen", "loss, held out",
                     "accuracy, held out"))
    for name in seeds[0].batches:
        digits = {"steps": 0, "coming": 3, "seen": 3, "unseen": 3, "accuracy": 3}
        print(row(name, *(over((s.batches[name][key] for s in seeds), places)
                          for key, places in digits.items())))
    print("\nSFT checkpoints: the epoch that the reward model's score chooses, and that validation "
          "loss would choose\n")
    print(table_head("seed", "by score", "true reward", "by validation loss", "true reward"))
    for number, s in enumerate(seeds):
        by_score = next(epoch for epoch in s.epochs if epoch["chosen"])
        by_loss = min(s.epochs, key=lambda epoch: epoch["validation_loss"])
        print(row(number, by_score["epoch"], f"{by_score['true_reward']:.3f}", by_loss["epoch"],
                  f"{by_loss['true_reward']:.3f}"), flush=True)


# the figure

def draw(seeds: Sequence[Seed], out: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13.2, 3.8), layout="constrained")
    draw_distance(axes[0], seeds)
    draw_policies(axes[1], seeds)
    draw_text_loss(axes[2], seeds)
    for axis in axes:
        tidy(axis)
    figure.savefig(out, dpi=120, format="png")
    plt.close(figure)


def draw_distance(axis: Any, seeds: Sequence[Seed]) -> None:
    """Draw true reward and score against the distance, of PPO without a penalty and best-of-n."""
    looks = {"reward_model": (COLOURS[1], "reward model's score"),
             "true_reward": (COLOURS[0], "true reward")}
    for s in seeds:
        distance = [max(0.0, kl) ** 0.5
                    for kl in smooth([m["objective/kl"] for m in s.runs[BETA_0].metrics()])]
        for reward, (colour, label) in looks.items():
            axis.plot(distance, curve(s, reward), color=colour, linewidth=1.6, alpha=0.75,
                      label=f"PPO: {label}" if s is seeds[0] else None)
        for reward, (colour, label) in looks.items():
            axis.plot([best_of_n_kl(n) ** 0.5 for n in s.best_of],
                      [result.mean(reward) for result in s.best_of.values()], "o", color=colour,
                      markersize=4, markerfacecolor="white",
                      label=f"best of n: {label}" if s is seeds[0] else None)
    title(axis, "Without a penalty the proxy is over-optimised")
    axis.set(xlabel="distance from the SFT policy, sqrt(KL in nats)", ylabel="reward")
    axis.legend(fontsize=8, frameon=False)


def draw_policies(axis: Any, seeds: Sequence[Seed]) -> None:
    names = [SFT, CHOSEN, "DPO", "best of 16", "PPO", "GRPO"]
    values = [[true_reward(s, name) for s in seeds] for name in names]
    axis.barh(range(len(names)), [statistics.median(v) for v in values], color=COLOURS[0],
              alpha=0.35)
    for y, v in enumerate(values):
        axis.plot(v, [y] * len(v), "o", color=COLOURS[0], markersize=4)
    axis.set_yticks(range(len(names)), [name.replace(", ", ",\n", 1) for name in names],
                    fontsize=8)
    axis.invert_yaxis()
    title(axis, "True reward on held-out instructions")
    axis.set_xlabel("true reward: a dot per seed, bars are medians")


def draw_text_loss(axis: Any, seeds: Sequence[Seed]) -> None:
    for s in seeds:
        axis.plot(["before", "PPO", "PPO-ptx"], text_losses(s), "o-", color=COLOURS[2],
                  markersize=5, linewidth=1, alpha=0.8)
    title(axis, "Loss on pretraining text")
    axis.set(xlabel="beta 0.02", ylabel="nats per token, a line per seed")
