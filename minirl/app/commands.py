"""What the commands do: open a run directory or a checkpoint, call what does the work, and say what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import random
import shlex
import sys
from pathlib import Path

import torch

from minirl.app.flags import flag
from minirl.app.instruct import InstructConfig, choose_epoch, compare, make_policies, make_rankings, run_dpo, run_ppo, run_rm
from minirl.app.looking import check_ks, show_evaluation, show_samples
from minirl.app.measure import comparison, epochs_table
from minirl.app.plots import plot_runs
from minirl.app.preflight import preflight
from minirl.app.presets import GRPO_PRESETS, PPO_PRESETS, R1_PRESETS
from minirl.app.r1 import R1RunConfig, run_r1, stages_table
from minirl.app.rundir import RUNS, RunDir, newest_checkpoint, newest_run
from minirl.app.training import BaseConfig, CommonConfig, RunConfig, before_and_after, run_grpo, run_sft
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.precision import pick_device, slowdown
from minirl.lm.sampling import check_choices
from minirl.lm.tokenizer import read_json
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.instructions import Instructions
from minirl.train.dpo import DPO_PRESETS, DPOConfig
from minirl.train.grpo import GRPOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.r1 import R1Config
from minirl.train.reward_model import REWARD_MODEL_PRESETS, RewardModelConfig
from minirl.train.sft import SFT_PRESETS, SFTConfig

MOST = 2 ** 20           # problems, or samples of one


# training

def given(config: type, args: argparse.Namespace) -> dict:
    """The fields of `config` that were given as flags, if it is one of the command's; another with a field of that name keeps its own."""
    if f"{config.__module__}.{config.__name__}" not in args.configs:
        return {}
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(config) if getattr(args, f.name, None) is not None}


def start_training(args: argparse.Namespace, name: str, configs: dict[str, type],
                   presets: dict[str, dict[str, dict]]) -> tuple[RunDir, dict, torch.device]:
    """A new run directory with its config.json, or a resumed one with the configuration it was started with.

    A preset has numbers for some of the configurations.
    """
    flags = [field for config in configs.values() for field in given(config, args)]
    if args.resume:
        path = newest_run(RUNS, name) if args.run_dir is None else args.run_dir
        if flags or args.preset:
            raise ValueError(f"{flag(flags[0] if flags else 'preset')} is given with --resume, but a resumed run keeps "
                             f"the numbers in {path / 'config.json'}: leave it out, or start a new run with --init")
        run = RunDir.resume(path, command=name)
        built = {key: run.read_config(key, config) for key, config in configs.items()}
    else:
        preset = args.preset or next(iter(presets))
        built = {key: config(**(presets[preset].get(key, {}) | given(config, args))) for key, config in configs.items()}
        preflight(name, built, preset, flags)
        config = {"command": name, "preset": preset, **{key: dataclasses.asdict(value) for key, value in built.items()},
                  "torch": torch.__version__, "threads": torch.get_num_threads()}
        run = RunDir.create_free(RUNS, name, config) if args.run_dir is None else RunDir.create(args.run_dir, config)
        if getattr(built.get(name), "lr", 1.0) < 1e-4 and built["run"].init is None:
            print(f"note: the preset's learning rate, {built[name].lr:g}, is for a model of billions of parameters; "
                  f"the toy model wants about {configs[name]().lr:g}: add --lr {configs[name]().lr:g}")
    device = pick_device(built["run"].device)
    say_what_it_costs(built["run"].dtype, device)
    return run, built, device


def say_what_it_costs(dtype: str, device: torch.device) -> None:
    """A line on stderr where a lower precision makes a CPU slower instead of faster."""
    if device.type == "cpu" and dtype != "float32" and (times := slowdown(dtype)) > 1.5:
        print(f"note: this processor computes matrix products in {dtype} {times:.0f} times as slowly as in float32: "
              "it has no instructions for it", file=sys.stderr)


def numbers(name: str, presets: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """Presets of the one configuration `name`."""
    return {preset: {name: found} for preset, found in presets.items()}


def command_sft(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "sft", {"run": RunConfig, "base": BaseConfig, "sft": SFTConfig}, numbers("sft", SFT_PRESETS))
    print(f"minirl sft: {described(built, device)} -> {run.path}/")
    summary = read_json(run.path / "summary.json") if run.finished else run_sft(run, built["base"], built["sft"], built["run"], device=device,
                                                                                             profile=args.profile)
    found = (f"accuracy {summary['accuracy']:.3f}, mean response length {summary['mean_length']:.1f} tokens on held-out problems" if "accuracy" in summary
             else f"loss {summary['loss']:.3f} nats per token in the last step")
    print(f"{found}; {summary['seconds']:.0f} s")
    print(f"{run.path}/ holds curves.png, metrics.jsonl and final/. Next: minirl grpo --init {quoted(run.path / 'final')}")


def command_grpo(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "grpo", {"run": RunConfig, "base": BaseConfig, "sft": SFTConfig, "grpo": GRPOConfig},
                                        numbers("grpo", {name: preset.numbers for name, preset in GRPO_PRESETS.items()}))
    print(f"minirl grpo: {described(built, device)} -> {run.path}/", flush=True)
    if finished(run):
        return
    preset = GRPO_PRESETS[run.config["preset"]]
    before, after, summary = run_grpo(run, built["base"], built["sft"], built["grpo"], built["run"], preset, device=device, profile=args.profile)
    print("\n" + before_and_after(before, after))
    print(f"\n{summary['seconds']:.0f} s. {run.path}/ holds curves.png, samples.md, summary.json, metrics.jsonl"
          "\nand final/, a checkpoint in Hugging Face layout.")
    print("Next: minirl sample '123+456='  |  minirl eval  |  minirl plot")


def described(built: dict, device: torch.device) -> str:
    common = built["run"]
    where = f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    start = f"from {common.init}" if common.init else "from nothing" if "sft" in built and "grpo" not in built else "from a new base model"
    return f"{subject(common)}, {start}, seed {common.seed}, {where}"


def subject(common: CommonConfig) -> str:
    if isinstance(common, R1RunConfig):
        return f"sums and stories in two languages, reasoning in {'that of the prompt' if common.language == 'prompt' else common.language}"
    return f"{common.digits}-digit {common.task}" if isinstance(common, RunConfig) else "instructions with a known preference"


# pipelines

def command_r1(args: argparse.Namespace) -> None:
    if args.profile:
        raise ValueError("--profile is for commands of one page: profile minirl grpo or minirl sft, from a stage's --init")
    run, built, device = start_training(args, "r1", {"run": R1RunConfig, "r1": R1Config}, R1_PRESETS)
    common = built["run"]
    print(f"minirl r1: {described(built, device)} -> {run.path}/", flush=True)
    if finished(run):
        return
    measured = run_r1(run, built["r1"], common, device=device)
    print("\n" + stages_table(measured, common))
    figures = "stages.png, hacking.png" if common.too_long else "stages.png"
    print(f"\n{read_json(run.path / 'summary.json')['seconds']:.0f} s. {run.path}/ holds {figures}, stages.json, summary.json, a folder per stage and final/ (Hugging Face layout).")
    if common.language == "prompt":
        length = "" if common.number_length == R1RunConfig.number_length else f" --number-length {common.number_length}"
        print(f"Next: minirl r1 --language ko{length} --init {quoted(common.init or run.path / 'base' / 'final')}")


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
    run, built, device = start_training(args, "rm", {"run": InstructConfig, "rm": RewardModelConfig}, numbers("rm", REWARD_MODEL_PRESETS))
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
    return (f"--init {quoted(common.init or run.path / 'rl-init' / 'final')} --reward-model {quoted(reward_model)} "
            f"--rankings {quoted(common.rankings or run.path / 'rankings.jsonl')}")


def quoted(path: Path | str) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))


def command_ppo(args: argparse.Namespace) -> None:
    run, built, device = start_training(args, "ppo", {"run": InstructConfig, "ppo": PPOConfig}, numbers("ppo", {name: preset.numbers for name, preset in PPO_PRESETS.items()}))
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
    run, built, device = start_training(args, "dpo", {"run": InstructConfig, "dpo": DPOConfig}, numbers("dpo", DPO_PRESETS))
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
    print(f"\n{read_json(run.path / 'summary.json')['seconds']:.0f} s. {run.path}/ holds curves.png, samples.md, summary.json, metrics.jsonl"
          "\nand final/, a checkpoint in Hugging Face layout.")


# looking

def open_checkpoint(args: argparse.Namespace):
    """The checkpoint that --init names, or the newest run's -> (its path, model, tokenizer, the run's task)."""
    device = pick_device(args.device)
    path = args.init if args.init is not None else newest_checkpoint(RUNS)
    if path is None:
        print("no trained model under runs/ yet: training the base model first", file=sys.stderr)
        run = RunDir.create_free(RUNS, "sft", {"command": "sft", "preset": "toy", "run": dataclasses.asdict(RunConfig()),
                                               "base": dataclasses.asdict(BaseConfig()), "sft": dataclasses.asdict(SFTConfig())})
        run_sft(run, BaseConfig(), SFTConfig(), RunConfig(), device=device)
        path = run.path / "final"
    model, tokenizer = load_pretrained(path, device=device)
    say_what_it_costs(args.dtype, device)
    return path, model, tokenizer, task_of(read_json(Path(path).parent / "config.json").get("run", {}), args)


def task_of(trained_on: dict, args: argparse.Namespace):
    """The task that a run's configuration names, or --task and --digits where the command has them."""
    task, digits = getattr(args, "task", None), getattr(args, "digits", None)
    sums = not trained_on or "digits" in trained_on
    if not sums and (task is not None or digits is not None):
        raise ValueError(f"{'--digits' if task is None else '--task'} is given, but the checkpoint's run did not "
                         "learn sums of one kind: leave it out, and its own task is evaluated")
    if "number_length" in trained_on:
        settings = R1RunConfig(language=trained_on["language"], number_length=trained_on["number_length"])
        return settings.of_length(settings.number_length)
    if not sums:
        return Instructions()
    return Arithmetic(trained_on.get("task", RunConfig.task) if task is None else task,
                      trained_on.get("digits", RunConfig.digits) if digits is None else digits)


def check_looking(args: argparse.Namespace, **counts: int) -> None:
    """Raise ValueError for numbers that no checkpoint could be asked with: before one is read."""
    CommonConfig(seed=args.seed, device=args.device, dtype=args.dtype)
    check_choices(group=1, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                  top_k=getattr(args, "top_k", 0), top_p=getattr(args, "top_p", 1.0))
    for name, count in counts.items():
        if not 1 <= count <= MOST:
            raise ValueError(f"{name} is {count}: 1 to {MOST:,} is wanted")


def command_sample(args: argparse.Namespace) -> None:
    check_looking(args, n=args.n)
    path, model, tokenizer, task = open_checkpoint(args)
    prompts = args.prompts or [p.prompt for p in task.sample(2, random.Random(args.seed), split="test")]
    text = show_samples(model, tokenizer, prompts, n=args.n, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                        max_new_tokens=args.max_new_tokens, seed=args.seed, dtype=args.dtype, numbers=args.logprobs)
    print(f"checkpoint: {path}", file=sys.stderr)
    print(text)


def command_eval(args: argparse.Namespace) -> None:
    check_looking(args, problems=args.problems, samples=args.samples)
    if args.digits is not None or args.task is not None:
        Arithmetic(args.task or RunConfig.task, RunConfig.digits if args.digits is None else args.digits)
    ks = args.k or sorted({k for k in (1, 4, 8) if k <= args.samples})
    check_ks(ks, args.samples)
    path, model, tokenizer, task = open_checkpoint(args)
    text = show_evaluation(model, tokenizer, task, problems=args.problems, samples=args.samples, ks=ks, temperature=args.temperature,
                           max_new_tokens=args.max_new_tokens, seed=args.seed, dtype=args.dtype)
    print(f"checkpoint: {path}", file=sys.stderr)
    print(f"{task.digits}-digit {task.operation}" if isinstance(task, Arithmetic) else type(task).__name__.lower())
    print(text)


def command_plot(args: argparse.Namespace) -> None:
    paths = args.runs or [path for path in sorted(path.parent for path in RUNS.glob("*/metrics.jsonl")) if RunDir(path).metrics()]
    if not paths:
        raise ValueError("there is no run under runs/ to plot: train one (minirl grpo), or name its folder")
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no run directory: name folders such as runs/grpo")
    if not args.out.parent.is_dir():
        raise ValueError(f"there is no folder {args.out.parent} for {args.out.name}: make it, or name another file with --out")
    plot_runs([RunDir(path) for path in paths], args.out)
    print(f"{args.out}: {', '.join(str(path) for path in paths)}")
