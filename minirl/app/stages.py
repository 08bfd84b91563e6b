"""The one runner: where a page of training becomes a run.

A pipeline, such as train/r1.py, calls `stage(name, config, start, page)` for each of its pages and
knows no file. `Stages` is such a `stage`: it gives every page a run directory, a log, checkpoints
and a progress bar, and goes on where a run was cut short.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from minirl.app.chat import conversing, variables_of
from minirl.app.plots import plot_runs
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.trackers import tracker_names
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.compiled import check_compile
from minirl.lm.memory import peak_bytes, process_bytes, return_freed_memory
from minirl.lm.memory_plan import SHOWN_FROM, Plan
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.recompute import gradient_checkpointing
from minirl.lm.text import table
from minirl.lm.tiny import SIZE_NAMES, TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.train.checks import POSITIVE, SHARE, SIDE_BY_SIDE, check
from minirl.train.distill import DistillConfig, train_distill
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.process_reward import (
    OutcomeRewardConfig,
    ProcessRewardConfig,
    train_process_reward,
)
from minirl.train.profiling import profiled
from minirl.train.reward_model import RewardModelConfig, train_reward_model
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.stage import Page
from minirl.train.state import TrainState
from minirl.train.state_files import Start

TEXTS = "[1, 16777216]"  # texts to learn from: all are made and encoded before the first step
INTERVALS = {            # of the fields of all commands' settings
    **dict.fromkeys((*SIZE_NAMES, "eval_problems", "checkpoint_every", "keep_checkpoints",
                     "best_of", "samples", "step_samples"), SIDE_BY_SIDE),
    **dict.fromkeys(("examples", "demonstrations", "ranked_prompts", "general_examples",
                     "labelled_problems"), TEXTS),
    **dict.fromkeys(("worked_share", "guessed_share", "right_share", "slip_share",
                     "tool_share"), SHARE),
    **dict.fromkeys(("digits", "number_length"), "[1, 5]"), "labeller_noise": POSITIVE,
    "reward_weights": "[-1000000, 1000000]", "reward_timeout": "[0, 1000000]",
    "max_tool_calls": "[1, 1000000]",
    "cold_start_examples": "[0, 16777216]", "small": "[0, 65536]", "too_long": "[0, 1000000]",
    "seed": "[0, 9223372036854775807]"}


@dataclass(frozen=True)
class Settings:
    """What every training command takes beside the configurations of its pages. A command's own
    settings add `task_fields`: the task, as config.json keeps it (app/tasks.py)."""

    seed: int = 0
    device: str = "auto"               # auto, cpu or cuda
    dtype: str = "float32"             # of products: float32, bfloat16, float16 (weights: float32)
    sampler_dtype: str | None = None   # of the sampler's products (default: as --dtype)
    batch_invariant: bool = False      # sampler and learner agree to the bit; slower
    gradient_checkpointing: bool = False  # compute blocks again in backward: less memory, slower
    compile: str = "auto"              # torch.compile: on, off, or auto (on CUDA, and in long runs)
    init: str | None = None            # checkpoint folder or hub id; without it a new base model
    system_prompt: str | None = None   # what a chat model is told first, before every prompt
    chat_template: str = "auto"        # a Jinja file; auto: the model's own; none: prompts as is
    chat_template_kwargs: str | None = None  # JSON that it reads, as {"enable_thinking": false}
    eval_problems: int = 512           # held-out problems, before and after
    checkpoint_every: int = 20         # steps (SFT and reward models: five times as many)
    keep_checkpoints: int = 2          # the newest ones
    log: str | None = None             # also to tensorboard, wandb, or both: tensorboard,wandb

    def __post_init__(self) -> None:
        check(self, **INTERVALS)
        check_compile(self.compile)
        variables_of(self.chat_template_kwargs)
        if self.batch_invariant and self.compile == "on":
            raise ValueError("batch_invariant and compile on: a compiler chooses its own order of "
                             "sums; leave one of the two out")
        tracker_names(self.log)
        self.precision(torch.device("cpu"))

    def precision(self, device: torch.device) -> AbstractContextManager:
        """Return the context in which the run computes."""
        return compute_in(self.dtype, device, sampler=self.sampler_dtype,
                          batch_invariant=self.batch_invariant)

    def conversing(self, tokenizer: Tokenizer) -> Tokenizer:
        """Return the tokenizer, to which prompts are turns of a chat where there is a template."""
        return conversing(tokenizer, self.system_prompt, self.chat_template,
                          self.chat_template_kwargs)

    @property
    def words(self) -> tuple[str, ...]:
        """Tokens of their own in the vocabulary of a new base model."""
        return ()


T = TypeVar("T")
S = TypeVar("S", bound=Settings, covariant=True)


def first_model(settings: Settings, sizes: TinySizes, *, device: torch.device
                ) -> tuple[Transformer, Tokenizer]:
    """Return the model that --init names, or a fresh one.

    Training is in float32, whatever the checkpoint is in: lower precision loses small steps.
    """
    process_bytes()
    if settings.init is not None:
        model, tokenizer = load_pretrained(settings.init, dtype=torch.float32, device=device)
    else:
        model, tokenizer = make_base(sizes, seed=settings.seed, device=device,
                                     words=settings.words)
    return model, settings.conversing(tokenizer)


@dataclass(frozen=True)
class Kind:
    """How the page that a configuration belongs to becomes a run."""

    command: str
    page: Callable[..., nn.Module]     # what --profile watches
    bar: dict[str, str]                # metrics on the progress bar, and their labels there
    load: Callable[..., Any] = load_pretrained
    every: int = 1                     # a factor on the steps between two checkpoints


KINDS: dict[type, Kind] = {
    SFTConfig: Kind("sft", train_sft, {"loss": "loss"}, every=5),
    RewardModelConfig: Kind("rm", train_reward_model, {"loss": "loss", "accuracy": "accuracy"},
                            load_reward_model, every=5),
    ProcessRewardConfig: Kind("prm", train_process_reward,
                              {"loss": "loss", "accuracy": "accuracy"}, load_reward_model, every=5),
    OutcomeRewardConfig: Kind("orm", train_process_reward,
                              {"loss": "loss", "accuracy": "accuracy"}, load_reward_model, every=5),
    GRPOConfig: Kind("grpo", train_grpo, {
        "reward": "reward", "rewards/accuracy/mean": "accuracy",
        "rewards/language_consistency/mean": "language", "rewards/preference/mean": "preference",
        "kl": "KL", "completions/mean_length": "length"}),
    DistillConfig: Kind("distill", train_distill, {
        "teacher_kl": "KL", "rewards/accuracy/mean": "accuracy",
        "completions/mean_length": "length"}),
    PPOConfig: Kind("ppo", train_ppo, {
        "objective/scores": "score", "objective/kl": "KL",
        "value/explained_variance": "explained", "completions/mean_length": "length"}),
    DPOConfig: Kind("dpo", train_dpo, {
        "loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}),
}


class Look:
    """Callbacks around the training of a stage; these do nothing."""

    def before(self, run: RunDir, start: Any, *, resumed: bool) -> None:
        """Look at the model that the stage starts from."""

    def step(self, run: RunDir, model: Any, step: int, steps: int) -> None:
        """Look at the model after a step, before a checkpoint of it is written."""

    def after(self, run: RunDir, model: Any, steps: int) -> dict[str, Any]:
        """Look at the trained model -> what to put into summary.json."""
        return {}


class Stages(Generic[S]):
    """A `stage` for pipelines that keeps every stage as a run.

    The stage that has the name of the run's command is the run itself. Every other stage is a run
    inside it: one that is finished is loaded, one that was cut short goes on from its newest
    checkpoint.

    profile   measure the steps of the run itself
    names     all stages in order, for numbers on the progress bar
    looks     by the stage's name
    plans     by the stage's name: its memory, which is printed where it is much
    seconds   what the stages took so far, together
    """

    def __init__(self, run: RunDir, tokenizer: Tokenizer, settings: S, *,
                 device: torch.device, profile: bool = False) -> None:
        self.run, self.tokenizer, self.settings = run, tokenizer, settings
        self.device, self.profile = device, profile
        self.names: Sequence[str] = ()
        self.looks: dict[str, Look] = {}
        self.plans: dict[str, Plan] = {}
        self.seconds = 0.0

    def __call__(self, name: str, config: Any, start: nn.Module, page: Page) -> Any:
        """Return the trained model: page(model, log=, save=, resume=) of a copy of `start`."""
        kind = KINDS[type(config)]
        is_run = name == self.run.config.get("command")
        run = self.run if is_run else self.run.stage(name, kind.command, **{kind.command: config})
        if run.finished:
            model, _ = kind.load(run.path / "final", dtype=torch.float32, device=self.device)
            model.compiled = start.compiled
        else:
            model = self._train(run, name, config, start, page)
        seconds = run.summary.get("seconds", 0.0)
        self.seconds = seconds if is_run else self.seconds + seconds
        return model

    def _train(self, run: RunDir, name: str, config: Any, start: nn.Module, page: Page) -> Any:
        kind = KINDS[type(config)]
        first = Start(start)
        checkpoint = run.load_checkpoint(device=self.device, load=kind.load, start=first)
        model: Any
        model, _, state = checkpoint or (copy.deepcopy(start), self.tokenizer, None)
        model.compiled = start.compiled
        look = self.looks.get(name, Look())
        log = RunLog(run, self.tokenizer, title=self.title(name), bar=kind.bar, state=state,
                     steps=getattr(config, "steps", None), epochs=getattr(config, "epochs", 1),
                     every=kind.every * self.settings.checkpoint_every,
                     options={"keep": self.settings.keep_checkpoints, "start": first},
                     seconds=self.seconds if run is self.run else 0.0,
                     trackers=self.settings.log)

        peak, first_step = 0, log.step + 1

        def save(now: TrainState) -> None:
            nonlocal peak
            if state is not None:
                state.clear()                # the page has its own; these files are deleted soon
            if now.step <= first_step + 1:   # moments are there from the second one on
                peak = peak_bytes(self.device)
            look.step(run, now.model, now.step, log.steps or now.step)
            log.save(now)

        plan = self.plans.get(name)
        if plan is not None and plan.total > SHOWN_FROM:
            print(plan.table(), flush=True)
            return_freed_memory()
        with (self.settings.precision(self.device),
              gradient_checkpointing(self.settings.gradient_checkpointing)):
            look.before(run, start, resumed=state is not None)
            with log, self._profiled(run, kind.page):
                model = page(model, log=log.log, save=save, resume=state)
            results = look.after(run, model, log.step)
        if plan is not None and plan.total > SHOWN_FROM and peak:
            print(f"memory at the peak: {plan.total / 1e9:.2f} GB planned, {peak / 1e9:.2f} GB "
                  "measured until the second step", flush=True)
        run.write_json("summary.json", {"steps": log.step, **results,
                                        "seconds": round(log.seconds, 1)})
        with run.replacing("curves.png") as partial:
            plot_runs([run], partial)
        run.save_final(model, self.tokenizer)  # last, as final/ marks the run as finished
        return model

    def title(self, name: str) -> str:
        """Return what stands in front of a stage's bar: "3/14 rl-1"."""
        numbered = name in self.names
        return f"{self.names.index(name) + 1}/{len(self.names)} {name}" if numbered else name

    @contextlib.contextmanager
    def _profiled(self, run: RunDir, page: Callable[..., nn.Module]) -> Iterator[None]:
        if not self.profile or run is not self.run:
            yield
            return
        profile = None
        try:
            with profiled(page) as profile:
                yield
        finally:
            if profile is not None:
                title, rows = profile.report(run.path / "profile.json.gz")
                print(title, *([table(rows)] if rows else []), sep="\n")

    def file(self, name: str, make: Callable[[], T], load: Callable[[Path], T],
             save: Callable[[T, Path], None]) -> T:
        """Return what a file of the run holds. It is made and written where it is not there yet."""
        path = self.run.path / name
        if not path.exists():
            with self.settings.precision(self.device):
                content = make()
            with self.run.replacing(name) as partial:
                save(content, partial)
        return load(path)
