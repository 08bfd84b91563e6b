"""What InstructGPT and those after it claim, measured on instructions whose true preference is known.

    python benchmarks/instructgpt.py [--seeds 3] [--runs FOLDER] [--figure benchmarks/figures/instructgpt.png]

For each seed: base model, SFT, rankings and reward model as `minirl rm` makes them, then from the same policy and for the same reward model PPO with
several coefficients of the KL, PPO-ptx, GRPO with as many samples, DPO on the same rankings, and best-of-n. Prints a table per claim, medians and ranges over
seeds, and draws the figure. With --runs what is finished is kept and not made again, and a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from common import commit, heading, row, table_head

from minirl.app.instruct import InstructConfig, JudgedBy, choose_epoch, held_out_margins, improve, make_policies, make_rankings, run_dpo, run_ppo, run_rm
from minirl.app.measure import TASK, mean, measure
from minirl.app.plots import COLOURS, smooth, tidy
from minirl.app.rundir import RunDir
from minirl.equations.inference_time import best_of_n_kl
from minirl.inference.intervals import mean_interval
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import read_json
from minirl.tasks.instructions import KINDS, answer_to, right_answer, true_reward
from minirl.tasks.preferences import Ranking, pairs
from minirl.train.dpo import DPOConfig
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.reward_model import RewardModelConfig, as_reward, train_reward_model
from minirl.train.adamw import AdamW

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

DEVICE = torch.device("cpu")
PPO = {                                # name -> numbers: the first is the default
    "PPO": {}, "PPO, beta 0.02": dict(kl_coef=0.02), "PPO-ptx, beta 0.02": dict(kl_coef=0.02, ptx_coef=0.2), "PPO, beta 0": dict(kl_coef=0.0, steps=120),
}
GRPO = GRPOConfig(steps=60, prompts_per_step=16, group_size=8, lr=3e-4, warmup_steps=5, min_lr_ratio=1.0, kl_coef=0.05, max_new_tokens=16, beta2=0.95)
BEST_OF = (1, 2, 4, 8, 16, 32, 64)
FEW = 75                               # rankings for the comparison of batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=None, help="keep the runs here")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parent / "figures" / "instructgpt.png")
    args = parser.parse_args()
    print(f"{heading()}, commit {commit()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        seeds = [one_seed((args.runs or Path(folder)) / f"seed-{seed}", seed) for seed in range(args.seeds)]
        policies(seeds)
        equal_distance(seeds)
        pretraining_loss(seeds)
        against_grpo(seeds)
        reward_models(seeds)
        draw(seeds, args.figure)


def one_seed(folder: Path, seed: int) -> dict:
    """Everything that is measured for one seed."""
    common = InstructConfig(seed=seed, eval_problems=1024)
    run = opened(folder, "rm", common)
    start = make_policies(run, common, device=DEVICE, keep_epochs=True)
    rankings, held_out = make_rankings(run, start, common, device=DEVICE)
    rm = read_json(run.path / "summary.json") if run.finished else run_rm(run, RewardModelConfig(), common, start, rankings, held_out, device=DEVICE)
    reward_model, tokenizer = load_reward_model(run.path / "final")
    first, _ = load_pretrained(start.start)
    measured = derive_seed(seed, "instruct", "evaluate")
    found = {"epochs": choose_epoch(run, reward_model, tokenizer, common, device=DEVICE), "rm": rm, "runs": {}, "memory": {}}
    for name, numbers in PPO.items():
        config = PPOConfig(**numbers)
        found["runs"][name] = finished(folder / name, "ppo", common, lambda stage, config=config: run_ppo(stage, config, common, start, reward_model, device=DEVICE))
    found["runs"]["DPO"] = finished(folder / "DPO", "dpo", common, lambda stage: run_dpo(stage, DPOConfig(), common, start, rankings, reward_model, device=DEVICE))
    found["runs"]["GRPO"] = finished(folder / "GRPO", "grpo", common, lambda stage: run_grpo(stage, common, start, reward_model))
    found["policies"] = {"SFT, 16 epochs, chosen by score": chosen_epoch(run, found["epochs"])} | {
        name: folder / name / "final" for name in ("PPO", "PPO, beta 0.02", "PPO-ptx, beta 0.02", "PPO, beta 0", "GRPO", "DPO")}
    table = {"SFT, start of the others": measure(first, tokenizer, common.eval_problems, seed=measured, reward_model=reward_model, reference=first)}
    for name, path in found["policies"].items():
        table[name] = measure(load_pretrained(path)[0], tokenizer, common.eval_problems, seed=measured, reward_model=reward_model, reference=first)
    found["best_of"] = {n: measure(first, tokenizer, 512, best_of=n, seed=measured, reward_model=reward_model) for n in BEST_OF}
    table["best of 16"] = found["best_of"][16]
    found["table"] = table
    found["state"] = {"PPO": held(lambda save: train_ppo(load_pretrained(start.start)[0], tokenizer, judged(reward_model, tokenizer), PPOConfig(steps=1), value_model=reward_model,
                                                         reward_weights={"reward_model": 1.0}, save=save)),
                      "GRPO": held(lambda save: train_grpo(load_pretrained(start.start)[0], tokenizer, judged(reward_model, tokenizer), dataclasses.replace(GRPO, steps=1),
                                                           reward_weights={"reward_model": 1.0}, save=save))}
    found["ceiling"] = mean([float(wanted(p, better) > wanted(p, worse)) for p, better, worse in pairs(held_out)])
    found["batches"] = batches(rankings[:FEW], held_out, start.sft, seed)
    print(f"seed {seed}: done", flush=True)
    return found


def wanted(prompt: str, completion: str) -> float:
    return true_reward([prompt], [completion], [answer_to(*prompt.removesuffix(":").split(" ", 1))])[0]


def opened(path: Path, command: str, common: InstructConfig) -> RunDir:
    return RunDir.resume(path) if (path / "config.json").exists() else RunDir.create(path, {"command": command, "run": dataclasses.asdict(common)})


def finished(path: Path, command: str, common: InstructConfig, work: Callable[[RunDir], object]) -> RunDir:
    run = opened(path, command, common)
    if not run.finished:
        work(run)
    return run


def judged(reward_model, tokenizer) -> JudgedBy:
    return JudgedBy(TASK, {"reward_model": as_reward(reward_model, tokenizer), "true_reward": true_reward, "accuracy": right_answer})


def run_grpo(run: RunDir, common: InstructConfig, start, reward_model) -> None:
    """GRPO on the reward that PPO has."""
    def page(model, tokenizer, **rest):
        train_grpo(model, tokenizer, judged(reward_model, tokenizer), GRPO, reward_weights={"reward_model": 1.0, "true_reward": 0.0, "accuracy": 0.0}, **rest)

    improve(run, "GRPO", page, train_grpo, GRPO.steps, 0, common, start, reward_model, {"reward": "score"}, device=DEVICE, profile=False, seconds=0.0)


def chosen_epoch(run: RunDir, epochs: list[dict]) -> Path:
    return run.path / "sft" / f"epoch-{next(e['epoch'] for e in epochs if e['chosen']):02}"


def held(page: Callable) -> float:
    """MB of all that a page keeps from step to step: weights, their gradients where they are learnt, and the optimizers' moments."""
    kept = []

    def save(state) -> None:
        modules = [x for x in (state.model, *state.parts.values()) if isinstance(x, torch.nn.Module)]
        optimizers = [x for x in (state.optimizer, *state.parts.values()) if isinstance(x, AdamW)]
        weights = sum(p.nbytes * (2 if p.requires_grad else 1) for module in modules for p in module.parameters())
        kept.append(weights + sum(x.nbytes for optimizer in optimizers for moments in optimizer.state.values() for x in moments.values() if isinstance(x, torch.Tensor)))

    page(save)
    return kept[-1] / 1e6


def batches(rankings: list[Ranking], held_out: list[Ranking], sft: Path, seed: int) -> dict[str, dict[str, float]]:
    """One epoch over few rankings: whole rankings as elements of a batch, or their pairs shuffled apart."""
    apart = [Ranking(prompt, (chosen, rejected)) for prompt, chosen, rejected in pairs(rankings)]
    per_batch = RewardModelConfig.batch_size * len(apart) // len(rankings)
    found = {}
    for name, data, size in ((f"rankings, {RewardModelConfig.batch_size} per batch", rankings, RewardModelConfig.batch_size),
                             ("pairs shuffled apart, as many comparisons per batch", apart, per_batch),
                             (f"pairs shuffled apart, {RewardModelConfig.batch_size} per batch", apart, RewardModelConfig.batch_size)):
        policy, tokenizer = load_pretrained(sft)
        coming = []                                                # the loss on each batch when it comes, before it is learnt from
        model = train_reward_model(policy, tokenizer, data, RewardModelConfig(batch_size=size), seed=seed, log=lambda step, m: coming.append(m["loss"]))
        seen, unseen = (held_out_margins(model, tokenizer, part) for part in (rankings, held_out))
        losses = [float(-torch.nn.functional.logsigmoid(m).mean()) for m in (seen, unseen)]
        found[name] = {"steps": len(coming), "coming": statistics.mean(coming[-max(1, len(coming) // 4):]), "seen": losses[0], "unseen": losses[1],
                       "accuracy": float((unseen > 0).double().mean())}
    return found


# tables

def over(values: list[float], digits: int = 3) -> str:
    """Median (smallest to largest) over seeds."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def policies(seeds: list[dict]) -> None:
    print(f"\nEvery policy on {len(seeds[0]['table']['PPO'].true)} held-out instructions (best-of-n: 512), median (smallest to largest) of {len(seeds)} seeds; "
          f"95 % interval of one seed's true reward: about {mean_interval(seeds[0]['table']['PPO'].true).split()[-1]}\n")
    print(table_head("policy", "true reward", "right", "reward model's score", "KL, nats per completion", "tokens"))
    for name in seeds[0]["table"]:
        found = [s["table"][name] for s in seeds]
        print(row(name, over([mean(m.true) for m in found]), over([mean(m.right) for m in found]), over([mean(m.scores) for m in found]), over([m.kl for m in found], 2),
                  over([mean(m.lengths) for m in found], 1)))
    better = sum(mean(s["table"]["PPO"].true) > max(mean(s["table"][name].true) for name in s["table"] if name.startswith("SFT")) for s in seeds)
    print(f"\nPPO above both SFT models in true reward: {better} of {len(seeds)} seeds.")
    print("\nShare right by kind of instruction\n")
    print(table_head("policy", *KINDS))
    for name in ("SFT, start of the others", "PPO", "PPO, beta 0"):
        found = [s["table"][name] for s in seeds]
        print(row(name, *(over([mean([r for p, r in zip(m.problems, m.right) if p.prompt.startswith(kind)]) for m in found]) for kind in KINDS)), flush=True)


def equal_distance(seeds: list[dict]) -> None:
    """Best-of-n and PPO (beta 0, on its way) where they are equally far from the policy that they start from."""
    print("\nBest-of-n and PPO without a penalty, on its way, at the same KL; true reward and score, medians (smallest to largest) over seeds\n")
    print(table_head("n", "KL (bound)", "best-of-n, true", "PPO, true", "best-of-n, score", "PPO, score"))
    for n in BEST_OF[1:]:
        target, on_the_way = best_of_n_kl(n), []
        for s in seeds:
            metrics = s["runs"]["PPO, beta 0"].metrics()
            kl = smooth([m["objective/kl"] for m in metrics])
            step = next((i for i, x in enumerate(kl) if x >= target), None)
            if step is not None:
                near = metrics[max(0, step - 3):step + 4]
                on_the_way.append([statistics.mean(m[f"rewards/{name}/mean"] for m in near) for name in ("true_reward", "reward_model")])
        if len(on_the_way) == len(seeds):
            best = [s["best_of"][n] for s in seeds]
            print(row(n, f"{target:.2f}", over([mean(m.true) for m in best]), over([x for x, _ in on_the_way]), over([mean(m.scores) for m in best]), over([y for _, y in on_the_way])))
    peaks = [max(smooth([m["rewards/true_reward/mean"] for m in s["runs"]["PPO, beta 0"].metrics()])) for s in seeds]
    ends = [smooth([m["rewards/true_reward/mean"] for m in s["runs"]["PPO, beta 0"].metrics()])[-1] for s in seeds]
    print(f"\nWithout a penalty the true reward rises to {over(peaks)} and falls to {over(ends)} after {PPO['PPO, beta 0']['steps']} steps, while the reward model's score goes on "
          "rising.", flush=True)


def pretraining_loss(seeds: list[dict]) -> None:
    print("\nLoss on 1,000 sentences of pretraining text, nats per token\n")
    print(table_head("seed", "before", "PPO, beta 0.02", "PPO-ptx, beta 0.02", "true reward, PPO", "PPO-ptx"))
    for seed, s in enumerate(seeds):
        plain, ptx = (read_json(s["runs"][name].path / "summary.json") for name in ("PPO, beta 0.02", "PPO-ptx, beta 0.02"))
        print(row(seed, f"{plain['pretraining_loss_before']:.4f}", f"{plain['pretraining_loss_after']:.4f}", f"{ptx['pretraining_loss_after']:.4f}",
                  *(f"{mean(s['table'][name].true):.3f}" for name in ("PPO, beta 0.02", "PPO-ptx, beta 0.02"))), flush=True)


def against_grpo(seeds: list[dict]) -> None:
    print(f"\nPPO and GRPO on the same reward model, {GRPO.steps} steps of {GRPO.prompts_per_step * GRPO.group_size} completions each\n")
    print(table_head("", "true reward", "score", "KL", "seconds a step", "weights, gradients and moments, MB", "true reward by seed"))
    for name in ("PPO", "GRPO"):
        found = [s["table"][name] for s in seeds]
        steps = [statistics.median(m["step_time"] for m in s["runs"][name].metrics()) for s in seeds]
        print(row(name, over([mean(m.true) for m in found]), over([mean(m.scores) for m in found]), over([m.kl for m in found], 2), over(steps), over([s["state"][name] for s in seeds], 1),
                  " / ".join(f"{mean(m.true):.3f}" for m in found)))
    print(flush=True)


def reward_models(seeds: list[dict]) -> None:
    print(f"The reward model ({over([s['rm']['rankings'] for s in seeds], 0)} rankings) agrees with the labeller on {over([s['rm']['pair_accuracy'] for s in seeds])} of held-out "
          f"comparisons; the true reward itself on {over([s['ceiling'] for s in seeds])}.")
    print(f"\nOne epoch over {FEW} rankings. Loss on the batches of its last quarter as they come, before they are learnt from; then on all {FEW}, and on held-out ones\n")
    print(table_head("batches of", "steps", "loss, as they come", "loss, seen", "loss, held out", "accuracy, held out"))
    for name in seeds[0]["batches"]:
        found = [s["batches"][name] for s in seeds]
        print(row(name, over([f["steps"] for f in found], 0), *(over([f[key] for f in found]) for key in ("coming", "seen", "unseen", "accuracy"))))
    print("\nSFT checkpoints: the epoch that the reward model's score chooses, and that validation loss would choose\n")
    print(table_head("seed", "by score", "true reward", "by validation loss", "true reward"))
    for seed, s in enumerate(seeds):
        by_score, by_loss = next(e for e in s["epochs"] if e["chosen"]), min(s["epochs"], key=lambda e: e["validation_loss"])
        print(row(seed, by_score["epoch"], f"{by_score['true_reward']:.3f}", by_loss["epoch"], f"{by_loss['true_reward']:.3f}"), flush=True)


def draw(seeds: list[dict], out: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13.2, 3.8), layout="constrained")
    goodhart, bars, text = axes
    for i, s in enumerate(seeds):
        metrics = s["runs"]["PPO, beta 0"].metrics()
        distance = [max(0.0, x) ** 0.5 for x in smooth([m["objective/kl"] for m in metrics])]
        for name, colour, label in (("reward_model", COLOURS[1], "PPO: reward model's score"), ("true_reward", COLOURS[0], "PPO: true reward")):
            goodhart.plot(distance, smooth([m[f"rewards/{name}/mean"] for m in metrics]), color=colour, linewidth=1.6, alpha=0.75, label=label if i == 0 else None)
        points = [(best_of_n_kl(n) ** 0.5, mean(m.true), mean(m.scores)) for n, m in s["best_of"].items()]
        for column, colour, label in ((2, COLOURS[1], "best of n: score"), (1, COLOURS[0], "best of n: true reward")):
            goodhart.plot([p[0] for p in points], [p[column] for p in points], "o", color=colour, markersize=4, markerfacecolor="white", label=label if i == 0 else None)
    goodhart.set_title("Without a penalty the proxy is over-optimised", fontsize=10, loc="left", fontweight="bold")
    goodhart.set(xlabel="distance from the SFT policy, sqrt(KL in nats)", ylabel="reward")
    goodhart.legend(fontsize=8, frameon=False)

    names = ["SFT, start of the others", "SFT, 16 epochs, chosen by score", "DPO", "best of 16", "PPO", "GRPO"]
    values = [[mean(s["table"][name].true) for s in seeds] for name in names]
    bars.barh(range(len(names)), [statistics.median(v) for v in values], color=COLOURS[0], alpha=0.35)
    for y, v in enumerate(values):
        bars.plot(v, [y] * len(v), "o", color=COLOURS[0], markersize=4)
    bars.set_yticks(range(len(names)), [name.replace(", ", ",\n", 1) for name in names], fontsize=8)
    bars.invert_yaxis()
    bars.set_title("True reward on held-out instructions", fontsize=10, loc="left", fontweight="bold")
    bars.set_xlabel("true reward: a dot per seed, bars are medians")

    shown = ["before", "PPO", "PPO-ptx"]
    for s in seeds:
        plain, ptx = (read_json(s["runs"][name].path / "summary.json") for name in ("PPO, beta 0.02", "PPO-ptx, beta 0.02"))
        text.plot(shown, [plain["pretraining_loss_before"], plain["pretraining_loss_after"], ptx["pretraining_loss_after"]], "o-", color=COLOURS[2], markersize=5, linewidth=1, alpha=0.8)
    text.set_title("Loss on pretraining text", fontsize=10, loc="left", fontweight="bold")
    text.set_ylabel("nats per token, a line per seed")
    text.set_xlabel("beta 0.02")
    for axis in axes:
        tidy(axis)
    figure.savefig(out, dpi=120, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
