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

import torch

from minirl.app.equations import markdown_index, show_equation, show_index
from minirl.app.looking import show_evaluation, show_samples
from minirl.app.plots import plot_runs
from minirl.app.instruct import (InstructConfig, choose_epoch, compare, comparison, epochs_table, make_policies, make_rankings, run_dpo, run_ppo, run_rm,
                                 split_rankings)
from minirl.app.presets import GRPO_PRESETS, PPO_PRESETS
from minirl.app.rundir import RunDir, free_name, newest_checkpoint, newest_run
from minirl.app.training import BaseConfig, CommonConfig, RunConfig, before_and_after, run_grpo, run_sft
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.precision import pick_device
from minirl.lm.tokenizer import TAGS, build_tokenizer, read_json
from minirl.tasks.arithmetic import SYMBOLS, Arithmetic
from minirl.tasks.instructions import WORDS, Instructions
from minirl.tasks.preferences import load_demonstrations
from minirl.train.dpo import DPO_PRESETS, DPOConfig
from minirl.train.grpo import GRPOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.reward_model import REWARD_MODEL_PRESETS, RewardModelConfig
from minirl.train.sft import SFT_PRESETS, SFTConfig

RUNS = Path("runs")


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
    source = "".join(inspect.getsource(c) for c in config.__mro__ if dataclasses.is_dataclass(c))
    comments = dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", source, re.MULTILINE))
    kinds = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        note = " ".join(filter(None, (comments.get(field.name), f"(default {field.default})"))).replace("%", "%%")
        parser.add_argument(flag(field.name), dest=field.name, type=kind, metavar=kind.__name__.upper(), default=None, help=note)


def given(config: type, args: argparse.Namespace) -> dict:
    """The fields of `config` that were given as flags, if it is one of the command's; another with a field of that name keeps its own."""
    if config not in args.configs:
        return {}
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(config) if getattr(args, f.name, None) is not None}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_training(parser: Parser, presets: dict, *configs: type) -> None:
    """What every training command has, and a flag for each field of `configs`."""
    parser.add_argument("--preset", choices=list(presets), default=None, help="a paper's settings; flags beside it win (default: the first)")
    parser.add_argument("--run-dir", type=Path, default=None, help="where the run is kept (default: the next free name under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut short (the newest, or --run-dir)")
    parser.add_argument("--profile", action="store_true", help="write a trace of a few steps, and print the share of each stage")
    for config in configs:
        add_config(parser, config)
    parser.set_defaults(configs=configs)


# training commands

def start_training(args: argparse.Namespace, name: str, configs: dict[str, type], presets: dict[str, dict]) -> tuple[RunDir, dict, torch.device]:
    """A new run directory with its config.json, or a resumed one with the configuration it was started with."""
    if args.resume:
        run = RunDir.resume(args.run_dir or newest_run(RUNS, name))
        flags = [flag(key) for config in configs.values() for key in given(config, args)] + (["--preset"] if args.preset else [])
        if flags:
            raise ValueError(f"{flags[0]} is given with --resume, but a resumed run keeps the numbers in {run.path / 'config.json'}: leave it out, or start "
                             "a new run with --init")
        if run.config.get("command") != name:
            raise ValueError(f"{run.path} is a run of minirl {run.config.get('command')}: resume it with that command")
        built = {key: config(**run.config[key]) for key, config in configs.items()}
    else:
        preset = args.preset or next(iter(presets))
        built = {key: config(**((presets[preset] if key == name else {}) | given(config, args))) for key, config in configs.items()}
        check_inputs(built)
        config = {"command": name, "preset": preset, **{key: dataclasses.asdict(value) for key, value in built.items()},
                  "torch": torch.__version__, "threads": torch.get_num_threads()}
        run = RunDir.create(args.run_dir or free_name(RUNS, name), config)
        if built[name].lr < 1e-4 and built["run"].init is None:
            print(f"note: the preset's learning rate, {built[name].lr:g}, is for a model of billions of parameters; the toy model wants about "
                  f"{configs[name]().lr:g}: add --lr {configs[name]().lr:g}")
    device = pick_device(built["run"].device)
    return run, built, device


def check_inputs(built: dict) -> None:
    """What a run would read is there and whole: asked before a folder is made."""
    common = built["run"]
    pick_device(common.device)
    if isinstance(common, RunConfig):
        Arithmetic(common.task, common.digits)
    tokenizer = None if common.init is None else load_pretrained(common.init)[1]
    if getattr(built.get("base"), "data", None) is not None:
        load_demonstrations(built["base"].data)
    if isinstance(common, InstructConfig):
        if common.rankings is not None:
            split_rankings(common)
        if common.reward_model is not None and "rm" in built:
            raise ValueError("--reward-model is given to minirl rm, which trains one: leave it out, or use minirl ppo or minirl dpo")
        if common.reward_model is not None:
            check_tokenizers(common, tokenizer)


def check_tokenizers(common: InstructConfig, tokenizer) -> None:
    """A reward model must read the policy's ids: the same tokens, under the same numbers."""
    tokenizer = tokenizer or build_tokenizer(special_tokens=(*TAGS, *WORDS))
    _, other = load_reward_model(common.reward_model)
    if tokenizer.backend.get_vocab() != other.backend.get_vocab() or tokenizer.stop_ids != other.stop_ids:
        raise ValueError(f"the reward model {common.reward_model} and the policy {common.init or 'of this toy'} have different tokenizers ({other.vocab_size} and "
                         f"{tokenizer.vocab_size} tokens): it would read other words than the policy writes; use a reward model that was trained from this policy")


def command_sft(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "sft", {"run": RunConfig, "base": BaseConfig, "sft": SFTConfig}, SFT_PRESETS)
    print(f"minirl sft: {described(built, device)} -> {run.path}/")
    summary = read_json(run.path / "summary.json") if run.finished else run_sft(run, built["base"], built["sft"], built["run"], device=device,
                                                                                             profile=args.profile)
    found = (f"accuracy {summary['accuracy']:.3f}, mean response length {summary['mean_length']:.1f} tokens on held-out problems" if "accuracy" in summary
             else f"loss {summary['loss']:.3f} nats per token in the last step")
    print(f"{found}; {summary['seconds']:.0f} s")
    print(f"{run.path}/ holds curves.png, metrics.jsonl and final/. Next: minirl grpo --init {run.path}/final")


def command_grpo(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "grpo", {"run": RunConfig, "base": BaseConfig, "sft": SFTConfig, "grpo": GRPOConfig},
                                        {name: preset.numbers for name, preset in GRPO_PRESETS.items()})
    print(f"minirl grpo: {described(built, device)} -> {run.path}/", flush=True)
    if finished(run):
        return
    preset = GRPO_PRESETS[run.config["preset"]]
    before, after, summary = run_grpo(run, built["base"], built["sft"], built["grpo"], built["run"], preset, device=device, profile=args.profile)
    print("\n" + before_and_after(before, after))
    print(f"\n{summary['seconds']:.0f} s. {run.path}/ holds curves.png, samples.md, summary.json, metrics.jsonl and final/ (Hugging Face layout).")
    print("Next: minirl sample '123+456='  |  minirl eval  |  minirl plot")


def described(built: dict, device: torch.device) -> str:
    common = built["run"]
    where = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    start = f"from {common.init}" if common.init else "from nothing" if "sft" in built and "grpo" not in built else "from a base model trained here first"
    return f"{subject(common)}, {start}, seed {common.seed}, {where}"


def subject(common: CommonConfig) -> str:
    return f"{common.digits}-digit {common.task}" if isinstance(common, RunConfig) else "instructions with a known preference"


# the pipeline of InstructGPT

def prepare_reward_model(run: RunDir, built: dict, device: torch.device):
    """What ppo and dpo start from -> (policies, rankings, reward model, seconds so far)."""
    common = built["run"]
    policies = make_policies(run, common, device=device)
    rankings, held_out = make_rankings(run, policies, common, device=device)
    if common.reward_model is not None:
        return policies, rankings, load_reward_model(common.reward_model, device=device)[0], policies.seconds
    stage = run.stage("rm", "rm", rm=RewardModelConfig())
    summary = read_json(stage.path / "summary.json") if stage.finished else run_rm(stage, RewardModelConfig(), common, policies, rankings, held_out, device=device)
    return policies, rankings, load_reward_model(stage.path / "final", device=device)[0], policies.seconds + summary["seconds"]


def command_rm(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "rm", {"run": InstructConfig, "rm": RewardModelConfig}, REWARD_MODEL_PRESETS)
    common = built["run"]
    print(f"minirl rm: {described(built, device)} -> {run.path}/", flush=True)
    policies = make_policies(run, common, device=device, keep_epochs=True)
    rankings, held_out = make_rankings(run, policies, common, device=device)
    summary = read_json(run.path / "summary.json") if run.finished else run_rm(run, built["rm"], common, policies, rankings, held_out, device=device,
                                                                                       profile=args.profile)
    print(f"\n{summary['rankings']} rankings, {summary['comparisons']} comparisons; of {summary['held_out_comparisons']} held-out comparisons the reward model "
          f"decides {summary['pair_accuracy']:.1%} as the labeller did")
    if common.init is None:
        reward_model, tokenizer = load_reward_model(run.path / "final", device=device)
        print("\n" + epochs_table(choose_epoch(run, reward_model, tokenizer, common, device=device)))
    print(f"\n{policies.seconds + summary['seconds']:.0f} s. {run.path}/ holds calibration.png, curves.png, summary.json, metrics.jsonl and final/"
          + (", sft-epochs.png and rankings.jsonl." if common.init is None else "."))
    print(f"Next: minirl ppo {same_start(run, common, run.path / 'final')}")


def same_start(run: RunDir, common: InstructConfig, reward_model: Path | str) -> str:
    """The flags with which another run starts from the same policy, with the same reward model and rankings."""
    return (f"--init {common.init or run.path / 'rl-init' / 'final'} --reward-model {reward_model} "
            f"--rankings {common.rankings or run.path / 'rankings.jsonl'}")


def command_ppo(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "ppo", {"run": InstructConfig, "ppo": PPOConfig}, {name: preset.numbers for name, preset in PPO_PRESETS.items()})
    common, config = built["run"], built["ppo"]
    print(f"minirl ppo: {described(built, device)} -> {run.path}/", flush=True)
    if finished(run):
        return
    policies, rankings, reward_model, seconds = prepare_reward_model(run, built, device)
    other = run.stage("dpo", "dpo", dpo=DPOConfig())                     # on the same rankings, for comparison
    if not other.finished:
        run_dpo(other, DPOConfig(), common, policies, rankings, reward_model, device=device)
    control = PPO_PRESETS[run.config["preset"]].kl_control
    run_ppo(run, config, common, policies, reward_model, kl_control=control and control(config), device=device, profile=args.profile,
            seconds=seconds + read_json(other.path / "summary.json")["seconds"])
    found = compare(common, policies, reward_model, {"DPO": other.path / "final", "PPO": run.path / "final"}, device=device, max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature)
    show_comparison(run, found)
    print(f"Next, from the same start ({same_start(run, common, common.reward_model or run.path / 'rm' / 'final')}):")
    print("minirl ppo --kl-coef 0  (what happens without the penalty)  |  minirl ppo --preset ppo-ptx  |  minirl plot")


def command_dpo(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "dpo", {"run": InstructConfig, "dpo": DPOConfig}, DPO_PRESETS)
    common = built["run"]
    print(f"minirl dpo: {described(built, device)} -> {run.path}/", flush=True)
    if finished(run):
        return
    policies, rankings, reward_model, seconds = prepare_reward_model(run, built, device)
    run_dpo(run, built["dpo"], common, policies, rankings, reward_model, device=device, profile=args.profile, seconds=seconds)
    show_comparison(run, compare(common, policies, reward_model, {"DPO": run.path / "final"}, device=device))
    print(f"Next, from the same start: minirl ppo {same_start(run, common, common.reward_model or run.path / 'rm' / 'final')}")


def finished(run: RunDir) -> bool:
    if run.finished:
        print(f"this run is complete; its figures are in {run.path}/summary.json")
    return run.finished


def show_comparison(run: RunDir, found: dict) -> None:
    print("\n" + comparison(found))
    print(f"\n{read_json(run.path / 'summary.json')['seconds']:.0f} s. {run.path}/ holds curves.png, samples.md, summary.json, metrics.jsonl and final/ (Hugging Face layout).")


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
    print(f"{task.digits}-digit {task.operation}" if isinstance(task, Arithmetic) else "instructions")
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
    "sample": ("complete prompts, with the log-prob of every token", add_sample, command_sample),
    "eval": ("accuracy and pass@k on held-out problems", add_eval, command_eval),
    "equations": ("which function computes which equation of which paper", add_equations, command_equations),
    "plot": ("draw the curves of one run or several", add_plot, command_plot),
}
