"""`minirl ppo`: InstructGPT's third stage or, with --task or --data, PPO on a task's problems.

They are judged by rules, as in minirl grpo, or by the reward model that --reward-model names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from minirl.app import instructgpt
from minirl.app.instructgpt import InstructSettings, check_instructions, check_reward_model
from minirl.app.preflight import Start, check_copies, check_plan, planned, refuse
from minirl.app.stages import Stages
from minirl.app.sums import (
    TASK_FLAGS,
    GRPOSettings,
    check_judges,
    check_sums,
    fields_of_task,
    learn,
    words_of_task,
)
from minirl.app.tasks import make_task
from minirl.lm.checkpoint import load_reward_model
from minirl.lm.memory import ADAMW
from minirl.lm.model import Transformer
from minirl.train.instructgpt import scored_by
from minirl.train.ppo import train_ppo

PIPELINE = ("demonstrations", "right_share", "ranked_prompts", "labeller_noise", "rankings",
            "best_of")
RULES = "reward", "reward_weights", "reward_timeout", "rollout"


@dataclass(frozen=True)
class PPOSettings(InstructSettings, GRPOSettings):
    """Settings of minirl ppo: those of InstructGPT, and those of a task that takes its place."""

    @property
    def on_task(self) -> bool:
        return self.task is not None or self.data is not None

    @property
    def task_fields(self) -> dict[str, Any]:
        return fields_of_task(self) if self.on_task else super().task_fields

    @property
    def words(self) -> tuple[str, ...]:
        return words_of_task(self) if self.on_task else super().words


def ppo(stages: Stages[PPOSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl ppo` does -> what it prints at the end."""
    settings, config = stages.settings, configs["ppo"]
    if not settings.on_task:
        return instructgpt.ppo(stages, model, configs)
    task, page = make_task(stages.run.config["task"]), train_ppo
    if settings.reward_model is not None:
        reward_model, _ = load_reward_model(settings.reward_model, device=stages.device)
        task = scored_by(reward_model, stages.tokenizer, task)
        page = partial(train_ppo, value_model=reward_model)
    return learn(stages, "ppo", model, configs, task, page,
                 completions=config.steps * config.episodes, trained=2,
                 copies=2 + int(settings.reward_model is not None))


def check_ppo(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl ppo` later."""
    settings: PPOSettings = configs["settings"]
    if not settings.on_task:
        refuse(flags, (*RULES, *(set(TASK_FLAGS) - {"eval_problems"})),
               "without --task or --data this is InstructGPT's pipeline")
        check_instructions(configs, flags, start)
        return
    refuse(flags, PIPELINE, "--task or --data takes the place of InstructGPT's pipeline")
    refuse(flags, ("ptx_batch_size",), "there is no pretraining text beside --task or --data")
    if configs["ppo"].ptx_coef:
        raise ValueError(f"ptx_coef is {configs['ppo'].ptx_coef}, and there is no pretraining text "
                         "beside --task or --data: leave it, or the preset, out")
    check_sums(configs, flags, start)
    check_copies(start, {"of the value function": ADAMW, "as the reference and the average": 2,
                         "as the reward model": int(settings.reward_model is not None)},
                 "name a smaller --init")
    task = make_task(settings.task_fields)
    check_plan(planned(settings, configs["ppo"], start.tokenizer, task, start.config, start.device,
                       copies=2 + int(settings.reward_model is not None), trained=2), start.device)
    if settings.reward_model is not None:
        check_reward_model(settings, start)
        task = scored_by(load_reward_model(settings.reward_model)[0], start.tokenizer, task)
    check_judges(settings, task, flags, start)
