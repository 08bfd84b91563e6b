"""The command line. Flags are the fields of the configuration dataclasses; names become tasks and presets here, in one table each."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import os
import random
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from minirl.app.commands import command_dpo, command_grpo, command_ppo, command_r1, command_rm, command_sft, flag
from minirl.app.equations import markdown_index, show_equation, show_index
from minirl.app.instruct import InstructConfig
from minirl.app.looking import show_evaluation, show_samples
from minirl.app.plots import plot_runs
from minirl.app.presets import GRPO_PRESETS, PPO_PRESETS, R1_PRESETS
from minirl.app.r1 import R1RunConfig
from minirl.app.rundir import RUNS, RunDir, free_name, newest_checkpoint
from minirl.app.training import BaseConfig, RunConfig, run_sft
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.precision import pick_device
from minirl.lm.tokenizer import read_json
from minirl.tasks.arithmetic import SYMBOLS, Arithmetic
from minirl.tasks.instructions import Instructions
from minirl.train.dpo import DPO_PRESETS, DPOConfig
from minirl.train.grpo import GRPOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.r1 import R1Config
from minirl.train.reward_model import REWARD_MODEL_PRESETS, RewardModelConfig
from minirl.train.sft import SFT_PRESETS, SFTConfig


class Parser(argparse.ArgumentParser):
    """Errors in one line that says what to do."""

    def error(self, message: str) -> typing.NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, commands = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if args.command is None:
        if unknown:
            parser.error(f"unknown argument {unknown[0]}")
        parser.print_help()
        return 0
    command = commands[args.command]
    if unknown:
        flags = [option for action in command._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        command.error(f"unknown argument {unknown[0]}" + (f" (did you mean {near[0]}?)" if near else ""))
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print(f"\n{command.prog}: stopped; what its last checkpoint holds is kept (training goes on with --resume)", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("MINIRL_TRACEBACK"):
            raise
        print(f"{command.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="minirl", description="Reinforcement learning for language models, small enough to read.", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", metavar="command", parser_class=Parser)
    commands = {}
    for name, (summary, add_flags, run) in COMMANDS.items():
        commands[name] = command = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False,
                                                         formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=120))
        add_flags(command)
        command.set_defaults(run=run)
    return parser, commands


# flags from dataclasses

def add_config(parser: Parser, config: type) -> None:
    """A flag per field; its help is the comment behind the field, its default the field's. A flag that was not given stays None."""
    source = "".join(inspect.getsource(c) for c in reversed(config.__mro__) if dataclasses.is_dataclass(c))
    comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", source, re.MULTILINE))
    kinds = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        note = " ".join(filter(None, (comments.get(field.name), f"(default {field.default})"))).replace("%", "%%")
        parser.add_argument(flag(field.name), dest=field.name, type=truth if kind is bool else kind, metavar=kind.__name__.upper(), default=None, help=note)


def truth(text: str) -> bool:
    """What a flag for a bool means: argparse would take every word for True."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: true or false is wanted")
    return text.lower() == "true"


def add_training(parser: Parser, presets: dict, *configs: type) -> None:
    """What every training command has, and a flag for each field of `configs`."""
    parser.add_argument("--preset", choices=list(presets), default=None, help="a paper's settings; flags beside it win (default: the first)")
    parser.add_argument("--run-dir", type=Path, default=None, help="where the run is kept (default: the next free name under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut short (the newest, or --run-dir)")
    parser.add_argument("--profile", action="store_true", help="write a trace of a few steps, and print the share of each stage")
    for config in configs:
        add_config(parser, config)
    parser.set_defaults(configs=configs)


def add_r1(parser: Parser) -> None:
    add_training(parser, R1_PRESETS, R1RunConfig, R1Config)
    parser.add_argument("--fast", dest="preset", action="store_const", const="fast", help="a smaller toy that takes a minute: --preset fast")


# looking commands

def add_checkpoint(parser: Parser) -> None:
    parser.add_argument("--init", default=None, metavar="CHECKPOINT", help="folder or hub id (default: the newest runs/*/final)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default 1)")
    parser.add_argument("--max-new-tokens", type=int, default=80, help="(default 80)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 for the matrix products (default float32)")


def open_checkpoint(args: argparse.Namespace):
    """The checkpoint that --init names, or the newest run's -> (model, tokenizer, the run's task)."""
    device = pick_device(args.device)
    path = args.init or newest_checkpoint(RUNS)
    if path is None:
        print("no trained model under runs/ yet: training the base model first", file=sys.stderr)
        run = RunDir.create(free_name(RUNS, "sft"), {"command": "sft", "preset": "toy", "run": dataclasses.asdict(RunConfig()),
                                                     "base": dataclasses.asdict(BaseConfig()), "sft": dataclasses.asdict(SFTConfig())})
        run_sft(run, BaseConfig(), SFTConfig(), RunConfig(), device=device)
        path = run.path / "final"
    model, tokenizer = load_pretrained(path, device=device)
    trained_on = read_json(Path(path).parent / "config.json").get("run", {})
    if "number_length" in trained_on:
        common = R1RunConfig(language=trained_on["language"], number_length=trained_on["number_length"])
        return model, tokenizer, common.of_length(common.number_length)
    if trained_on and "digits" not in trained_on and not (getattr(args, "task", None) or getattr(args, "digits", None)):
        return model, tokenizer, Instructions()
    task = Arithmetic(getattr(args, "task", None) or trained_on.get("task", RunConfig.task), getattr(args, "digits", None) or trained_on.get("digits", RunConfig.digits))
    return model, tokenizer, task


def add_sample(parser: Parser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to complete (default: two held-out problems)")
    parser.add_argument("-n", type=int, default=2, help="completions per prompt (default 2)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off (default)")
    add_checkpoint(parser)


def command_sample(args: argparse.Namespace) -> None:
    model, tokenizer, task = open_checkpoint(args)
    prompts = args.prompts or [p.prompt for p in task.sample(2, random.Random(args.seed), split="test")]
    print(show_samples(model, tokenizer, prompts, n=args.n, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                       max_new_tokens=args.max_new_tokens, seed=args.seed, dtype=args.dtype))


def add_eval(parser: Parser) -> None:
    parser.add_argument("--task", default=None, help=f"{', '.join(SYMBOLS)} (default: what the run was trained on)")
    parser.add_argument("--digits", type=int, default=None, help="1 to 5 (default: what the run was trained on)")
    parser.add_argument("--problems", type=int, default=256, help="(default 256)")
    parser.add_argument("--samples", type=int, default=8, help="completions per problem (default 8)")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 4, 8], help="pass@k for these k (default 1 4 8)")
    add_checkpoint(parser)


def command_eval(args: argparse.Namespace) -> None:
    model, tokenizer, task = open_checkpoint(args)
    print(f"{task.digits}-digit {task.operation}" if isinstance(task, Arithmetic) else type(task).__name__.lower())
    print(show_evaluation(model, tokenizer, task, problems=args.problems, samples=args.samples, ks=args.k, temperature=args.temperature,
                          max_new_tokens=args.max_new_tokens, seed=args.seed, dtype=args.dtype))


def add_plot(parser: Parser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories (default: every run under runs/)")
    parser.add_argument("-o", "--out", type=Path, default=Path("curves.png"), help="(default curves.png)")


def command_plot(args: argparse.Namespace) -> None:
    paths = args.runs or sorted(path.parent for path in RUNS.glob("*/metrics.jsonl"))
    if not paths:
        raise ValueError("there is no run under runs/ to plot: train one (minirl grpo), or name its folder")
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no run directory: name folders such as runs/grpo")
    plot_runs([RunDir(path) for path in paths], args.out)
    print(f"{args.out}: {', '.join(str(path) for path in paths)}")


def add_equations(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", default=None, metavar="NAME", help="one function, such as kl.k3: its docstring, source and example")
    parser.add_argument("--markdown", action="store_true", help="the index as tutorials/EQUATIONS.md holds it")


def command_equations(args: argparse.Namespace) -> None:
    print(show_equation(args.name) if args.name else markdown_index() if args.markdown else show_index(), end="" if args.markdown else "\n")


COMMANDS: dict[str, tuple[str, Callable[[Parser], None], Callable[[argparse.Namespace], int | None]]] = {
    "sft": ("train a base model on sums, worked out and not", lambda p: add_training(p, SFT_PRESETS, RunConfig, SFTConfig, BaseConfig), command_sft),
    "grpo": ("the main job: make a base model and let it learn by GRPO", lambda p: add_training(p, GRPO_PRESETS, RunConfig, GRPOConfig), command_grpo),
    "rm": ("InstructGPT, stages 1 and 2: SFT models, rankings and a reward model", lambda p: add_training(p, REWARD_MODEL_PRESETS, InstructConfig, RewardModelConfig),
           command_rm),
    "ppo": ("InstructGPT, stage 3: PPO against the reward model", lambda p: add_training(p, PPO_PRESETS, InstructConfig, PPOConfig), command_ppo),
    "dpo": ("the same rankings without a reward model", lambda p: add_training(p, DPO_PRESETS, InstructConfig, DPOConfig), command_dpo),
    "r1": ("DeepSeek-R1's stages: R1-Zero, cold start, RL, rejection sampling, SFT, RL; distillation", add_r1, command_r1),
    "sample": ("complete prompts, with the log-prob of every token", add_sample, command_sample),
    "eval": ("accuracy and pass@k on held-out problems", add_eval, command_eval),
    "equations": ("which function computes which equation of which paper", add_equations, command_equations),
    "plot": ("draw the curves of one run or several", add_plot, command_plot),
}
