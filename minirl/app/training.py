"""The training commands: what `minirl sft` and `minirl grpo` do around their pages."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from minirl.app.evaluate import Evaluation, evaluate
from minirl.app.plots import plot_runs
from minirl.app.presets import GRPOPreset
from minirl.train.profiling import profiled
from minirl.app.progress import Progress
from minirl.app.rundir import RunDir, RunLog
from minirl.app.text import code_span, hanging, table
from minirl.inference.intervals import wilson_interval
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import SIZES, TinySizes, make_base
from minirl.lm.tokenizer import read_json
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.preferences import load_demonstrations
from minirl.tasks.rewards import accuracy
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.checks import POSITIVE, SHARE, SIDE_BY_SIDE, check_fields

SHOWN = 3                # problems that a run shows before and after
CPU_FLOPS = 1e11         # about what two cores reach in float32
READ = "[1, 16777216]"   # texts that are read: each is made and encoded before the first step
INTERVALS = {            # of the fields of run configurations, here and in instruct.py and r1.py
    **dict.fromkeys((*SIZES, "eval_problems", "checkpoint_every", "best_of", "samples"), SIDE_BY_SIDE),
    **dict.fromkeys(("examples", "demonstrations", "ranked_prompts", "general_examples",
                     "cold_start_examples"), READ),
    **dict.fromkeys(("worked_share", "guessed_share", "right_share"), SHARE),
    **dict.fromkeys(("digits", "number_length"), "[1, 5]"), "labeller_noise": POSITIVE,
    "seed": "[0, 9223372036854775807]", "small": "[0, 65536]", "too_long": "[0, 1000000]"}
PAYS_FROM = 300          # seconds of matrix products: compiling costs up to a minute, and saves a tenth to a third of a step


@dataclass(frozen=True)
class BaseConfig(TinySizes):
    """The base model and what it reads: sizes, and how many demonstrations, of which a share is worked out and the rest answered at once."""

    examples: int = 24_000             # demonstrations
    worked_share: float = 0.5          # of them worked out
    guessed_share: float = 0.5         # of those answered at once a guess: haste errs
    data: str | None = None            # JSONL of demonstrations to read instead (TRL's format: prompt, completion)

    def __post_init__(self):
        check_fields(self, **INTERVALS)


@dataclass(frozen=True)
class CommonConfig:
    """What every training command takes beside its page's numbers."""

    seed: int = 0
    device: str = "auto"               # auto, cpu or cuda
    dtype: str = "float32"             # of the matrix products: float32 or bfloat16 (weights stay in float32)
    compile: str = "auto"              # torch.compile of the model: on, off, or auto (on CUDA, and on a CPU when a run is long enough to pay)
    init: str | None = None            # checkpoint folder or hub id to start from; without it a base model is made
    eval_problems: int = 512           # held-out problems, before and after
    checkpoint_every: int = 20         # steps (SFT: five times as many)

    def __post_init__(self):
        check_fields(self, **INTERVALS)
        check_compile(self.compile)
        compute_in(self.dtype, torch.device("cpu"))


@dataclass(frozen=True)
class RunConfig(CommonConfig):
    """And what those on sums take."""

    task: str = "addition"             # addition, subtraction or multiplication (by one digit)
    digits: int = 3                    # 1 to 5


def load_policy(path: Path | str, *, device):
    """load_pretrained for training: in float32, whatever the checkpoint is in, as small steps are lost in less (precision.py)."""
    return load_pretrained(path, dtype=torch.float32, device=device)


def check_compile(choice: str) -> None:
    if choice not in ("auto", "on", "off"):
        raise ValueError(f"compile is {choice!r}: one of auto, on, off is wanted")


def worth_compiling(choice: str, model: Transformer, tokens: int) -> bool:
    """Whether to compile for a run that learns from so many tokens. It depends on the run's numbers alone, so that a resumed run decides alike."""
    check_compile(choice)
    seconds = 6 * model.num_parameters() * tokens / CPU_FLOPS
    return choice == "on" or choice == "auto" and (model.device.type == "cuda" or seconds > PAYS_FROM)


def run_sft(run: RunDir, base: BaseConfig, sft: SFTConfig, common: RunConfig, *, device, title: str = "sft", profile: bool = False) -> dict:
    """Train on worked and unworked sums, or on a file, from nothing or from --init, into the run directory; go on where it was cut short."""
    task = Arithmetic(common.task, common.digits)
    rng = random.Random(derive_seed(common.seed, "demonstrations"))
    pairs = load_demonstrations(base.data) if base.data is not None else demonstrations(task, base.examples, rng, worked_share=base.worked_share,
                                                                                        guessed_share=base.guessed_share)

    def start():
        return load_policy(common.init, device=device) if common.init is not None else make_base(base, seed=common.seed, device=device)

    model, tokenizer, report = supervised(run, start, pairs, sft, common, device=device, title=title, profile=profile)
    summary = {"steps": report.steps, "loss": run.metrics()[-1]["loss"]}
    if base.data is None:                                                    # else it has not read sums
        with compute_in(common.dtype, device):
            after = watched("measuring", model, tokenizer, task, n=common.eval_problems, seed=common.seed)
        summary |= {"accuracy": after.accuracy, "mean_length": after.mean_length}
    summary["seconds"] = round(report.seconds, 1)
    finish(run, model, tokenizer, summary)
    return summary


def supervised(run: RunDir, start: Callable[[], tuple], pairs: list[tuple[str, str]], sft: SFTConfig, common: CommonConfig, *, device, title: str,
               profile: bool = False, each_epoch: Callable[[int, object, object], None] | None = None) -> tuple:
    """train_sft on pairs into a run directory, from start() or from where it was cut short -> (model, tokenizer, its log).

    each_epoch(epoch, model, tokenizer) is called at the end of each.
    """
    model, tokenizer, state = run.load_checkpoint(device=device) or (*start(), None)
    steps_per_epoch = -(-len(pairs) // sft.batch_size)
    model.compiled = worth_compiling(common.compile, model, sft.epochs * sum(len(pair[0]) + len(pair[1]) for pair in pairs))
    report = RunLog(run, tokenizer, title=title, steps=sft.epochs * steps_per_epoch, state=state, every=5 * common.checkpoint_every, shown={"loss": "loss"})

    def save(state) -> None:
        if each_epoch is not None and state.step % steps_per_epoch == 0:
            each_epoch(state.step // steps_per_epoch, model, tokenizer)
        report.save(state)

    with compute_in(common.dtype, device), report, profiling(profile, train_sft, run):
        train_sft(model, tokenizer, pairs, sft, seed=common.seed, log=report.log, save=save, resume=state)
    return model, tokenizer, report


def run_grpo(run: RunDir, base: BaseConfig, sft: SFTConfig, grpo: GRPOConfig, common: RunConfig, preset: GRPOPreset = GRPOPreset(), *,
             device, profile: bool = False) -> tuple[Evaluation, Evaluation, dict]:
    """The main job: a base model (made in base/, or --init), GRPO on it, and what that changed: (before, after, summary)."""
    task = Arithmetic(common.task, common.digits)
    source, base_seconds = (common.init, 0.0) if common.init is not None else run_base(run, base, sft, common, device=device)
    first, tokenizer = load_policy(source, device=device)
    model, _, state = run.load_checkpoint(device=device) or (first, tokenizer, None)
    first.compiled = model.compiled = worth_compiling(common.compile, model, grpo.steps * grpo.prompts_per_step * grpo.group_size * grpo.max_new_tokens)
    report = RunLog(run, tokenizer, title="grpo", steps=grpo.steps, state=state, every=common.checkpoint_every, seconds=base_seconds,
                    shown={"reward": "reward", "rewards/accuracy/mean": "accuracy", "kl": "KL", "completions/mean_length": "length"})
    measure = dict(n=common.eval_problems, max_new_tokens=grpo.max_new_tokens, seed=common.seed)

    def save(state) -> None:
        if state.step == grpo.steps // 2:
            halfway = evaluate(model, tokenizer, task, **measure | {"n": SHOWN})
            run.write_samples(state.step, "halfway", markdown(halfway))
        report.save(state)

    with compute_in(common.dtype, device):
        before = watched("measuring before", first, tokenizer, task, **measure)
        if state is None:
            run.write_samples(0, "before", markdown(before))
        with report, profiling(profile, train_grpo, run):
            train_grpo(model, tokenizer, task, grpo, **preset.functions(grpo), seed=common.seed, log=report.log, save=save, resume=state)
        after = watched("measuring after", model, tokenizer, task, **measure)
    run.write_samples(grpo.steps, "after", markdown(after))
    summary = {"steps": grpo.steps, "accuracy_before": before.accuracy, "accuracy_after": after.accuracy, "mean_length_before": before.mean_length,
               "mean_length_after": after.mean_length, "seconds": round(report.seconds, 1)}
    finish(run, model, tokenizer, summary)
    return before, after, summary


def watched(title: str, model, tokenizer, task, *, n: int, **rest) -> Evaluation:
    """evaluate(), with its progress."""
    with Progress(title, n, unit="completion") as progress:
        return evaluate(model, tokenizer, task, n=n, progress=progress, **rest)


def run_base(run: RunDir, base: BaseConfig, sft: SFTConfig, common: RunConfig, *, device) -> tuple[Path, float]:
    """The cold start of a run that was given no --init: a run of its own in base/ -> (its final model, its seconds)."""
    stage = run.stage("base", "sft", base=base, sft=sft)
    summary = read_json(stage.path / "summary.json") if stage.finished else run_sft(stage, base, sft, common, device=device, title="base")
    return stage.path / "final", summary["seconds"]


@contextlib.contextmanager
def profiling(wanted: bool, page: Callable, run: RunDir) -> Iterator[None]:
    """With --profile: profile a page that runs inside, and print the report, also of a run that ends early."""
    if not wanted:
        yield
        return
    profile = None
    try:
        with profiled(page) as profile:
            yield
    finally:
        if profile is not None:
            title, rows = profile.report(run.path / "profile.json.gz")
            print(title, *[table(rows)] if rows else [], sep="\n")


def finish(run: RunDir, model, tokenizer, summary: dict) -> None:
    """Write what a run leaves; final/ comes last and says that all is there."""
    run.write_json("summary.json", summary)
    with run.replacing("curves.png") as partial:
        plot_runs([run], partial)
    run.save_final(model, tokenizer)


def markdown(result: Evaluation) -> str:
    """The first problems with their first completions, as a list."""
    lines = []
    for problem, completion in shown(result):
        lines += [f"- {code_span(problem.prompt)} (right: {code_span(problem.answer)})",
                  f"  - {verdict(completion, problem.answer)}: {code_span(completion)}"]
    return "\n".join(lines)


def shown(result: Evaluation) -> list:
    return [(problem, completions[0]) for problem, completions in zip(result.problems[:SHOWN], result.completions)]


def verdict(completion: str, answer: str) -> str:
    judged = accuracy([""], [completion], [answer])[0]
    return "no verdict" if judged is None else "right" if judged == 1.0 else "wrong"


def before_and_after(before: Evaluation, after: Evaluation) -> str:
    """The short table and the few problems that end `minirl grpo`."""
    def share(result: Evaluation) -> str:
        if result.judged_problems == 0:
            return "no verdict"
        low, high = wilson_interval(result.accuracy, result.judged_problems)
        return f"{result.accuracy:.3f} ({low:.3f} to {high:.3f})"

    both = before, after
    rows = [("", "before", "after"), ("accuracy (95 % interval)", *map(share, both))]
    if any(result.judged_problems < len(result.problems) for result in both):
        rows.append(("problems with a verdict", *(str(result.judged_problems) for result in both)))
    rows += [("format", *(f"{result.rewards['format_reward']:.3f}" for result in both)),
             ("mean response length, tokens", *(f"{result.mean_length:.1f}" for result in both))]
    lines = [f"{len(before.problems)} distinct held-out problems, temperature 1", table(rows), ""]
    for (problem, old), (_, new) in zip(shown(before), shown(after)):
        lines += hanging("", problem.prompt)
        for when, completion in (("before", old), ("after", new)):
            lines.append(f"  {when}: {verdict(completion, problem.answer)}")
            lines += hanging("    ", completion)
    return "\n".join(lines)
