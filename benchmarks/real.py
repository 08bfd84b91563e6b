"""One GRPO step of a real checkpoint against TRL's: seconds, and the peak memory of the process.

    python -m tests.parity.real_files smollm2                 SmolLM2-135M-Instruct, 540 MB
    python benchmarks/real.py smollm2 gsm8k                   a folder with GSM8K's train.jsonl
    python benchmarks/real.py --size 0.5B --device cuda       minirl alone, on random weights

Needs the extra `parity`. Both sides learn from the same prompts in the same order (GSM8K's
questions in the model's chat template), sample as many completions, end them at the same EOS, and
have the same reward, loss, optimizer and learning rate, in float32. Each turn of each side is a
process of its own, one after the other: A B A B. A step is timed from before its prompts are read
until the weights have changed, and the first of a process is not counted; "of the processor" is
the time that its threads computed, which other work on the machine changes less. The peak is the
process's, from its start to its end, with all that it imports (VmHWM in /proc/self/status).

With --size, a model of that size with random weights makes steps of 8 prompts with 16 completions
of 512 tokens each, in bfloat16 with float32 master weights on CUDA: what is planned to be in memory
is printed first, then each step, then what was in memory.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common import (
    MODELS,
    Listed,
    Words,
    commit,
    heading,
    make_model,
    row,
    spread,
    table_head,
    word_tokenizer,
)
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.memory import check_room, peak_bytes, process_bytes, return_freed_memory
from minirl.lm.memory_plan import Work, memory_plan
from minirl.lm.precision import compute_in
from minirl.lm.recompute import gradient_checkpointing
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.gsm8k import load_gsm8k
from minirl.tasks.problem import Problem
from minirl.train.grpo import GRPOConfig, train_grpo

PROMPTS, GROUP, COMPLETION = 2, 4, 48
WARMUP = 1             # steps of each process that are not counted


class Side(NamedTuple):
    """Who trains, and how the memory of a step is kept small."""

    name: str
    trl: bool
    gradient_checkpointing: bool
    rows: int = PROMPTS * GROUP      # in a micro-batch


SIDES = {"minirl": Side("minirl", False, False), "trl": Side("TRL", True, False),
         "minirl-checkpointing": Side("minirl --gradient-checkpointing", False, True),
         "trl-checkpointing": Side("TRL, gradient checkpointing (its default)", True, True),
         "trl-2": Side("TRL, micro-batches of 2", True, False, 2)}


def digits(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Return the share of digits in each text: a reward that differs within nearly every group."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


def problems_of(data: Path, tokenizer: Tokenizer, n: int) -> list[Problem]:
    """Return n questions of GSM8K as the text of a chat's first turn."""
    questions = load_gsm8k(data).sample(n, random.Random(0))
    return [Problem(tokenizer.apply_chat_template(
        [{"role": "user", "content": question.prompt}], add_generation_prompt=True), "")
        for question in questions]


def train(side: Side, folder: Path, data: Path, steps: int) -> dict[str, Any]:
    """Train in this process -> seconds and tokens of each counted step, and the peak in bytes."""
    config = GRPOConfig(steps=steps + WARMUP, prompts_per_step=PROMPTS, group_size=GROUP,
                        max_new_tokens=COMPLETION, kl_coef=0.0, lr=1e-6, warmup_steps=0,
                        min_lr_ratio=1.0)
    run = trl_steps if side.trl else minirl_steps
    done = run(side, folder, data, config)[WARMUP:]
    return {"seconds": [step["step_time"] for step in done], "cpu": [step["cpu"] for step in done],
            "tokens": [step["completions/mean_length"] * PROMPTS * GROUP for step in done],
            "reward": [step["reward"] for step in done], "peak": peak()}


def minirl_steps(side: Side, folder: Path, data: Path, config: GRPOConfig
                 ) -> list[dict[str, float]]:
    steps: list[dict[str, float]] = []
    cpu = time.process_time()

    def log(step: int, metrics: dict[str, float]) -> None:
        nonlocal cpu
        began, cpu = cpu, time.process_time()
        steps.append({**metrics, "cpu": cpu - began})

    model, tokenizer = load_pretrained(folder)
    problems = problems_of(data, tokenizer, config.steps * PROMPTS)
    with gradient_checkpointing(side.gradient_checkpointing):
        train_grpo(model, tokenizer, Listed(problems, {"digits": digits}), config,
                   log=log)
    return steps


def trl_steps(side: Side, folder: Path, data: Path, config: GRPOConfig) -> list[dict[str, float]]:
    from minirl.lm.tokenizer import load_tokenizer
    from trl_side import make_trainer

    problems = problems_of(data, load_tokenizer(folder), config.steps * PROMPTS)
    steps: list[dict[str, float]] = []
    began = cpu = 0.0

    def begin() -> None:
        nonlocal began, cpu
        began, cpu = time.perf_counter(), time.process_time()

    def end() -> None:
        steps.append({"step_time": time.perf_counter() - began, "cpu": time.process_time() - cpu})

    with tempfile.TemporaryDirectory() as out:
        make_trainer(folder, problems, [digits], config, micro_batch=side.rows, begin=begin,
                     end=end, log=lambda logs: steps[-1].update(
                         {name: logs[name] for name in ("completions/mean_length", "reward")}),
                     gradient_checkpointing=side.gradient_checkpointing, out=Path(out)).train()
    return steps


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def one_size(args: argparse.Namespace) -> None:
    """Make steps of a model with random weights, and compare its memory with the plan."""
    prompts, group, prompt = 8, 16, 160
    budget, device = 16_384, torch.device(args.device)
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    process = process_bytes() if args.device == "cpu" else 0
    model = make_model(args.size, context=prompt + args.completion, device=args.device)
    page = GRPOConfig(steps=args.steps, prompts_per_step=prompts, group_size=group, kl_coef=0.0,
                      max_new_tokens=args.completion, token_budget=budget, lr=1e-6)
    work = Work(prompts * group, prompt, args.completion, group, token_budget=budget,
                device=args.device, dtype=dtype, gradient_checkpointing=args.gradient_checkpointing)
    plan = memory_plan(model.config, work, process=process)
    return_freed_memory()
    check_room(plan.total, device, f"{args.size} with {prompts * group} completions")
    print(plan.table(), flush=True)
    vocab_size = model.config.vocab_size

    def log(step: int, metrics: dict[str, float]) -> None:
        print(f"step {step}: {metrics['step_time']:.1f} s, reward {metrics['reward']:.3f}",
              flush=True)

    with (compute_in(dtype, device), gradient_checkpointing(args.gradient_checkpointing)):
        train_grpo(model, word_tokenizer(vocab_size), Words(vocab_size, prompt), page, log=log)
    measured = peak_bytes(device)
    print(f"{plan.total / 1e9:.2f} GB planned, {measured / 1e9:.2f} GB measured")


def in_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what train(...) returns in a process of its own."""
    argv = [sys.executable, __file__, str(args.folder), str(args.data), "--side", name,
            "--steps", str(args.steps)]
    out = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a checkpoint in Hugging Face layout")
    parser.add_argument("data", type=Path, nargs="?", help="GSM8K's folder, or a file of it")
    parser.add_argument("--size", choices=MODELS, help="of a model with random weights, alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="with --size")
    parser.add_argument("--completion", type=int, default=512, help="its tokens, with --size")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="with --size")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a process")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(train(SIDES[args.side], args.folder, args.data, args.steps)))
        return

    print(f"{heading(args.device)}, commit {commit()}\n", flush=True)
    if args.size:
        one_size(args)
        return
    if args.data is None:
        parser.error("name a checkpoint's folder and GSM8K's, or --size")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.sides}
    for _ in range(args.rounds):
        for name in args.sides:
            results[name].append(in_process(name, args))
            print(SIDES[name].name, results[name][-1], file=sys.stderr, flush=True)
    print(table_head("side", "a step, s", "of the processor, s", "peak of the process, GB",
                     "tokens sampled a step", "reward"))
    for name, runs in results.items():
        every = {key: [x for run in runs for x in run[key]] for key in ("seconds", "cpu", "tokens",
                                                                        "reward")}
        print(row(SIDES[name].name, spread(every["seconds"]), spread(every["cpu"]),
                  spread([run["peak"] / 1e9 for run in runs]),
                  f"{statistics.mean(every['tokens']):.0f}",
                  f"{statistics.mean(every['reward']):.3f}"))


if __name__ == "__main__":
    main()
