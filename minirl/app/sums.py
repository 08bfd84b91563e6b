"""`minirl sft` and `minirl grpo`: a base model that reads sums or products, and GRPO on it; or both
on a user's own file."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minirl.app.data import GYM, check_answers, check_data_flags, data_fields
from minirl.app.looks import BeforeAndAfter, watched
from minirl.app.preflight import Start, check_copies, check_plan, planned, refuse
from minirl.app.rundir import RunDir
from minirl.app.stages import INTERVALS, Look, Settings, Stages
from minirl.app.tasks import DEFAULT, OF_A_FILE, make_task
from minirl.app.user_code import rewarded, rolled_out, saying_how_to_go_on
from minirl.inference.collect import LOOKED_AT, ROWS, check_prompts, check_rewards
from minirl.inference.tables import before_and_after
from minirl.lm.compiled import worth_compiling
from minirl.lm.memory import check_room, sampling_bytes
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import SIZE_NAMES, TinySizes
from minirl.tasks.arithmetic import SYMBOLS, completion, demonstrations
from minirl.tasks.environment import MAX_CALLS, ToolTask
from minirl.tasks.preferences import load_demonstrations
from minirl.tasks.problem import Task, listed
from minirl.tasks.products import Products, product_demonstrations
from minirl.tasks.tools import TOOL_WORDS
from minirl.tasks.user_rewards import SECONDS
from minirl.train.checks import check
from minirl.train.encoding import encode_demonstrations, encode_pairs
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.presets import PRESETS
from minirl.train.sft import SFTConfig, train_sft

PRODUCTS = {"easy_share": 0.5}     # of the problems are sums that need no tool
EASY_CALLS = 0.5                   # and are solved by a call half as often, in demonstrations
SHARES = {"arithmetic": ("worked_share", "guessed_share"), "products": ("tool_share",)}
DEMONSTRATIONS = ("examples", *SHARES["arithmetic"], *SHARES["products"])
SAMPLING = "grpo", "ppo", "distill"                    # pages that sample
TASK_FLAGS = ("digits", "tools", "max_tool_calls", "eval_data", "math_verify", "task_config",
              "eval_problems")


@dataclass(frozen=True)
class BaseConfig(TinySizes):
    """The base model and what it reads: sums of which a share is worked out, the rest answered at
    once."""

    examples: int = 24_000             # demonstrations
    worked_share: float = 0.5          # of them worked out
    guessed_share: float = 0.5         # share of guesses among those answered at once
    tool_share: float = 0.5            # of the task products: share that calls the calculator

    def __post_init__(self) -> None:
        check(self, **INTERVALS)


@dataclass(frozen=True)
class SumsSettings(Settings):
    """Settings of minirl sft: the common ones, and the task."""

    task: str | None = None            # addition, ..., products, gsm8k, dataset, reasoning_gym:NAME
    digits: int = 3                    # 1 to 5
    tools: str | None = None           # calculator: completions may call it
    max_tool_calls: int = MAX_CALLS    # of one completion; the next one ends it
    data: str | None = None            # your file, or folder: JSONL, JSON, CSV, TSV or Parquet
    eval_data: str | None = None       # file of held-out problems (default: a tenth of --data)
    math_verify: bool | None = None    # compare formulas with it (default: where installed)
    task_config: str | None = None     # of reasoning_gym, in JSON, such as {"max_terms": 3}

    @property
    def task_name(self) -> str:
        return self.task or "addition"

    @property
    def task_fields(self) -> dict[str, Any]:
        return fields_of_task(self)

    @property
    def words(self) -> tuple[str, ...]:
        return words_of_task(self)


def fields_of_task(settings: SumsSettings) -> dict[str, Any]:
    name = settings.task_name
    tools = {} if settings.tools is None else {"tools": settings.tools,
                                               "max_tool_calls": settings.max_tool_calls}
    if name in OF_A_FILE or name.startswith(GYM):
        return {**data_fields(name, settings.data, settings.eval_data, settings.math_verify,
                              settings.task_config), **tools}
    products = PRODUCTS if name == "products" else {}
    return {"name": name, "digits": settings.digits, **products, **tools}


def words_of_task(settings: SumsSettings) -> tuple[str, ...]:
    return TOOL_WORDS if settings.task_name == "products" else ()


@dataclass(frozen=True)
class TaskSettings(SumsSettings):
    """The same for what learns from problems: a file without a task is a data set."""

    @property
    def task_name(self) -> str:
        return self.task or ("addition" if self.data is None else "dataset")


@dataclass(frozen=True)
class GRPOSettings(TaskSettings):
    """Settings of minirl grpo: those of sums, and a user's rewards and rollouts."""

    reward: tuple[str, ...] = ()       # module:function of yours, or one of the task, as accuracy
    reward_weights: tuple[float, ...] = ()  # one number for each --reward (default: 1)
    reward_timeout: float = SECONDS    # seconds for one call of a function of yours; 0: no limit
    rollout: str | None = None         # module:function of yours that makes the completions

    def __post_init__(self) -> None:
        for name in ("reward", "reward_weights"):          # config.json has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            raise ValueError(f"reward_weights has {len(self.reward_weights)} numbers beside "
                             f"{len(self.reward)} of reward: as many are wanted")

    def judged(self, task: Task) -> Task:
        return rewarded(rolled_out(task, self.rollout), self.reward, self.reward_weights,
                        seconds=self.reward_timeout)


# minirl sft

class LossAndAccuracy(Look):
    """The last loss and, of a model that reads problems of a task, the accuracy on held-out ones.
    """

    def __init__(self, stages: Stages[SumsSettings], task: Task | None) -> None:
        self.stages, self.task = stages, task

    def after(self, run: RunDir, model: Transformer, steps: int) -> dict[str, Any]:
        results = {"loss": run.metrics()[-1]["loss"]}
        if self.task is not None:
            settings = self.stages.settings
            evaluation = watched("measuring", model, self.stages.tokenizer, self.task,
                                 n=settings.eval_problems, seed=settings.seed)
            results |= {"accuracy": evaluation.accuracy, "mean_length": evaluation.mean_length}
        return results


def read(stages: Stages[SumsSettings], name: str, model: Transformer, config: SFTConfig,
         pairs: Sequence[Any], task: Task | None) -> Transformer:
    """Train a model on (prompt, completion) pairs, and measure it on a task, if there is one."""
    settings = stages.settings
    tokens = config.epochs * sum(len(pair[0]) + len(pair[1]) for pair in pairs)
    model.compiled = worth_compiling(settings.compile, model, tokens)
    stages.looks[name] = LossAndAccuracy(stages, task)
    return stages(name, config, model, lambda m, **hooks: train_sft(
        m, stages.tokenizer, pairs, config, seed=settings.seed, **hooks))


def read_sums(stages: Stages[SumsSettings], name: str, model: Transformer, base: BaseConfig,
              config: SFTConfig) -> Transformer:
    """Train a model on sums, worked out and not."""
    task = sums_of(stages.settings)
    rng = random.Random(derive_seed(stages.settings.seed, "demonstrations"))
    return read(stages, name, model, config, demonstrations_of(task, base.examples, rng, base),
                task)


def sums_of(settings: SumsSettings) -> Task:
    """Return the sums that a base model reads: those of the task, if it is one of sums."""
    of_sums = settings.task_name in (*SYMBOLS, "products")
    return make_task(settings.task_fields if of_sums else DEFAULT)


def pairs_of_file(settings: SumsSettings) -> Sequence[Any]:
    """Return the (prompt, completion) pairs of --data: all of them or, of a task's problems, those
    that are not held out, with an answer."""
    if settings.task is None:
        return load_demonstrations(str(settings.data))
    problems: Sequence[Any] = listed(make_task(settings.task_fields))
    return [(problem.prompt, completion(problem, worked=True))
            for problem in problems if problem.split == "train" and problem.answer]


def demonstrations_of(task: Task, n: int, rng: random.Random, base: BaseConfig
                      ) -> Sequence[tuple[str, Sequence[str]]]:
    """Return n (prompt, completion) pairs of a task, in the shares of the base model."""
    problems = task.task if isinstance(task, ToolTask) else task
    if isinstance(problems, Products):
        return product_demonstrations(problems, n, rng, tool_share=base.tool_share,
                                      easy_calls=EASY_CALLS)
    return demonstrations(task, n, rng, worked_share=base.worked_share,
                          guessed_share=base.guessed_share)


def sft(stages: Stages[SumsSettings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl sft` does -> what it prints at the end."""
    settings = stages.settings
    if settings.data is None:
        read_sums(stages, "sft", model, configs["base"], configs["sft"])
    else:
        task = None if settings.task is None else make_task(stages.run.config["task"])
        read(stages, "sft", model, configs["sft"], pairs_of_file(settings), task)
    run, summary = stages.run, stages.run.summary
    result = f"loss {summary['loss']:.3f} nats per token in the last step"
    if "accuracy" in summary:
        result = (f"accuracy {summary['accuracy']:.3f}, mean response length "
                  f"{summary['mean_length']:.1f} tokens on held-out problems")
    return (f"{result}; {stages.seconds:.0f} s\n"
            f"{run.path}/ holds curves.png, metrics.jsonl and final/. "
            f"Next: minirl grpo --init {shlex.quote(str(run.path / 'final'))}")


# minirl grpo

def grpo(stages: Stages, model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl grpo` does, the main job -> what it prints at the end."""
    config = configs["grpo"]
    return learn(stages, "grpo", model, configs, make_task(stages.run.config["task"]), train_grpo,
                 completions=config.steps * config.prompts_per_step * config.group_size,
                 copies=sum(held_by(config).values()))


def held_by(config: GRPOConfig) -> dict[str, int]:
    """Return the copies of the weights that GRPO holds beside what any training holds."""
    return {"as the reference": int(config.kl_coef > 0), "of old policies": config.off_policy}


def learn(stages: Stages, name: str, model: Transformer, configs: Mapping[str, Any], task: Task,
          page: Callable[..., Transformer], *, completions: int, copies: int = 0,
          trained: int = 1) -> str:
    """Let a model learn from a task's problems and rewards by a page, which samples so many
    completions -> what to print at the end.

    It trains so many models, and holds so many copies of the weights beside them and the model that
    it starts from."""
    settings, config, run = stages.settings, configs[name], stages.run
    task = settings.judged(task)
    if settings.init is None:
        model = read_sums(stages, "base", model, configs["base"], configs["sft"])
    model.compiled = worth_compiling(settings.compile, model, completions * config.max_new_tokens)
    look = BeforeAndAfter(stages, task, samples=3, max_new_tokens=config.max_new_tokens,
                          seed=settings.seed)
    stages.looks[name] = look
    stages.plans[name] = planned(settings, config, stages.tokenizer, task, model.config,
                                 stages.device, copies=1 + copies, trained=trained)
    variant = PRESETS[name][run.config["preset"]].arguments(config)
    with saying_how_to_go_on(run, config.steps):
        stages(name, config, model, lambda m, **hooks: page(
            m, stages.tokenizer, task, config, **variant, seed=settings.seed, **hooks))
    prompt = " '123+456='" if settings.task_name in SYMBOLS else ""
    return (f"\n{before_and_after(look.first, look.last)}\n\n"
            f"{stages.seconds:.0f} s. {run.path}/ holds curves.png, samples.md, summary.json, "
            "metrics.jsonl\nand final/, a checkpoint in Hugging Face layout.\n"
            f"Next: minirl sample{prompt}  |  minirl eval  |  minirl plot")


# before a run has a folder

def check_sums(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl sft`, `grpo`, `ppo` or `distill` later."""
    settings, base, name = configs["settings"], configs["base"], configs["settings"].task_name
    config = next((configs[page] for page in SAMPLING if page in configs), None)
    check_name(name)
    if config is None and settings.init is not None:
        refuse(flags, SIZE_NAMES, "--init names a model, which has its sizes")
    if config is None and settings.data is not None:
        check_file(settings, flags, start)
        return
    others = SHARES["arithmetic" if name == "products" else "products"]
    refuse(flags, others, f"the task is {name}, whose demonstrations have no such share")
    check_data_flags(name, flags)
    if settings.tools is None:
        refuse(flags, ["max_tool_calls"], "there are no --tools")
    task = make_task(settings.task_fields)
    if config is None and name.startswith(GYM):
        raise ValueError(f"the task {name} has no demonstrations: name yours with --data, without "
                         "--task")
    if config is None or settings.init is None:                        # sums are read first
        pairs = demonstrations_of(sums_of(settings), LOOKED_AT, random.Random(0), base)
        encode_demonstrations(start.tokenizer, pairs, start.config.max_seq_len)
    if config is not None:
        length = config.max_new_tokens
        check_prompts(start.tokenizer, task, max_new_tokens=length,
                      context=start.config.max_seq_len)
        rows = max(getattr(config, "episodes", 0) or config.prompts_per_step
                   * getattr(config, "group_size", 1), min(settings.eval_problems, ROWS))
        check_room(sampling_bytes(start.config, rows, length), start.device,
                   f"sampling {rows:,} completions of {length:,} tokens in a step")


def check_name(name: str) -> None:
    """Raise ValueError for a task that these commands do not have."""
    if name not in (*SYMBOLS, "products", *OF_A_FILE) and not name.startswith(f"{GYM}:"):
        raise ValueError(f"task is {name!r}: one of {', '.join(SYMBOLS)}, products, "
                         f"{', '.join(OF_A_FILE)} or {GYM}:NAME is expected")


def check_file(settings: SumsSettings, flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl sft --data` later."""
    why = "--data names what is learnt from, and no sums are made"
    refuse(flags, DEMONSTRATIONS if settings.task else (*DEMONSTRATIONS, *TASK_FLAGS), why)
    if settings.task is not None:
        check_data_flags(settings.task, flags)
    encode_pairs(start.tokenizer, pairs_of_file(settings), start.config.max_seq_len)


def check_grpo(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl grpo` later, a user's rewards among it."""
    check_sums(configs, flags, start)
    config = configs["grpo"]
    check_copies(start, held_by(config), "give a smaller --off-policy" if config.off_policy else
                 "--kl-coef 0 needs no reference" if config.kl_coef else "name a smaller --init")
    settings = configs["settings"]
    task = make_task(settings.task_fields)
    check_plan(planned(settings, config, start.tokenizer, task, start.config, start.device,
                       copies=1 + sum(held_by(config).values())), start.device)
    rewards = check_judges(settings, task, flags, start)
    if rewards is None:
        return
    variant = PRESETS["grpo"][start.preset].arguments(config)
    try:
        if "advantages" in variant:                    # of a group that has these rewards alone
            variant["advantages"](rewards.repeat(config.group_size)[None, :config.group_size])
    except ValueError as error:
        came = " and ".join(f"{reward:g}" for reward in rewards.tolist())
        raise ValueError(f"--reward and --reward-weights give {came} for a right answer and one "
                         f"that is cut off, and preset {start.preset} cannot learn from that: "
                         f"choose another, or other rewards ({error})") from error


def check_judges(settings: GRPOSettings, task: Task, flags: Collection[str], start: Start
                 ) -> Tensor | None:
    """Raise ValueError for rewards and rollouts that would stop a run later -> what the rewards
    give for a right answer and one that is cut off, if there are any of the user's. (2,)"""
    if not settings.reward:
        refuse(flags, ("reward_timeout",), "there is no --reward of yours")
    task = settings.judged(task)
    check_answers(task)
    if not settings.reward or settings.rollout is not None:    # which brings columns of its own
        return None
    return check_rewards(start.tokenizer, task)
