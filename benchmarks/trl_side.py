"""TRL's GRPOTrainer with the numbers of our GRPOConfig: the other side of the comparisons.

Needs the extra `parity`. Nothing of it is imported before a trainer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minirl.equations.schedules import cosine_to_floor
from minirl.tasks.problem import Problem, RewardFunction
from minirl.train.grpo import GRPOConfig


def make_trainer(folder: Path, problems: Sequence[Problem], rewards: Sequence[RewardFunction],
                 config: GRPOConfig, *, micro_batch: int, begin: Callable[[], None],
                 end: Callable[[], None], log: Callable[[dict[str, Any]], None],
                 device: str = "cpu", dtype: str = "float32", seed: int = 0,
                 gradient_checkpointing: bool = False, out: Path | None = None) -> Any:
    """Return a GRPOTrainer of the checkpoint in `folder`, which takes the problems in their order.

    The loss, the optimizer and the learning rates are those of train/grpo.py. Each micro-batch has
    `micro_batch` rows. `begin` and `end` are called before and after each step, then `log` with its
    metrics. TRL writes to `out`; default: a folder in the checkpoint's.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig as TheirConfig
    from trl import GRPOTrainer

    data = Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems])
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")       # it adds BOS
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True,
                                  betas=(config.beta1, config.beta2),
                                  weight_decay=config.weight_decay)
    rows = config.prompts_per_step * config.group_size
    arguments = TheirConfig(
        # the algorithm
        num_generations=config.group_size, max_completion_length=config.max_new_tokens,
        temperature=config.temperature, beta=config.kl_coef, epsilon=config.clip_low,
        epsilon_high=config.clip_high, loss_type="grpo", scale_rewards="group",
        max_grad_norm=config.max_grad_norm, learning_rate=config.lr,
        weight_decay=config.weight_decay, max_steps=config.steps, shuffle_dataset=False, seed=seed,
        # the machine
        use_cpu=device == "cpu", bf16=dtype == "bfloat16",
        gradient_checkpointing=gradient_checkpointing,
        per_device_train_batch_size=micro_batch, gradient_accumulation_steps=rows // micro_batch,
        # what is written
        output_dir=str(out or folder / "out"), logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True)
    trainer = GRPOTrainer(model=model, processing_class=tokenizer, args=arguments,
                          reward_funcs=list(rewards), train_dataset=data,
                          callbacks=[callback(begin, end, log)],
                          optimizers=(optimizer, schedule(optimizer, config)))
    printers = [c for c in trainer.callback_handler.callbacks
                if type(c).__name__ == "PrinterCallback"]
    for printer in printers:
        trainer.remove_callback(printer)
    return trainer


def schedule(optimizer: torch.optim.Optimizer,
             config: GRPOConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the learning rates of train/grpo.py, as TRL takes them."""
    last = config.steps - 1

    def factor(step: int) -> float:
        return cosine_to_floor(min(step, last), config.steps, floor=config.min_lr_ratio,
                               warmup=min(config.warmup_steps, last))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def callback(begin: Callable[[], None], end: Callable[[], None],
             log: Callable[[dict[str, Any]], None]) -> Any:
    """Return the three functions as one of transformers' callbacks."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            end()

        def on_log(self, *_: Any, **options: Any) -> None:
            if "num_tokens" in options["logs"]:        # not in the last line, which is of the run
                log(options["logs"])

    return Callback()
