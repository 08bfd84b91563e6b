"""One GRPO step against TRL's: the same weights, prompts, batch, lengths, optimizer and loss, a
step of each in turn.

    python benchmarks/grpo_step.py                              the table of RESULTS.md
    python benchmarks/grpo_step.py --device cuda --dtype bfloat16

Needs the extra `parity`. The first lines have fixed lengths: no token ends a completion, so both
sides sample and learn from the same number of tokens. The last lines are a real task: sums, on a
base model that answers some at once and works some out (it is trained first, as `minirl sft` does).

On a CPU, TRL's micro-batches have the size that is fastest for it. On a GPU, both sides' hold the
same number of tokens. Gradients are not checkpointed. The time of a step is from before the first
prompt is read until after the weights have changed; the time of sampling is taken inside. Rewards
and tokens of both sides are printed, to show that neither does less work.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import (
    MODELS,
    Listed,
    Words,
    commit,
    heading,
    make_model,
    ratio,
    row,
    spread,
    synchronise,
    table_head,
    word_tokenizer,
)
from minirl.inference import sampler as asking
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.problem import Problem, RewardFunction, Task
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft
from trl_side import make_trainer

FIXED: dict[str, Any] = dict(lr=1e-5, warmup_steps=0, min_lr_ratio=1.0)      # of both sides
GROUP = GRPOConfig.group_size
WARMUP = 2         # steps of each that are not counted
# model, tokens of a prompt, of a completion, completions a step, β, rows in one of TRL's
# micro-batches: on a CPU the fastest of 16, 32, 64 and 128
CPU: list[tuple[Any, ...]] = [
    ("0.86M", 16, 16, 128, 0.0, 128), ("0.86M", 64, 16, 128, 0.0, 128),
    ("0.86M", 16, 64, 128, 0.0, 64), ("0.86M", 16, 64, 128, 0.04, 64),
    ("8.9M", 16, 16, 128, 0.0, 32), ("8.9M", 64, 16, 128, 0.0, 32),
    ("8.9M", 16, 64, 128, 0.0, 32)]
CUDA: list[tuple[Any, ...]] = [
    ("10M", 64, 256, 1024, 0.0, 256), ("10M", 64, 256, 1024, 0.04, 256),
    ("0.5B", 64, 512, 128, 0.0, 16)]
REAL_ROWS = {"cpu": 32, "cuda": 128}      # rows in TRL's micro-batches, of the real task


class Pair:
    """TRL's trainer, with a step of ours after each of its own.

    `ours` and `theirs` have a dict per step: seconds, sampling, tokens, reward.
    """

    def __init__(self, folder: Path, model: Transformer, tokenizer: Tokenizer,
                 problems: Sequence[Problem], rewards: Mapping[str, RewardFunction],
                 config: GRPOConfig, *, dtype: str, ends: bool, micro_batch: int) -> None:
        self.model, self.tokenizer, self.config, self.dtype = model, tokenizer, config, dtype
        self.task = Listed(problems, rewards)
        self.ours: list[dict[str, float]] = []
        self.theirs: list[dict[str, float]] = []
        self.state: dict[str, Any] | None = None   # after our last step, with its optimizer
        self.rows = config.prompts_per_step * config.group_size
        save_pretrained(model, tokenizer, folder)
        self.trainer = make_trainer(
            folder, problems, list(rewards.values()), config, micro_batch=micro_batch,
            begin=self.begin, end=self.end, log=self.log, device=model.device.type, dtype=dtype)
        if not ends:
            never_end(self.trainer, self.tokenizer, model.config.vocab_size)
        self.trainer._generate_single_turn = self.timed(self.trainer._generate_single_turn)

    def run(self) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """Return TRL's steps and ours, without the first ones."""
        self.trainer.train()
        return self.theirs[WARMUP:], self.ours[WARMUP:]

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, which now notes how long its last call took: `self.sampling`."""
        def run(*args: Any, **options: Any) -> Any:
            synchronise()
            began = time.perf_counter()
            result = work(*args, **options)
            synchronise()
            self.sampling = time.perf_counter() - began
            return result

        return run

    # TRL's callbacks

    def begin(self) -> None:
        synchronise()
        self.began = time.perf_counter()

    def end(self) -> None:
        synchronise()
        duration = time.perf_counter() - self.began
        self.theirs.append({"seconds": duration, "sampling": self.sampling})
        self.our_step()

    def log(self, logs: dict[str, Any]) -> None:
        tokens = logs["completions/mean_length"] * self.rows
        self.theirs[-1] |= {"tokens": tokens, "reward": logs["reward"]}

    # ours

    def our_step(self) -> None:
        def log(step: int, metrics: dict[str, float]) -> None:
            synchronise()
            tokens = metrics["completions/mean_length"] * self.rows
            self.ours.append({"seconds": metrics["step_time"], "sampling": self.sampling,
                              "reward": metrics["reward"], "tokens": tokens})

        def save(state: Any) -> None:
            self.state = state.state_dict()

        untimed, asking.sample = asking.sample, self.timed(asking.sample)
        try:
            with compute_in(self.dtype, self.model.device):
                train_grpo(self.model, self.tokenizer, self.task,
                           replace(self.config, steps=len(self.ours) + 1), log=log, save=save,
                           resume=self.state)
        finally:
            asking.sample = untimed


def never_end(trainer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Let no token end a completion, on either side."""
    tokenizer.stop_ids = []
    stops = [vocab_size]           # an id that does not exist
    trainer.eos_token_ids = trainer.generation_config.eos_token_id = stops
    trainer.generation_kwargs["eos_token_id"] = stops


def base_model(device: str) -> tuple[Transformer, Tokenizer, Task]:
    """Return the toy's base model and task, as `minirl sft` makes them."""
    task = Arithmetic("addition", 3)
    model, tokenizer = make_base(TinySizes(), seed=0, device=device)
    pairs = demonstrations(task, 24_000, random.Random(0), worked_share=0.5, guessed_share=0.5)
    train_sft(model, tokenizer, pairs, SFTConfig())
    return model, tokenizer, task


def compare(name: str, prompt: int, model: Transformer, tokenizer: Tokenizer, task: Task,
            config: GRPOConfig, *, dtype: str, ends: bool, micro_batch: int) -> str:
    """Return a line of the table. config.steps are counted after WARMUP others."""
    config = replace(config, steps=config.steps + WARMUP)
    problems = task.sample((config.steps + 1) * config.prompts_per_step, random.Random(0))
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Pair(Path(folder), model, tokenizer, problems, task.rewards, config,
                            dtype=dtype, ends=ends, micro_batch=micro_batch).run()

    def both(key: str) -> tuple[list[float], list[float]]:
        return [step[key] for step in theirs], [step[key] for step in ours]

    def means(key: str, form: str) -> str:
        return " / ".join(f"{statistics.mean(values):{form}}" for values in both(key))

    seconds, sampling = both("seconds"), both("sampling")
    rest = [[a - b for a, b in zip(*sides, strict=True)]
            for sides in zip(seconds, sampling, strict=True)]
    return row(name, prompt, config.max_new_tokens, config.kl_coef, *map(spread, seconds),
               ratio(*seconds), ratio(*sampling), ratio(*rest), means("tokens", ".0f"),
               means("reward", ".2f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each side")
    parser.add_argument("--no-compile", action="store_true", help="do not compile our side")
    parser.add_argument("--their-rows", type=int, default=None,
                        help="rows in TRL's micro-batches, on every line")
    parser.add_argument("--only", default=None, help="a model's name, or real")
    args = parser.parse_args()
    compiled = "as it is" if args.no_compile else "compiled"
    print(f"{heading(args.device)}, {args.dtype}, ours {compiled}, commit {commit()}\n")
    print(table_head("model", "prompt", "completion", "beta", "TRL's step, s", "ours, s", "step",
                     "sampling", "rest", "tokens a step, TRL / ours", "reward, TRL / ours"))
    for name, *numbers in CUDA if args.device == "cuda" else CPU:
        if args.only in (None, name):
            print(fixed_lengths(args, name, *numbers), flush=True)
    if args.only in (None, "real"):
        real_task(args)


def fixed_lengths(args: argparse.Namespace, name: str, prompt: int, completion: int, rows: int,
                  kl_coef: float, micro_batch: int) -> str:
    torch.compiler.reset()         # code is compiled for the sizes of one model, as in a run of it
    model = make_model(name, context=prompt + completion, device=args.device)
    model.compiled = not args.no_compile
    vocab_size = MODELS[name]["vocab_size"]
    budget = GRPOConfig.token_budget
    if args.device == "cuda":
        budget = micro_batch * (prompt + completion)
    config = GRPOConfig(steps=args.steps, prompts_per_step=rows // GROUP, kl_coef=kl_coef,
                        max_new_tokens=completion, token_budget=budget, **FIXED)
    return compare(name, prompt, model, word_tokenizer(vocab_size), Words(vocab_size, prompt),
                   config, dtype=args.dtype, ends=False,
                   micro_batch=args.their_rows or micro_batch)


def real_task(args: argparse.Namespace) -> None:
    model, tokenizer, task = base_model(args.device)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, tokenizer, folder)
        for kl_coef in (0.0, 0.01):
            model, _ = load_pretrained(folder, device=args.device)
            model.compiled = not args.no_compile
            config = GRPOConfig(steps=2 * args.steps, kl_coef=kl_coef, **FIXED)
            print(compare("sums", 9, model, tokenizer, task, config, dtype=args.dtype, ends=True,
                          micro_batch=args.their_rows or REAL_ROWS[args.device]), flush=True)


if __name__ == "__main__":
    main()
