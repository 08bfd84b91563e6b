"""DeepSeek-R1 in miniature: what `minirl r1` does around train/r1.py. Every stage is a run of its own inside the run directory, and one that has ended is not made again.

    base/ r1-zero/ cold-start/ rl-1/ sft/ rl-2/      stages, in the order in which they are made; each with curves.png and final/
    stages.json, stages.png                          what each is worth on held-out problems
    final/                                           rl-2's model
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path

from minirl.app.evaluate import Evaluation, evaluate, table, wilson_interval
from minirl.app.plots import plot_stages
from minirl.app.rundir import RunDir, RunLog
from minirl.app.training import BaseConfig, CommonConfig, finish, load_policy, make_base, supervised, worth_compiling
from minirl.equations.test_time import majority_vote
from minirl.lm.precision import compute_in
from minirl.lm.tokenizer import read_json
from minirl.tasks.bilingual import LANGUAGES, WORDS, Bilingual, demonstrations
from minirl.tasks.rewards import ANSWER, accuracy
from minirl.train.grpo import GRPOConfig
from minirl.train.r1 import R1Config, train_r1
from minirl.train.sft import SFTConfig
from minirl.train.state import derive_seed

MAX_NEW_TOKENS = 48
READS = dict(worked_share=0.5, mixed_share=0.5, guessed_share=0.5)      # the base model: half worked out, half of that in both languages at once


@dataclass(frozen=True)
class R1RunConfig(CommonConfig):
    """And what the pipeline of DeepSeek-R1 takes."""

    language: str = "prompt"           # that reasoning should be in: ko, en, or prompt (the prompt's own)
    number_length: int = 3             # digits of the numbers to add
    examples: int = 24_000             # what the base model reads
    cold_start_examples: int = 300     # clean long reasonings
    samples: int = 16                  # of each held-out problem, for pass@k and majority voting
    eval_problems: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.language not in (*LANGUAGES, "prompt"):
            raise ValueError(f"language is {self.language!r}: {', '.join(LANGUAGES)} or prompt is wanted")
        for name in ("examples", "cold_start_examples", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is wanted")
        self.task

    @property
    def task(self) -> Bilingual:
        return Bilingual(self.number_length, reason_in=None if self.language == "prompt" else self.language)


def run_r1(run: RunDir, config: R1Config, common: R1RunConfig, *, device) -> list[dict]:
    """All stages into the run, each as far as it has got -> an entry per stage of what it is worth."""
    base, seconds = base_model(run, common, device=device)
    first, tokenizer = load_policy(base, device=device)
    with compute_in(common.dtype, device):
        measured = [worth("base", first, tokenizer, common, seconds=seconds)]
    configs = {"r1-zero": config.zero, "cold-start": config.cold_start, "rl-1": config.reasoning, "sft": config.sft, "rl-2": config.final}

    def stage(name: str, start, page):
        """The page's model, from where the stage was cut short, or as it was when it had ended."""
        settings = configs[name]
        command = "grpo" if isinstance(settings, GRPOConfig) else "sft"
        inner = run.stage(name, command, **{command: settings})
        if inner.finished:
            model = load_policy(inner.path / "final", device=device)[0]
        else:
            model, _, state = inner.load_checkpoint(device=device) or (copy.deepcopy(start), tokenizer, None)
            model.compiled = worth_compiling(common.compile, model, 0)
            steps = settings.steps if isinstance(settings, GRPOConfig) else None
            shown = {"loss": "loss", "rewards/accuracy/mean": "accuracy", "rewards/language_consistency/mean": "language", "completions/mean_length": "length"}
            report = RunLog(inner, tokenizer, title=name, steps=steps, state=state, every=common.checkpoint_every, shown=shown)
            with compute_in(common.dtype, device), report:
                page(model, log=report.log, save=report.save, resume=state)
            finish(inner, model, tokenizer, {"steps": len(inner.metrics()), "seconds": round(report.seconds, 1)})
        with compute_in(common.dtype, device):
            measured.append(worth(name, model, tokenizer, common, seconds=read_json(inner.path / "summary.json")["seconds"]))
        return model

    cold_start = demonstrations(common.task, common.cold_start_examples, random.Random(derive_seed(common.seed, "r1", "cold-start")))
    model = train_r1(first, tokenizer, common.task, config, cold_start=cold_start, seed=common.seed, stage=stage)
    run.write_json("stages.json", {"stages": measured})
    with run.replacing("stages.png") as partial:
        plot_stages(measured, partial)
    last = measured[-1]
    run.write_json("summary.json", {"accuracy_before": measured[0]["accuracy"], "accuracy_after": last["accuracy"], "mean_length_before": measured[0]["length"],
                                    "mean_length_after": last["length"], "language_after": last["language"], "seconds": round(sum(s["seconds"] for s in measured), 1)})
    run.save_final(model, tokenizer)
    return measured


def base_model(run: RunDir, common: R1RunConfig, *, device) -> tuple[Path | str, float]:
    """The folder of the base model, --init or one that is made in base/, and the seconds that it took."""
    if common.init is not None:
        return common.init, 0.0
    stage = run.stage("base", "sft", sft=SFTConfig())
    if not stage.finished:
        read = demonstrations(Bilingual(common.number_length), common.examples, random.Random(derive_seed(common.seed, "r1", "reading")), **READS)
        model, tokenizer, report = supervised(stage, lambda: make_base(BaseConfig(), seed=common.seed, device=device, words=WORDS), read, SFTConfig(), common,
                                              device=device, title="base")
        finish(stage, model, tokenizer, {"steps": report.steps, "seconds": round(report.seconds, 1)})
    return stage.path / "final", read_json(stage.path / "summary.json")["seconds"]


def worth(name: str, model, tokenizer, common: R1RunConfig, *, seconds: float) -> dict:
    """What a stage's model does on held-out problems, `samples` times each."""
    found = evaluate(model, tokenizer, common.task, n=common.eval_problems, samples=common.samples, max_new_tokens=MAX_NEW_TOKENS,
                     seed=derive_seed(common.seed, "r1", "evaluate"), batch=2048)
    return {"stage": name, "accuracy": found.accuracy, "majority": majority(found), "pass": found.pass_at(common.samples), "format": found.rewards["format_reward"],
            "language": found.rewards["language_consistency"], "length": found.mean_length, "seconds": seconds, "example": found.completions[0][0],
            "problem": found.problems[0].prompt}


def majority(found: Evaluation) -> float:
    """How often the answer that most samples of a problem give is right."""
    right = 0.0
    for problem, completions in zip(found.problems, found.completions):
        answers = [said[1].strip() if (said := ANSWER.search(c)) else None for c in completions]
        right += accuracy([""], [f"<answer>{majority_vote(answers)}</answer>"], [problem.answer])[0]
    return right / len(found.problems)


def stages_table(measured: list[dict], common: R1RunConfig) -> str:
    rows = [(f"{common.eval_problems} held-out problems, {common.samples} samples each", "accuracy", "95 %", f"maj@{common.samples}", f"pass@{common.samples}", "format",
             "language", "tokens", "seconds")]
    for s in measured:
        low, high = wilson_interval(s["accuracy"], common.eval_problems)
        rows.append((s["stage"], f"{s['accuracy']:.3f}", f"{low:.2f} to {high:.2f}", f"{s['majority']:.3f}", f"{s['pass']:.3f}", f"{s['format']:.3f}",
                     f"{s['language']:.3f}", f"{s['length']:.1f}", f"{s['seconds']:.0f}"))
    width = max(len(s["stage"]) for s in measured)
    return "\n".join([table(rows), "", measured[0]["problem"], *(f"  {s['stage'].ljust(width)}  {s['example']}" for s in measured)])
