"""DeepSeek-R1 in miniature: what `minirl r1` does around train/r1.py. Every stage is a run of its own inside the run directory, and one that has ended is not made again.

    base/                                          reads sums, word problems and instructions, reasoned at length, briefly or not at all, mixed and wrong in part
    r1-zero/ cold-start/ rl-1/ sft/ rl-2/          stages, in the order in which they are made; each with curves.png and final/
    rm-1/ prefer-1/ rm-2/ prefer-2/                the last part of the last stage, in rounds
    too-long/                                      what comes of rl-2 when that part goes on for too long, with one reward model: hacking.png
    small-base/ small-rl/ distilled/               a smaller model: by reinforcement learning, and by distillation
    stages.json, stages.png                        what each is worth on held-out problems
    final/                                         the model of the last part
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minirl.app.evaluate import Evaluation, evaluate
from minirl.app.instruct import label
from minirl.app.measure import TASK as GENERAL
from minirl.app.measure import mean
from minirl.app.plots import plot_hacking, plot_stages
from minirl.app.progress import Progress
from minirl.app.rundir import RunDir, RunLog
from minirl.app.text import columns_of, hanging, padded, table
from minirl.app.training import BaseConfig, CommonConfig, finish, load_policy, supervised, worth_compiling
from minirl.equations.inference_time import majority_vote
from minirl.inference.intervals import wilson_interval
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.precision import compute_in
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import make_base
from minirl.lm.tokenizer import read_json
from minirl.tasks.bilingual import LANGUAGES, WORDS, Bilingual, demonstrations
from minirl.tasks.instructions import WORDS as GENERAL_WORDS
from minirl.tasks.instructions import answers
from minirl.tasks.mixture import Mixture
from minirl.tasks.rewards import accuracy, answer_of
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.r1 import RULES, General, R1Config, distill, train_r1, watched
from minirl.train.reward_model import RewardModelConfig, as_reward
from minirl.train.sft import SFTConfig

# What the base models read: so much is reasoned at length and so much briefly, half of it in both languages at once; half of the hasty ones slip; some have no tags.
READS = dict(worked_share=0.5, brief_share=0.25, mixed_share=0.5, slip_share=0.5, bare_share=0.2)
HARD_ONES = 3                                                                              # so many hard problems are read for each easy one
R1_WORDS = (*WORDS, *GENERAL_WORDS)                                                       # one token each
HEAD_SIZE = 16                                                                             # features of an attention head
FRAMES = (1, 1, 1, 1)                                                                      # people answer in all ways of speaking
SIDE = ("too-long", "small-base", "small-rl", "distilled")                                 # not on the way to the final model


@dataclass(frozen=True)
class R1RunConfig(CommonConfig):
    """And what the pipeline of DeepSeek-R1 takes."""

    language: str = "prompt"           # that reasoning should be in: ko, en, or prompt (the prompt's own)
    number_length: int = 3             # digits of hard problems' numbers; easy ones have one less
    examples: int = 60_000             # of reasoning that the base models read
    general_examples: int = 16_000     # and of instructions
    cold_start_examples: int = 300     # clean long reasonings
    demonstrations: int = 512          # instructions that people followed, 7 of 10 rightly
    ranked_prompts: int = 1000         # instructions the answers to which people rank, in each round
    labeller_noise: float = 0.4        # as in minirl rm
    too_long: int = 5                  # times as many steps with the preference reward as there should be; 0: not tried
    small: int = 32                    # features of the smaller model that is taught (base: 96); 0: none
    samples: int = 16                  # of each held-out problem, for pass@k and majority voting
    eval_problems: int = 128           # of each kind: easy, hard, general
    checkpoint_every: int = 10         # steps (base models: five times as many)

    def __post_init__(self):
        super().__post_init__()
        if self.language not in (*LANGUAGES, "prompt"):
            raise ValueError(f"language is {self.language!r}: {', '.join(LANGUAGES)} or prompt is wanted")
        if self.small % HEAD_SIZE:
            raise ValueError(f"small is {self.small}: a multiple of {HEAD_SIZE}, the size of an attention head, is wanted, or 0")

    @property
    def task(self) -> Bilingual:
        return self.of_length(max(1, self.number_length - 1), self.number_length)

    def of_length(self, *digits: int) -> Bilingual:
        return Bilingual(tuple(dict.fromkeys(digits)), reason_in=None if self.language == "prompt" else self.language)


class Stages:
    """Runs a pipeline's stages, each as a run of its own, and measures what came of it. What is there already is not made again."""

    def __init__(self, run: RunDir, tokenizer, config: R1Config, common: R1RunConfig, *, device):
        self.run, self.tokenizer, self.config, self.common, self.device = run, tokenizer, config, common, device
        self.names = stage_names(config, common)
        self.measured: dict[str, dict] = {entry["stage"]: entry for entry in read_json(run.path / "stages.json").get("stages", ())}

    def __call__(self, name: str, settings, start, page):
        """The page's model: from where the stage was cut short, or as it was when it had ended."""
        command = {GRPOConfig: "grpo", SFTConfig: "sft", RewardModelConfig: "rm"}[type(settings)]
        load = load_reward_model if command == "rm" else load_pretrained
        stage, common = self.run.stage(name, command, **{command: settings}), self.common
        finished = stage.finished
        if finished:
            model = load(stage.path / "final", device=self.device, dtype=torch.float32)[0]
        else:
            model, _, state = stage.load_checkpoint(device=self.device, load=load) or (copy.deepcopy(start), self.tokenizer, None)
        if command != "rm":                                      # in either case, as what comes next samples from it
            model.compiled = worth_compiling(common.compile, model, 0)
        if not finished:
            steps = settings.steps if command == "grpo" else None
            shown = {"loss": "loss", "rewards/accuracy/mean": "accuracy", "rewards/language_consistency/mean": "language", "rewards/preference/mean": "preference",
                     "completions/mean_length": "length"}
            report = RunLog(stage, self.tokenizer, title=title(name, self.names), steps=steps, state=state, every=common.checkpoint_every, shown=shown)
            with compute_in(common.dtype, self.device), report:
                model = page(model, log=report.log, save=report.save, resume=state)
            finish(stage, model, self.tokenizer, {"steps": len(stage.metrics()), "seconds": round(report.seconds, 1)})
        if command != "rm":
            self.measure(name, model, seconds=read_json(stage.path / "summary.json")["seconds"])
        return model

    def measure(self, name: str, model, *, seconds: float) -> None:
        """Put what a model is worth into stages.json, unless it is there."""
        if name not in self.measured:
            with compute_in(self.common.dtype, self.device):
                self.measured[name] = {"stage": name, "seconds": seconds, **worth(name, model, self.tokenizer, self.config, self.common)}
            self.run.write_json("stages.json", {"stages": list(self.measured.values())})


def run_r1(run: RunDir, config: R1Config, common: R1RunConfig, *, device) -> list[dict]:
    """All stages into the run, each as far as it has got -> an entry per policy of what it is worth, in the order in which they were made."""
    names = stage_names(config, common)
    base, seconds = base_model(run, common, BaseConfig(), "base", names, device=device)
    first, tokenizer = load_policy(base, device=device)
    stages = Stages(run, tokenizer, config, common, device=device)
    stages.measure("base", first, seconds=seconds)
    cold_start = demonstrations(common.task, common.cold_start_examples, random.Random(derive_seed(common.seed, "r1", "cold-start")))
    people = General(GENERAL, answers(GENERAL, common.demonstrations, random.Random(derive_seed(common.seed, "r1", "people")), right_share=0.7, frame_weights=FRAMES),
                     lambda policy, seed: label(policy, tokenizer, common.ranked_prompts, split="train", seed=seed, noise=common.labeller_noise))
    final = train_r1(first, tokenizer, common.task, config, cold_start=cold_start, general=people, seed=common.seed, stage=stages)
    if common.too_long:
        overdo(stages)
        with run.replacing("hacking.png") as partial:
            plot_hacking(RunDir(run.path / "too-long"), [RunDir(run.path / f"prefer-{n + 1}") for n in range(config.rounds)], partial)

    if common.small:
        size = BaseConfig(hidden_size=common.small, num_heads=common.small // HEAD_SIZE, intermediate_size=4 * common.small, max_seq_len=first.config.max_seq_len)
        small, seconds = base_model(run, common, size, "small-base", names, device=device, tokenizer=tokenizer)
        student = load_policy(small, device=device)[0]
        stages.measure("small-base", student, seconds=seconds)
        distill(final, student, tokenizer, common.task, config, seed=common.seed, stage=stages)

    measured = with_win_rates(list(stages.measured.values()))
    run.write_json("stages.json", {"stages": measured})
    with run.replacing("stages.png") as partial:
        plot_stages([s for s in measured if s["stage"] not in SIDE], partial)
    before, after = measured[0], next(s for s in reversed(measured) if s["stage"] not in SIDE)
    run.write_json("summary.json", {"accuracy_before": before["hard"], "accuracy_after": after["hard"], "mean_length_before": before["length"], "mean_length_after": after["length"],
                                    "language_after": after["language"], "win_rate_after": after["win_rate"],
                                    "seconds": round(sum(read_json(run.path / name / "summary.json")["seconds"] for name in names), 1)})
    run.save_final(final, tokenizer)
    return measured


def check_lengths(config: R1Config, common: R1RunConfig, model_config, tokenizer) -> None:
    """Raise ValueError where prompts and completions do not fit the context, or worked-out reasoning does not fit a completion."""
    rng = random.Random(0)
    hardest = common.of_length(common.number_length)
    prompts = [p.prompt for task in (hardest, GENERAL) for p in task.sample(200, rng)]
    longest, answer = (max(map(len, tokenizer.encode_batch(texts))) + 1 for texts in (prompts, [completion for _, completion in demonstrations(hardest, 200, rng)]))
    if answer > config.max_new_tokens:
        raise ValueError(f"sums of {common.number_length} digits are worked out in up to {answer} tokens, and max_new_tokens is {config.max_new_tokens}: add "
                         f"--max-new-tokens {answer}, or a smaller --number-length")
    if longest + config.max_new_tokens > model_config.max_seq_len:
        raise ValueError(f"prompts of up to {longest} tokens and max_new_tokens {config.max_new_tokens} do not fit a context of {model_config.max_seq_len} tokens: lower "
                         "--max-new-tokens, or start from a model with a longer context with --init")


def stage_names(config: R1Config, common: R1RunConfig) -> list[str]:
    """What is trained, in order."""
    rounds = [name for n in range(1, config.rounds + 1) for name in (f"rm-{n}", f"prefer-{n}")]
    return [*["base"] * (common.init is None), "r1-zero", "cold-start", "rl-1", "sft", "rl-2", *rounds, *["too-long"] * (common.too_long > 0),
            *["small-base", "small-rl", "distilled"] * (common.small > 0)]


def title(name: str, names: Sequence[str]) -> str:
    """What stands in front of a stage's bar: "3/14 rl-1"."""
    return f"{names.index(name) + 1}/{len(names)} {name}"


def base_model(run: RunDir, common: R1RunConfig, size: BaseConfig, name: str, names: Sequence[str], *, device, tokenizer=None) -> tuple[Path | str, float]:
    """The folder of a base model, --init or one that is made in the run, and the seconds that it took."""
    if common.init is not None and name == "base":
        return common.init, 0.0
    stage = run.stage(name, "sft", sft=SFTConfig(), base=replace(size, examples=common.examples, worked_share=READS["worked_share"], guessed_share=READS["slip_share"]))
    if not stage.finished:
        rng = random.Random(derive_seed(common.seed, "r1", "reading"))
        *easier, longest = common.task.digits
        read = demonstrations(Bilingual((*easier, *[longest] * HARD_ONES)), common.examples, rng, **READS)
        read += answers(GENERAL, common.general_examples, rng, right_share=0.6, frame_weights=FRAMES)

        def start():
            return make_base(size, seed=common.seed, device=device, words=R1_WORDS, tokenizer=tokenizer)

        model, _, report = supervised(stage, start, read, SFTConfig(), common, device=device, title=title(name, names))
        finish(stage, model, report.tokenizer, {"steps": report.steps, "seconds": round(report.seconds, 1)})
    return stage.path / "final", read_json(stage.path / "summary.json")["seconds"]


def overdo(stages: Stages) -> None:
    """The last part from where it starts, with the first reward model alone, for `too_long` times as long: reward hacking."""
    config, common = stages.config, stages.common
    numbers = config.grpo(common.too_long * config.preference_steps, temperature=config.final_temperature, ref_sync_steps=0)
    reward_model, _ = load_reward_model(stages.run.path / "rm-1" / "final", device=stages.device)
    start, _ = load_policy(stages.run.path / "rl-2" / "final", device=stages.device)
    judged = Mixture(common.task, GENERAL, as_reward(reward_model, stages.tokenizer), config.general_share)
    weights = watched(judged, {**RULES, "language_consistency": config.language_weight})
    stages("too-long", numbers, start, lambda m, **hooks: train_grpo(m, stages.tokenizer, judged, numbers, reward_weights=weights,
                                                                     seed=derive_seed(common.seed, "too-long"), **hooks))


def worth(name: str, model, tokenizer, config: R1Config, common: R1RunConfig) -> dict:
    """What a policy does on held-out problems: easy and hard ones, `samples` times each, and general ones."""
    kinds = {"easy": (common.of_length(common.task.digits[0]), common.samples), "hard": (common.of_length(common.number_length), common.samples), "general": (GENERAL, 1)}
    rows = common.eval_problems * sum(samples for _, samples in kinds.values())
    with Progress(f"measuring {name}", rows, unit="completion") as progress:
        found = {kind: evaluate(model, tokenizer, task, n=common.eval_problems, samples=samples,
                                max_new_tokens=config.max_new_tokens, progress=progress,
                                seed=derive_seed(common.seed, "r1", "evaluate", kind))
                 for kind, (task, samples) in kinds.items()}
    easy, hard, general = found.values()
    liked = GENERAL.rewards["true_reward"]([], [completion for completion, in general.completions], answer=[p.answer for p in general.problems])
    return {"easy": easy.accuracy, "hard": hard.accuracy, "majority": majority(hard), "pass": hard.pass_at(common.samples), "format": hard.rewards["format_reward"],
            "language": hard.rewards["language_consistency"], "length": hard.mean_length, "general": liked,
            "problems": {kind: len(result.problems) for kind, result in found.items()},
            "problem": hard.problems[0].prompt, "example": hard.completions[0][0]}


def with_win_rates(measured: Sequence[dict]) -> list[dict]:
    """How often a policy's answer to a general prompt has the greater true reward than the sft stage's; equal ones count half."""
    against = next(s for s in measured if s["stage"] == "sft")["general"]
    return [{**s, "win_rate": mean([0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(s["general"], against, strict=True)])} for s in measured]


def majority(found: Evaluation) -> float:
    """How often the answer that most samples of a problem give is right."""
    right = 0.0
    for problem, completions in zip(found.problems, found.completions):
        vote = majority_vote([answer_of(completion) for completion in completions])
        right += accuracy([""], [f"<answer>{vote}</answer>"], [problem.answer])[0]
    return right / len(found.problems)


def stages_table(measured: Sequence[dict], common: R1RunConfig) -> str:
    """A row per policy, those on the way to the final model first; what each says to one problem."""
    k = common.samples
    counts = measured[0].get("problems", {"hard": common.eval_problems})
    right = [("right answers", "easy", "hard", "95 %", f"maj@{k}", f"pass@{k}")]
    rest = [("how they are said", "format", "language", "tokens", "win rate", "seconds")]
    for s in sorted(measured, key=lambda s: s["stage"] in SIDE):
        low, high = wilson_interval(s["hard"], counts["hard"])
        right.append((s["stage"], f"{s['easy']:.3f}", f"{s['hard']:.3f}",
                      f"{low:.2f} to {high:.2f}", f"{s['majority']:.3f}", f"{s['pass']:.3f}"))
        rest.append((s["stage"], f"{s['format']:.3f}", f"{s['language']:.3f}", f"{s['length']:.1f}",
                     f"{s['win_rate']:.3f}", f"{s['seconds']:.0f}"))
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    lines = [f"distinct held-out problems: {kinds}", "", table(right), "", table(rest), ""]
    lines += hanging("", measured[0]["problem"])
    width = max(columns_of(s["stage"]) for s in measured)
    for s in measured:
        lines += hanging(f"  {padded(s['stage'], width)}  ", s["example"])
    return "\n".join(lines)
