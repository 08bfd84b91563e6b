"""The command line: which commands there are, which flags they take, and how an error reads.

Nothing here imports torch. The flags come from the source of the configuration dataclasses
(flags.py), and what a command does is imported when it runs. So help and a mistyped flag take a
moment.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from minirl.app.flags import LESS_MEMORY, fields_of, keys_of
from minirl.app.survival import Stopped, catching_signals
from minirl.app.tasks import TASKS
from minirl.lm.text import WIDTH, flag, visible

TYPES = {"int": int, "float": float, "str": str}


class Parser(argparse.ArgumentParser):
    """Errors in one line that says what to do."""

    def error(self, message: str) -> typing.NoReturn:
        print(f"{self.prog}: {visible(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> its exit code: 0, 2 for the user's errors, 128 + n for signal n."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                    # a terminal that shows ASCII alone
            stream.reconfigure(errors="backslashreplace")
    prog, resumable = "minirl", False
    try:
        with catching_signals(end):
            args = parse(list(sys.argv[1:] if argv is None else argv))
            if args is None:
                return 0
            prog, resumable = f"minirl {args.command}", hasattr(args, "resume")
            module, name = COMMANDS[args.command].function.split(":")
            return getattr(importlib.import_module(module), name)(args) or 0
    except KeyboardInterrupt as stop:
        code = getattr(stop, "code", 128 + signal.SIGINT)
        advice = (f"; its last checkpoint is kept: go on with {prog} --resume"
                  if resumable else "")
        message = str(stop) or f"stopped by {signal.Signals(code - 128).name}{advice}"
        print(f"\n{prog}: {message}", file=sys.stderr)
        return code
    except BrokenPipeError:                                   # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if os.environ.get("MINIRL_TRACEBACK") or not (
                message := explanation(error, training=resumable)):
            raise
        print(f"{prog}: {visible(' '.join(message.split()))}", file=sys.stderr)
        return 2


def explanation(error: Exception, *, training: bool = False) -> str:
    """Return what to tell the user of an error; "" where it is our fault: the traceback helps.

    Where memory ran out, torch raises an OutOfMemoryError on CUDA, and a RuntimeError on a CPU.
    """
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    if isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error):
        first = str(error).strip().splitlines()[0] if str(error) else "MemoryError"
        advice = LESS_MEMORY if training else "take fewer rows, shorter ones, or a smaller model"
        return f"there is not enough memory for this: {advice} ({first:.200})"
    return ""


def end(number: int, frame: FrameType | None) -> None:
    """End the command at SIGTERM, SIGHUP or Ctrl-C, where no run catches them itself."""
    raise Stopped("", number)


def parse(argv: list[str]) -> argparse.Namespace | None:
    """Return the arguments of a command; None where only help was asked for."""
    parser, commands = build_parser()
    for text in argv:
        if any("\ud800" <= c <= "\udfff" for c in text):      # how Python holds bytes of no text
            parser.error(f"the argument {text[:40]!r} is not UTF-8 text")
    args, unknown = parser.parse_known_args(argv)
    if args.command is None:
        if unknown:
            parser.error(f"unknown argument {unknown[0]}")
        parser.print_help()
        return None
    if unknown:
        command = commands[args.command]
        flags = [option for action in command._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        command.error(f"unknown argument {unknown[0]}"
                      + (f" (did you mean {near[0]}?)" if near else ""))
    return args


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and that of each command by name."""
    def form(prog: str) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(prog, max_help_position=28, width=WIDTH)

    parser = Parser(prog="minirl", allow_abbrev=False, formatter_class=form,
                    description="Reinforcement learning for language models, small enough to read.")
    subparsers = parser.add_subparsers(dest="command", metavar="command", parser_class=Parser)
    commands = {}
    for name, command in COMMANDS.items():
        commands[name] = subparsers.add_parser(
            name, help=command.summary, description=command.summary, allow_abbrev=False,
            formatter_class=form)
        command.add_flags(commands[name])
    return parser, commands


# flags

def add_config(parser: Parser, config: str) -> None:
    """Add a flag for each field of a dataclass. One that is not given is None. GRPO's options stand
    behind the others."""
    group = parser.add_argument_group("options beyond the paper, all off")
    beyond = {field.name for field in fields_of("minirl.train.options.GRPOOptions")}
    for field in fields_of(config):
        place = group if config.endswith("GRPOConfig") and field.name in beyond else parser
        default = "" if field.default in (None, ()) else f"(default {field.default})"
        note = " ".join(filter(None, (field.help, default))).replace("%", "%%")
        one = field.kind.removeprefix("tuple[").removesuffix(", ...]")
        kind = TYPES.get(one, truth)
        more: dict[str, typing.Any] = {} if one == field.kind else {"nargs": "+",
                                                                    "action": "extend"}
        place.add_argument(flag(field.name), dest=field.name, type=kind, default=None, help=note,
                           metavar="BOOL" if kind is truth else one.upper(), **more)


def truth(text: str) -> bool:
    """Return what a flag for a bool means. argparse's bool("false") is True."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: true or false is wanted")
    return text.lower() == "true"


def training(presets: str, *configs: str) -> Callable[[Parser], None]:
    """Return what adds the flags of every training command, and the fields of `configs`."""
    def add(parser: Parser) -> None:
        names = keys_of(presets)
        parser.usage = "%(prog)s [flags]"
        parser.add_argument("--preset", choices=names, metavar="NAME", default=None,
                            help=f"{', '.join(names)}: a paper's settings, or a variant; flags "
                                 f"beside it win (default {names[0]})")
        parser.add_argument("--run-dir", type=Path, default=None, metavar="FOLDER",
                            help="where the run is kept (default: the next free name under runs/)")
        parser.add_argument("--resume", action="store_true",
                            help="go on with a run that was cut short (the newest, or --run-dir)")
        parser.add_argument("--profile", action="store_true",
                            help="write a trace of a few steps, and print the share of each stage")
        for config in configs:
            add_config(parser, config)
        parser.set_defaults(configs=configs)

    return add


def add_r1(parser: Parser) -> None:
    training("minirl.train.presets.R1_PRESETS", "minirl.app.r1.R1Settings",
             "minirl.train.r1.R1Config")(parser)
    parser.add_argument("--fast", dest="preset", action="store_const", const="fast",
                        help="a smaller toy that takes a minute: --preset fast")


def add_policy(parser: Parser) -> None:
    parser.add_argument("--init", default=None, metavar="CHECKPOINT",
                        help="folder or hub id (default: the newest runs/*/final)")
    parser.add_argument("--temperature", type=float, default=1.0,
                        help="0 takes the likeliest token (default 1)")
    parser.add_argument("--max-new-tokens", type=int, default=80, help="(default 80)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    add_chat(parser)


def add_chat(parser: Parser) -> None:
    parser.add_argument("--system-prompt", default=None, metavar="TEXT",
                        help="what a chat model is told first (default: as in the model's run)")
    parser.add_argument("--chat-template", default=None, metavar="FILE",
                        help="Jinja; auto: the model's own, if it has one; none: prompts as they "
                             "are (default: as in the model's run, or auto)")
    parser.add_argument("--chat-template-kwargs", default=None, metavar="JSON",
                        help="what the template reads, as {\"enable_thinking\": false}")


def add_checkpoint(parser: Parser) -> None:
    add_policy(parser)
    parser.add_argument("--dtype", default="float32",
                        help="float32, bfloat16 or float16 for matrix products (default float32)")


def add_task(parser: Parser) -> None:
    parser.add_argument("--task", default=None,
                        help=f"{', '.join(TASKS)}:NAME (default: what the run was trained on)")
    parser.add_argument("--data", default=None, metavar="FILE",
                        help="your problems, all of them; of a file that the run learnt from, "
                             "those held out")
    parser.add_argument("--task-config", default=None, metavar="JSON",
                        help="of reasoning_gym, such as {\"max_terms\": 3}")
    parser.add_argument("--max-tool-calls", type=int, default=None, metavar="N",
                        help="of one completion, where it may call tools (default: the run's)")


def add_sample(parser: Parser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT",
                        help="text to complete (default: two held-out problems)")
    parser.add_argument("-n", type=int, default=2, help="completions per prompt (default 2)")
    add_task(parser)
    parser.add_argument("--top-k", type=int, default=0, help="0 is off (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off (default)")
    parser.add_argument("--min-p", type=float, default=0.0, help="0 is off (default)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is off (default)")
    parser.add_argument("--logprobs", action="store_true",
                        help="the log-prob of every token, in numbers")
    add_checkpoint(parser)


def add_eval(parser: Parser) -> None:
    add_task(parser)
    parser.add_argument("--digits", type=int, default=None,
                        help="1 to 5, of sums (default: what the run was trained on)")
    parser.add_argument("--problems", type=int, default=256, help="(default 256)")
    parser.add_argument("--samples", type=int, default=8,
                        help="completions per problem (default 8)")
    parser.add_argument("--k", type=int, nargs="+", default=None,
                        help="pass@k for these k (default: 1, 4, 8, up to --samples)")
    parser.add_argument("--voting", type=int, default=None, metavar="N",
                        help="how often the commonest answer of N samples is right")
    parser.add_argument("--best-of", type=int, default=None, metavar="N",
                        help="how often the one of N samples is right that --reward likes best")
    parser.add_argument("--reward", default=None, metavar="CHECKPOINT",
                        help="a reward model's folder, such as runs/prm/final or runs/rm/final")
    parser.add_argument("--how", choices=["last", "min", "product"], default=None,
                        help="the score of a solution from those of its steps (default last)")
    add_checkpoint(parser)


def add_precision(parser: Parser) -> None:
    parser.add_argument("--problems", type=int, default=64, help="(default 64)")
    parser.add_argument("--samples", type=int, default=8,
                        help="completions per problem (default 8)")
    parser.add_argument("--steps", type=int, default=150,
                        help="of training in float16, for the scale of the loss (default 150)")
    parser.add_argument("-o", "--out", type=Path, default=Path("precision.png"),
                        help="(default precision.png)")
    parser.add_argument("--batch-invariant", action="store_true",
                        help="with the arithmetic in which sampler and learner agree")
    add_task(parser)
    add_policy(parser)
    parser.set_defaults(dtype="float32")


def add_trace(parser: Parser) -> None:
    parser.add_argument("checkpoint", nargs="?", default=None, metavar="CHECKPOINT",
                        help="folder or hub id (default: the newest runs/*/final)")
    parser.add_argument("--prompt", default=None, help="(default: a problem of the run's task)")
    parser.add_argument("--answer", default=None, help="what is right (default: a sum's result)")
    parser.add_argument("--page", choices=["grpo", "ppo"], default=None,
                        help="what trains (default: as the checkpoint's run, or grpo)")
    parser.add_argument("--preset", default=None, metavar="NAME",
                        help="as of minirl grpo or ppo (default: that of the checkpoint's run)")
    parser.add_argument("--group-size", type=int, default=4, help="completions (default 4)")
    parser.add_argument("--updates", type=int, default=2,
                        help="on the same completions: at the first all ratios are 1 (default 2)")
    parser.add_argument("--steps", type=int, default=1, help="the last is shown (default 1)")
    parser.add_argument("--lr", type=float, default=None, help="(default: the run's)")
    parser.add_argument("--reward-model", default=None, metavar="FOLDER",
                        help="judges, and is PPO's first value function, such as runs/rm/final")
    parser.add_argument("--row", type=int, default=None,
                        help="the completion that is printed (default: of most of the gradient)")
    parser.add_argument("-o", "--out", type=Path, default=Path("trace.html"),
                        help="(default trace.html)")
    parser.add_argument("--temperature", type=float, default=1.0, help="(default 1)")
    parser.add_argument("--max-new-tokens", type=int, default=80, help="(default 80)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--dtype", default="float32",
                        help="float32, bfloat16 or float16 for matrix products (default float32)")
    add_chat(parser)


def add_plot(parser: Parser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN",
                        help="run directories (default: every run under runs/)")
    parser.add_argument("-o", "--out", type=Path, default=Path("curves.png"),
                        help="(default curves.png)")


def add_report(parser: Parser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN",
                        help="run directories (default: the newest run under runs/)")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"),
                        help="(default report.html)")


def add_equations(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", default=None, metavar="NAME",
                        help="one function, such as kl.k3: its docstring, source and example")
    parser.add_argument("--markdown", action="store_true",
                        help="the index as tutorials/EQUATIONS.md holds it")


def add_check(parser: Parser) -> None:
    parser.add_argument("function", nargs="?", default=None, metavar="MODULE:FUNCTION",
                        help="such as my_module:my_loss, from this folder or installed")
    parser.add_argument("--against", default=None, metavar="NAME",
                        help="what it should compute: grpo, clipped_surrogate, k3, ...")
    parser.add_argument("--list", action="store_true", help="all names for --against")
    parser.add_argument("--sign", choices=["maximise", "minimise"], default="maximise",
                        help="minimise for a loss (default maximise)")
    parser.add_argument("--reduced", default=None, metavar="MEAN",
                        help="it takes the mask last and returns the mean: sequence_mean, ...")
    parser.add_argument("--fixed", nargs="+", default=(), metavar="NAME=VALUE",
                        help="numbers that are built into it, such as clip_high=0.28")
    parser.add_argument("--per-sequence", nargs="+", default=(), metavar="NAME",
                        help="arguments of which it takes one per completion, such as adv")
    parser.add_argument("--arrays", choices=["torch", "numpy", "jax"], default="torch",
                        help="what it computes with (default torch)")


def add_mine(parser: Parser) -> None:
    for name, note in (("input", "the pages: JSONL with text and url, or plain text"),
                       ("seeds", "pages like those that are wanted"),
                       ("benchmarks", "texts that must not be in what is kept")):
        parser.add_argument(f"--{name}", nargs="+", type=Path, default=None, metavar="FILE",
                            help=note)
    parser.add_argument("--pages", type=int, default=None,
                        help="without --input: of a synthetic web (default 20000)")
    parser.add_argument("--run-dir", type=Path, default=None, metavar="FOLDER",
                        help="where the run is kept (default: the next free name under runs/)")
    parser.add_argument("--resume", action="store_true",
                        help="go on with a run that was cut short (the newest, or --run-dir)")
    add_config(parser, "minirl.corpus.mining.MineConfig")
    parser.set_defaults(configs=["minirl.corpus.mining.MineConfig"])


class Command(NamedTuple):
    """What a command is for, which flags it takes, and what runs it: "module:function"."""

    summary: str
    add_flags: Callable[[Parser], None]
    function: str


TRAIN = "minirl.app.commands:train"
SUMS, INSTRUCT = "minirl.app.sums.SumsSettings", "minirl.app.instructgpt.InstructSettings"
COMMANDS = {
    "sft": Command(
        "train a base model on sums, worked out and not",
        training("minirl.train.presets.SFT_PRESETS", SUMS, "minirl.train.sft.SFTConfig",
                 "minirl.app.sums.BaseConfig"), TRAIN),
    "grpo": Command(
        "the main job: make a base model and let it learn by GRPO",
        training("minirl.train.presets.GRPO_PRESETS", "minirl.app.sums.GRPOSettings",
                 "minirl.train.grpo.GRPOConfig"), TRAIN),
    "rm": Command(
        "InstructGPT, stages 1 and 2: SFT models, rankings and a reward model",
        training("minirl.train.presets.RM_PRESETS", INSTRUCT,
                 "minirl.train.reward_model.RewardModelConfig"), TRAIN),
    "prm": Command(
        "a process reward model: steps labelled by sampling from them, held against the truth",
        training("minirl.train.presets.PRM_PRESETS", "minirl.app.prm.StepSettings",
                 "minirl.train.process_reward.ProcessRewardConfig"), TRAIN),
    "ppo": Command(
        "InstructGPT, stage 3: PPO against the reward model; or PPO on a --task",
        training("minirl.train.presets.PPO_PRESETS", "minirl.app.ppo.PPOSettings",
                 "minirl.train.ppo.PPOConfig"), TRAIN),
    "dpo": Command(
        "the same rankings without a reward model",
        training("minirl.train.presets.DPO_PRESETS", INSTRUCT, "minirl.train.dpo.DPOConfig"),
        TRAIN),
    "distill": Command(
        "a small model learns from a teacher, on its own samples",
        training("minirl.train.presets.DISTILL_PRESETS", "minirl.app.distill.DistillSettings",
                 "minirl.train.distill.DistillConfig"), TRAIN),
    "r1": Command(
        "DeepSeek-R1's stages: R1-Zero, cold start, RL, rejection sampling, SFT, RL; distillation",
        add_r1, TRAIN),
    "search": Command(
        "what tokens buy at inference time: votes, the best of n, beam search, beside theory",
        training("minirl.train.presets.SEARCH_PRESETS", "minirl.app.search.SearchSettings",
                 "minirl.train.search.SearchConfig"), TRAIN),
    "sample": Command("complete prompts, and see how sure the model was of each token", add_sample,
                      "minirl.app.commands:command_sample"),
    "eval": Command("accuracy and pass@k on held-out problems", add_eval,
                    "minirl.app.commands:command_eval"),
    "equations": Command("which function computes which equation of which paper", add_equations,
                         "minirl.app.equations:command_equations"),
    "check": Command("hold your own loss against ground truth, and hear what is wrong with it",
                     add_check, "minirl.app.check:command_check"),
    "mine": Command("DeepSeekMath's corpus: find the mathematical pages of a web, in rounds",
                    add_mine, "minirl.app.mine:command_mine"),
    "precision": Command("what float16 and bfloat16 do to sampler, learner and updates",
                         add_precision, "minirl.app.precision:command_precision"),
    "trace": Command("one GRPO or PPO step, token by token, as an HTML page and in the terminal",
                     add_trace, "minirl.app.trace:command_trace"),
    "report": Command("a run as an HTML page: curves, samples over time, configuration",
                      add_report, "minirl.app.report:command_report"),
    "plot": Command("draw the curves of one run or several", add_plot,
                    "minirl.app.commands:command_plot"),
}
