"""What the commands do: open a run or a checkpoint, have the work done, and print the result."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import random
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minirl.app import instructgpt, r1, sums
from minirl.app.chat import SAID, as_asked
from minirl.app.data import check_unchanged, config_of, digests_of, measured_on
from minirl.app.distill import DistillSettings, check_distill, distill
from minirl.app.flags import fields_of
from minirl.app.follower import Follower
from minirl.app.instructgpt import InstructSettings
from minirl.app.looks import watched
from minirl.app.plots import plot_runs
from minirl.app.ppo import PPOSettings, check_ppo, ppo
from minirl.app.preflight import Start, is_pretrained, starting_point
from minirl.app.prm import StepSettings, check_prm, prm
from minirl.app.r1 import R1Settings
from minirl.app.rundir import RunDir
from minirl.app.runs import RUNS, new_run, newest_checkpoint, newest_run
from minirl.app.search import (
    SearchSettings,
    check_choosing,
    check_search,
    choices,
    open_reward,
    search,
)
from minirl.app.stages import KINDS, Settings, Stages, first_model
from minirl.app.sums import BaseConfig, GRPOSettings, SumsSettings
from minirl.app.survival import warn
from minirl.app.tasks import DEFAULT, make_task, with_changes
from minirl.inference.picture import show_samples
from minirl.inference.tables import evaluation_table
from minirl.lm import world
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.files import read_json
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in, pick_device, slowdown
from minirl.lm.progress import Progress
from minirl.lm.sampling import check_choices
from minirl.lm.text import flag
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.environment import tool_task
from minirl.tasks.problem import Task
from minirl.train.distill import DistillConfig
from minirl.train.dpo import DPOConfig
from minirl.train.grpo import GRPOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.presets import PRESETS, PRETRAINED, TOY_LR, check_flags, numbers_of
from minirl.train.process_reward import ProcessRewardConfig
from minirl.train.r1 import R1Config
from minirl.train.reward_model import RewardModelConfig
from minirl.train.search import SearchConfig
from minirl.train.sft import SFTConfig

MOST = 2 ** 20           # problems, or samples of one


# training

class Training(NamedTuple):
    """What a training command is made of.

    configs   the configurations of its pages, by the section of config.json
    check     raises ValueError for what would stop the run later
    work      does it -> what to print at the end
    """

    settings: type[Settings]
    configs: Mapping[str, type]
    check: Callable[[Mapping[str, Any], Collection[str], Start], None]
    work: Callable[[Stages, Transformer, Mapping[str, Any]], str]


BASE = {"base": BaseConfig, "sft": SFTConfig}
TRAINING = {
    "sft": Training(SumsSettings, BASE, sums.check_sums, sums.sft),
    "grpo": Training(GRPOSettings, {**BASE, "grpo": GRPOConfig}, sums.check_grpo, sums.grpo),
    "rm": Training(InstructSettings, {"rm": RewardModelConfig}, instructgpt.check_instructions,
                   instructgpt.rm),
    "prm": Training(StepSettings, {"prm": ProcessRewardConfig}, check_prm, prm),
    "ppo": Training(PPOSettings, {**BASE, "ppo": PPOConfig}, check_ppo, ppo),
    "dpo": Training(InstructSettings, {"dpo": DPOConfig}, instructgpt.check_instructions,
                    instructgpt.dpo),
    "distill": Training(DistillSettings, {**BASE, "distill": DistillConfig}, check_distill,
                        distill),
    "r1": Training(R1Settings, {"r1": R1Config}, r1.check_r1, r1.r1),
    "search": Training(SearchSettings, {"search": SearchConfig}, check_search, search),
}


def train(args: argparse.Namespace) -> None:
    """minirl sft, grpo, rm, prm, ppo, dpo, distill, r1 and search."""
    command = args.command
    if args.profile and TRAINING[command].configs[command] not in KINDS:
        raise ValueError("--profile is for commands of one page: profile minirl grpo or minirl sft,"
                         " from a stage's --init")
    with world.joined(), contextlib.redirect_stdout(sys.stdout if world.rank() == 0 else None):
        run, configs = opened_run(args)
        with world.noticing(f": go on with {run.resume_command}"):
            work_on(run, configs, profile=args.profile)


def opened_run(args: argparse.Namespace) -> tuple[RunDir, dict[str, Any]]:
    """Open a run, a new one or one to go on with, in all processes: the first of them writes it.
    """
    opened: Any = None
    if world.rank() > 0:
        path, configs = world.gather(opened)[0]
        return Follower(path), configs
    if args.profile and world.size() > 1:
        raise ValueError("--profile is for one process: leave torchrun out")
    run, configs = resumed_run(args) if args.resume else started_run(args)
    world.gather((run.path, configs))
    return run, configs


def work_on(run: RunDir, configs: Mapping[str, Any], *, profile: bool) -> None:
    """Do what is left of a run, and print what comes of it."""
    settings, command = configs["settings"], run.config["command"]
    device = pick_device(settings.device)
    for dtype in sorted({settings.dtype, settings.sampler_dtype or settings.dtype}):
        say_what_it_costs(dtype, device)
    start = f"from {settings.init}" if settings.init else (
        "from nothing" if command == "sft" else "from a new base model")
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        f"{device.type}, {torch.get_num_threads()} threads")
    place += f", {world.size()} processes" if world.size() > 1 else ""
    print(f"minirl {command}: {make_task(run.config['task']).name}, {start}, seed {settings.seed}, "
          f"{place} -> {run.path}/", flush=True)
    if run.finished:
        print(f"this run is complete; its figures are in {run.path}/summary.json")
    else:
        print(work(run, configs, device, profile=profile))


def work(run: RunDir, configs: Mapping[str, Any], device: torch.device, *,
         profile: bool = False) -> str:
    """Do what the run's command does -> what to print at the end."""
    training, settings = TRAINING[run.config["command"]], configs["settings"]
    model, tokenizer = first_model(settings, configs.get("base", BaseConfig()),
                                   device=device)
    if tokenizer.chat is not None:
        print(SAID, flush=True)
    stages = Stages(run, tokenizer, settings, device=device, profile=profile)
    return training.work(stages, model, configs)


def resumed_run(args: argparse.Namespace) -> tuple[RunDir, dict[str, Any]]:
    """Open a run with the configurations that it was started with."""
    path = newest_run(RUNS, args.command) if args.run_dir is None else args.run_dir
    flags = [*given_flags(args), *(["preset"] if args.preset else [])]
    if flags:
        raise ValueError(f"{flag(flags[0])} is given with --resume, but a resumed run keeps the "
                         f"numbers in {path / 'config.json'}: leave it out, or start a new run "
                         "with --init")
    run = RunDir.resume(path, command=args.command)
    if not run.finished:
        check_unchanged(run.config)
        say_what_differs(run)
    configs = {section: run.read_config(section, cls)
               for section, cls in sections(args.command).items()}
    check_processes(configs)
    return run, configs


def started_run(args: argparse.Namespace) -> tuple[RunDir, dict[str, Any]]:
    """Start a run from a preset and the flags beside it, once all that can be checked is checked.
    """
    command, flags = args.command, given_flags(args)
    preset = args.preset or next(iter(PRESETS[command]))
    pretrained = is_pretrained(flags.get("init"))
    numbers = numbers_of(command, preset, pretrained=pretrained)
    configs = configured(command, numbers | flags, args.configs)
    check_flags(command, preset, list(flags), configs[command])
    training, settings = TRAINING[command], configs["settings"]
    base = configs.get("base", BaseConfig())
    training.check(configs, list(flags), starting_point(settings, base, preset))
    check_processes(configs)
    config = config_json(command, configs, preset)
    run = (new_run(RUNS, command, config) if args.run_dir is None
           else RunDir.create(args.run_dir, config))
    say_whose_numbers(command, preset, flags, configs[command], pretrained)
    return run, configs


def say_whose_numbers(command: str, preset: str, flags: Mapping[str, Any], config: Any,
                      pretrained: bool) -> None:
    """Print a line where a pretrained checkpoint takes other numbers than the tiny model, or a
    learning rate is the other one's."""
    lr = getattr(config, "lr", None)
    if pretrained:
        taken = numbers_of(command, preset, pretrained=True)
        instead = [f"{flag(name)} {taken[name]:g}" for name in PRETRAINED.get(command, {})
                   if name not in flags]
        if instead:
            print(f"note: this checkpoint is pretrained, so that the toy's numbers give way to "
                  f"{' '.join(instead)}; flags win")
        if lr is not None and lr >= TOY_LR:
            print(f"note: the learning rate, {lr:g}, is the toy's, and ruins pretrained weights in "
                  "a few steps: 1e-5 is a common one")
    elif lr is not None and lr < TOY_LR and "init" not in flags:
        toy = sections(command)[command]().lr
        print(f"note: the preset's learning rate, {lr:g}, is for a model of billions of "
              f"parameters; the toy model wants about {toy:g}: add --lr {toy:g}")


def say_what_differs(run: RunDir) -> None:
    """Print a line where the run goes on with another number of threads or processes, and has no
    checkpoint, which would say so itself."""
    if run.checkpoints():
        return
    for name, now in parallel().items():
        if (before := run.config.get(name)) not in (None, now):
            warn(f"{run.path} was started with {before} {name}, and goes on with {now}: the bits "
                 "may differ from those of a run that was not stopped")


def parallel() -> dict[str, int]:
    """Return in how many threads and processes the run computes, as config.json says it."""
    return {"threads": torch.get_num_threads(), "processes": world.size()}


def check_processes(configs: Mapping[str, Any]) -> None:
    """Raise ValueError where a step has fewer prompts than there are processes."""
    for name in ("prompts_per_step", "episodes"):
        for config in configs.values():
            prompts = getattr(config, name, world.size())
            if prompts < world.size():
                raise ValueError(f"{name} is {prompts}, and there are {world.size()} processes: "
                                 f"each wants a prompt of every step; raise {flag(name)}, or start "
                                 "fewer processes")


def sections(command: str) -> dict[str, type]:
    """Return the dataclasses that a run of the command has in its config.json."""
    return {"settings": TRAINING[command].settings, **TRAINING[command].configs}


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the command's configurations that were given as flags."""
    names = [field.name for path in args.configs for field in fields_of(path)]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def configured(command: str, values: Mapping[str, Any],
               flags: Collection[str] = ()) -> dict[str, Any]:
    """Return the command's configurations, with these values in those whose fields are flags.

    `minirl grpo --lr` is not the learning rate of the base model: SFTConfig has no flags there.
    """
    configs = {}
    for section, cls in sections(command).items():
        names = {field.name for field in dataclasses.fields(cls)}
        if f"{cls.__module__}.{cls.__name__}" not in flags:
            names = set()
        configs[section] = cls(**{name: values[name] for name in names & values.keys()})
    return configs


def config_json(command: str, configs: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Return what config.json says of a run."""
    return {"command": command, "preset": preset, "task": configs["settings"].task_fields,
            "files": digests_of(configs),
            **{section: dataclasses.asdict(config) for section, config in configs.items()},
            "torch": torch.__version__, **parallel(),
            "python": platform.python_version(), "platform": platform.platform()}


def say_what_it_costs(dtype: str, device: torch.device) -> None:
    """Print a line on stderr where a lower precision makes a CPU slower instead of faster."""
    if device.type == "cpu" and dtype != "float32" and (times := slowdown(dtype)) > 1.5:
        print(f"note: this processor computes matrix products in {dtype} {times:.0f} times as "
              "slowly as in float32: it has no instructions for it", file=sys.stderr)


# looking

def open_checkpoint(args: argparse.Namespace) -> tuple[Path | str, Transformer, Tokenizer]:
    """Load the checkpoint that --init names, or the newest; without any, train a base model."""
    device = pick_device(args.device)
    path = newest_checkpoint(RUNS) if args.init is None else args.init
    if path is None:
        print("no trained model under runs/ yet: training the base model first", file=sys.stderr)
        configs = configured("sft", {})
        run = new_run(RUNS, "sft", config_json("sft", configs, "toy"))
        work(run, configs, device)
        path = run.path / "final"
    model, tokenizer = load_pretrained(path, device=device)
    tokenizer = as_asked(tokenizer, args, path)
    if tokenizer.chat is not None:
        print(SAID, file=sys.stderr)
    say_what_it_costs(args.dtype, device)
    return path, model, tokenizer


def trained_on(path: Path | str, args: argparse.Namespace | None = None, *,
               quiet: bool = False) -> Task:
    """Return the task of a checkpoint's run, or what the flags make of it."""
    run, flags = read_json(Path(path).parent / "config.json"), vars(args) if args else {}
    choice = asked(run, flags)
    if not quiet and run.get("task") is None and not (flags.get("task") or flags.get("data")):
        warn(f"no config.json says what {path} learnt: using {choice.name}; "
             "choose with minirl eval --task")
    return choice


def asked(run: Mapping[str, Any], flags: Mapping[str, Any]) -> Task:
    """Return the task of a run, by its config.json, with the changes that flags make."""
    if flags.get("data") is not None:
        return make_task(with_changes(measured_on(flags["data"], flags.get("task"), run),
                                      max_tool_calls=flags.get("max_tool_calls")))
    config = None if flags.get("task_config") is None else config_of(flags["task_config"])
    return make_task(with_changes(run.get("task") or DEFAULT, flags.get("task"),
                                  flags.get("digits"), config=config,
                                  max_tool_calls=flags.get("max_tool_calls")))


def check_task(args: argparse.Namespace) -> None:
    """Raise ValueError for flags that make no task: before a checkpoint is read."""
    if args.task_config is None or args.task is not None:      # else it is the run's task's
        asked({}, {**vars(args), "max_tool_calls": None})      # of the run's tools


def check_looking(args: argparse.Namespace, **counts: int) -> None:
    """Raise ValueError for numbers that no checkpoint could be asked with: before one is read."""
    Settings(seed=args.seed, device=args.device, dtype=args.dtype,
             chat_template_kwargs=args.chat_template_kwargs)
    check_choices(group=1, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                  top_k=getattr(args, "top_k", 0), top_p=getattr(args, "top_p", 1.0),
                  min_p=getattr(args, "min_p", 0.0),
                  repetition_penalty=getattr(args, "repetition_penalty", 1.0))
    for name, count in counts.items():
        if not 1 <= count <= MOST:
            raise ValueError(f"{name} is {count}: 1 to {MOST:,} is wanted")


def command_sample(args: argparse.Namespace) -> None:
    check_looking(args, n=args.n)
    check_task(args)
    path, model, tokenizer = open_checkpoint(args)
    task = trained_on(path, args, quiet=bool(args.prompts))
    prompts = args.prompts or [problem.prompt for problem in task.sample(
        2, random.Random(args.seed), split="test")]
    rows = args.n * len(prompts)
    with compute_in(args.dtype, model.device), Progress("sampling", rows,
                                                        unit="completion") as progress:
        text = show_samples(model, tokenizer, prompts, n=args.n, temperature=args.temperature,
                            top_k=args.top_k, top_p=args.top_p, min_p=args.min_p,
                            repetition_penalty=args.repetition_penalty,
                            max_new_tokens=args.max_new_tokens, seed=args.seed,
                            numbers=args.logprobs, colour=terminal_has_colours(),
                            task=tool_task(task))
        progress.update(rows)
    print(f"checkpoint: {path}", file=sys.stderr)
    print(text)


def terminal_has_colours() -> bool:
    """See https://no-color.org for NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def command_eval(args: argparse.Namespace) -> None:
    counts = {"voting": args.voting, "best_of": args.best_of}
    check_looking(args, problems=args.problems, samples=args.samples,
                  **{name: n for name, n in counts.items() if n is not None})
    check_choosing(args.best_of, args.reward, args.how)
    check_task(args)
    ks = args.k or sorted({k for k in (1, 4, 8) if k <= args.samples})
    for k in ks:
        if not 1 <= k <= args.samples:
            raise ValueError(f"pass@{k} needs at least {k} samples per problem, and k at least 1; "
                             f"--samples is {args.samples}")
    reward = (None if args.reward is None else
              open_reward(args.reward, args.how, device=pick_device(args.device)))
    path, model, tokenizer = open_checkpoint(args)
    task = trained_on(path, args)
    if reward is not None:
        reward.check(tokenizer, task, args.max_new_tokens)
    samples = max(args.samples, args.voting or 1, args.best_of or 1)
    with compute_in(args.dtype, model.device):
        result = watched("measuring", model, tokenizer, task, n=args.problems, samples=samples,
                         max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                         seed=args.seed)
        chosen = choices(result, tokenizer, args.voting, args.best_of, reward)
    print(f"checkpoint: {path}", file=sys.stderr)
    print(task.name)
    print(evaluation_table(result, ks, asked=args.problems, samples=samples,
                           temperature=args.temperature))
    if chosen:
        print(f"\n{chosen}")


def check_out(out: Path) -> None:
    """Raise ValueError where no picture can be written there."""
    if not out.parent.is_dir() or out.is_dir():
        what = f"{out} is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise ValueError(f"{what}, so that no picture can be written: name another file with --out")


def command_plot(args: argparse.Namespace) -> None:
    paths = args.runs or [file.parent for file in sorted(RUNS.glob("*/metrics.jsonl"))
                          if RunDir(file.parent).metrics()]
    if not paths:
        raise ValueError("there is no run under runs/ to plot: train one (minirl grpo), or name "
                         "its folder")
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no run directory: name folders such as runs/grpo")
    check_out(args.out)
    plot_runs([RunDir(path) for path in paths], args.out)
    print(f"{args.out}: {', '.join(str(path) for path in paths)}")
