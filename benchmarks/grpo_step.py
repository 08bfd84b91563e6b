"""One GRPO step against TRL's: the same weights, prompts, batch, lengths, optimizer and loss, a step of each in turn.

    python benchmarks/grpo_step.py                              fixed lengths, then a real task: the table of RESULTS.md
    python benchmarks/grpo_step.py --device cuda --dtype bfloat16

Needs the extra `parity`. Fixed lengths: no token ends a completion, so that both sides sample and learn from the same number of tokens. The real
task: sums, on a base model that answers some at once and works some out (made first, as `minirl sft` makes it). On a CPU TRL's micro-batches are of
the size that is fastest for it; on a GPU both sides' hold as many tokens. Gradients are not checkpointed. A step is timed from before the first
prompt is read until after the weights have changed; the sampling part is timed inside. Rewards and tokens of both are printed: nobody does less work.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import MODELS, Listed, Words, commit, heading, make_model, ratio, row, spread, synchronise, table_head, word_tokenizer

import minirl.train.grpo as page
from minirl.app.training import BaseConfig, RunConfig
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.precision import compute_in
from minirl.lm.tiny import make_base
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft

LR = 1e-5


class Pair:
    """TRL's trainer with a step of ours after each of its own."""

    def __init__(self, folder: Path, model, tokenizer, problems, rewards, *, config: GRPOConfig, steps: int, dtype: str, ends: bool, warmup: int,
                 micro_batch: int):
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import GRPOConfig as TheirConfig
        from trl import GRPOTrainer

        self.model, self.tokenizer, self.config, self.dtype, self.warmup = model, tokenizer, config, dtype, warmup
        self.task = Listed(problems, rewards)
        self.ours, self.theirs = [], []            # a dict per step: seconds, sampling, tokens, reward
        self.state = None                          # where ours stands: each of its steps goes on with the optimizer of the last
        rows, device = config.prompts_per_step * config.group_size, model.device.type
        save_pretrained(model, tokenizer, folder)
        plain_tags(folder / "tokenizer.json")
        data = Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems])      # BOS: by the tokenizer
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        arguments = TheirConfig(
            output_dir=str(folder / "out"), use_cpu=device == "cpu", bf16=dtype == "bfloat16", per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=rows // micro_batch, num_generations=config.group_size, max_completion_length=config.max_new_tokens,
            beta=config.kl_coef, temperature=1.0, learning_rate=config.lr, lr_scheduler_type="constant", adam_beta2=config.beta2, weight_decay=0.0,
            max_grad_norm=config.max_grad_norm, loss_type="grpo", scale_rewards="group", optim="adamw_torch_fused", gradient_checkpointing=False,
            max_steps=steps + warmup, shuffle_dataset=False, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=0)
        pair = self

        class Turns(TrainerCallback):
            def on_step_begin(self, *_, **__):
                synchronise()
                pair.began = time.perf_counter()

            def on_step_end(self, *_, **__):
                synchronise()
                pair.theirs.append({"seconds": time.perf_counter() - pair.began, "sampling": pair.sampling})
                pair.our_step()

            def on_log(self, args, state, control, logs, **__):
                if "num_tokens" in logs:
                    pair.theirs[len(pair.theirs) - 1] |= {"tokens": logs["completions/mean_length"] * rows, "reward": logs["reward"]}

        self.trainer = GRPOTrainer(model=theirs, processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"), args=arguments,
                                   reward_funcs=list(rewards.values()), train_dataset=data, callbacks=[Turns()])
        self.trainer.remove_callback(next(c for c in self.trainer.callback_handler.callbacks if type(c).__name__ == "PrinterCallback"))
        if not ends:                                # an id that does not exist ends nothing, on either side
            self.tokenizer.stop_ids = []
            self.trainer.eos_token_ids = self.trainer.generation_config.eos_token_id = self.trainer.generation_kwargs["eos_token_id"] = [model.config.vocab_size]
        self.trainer._generate_single_turn = self.timed(self.trainer._generate_single_turn)
        self.sample = self.timed(page.sample)

    def timed(self, work):
        def run(*args, **kwargs):
            synchronise()
            began = time.perf_counter()
            result = work(*args, **kwargs)
            synchronise()
            self.sampling = time.perf_counter() - began
            return result
        return run

    def our_step(self) -> None:
        kept, page.sample = page.sample, self.sample

        def log(step, metrics):
            synchronise()
            self.ours.append({"seconds": metrics["step_time"], "sampling": self.sampling, "reward": metrics["reward"],
                              "tokens": metrics["completions/mean_length"] * self.config.prompts_per_step * self.config.group_size})
        def save(state):
            self.state = state.state_dict()
        try:
            with compute_in(self.dtype, self.model.device):
                train_grpo(self.model, self.tokenizer, self.task, replace(self.config, steps=len(self.ours) + 1), log=log, save=save, resume=self.state)
        finally:
            page.sample = kept

    def run(self) -> tuple[list[dict], list[dict]]:
        self.trainer.train()
        return self.theirs[self.warmup:], self.ours[self.warmup:]


def plain_tags(file: Path) -> None:
    """TRL leaves special tokens out of the text that it scores; the tags must stay in it."""
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in ("<pad>", "<bos>", "<eos>")
    file.write_text(json.dumps(content))


def base_model(device: str):
    """The toy's base model and task, as `minirl sft` makes them."""
    common, base = RunConfig(), BaseConfig()
    task = Arithmetic(common.task, common.digits)
    model, tokenizer = make_base(base, seed=0, device=device)
    pairs = demonstrations(task, base.examples, random.Random(0), worked_share=base.worked_share, guessed_share=base.guessed_share)
    train_sft(model, tokenizer, pairs, SFTConfig())
    return model, tokenizer, task


def compare(name: str, prompt: object, model, tokenizer, task, *, config: GRPOConfig, steps: int, dtype: str, ends: bool, micro_batch: int, warmup: int = 2) -> str:
    problems = task.sample((steps + warmup + 1) * config.prompts_per_step, random.Random(0))
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Pair(Path(folder), model, tokenizer, problems, task.rewards, config=config, steps=steps, dtype=dtype, ends=ends, warmup=warmup,
                            micro_batch=micro_batch).run()
    def column(rows, key):
        return [r[key] for r in rows]
    rest = [[r["seconds"] - r["sampling"] for r in rows] for rows in (theirs, ours)]
    return row(name, prompt, config.max_new_tokens, config.kl_coef, spread(column(theirs, "seconds")), spread(column(ours, "seconds")),
               ratio(column(theirs, "seconds"), column(ours, "seconds")), ratio(column(theirs, "sampling"), column(ours, "sampling")), ratio(*rest),
               *(f"{statistics.mean(column(theirs, key)):{form}} / {statistics.mean(column(ours, key)):{form}}" for key, form in (("tokens", ".0f"), ("reward", ".2f"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each side")
    parser.add_argument("--no-compile", action="store_true", help="ours as it runs without --compile on")
    parser.add_argument("--their-rows", type=int, default=None, help="rows in TRL's micro-batches, on every line")
    parser.add_argument("--only", default=None, help="a model's name, or real")
    args = parser.parse_args()
    # model, prompt, completion, completions a step, beta, rows in one of TRL's micro-batches: on a CPU the fastest of 16, 32, 64 and 128
    fixed = [("0.86M", 16, 16, 128, 0.0, 128), ("0.86M", 64, 16, 128, 0.0, 128), ("0.86M", 16, 64, 128, 0.0, 64), ("0.86M", 16, 64, 128, 0.04, 64),
             ("8.9M", 16, 16, 128, 0.0, 32), ("8.9M", 64, 16, 128, 0.0, 32), ("8.9M", 16, 64, 128, 0.0, 32)]
    real_rows = 32
    if args.device == "cuda":
        fixed = [("10M", 64, 256, 1024, 0.0, 256), ("10M", 64, 256, 1024, 0.04, 256), ("0.5B", 64, 512, 128, 0.0, 16)]
        real_rows = 128
    print(f"{heading(args.device)}, {args.dtype}, ours {'as it is' if args.no_compile else 'compiled'}, commit {commit()}\n")
    print(table_head("model", "prompt", "completion", "beta", "TRL's step, s", "ours, s", "step", "sampling", "rest", "tokens a step, TRL / ours", "reward, TRL / ours"))
    for name, prompt, completion, rows, kl_coef, micro_batch in fixed:
        if args.only in (None, name):
            torch.compiler.reset()          # a model's compiled code is for its own sizes, as in a run of its own
            model, tokenizer = make_model(name, context=prompt + completion, device=args.device), word_tokenizer(MODELS[name]["vocab_size"])
            model.compiled = not args.no_compile
            config = GRPOConfig(steps=1, prompts_per_step=rows // 8, max_new_tokens=completion, kl_coef=kl_coef, lr=LR, warmup_steps=0, min_lr_ratio=1.0,
                                token_budget=micro_batch * (prompt + completion) if args.device == "cuda" else GRPOConfig.token_budget)
            print(compare(name, prompt, model, tokenizer, Words(model.config.vocab_size, prompt), config=config, steps=args.steps, dtype=args.dtype, ends=False,
                          micro_batch=args.their_rows or micro_batch), flush=True)
    if args.only in (None, "real"):
        model, tokenizer, task = base_model(args.device)
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(model, tokenizer, folder)
            for kl_coef in (0.0, 0.01):
                model, _ = load_pretrained(folder, device=args.device)
                model.compiled = not args.no_compile
                print(compare("sums", 9, model, tokenizer, task, config=GRPOConfig(steps=1, kl_coef=kl_coef, lr=LR, warmup_steps=0, min_lr_ratio=1.0), steps=2 * args.steps,
                              dtype=args.dtype, ends=True, micro_batch=args.their_rows or real_rows), flush=True)


if __name__ == "__main__":
    main()
