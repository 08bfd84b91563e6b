"""`minirl r1`: DeepSeek-R1 in miniature. Every stage of train/r1.py is a run inside the run.

    base/                                   reads sums and word problems, reasoned at length,
                                            briefly or not at all, and instructions
    r1-zero/ cold-start/ rl-1/ sft/ rl-2/   stages, in order
    rm-1/ prefer-1/ rm-2/ prefer-2/         the last part of the last stage, in rounds
    too-long/                               rl-2 with the first reward model for too many steps
    small-base/ small-rl/ distilled/        a smaller model, by RL and by distillation
    stages.json, stages.png, hacking.png    what each stage is worth on held-out problems
    final/                                  the model of the last part
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from minirl.app.looks import rank
from minirl.app.pipeline_figures import plot_hacking, plot_stages
from minirl.app.preflight import Start
from minirl.app.rundir import RunDir
from minirl.app.stages import KINDS, Settings, Stages
from minirl.inference.collect import LOOKED_AT
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.lm.compiled import worth_compiling
from minirl.lm.files import read_json
from minirl.lm.model import Transformer
from minirl.lm.progress import Progress
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.bilingual import LANGUAGES, WORDS, Bilingual, demonstrations, rewrite
from minirl.tasks.instructions import WORDS as GENERAL_WORDS
from minirl.tasks.instructions import Instructions, answers
from minirl.tasks.preferences import Ranking
from minirl.train.r1 import General, Pair, R1Config, distill, over_optimise, train_r1
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.stage import Page, Stage
from minirl.train.worth import SIDE, stages_table, with_win_rates, worth

# What base models read. Shares: reasoned at length, reasoned briefly, in mixed languages, with a
# slip where it is hasty, without tags. For each easy problem there are HARD_ONES hard ones.
READ: dict[str, Any] = dict(worked_share=0.5, brief_share=0.25, mixed_share=0.5, slip_share=0.5,
                            bare_share=0.2)
HARD_ONES = 3
HEAD_SIZE = 16                                                 # features of an attention head


@dataclass(frozen=True)
class R1Settings(Settings):
    """Settings of minirl r1: the common ones, and those of its pipeline."""

    language: str = "prompt"           # of the reasoning: ko, en, or prompt (the prompt's own)
    number_length: int = 3             # digits of hard problems' numbers; easy ones have one less
    examples: int = 60_000             # of reasoning that the base models read
    general_examples: int = 16_000     # and of instructions
    cold_start_examples: int = 0       # reasonings that people wrote, beside R1-Zero's outputs
    demonstrations: int = 512          # instructions that people followed, 7 of 10 rightly
    ranked_prompts: int = 1000         # instructions whose completions people rank, in each round
    labeller_noise: float = 0.4        # as in minirl rm
    too_long: int = 5                  # factor on the steps by preference, for too-long/; 0: none
    small: int = 32                    # features of the smaller model (base: 96); 0: none
    samples: int = 16                  # of each held-out problem, for pass@k and majority voting
    eval_problems: int = 128           # of each kind: easy, hard, general
    checkpoint_every: int = 10         # steps (SFT and reward models: five times as many)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language not in (*LANGUAGES, "prompt"):
            raise ValueError(f"language is {self.language!r}: {', '.join(LANGUAGES)} or prompt is "
                             "wanted")
        if self.small % HEAD_SIZE:
            raise ValueError(f"small is {self.small}: a multiple of {HEAD_SIZE}, the size of an "
                             "attention head, is wanted, or 0")

    @property
    def words(self) -> tuple[str, ...]:
        return (*WORDS, *GENERAL_WORDS)

    @property
    def reason_in(self) -> str | None:
        return None if self.language == "prompt" else self.language

    @property
    def task_fields(self) -> dict[str, Any]:
        return {"name": "bilingual", "digits": self.number_length, "reason_in": self.reason_in}

    @property
    def easy(self) -> Bilingual:
        return Bilingual((max(1, self.number_length - 1),), reason_in=self.reason_in)

    @property
    def hard(self) -> Bilingual:
        return Bilingual((self.number_length,), reason_in=self.reason_in)

    @property
    def task(self) -> Bilingual:
        """Easy and hard problems, to learn from."""
        lengths = dict.fromkeys((*self.easy.digits, *self.hard.digits))
        return Bilingual(tuple(lengths), reason_in=self.reason_in)


def stage_names(config: R1Config, settings: R1Settings) -> list[str]:
    """Return what is trained, in order."""
    rounds = [name for n in range(1, config.rounds + 1) for name in (f"rm-{n}", f"prefer-{n}")]
    return [*["base"] * (settings.init is None),
            "r1-zero", "cold-start", "rl-1", "sft", "rl-2", *rounds,
            *["too-long"] * (settings.too_long > 0),
            *["small-base", "small-rl", "distilled"] * (settings.small > 0)]


# the pipeline, and what surrounds it

def r1(stages: Stages[R1Settings], model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl r1` does -> what it prints at the end."""
    settings, config, run = stages.settings, configs["r1"], stages.run
    stages.names = stage_names(config, settings)
    worths = Worths(stages, config)
    # tokens=0: "auto" compiles on CUDA only
    model.compiled = worth_compiling(settings.compile, model, tokens=0)
    base = read(worths.stage, "base", model, stages) if settings.init is None else model
    worths.measure("base", base)

    final = train_r1(base, stages.tokenizer, settings.task, config, general=general(stages),
                     cold_start=clean_reasoning(settings), rewrite=rewrite, seed=settings.seed,
                     stage=worths.stage)
    if settings.too_long:
        show_hacking(stages, worths.stage, config)
    if settings.small:
        student = read(worths.stage, "small-base", small_model(stages, base), stages)
        distill(final, student, stages.tokenizer, settings.task, config, seed=settings.seed,
                stage=worths.stage)

    entries = worths.finish()
    run.save_final(final, stages.tokenizer)
    figures = "stages.png, hacking.png" if settings.too_long else "stages.png"
    text = (f"\n{stages_table(entries, settings.samples)}\n\n{stages.seconds:.0f} s. {run.path}/ "
            f"holds {figures}, stages.json, summary.json, a folder per stage and final/ "
            "(Hugging Face layout).")
    if settings.language == "prompt":
        length = settings.number_length
        same = "" if length == R1Settings.number_length else f" --number-length {length}"
        init = shlex.quote(str(settings.init or run.path / "base" / "final"))
        text += f"\nNext: minirl r1 --language ko{same} --init {init}"
    return text


def read(stage: Stage, name: str, model: Transformer, stages: Stages[R1Settings]) -> Transformer:
    """Train a base model on reasoning of all kinds, and on instructions."""
    settings = stages.settings

    def page(model: Transformer, **hooks: Any) -> nn.Module:
        rng = random.Random(derive_seed(settings.seed, "r1", "reading"))
        *easier, longest = settings.task.digits
        task = Bilingual((*easier, *[longest] * HARD_ONES))
        texts = demonstrations(task, settings.examples, rng, **READ)
        texts += answers(Instructions(), settings.general_examples, rng, right_share=0.6)
        return train_sft(model, stages.tokenizer, texts, SFTConfig(), seed=settings.seed, **hooks)

    return stage(name, SFTConfig(), model, page)


def clean_reasoning(settings: R1Settings) -> list[Pair]:
    """Return long reasonings in one language, for the cold start."""
    rng = random.Random(derive_seed(settings.seed, "r1", "cold-start"))
    return demonstrations(settings.task, settings.cold_start_examples, rng)


def general(stages: Stages[R1Settings]) -> General:
    """Return general prompts, with people who follow them, and rank what policies make of them."""
    settings = stages.settings
    rng = random.Random(derive_seed(settings.seed, "r1", "people"))

    def compare(policy: Transformer, seed: int) -> list[Ranking]:
        return rank(policy, stages.tokenizer, settings.ranked_prompts, seed=seed,
                    noise=settings.labeller_noise)

    return General(
        task=Instructions(),
        demonstrations=answers(Instructions(), settings.demonstrations, rng, right_share=0.7),
        compare=compare)


def show_hacking(stages: Stages[R1Settings], stage: Stage, config: R1Config) -> None:
    """Let the last part go on for too long, and draw that beside the part that stops in time."""
    settings, run = stages.settings, stages.run
    reward_model, _ = load_reward_model(run.path / "rm-1" / "final", device=stages.device)
    start, _ = load_pretrained(run.path / "rl-2" / "final", device=stages.device)
    start.compiled = worth_compiling(settings.compile, start, tokens=0)        # as in r1()
    over_optimise(start, reward_model, stages.tokenizer, settings.task, config,
                  general=Instructions(), factor=settings.too_long, seed=settings.seed, stage=stage)
    rounds = [RunDir(run.path / f"prefer-{n + 1}") for n in range(config.rounds)]
    with run.replacing("hacking.png") as partial_file:
        plot_hacking(RunDir(run.path / "too-long"), rounds, partial_file)


def small_model(stages: Stages[R1Settings], base: Transformer) -> Transformer:
    """Return a smaller model with fresh weights."""
    settings = stages.settings
    sizes = TinySizes(hidden_size=settings.small, num_heads=settings.small // HEAD_SIZE,
                      intermediate_size=4 * settings.small, max_seq_len=base.config.max_seq_len)
    model, _ = make_base(sizes, seed=settings.seed, device=stages.device,
                         tokenizer=stages.tokenizer)
    model.compiled = base.compiled
    return model


# what the policies are worth

class Worths:
    """What each policy is worth on held-out problems, in stages.json. `stage` is for pipelines."""

    def __init__(self, stages: Stages, config: R1Config) -> None:
        self.stages, self.config, self.file = stages, config, stages.run.path / "stages.json"
        self.entries = {entry["stage"]: entry for entry in read_json(self.file).get("stages", ())}

    def stage(self, name: str, config: Any, start: nn.Module, page: Page) -> Any:
        model = self.stages(name, config, start, page)
        if KINDS[type(config)].load is load_pretrained:        # reward models are no policies
            self.measure(name, model)
        return model

    def measure(self, name: str, model: Transformer) -> None:
        """Put what a policy is worth into stages.json, unless it is there."""
        if name in self.entries:
            return
        run, settings = self.stages.run, self.stages.settings
        seconds = RunDir(run.path / name).summary.get("seconds", 0.0)
        completions = settings.eval_problems * (2 * settings.samples + 1)
        with (settings.precision(self.stages.device),
              Progress(f"measuring {name}", completions, unit="completion") as progress):
            numbers = worth(
                model, self.stages.tokenizer, easy=settings.easy, hard=settings.hard,
                general=Instructions(), n=settings.eval_problems, samples=settings.samples,
                max_new_tokens=self.config.max_new_tokens, seed=settings.seed, progress=progress)
        self.entries[name] = {"stage": name, "seconds": seconds, **numbers}
        run.write_json(self.file.name, {"stages": list(self.entries.values())})

    def finish(self) -> list[dict[str, Any]]:
        """Write stages.json with win rates, stages.png and summary.json -> the entries."""
        run, entries = self.stages.run, with_win_rates(list(self.entries.values()))
        run.write_json(self.file.name, {"stages": entries})
        main = [entry for entry in entries if entry["stage"] not in SIDE]
        with run.replacing("stages.png") as partial_file:
            plot_stages(main, partial_file)
        before, after = main[0], main[-1]
        run.write_json("summary.json", {
            "accuracy_before": before["hard"], "accuracy_after": after["hard"],
            "mean_length_before": before["length"], "mean_length_after": after["length"],
            "language_after": after["language"], "win_rate_after": after["win_rate"],
            "seconds": round(self.stages.seconds, 1)})
        return entries


# before a run has a folder

def check_r1(configs: Mapping[str, Any], flags: Collection[str], start: Start) -> None:
    """Raise ValueError where prompts and completions do not fit the context, reasoning at length
    does not fit a completion, or the cold start has nothing to learn from."""
    settings, limit = configs["settings"], configs["r1"].max_new_tokens
    if settings.cold_start_examples == configs["r1"].cold_start_problems == 0:
        raise ValueError("cold_start_examples and cold_start_problems are both 0, and the cold "
                         "start has nothing to learn from: give one of them")
    rng = random.Random(0)

    problems = [problem for task in (settings.hard, Instructions())
                for problem in task.sample(LOOKED_AT, rng)]
    solutions = [completion for _, completion in demonstrations(settings.hard, LOOKED_AT, rng)]
    prompts = start.tokenizer.encode_prompts(problem.prompt for problem in problems)
    prompt = max(map(len, prompts))
    answer = max(map(len, start.tokenizer.encode_batch(solutions))) + 1    # EOS
    context = start.config.max_seq_len
    if answer > limit:
        raise ValueError(f"sums of {settings.number_length} digits are worked out in up to "
                         f"{answer} tokens, and max_new_tokens is {limit}: add --max-new-tokens "
                         f"{answer}, or a smaller --number-length")
    if prompt + limit > context:
        raise ValueError(f"prompts of up to {prompt} tokens and max_new_tokens {limit} do not fit "
                         f"a context of {context} tokens: lower --max-new-tokens, or start from "
                         "a model with a longer context with --init")
