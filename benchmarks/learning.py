"""From nothing to a policy that works its sums out: `minirl grpo` on several seeds, one after another.

    python benchmarks/learning.py [--seeds 5]
    python benchmarks/learning.py --against-trl            and TRL's GRPOTrainer from the same base models (needs the extra `parity`)

Prints a row per seed: held-out accuracy and mean response length before and after GRPO, and seconds from start to end of the command. Each seed
is a process of its own, so that importing, training the base model, evaluating and drawing are all in its time.

With --against-trl a second table follows. After each of our runs TRL, in a process of its own too, starts from that run's base model and trains on
the same problems in the same order, with the same rewards, schedule and numbers. Compared is GRPO alone: the seconds of its steps, from before the
first prompt is read until after the weights have changed, and the tokens that it sampled, until the accuracy on training problems, a mean over 5
steps, reaches 0.95, and in all; and what the policies are worth on the same held-out problems.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from common import commit, heading, ratio, row, table_head
from grpo_step import plain_tags

from minirl.app.evaluate import evaluate
from minirl.app.training import RunConfig
from minirl.equations.schedules import cosine_to_floor
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.seeds import derive_seed
from minirl.tasks.arithmetic import Arithmetic
from minirl.train.grpo import GRPOConfig

REACHED, OVER = 0.95, 5        # the accuracy that counts as learnt, and over how many steps its mean is taken

THEIR_ROWS = 32       # in TRL's micro-batches: the fastest of 32, 64 and 128 for it on a CPU (grpo_step.py --only real --their-rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--against-trl", action="store_true", help="train TRL's GRPOTrainer from each base model too")
    parser.add_argument("--steps", type=int, default=GRPOConfig.steps, help="GRPO's steps, of both sides (default %(default)s)")
    args = parser.parse_args()
    print(heading() + "\n")
    print("| seed | accuracy before | after | length before | after | seconds |\n|---|---|---|---|---|---|")
    rows, pairs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            run, began = Path(folder) / f"seed-{seed}", time.perf_counter()
            command = [sys.executable, "-m", "minirl", "grpo", "--seed", str(seed), "--steps", str(args.steps), "--run-dir", str(run)]
            if args.against_trl:
                command += ["--device", "cpu"]                 # where TRL's side runs
            subprocess.run(command, check=True, capture_output=True)
            summary = json.loads((run / "summary.json").read_text())
            took = time.perf_counter() - began
            rows.append([summary[key] for key in ("accuracy_before", "accuracy_after", "mean_length_before", "mean_length_after")] + [took])
            print(f"| {seed} | " + table_row(rows[-1]), flush=True)
            if args.against_trl:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    pairs.append((our_side(run), fresh.submit(their_side, run, seed, args.steps).result()))
    print("| median | " + table_row([statistics.median(column) for column in zip(*rows)]))
    if pairs:
        print(f"\n{heading()}, commit {commit()}; seconds and tokens of GRPO alone, {args.steps} steps, TRL's / ours\n")
        print(table_head("seed", f"seconds to {REACHED}", "times ours", f"tokens to {REACHED}", "seconds in all", "times ours", "tokens in all",
                         "held-out accuracy after"))
        for seed, (ours, theirs) in enumerate(pairs):
            print(against(seed, ours, theirs))
        print(against("median", *({key: statistics.median(side[key] for side in sides) for key in sides[0]} for sides in zip(*pairs))))


def table_row(row: list[float]) -> str:
    return "{:.3f} | {:.3f} | {:.1f} | {:.1f} | {:.0f} |".format(*row)


# against TRL

def our_side(run: Path) -> dict[str, float]:
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return outcome([s["step_time"] for s in steps], steps, json.loads((run / "summary.json").read_text())["accuracy_after"])


def their_side(run: Path, seed: int, steps: int) -> dict[str, float]:
    """TRL's GRPOTrainer with the numbers of GRPOConfig, from the run's base model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig as TheirConfig
    from trl import GRPOTrainer

    c, common, folder = GRPOConfig(steps=steps), RunConfig(seed=seed), run / "trl"
    task = Arithmetic(common.task, common.digits)
    _, tokenizer = load_pretrained(run / "base" / "final")
    shutil.copytree(run / "base" / "final", folder / "base")
    plain_tags(folder / "base" / "tokenizer.json")
    problems = [p for step in range(steps) for p in task.sample(c.prompts_per_step, random.Random(derive_seed(seed, "grpo", step, "problems")))]
    data = Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems])
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.lr, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay, fused=True)
    warmup = min(c.warmup_steps, steps - 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_to_floor(min(step, steps - 1), steps, floor=c.min_lr_ratio, warmup=warmup))
    arguments = TheirConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, per_device_train_batch_size=THEIR_ROWS,
        gradient_accumulation_steps=c.prompts_per_step * c.group_size // THEIR_ROWS, num_generations=c.group_size, max_completion_length=c.max_new_tokens,
        temperature=c.temperature, beta=c.kl_coef, epsilon=c.clip_low, epsilon_high=c.clip_high, max_grad_norm=c.max_grad_norm, loss_type="grpo",
        scale_rewards="group", learning_rate=c.lr, weight_decay=c.weight_decay, gradient_checkpointing=False, max_steps=steps, shuffle_dataset=False,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=seed)
    seconds, metrics = [], []

    class Timer(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.began)

        def on_log(self, args, state, control, logs, **__):
            if "num_tokens" in logs:
                metrics.append(logs)

    trainer = GRPOTrainer(model=model, processing_class=AutoTokenizer.from_pretrained(folder / "base", padding_side="left"), args=arguments,
                          reward_funcs=list(task.rewards.values()), train_dataset=data, callbacks=[Timer()], optimizers=(optimizer, schedule))
    trainer.remove_callback(next(x for x in trainer.callback_handler.callbacks if type(x).__name__ == "PrinterCallback"))
    trainer.train()
    trainer.model.save_pretrained(folder / "final")
    tokenizer.save(folder / "final")
    trained, _ = load_pretrained(folder / "final")
    held_out = evaluate(trained, tokenizer, task, n=common.eval_problems, max_new_tokens=c.max_new_tokens, seed=seed)
    return outcome(seconds, metrics, held_out.accuracy)


def outcome(seconds: list[float], steps: list[dict], accuracy: float) -> dict[str, float]:
    """What a side needed until its training accuracy was there (infinity where it never was), and in all."""
    rows = GRPOConfig.prompts_per_step * GRPOConfig.group_size
    tokens = [s["completions/mean_length"] * rows for s in steps]
    right = [s["rewards/accuracy/mean"] for s in steps]
    enough = next((n for n in range(OVER, len(steps) + 1) if statistics.mean(right[n - OVER:n]) >= REACHED), None)
    seconds_to, tokens_to = (math.inf, math.inf) if enough is None else (sum(seconds[:enough]), sum(tokens[:enough]))
    return {"seconds_to": seconds_to, "tokens_to": tokens_to, "seconds": sum(seconds), "tokens": sum(tokens), "accuracy": accuracy}


def against(name: object, ours: dict[str, float], theirs: dict[str, float]) -> str:
    def both(key: str, form: str) -> str:
        return " / ".join("not reached" if side[key] == math.inf else f"{side[key]:{form}}" for side in (theirs, ours))

    def times(key: str) -> str:
        return "" if math.inf in (theirs[key], ours[key]) else ratio([theirs[key]], [ours[key]])

    return row(name, both("seconds_to", ".1f"), times("seconds_to"), both("tokens_to", ",.0f"), both("seconds", ".1f"), times("seconds"),
               both("tokens", ",.0f"), both("accuracy", ".3f"))


if __name__ == "__main__":
    main()
