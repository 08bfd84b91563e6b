"""`minirl rm`, `minirl ppo` and `minirl dpo`: InstructGPT in miniature, on instructions whose true
preference is known.

    base/            a model that has read instructions, followed or not, and other text
    sft/             stage 1: 16 epochs of demonstrations, in minirl rm with a checkpoint of each
    rl-init/         where reinforcement learning starts: 2 epochs, and pretraining text
    rankings.jsonl   completions of the SFT model, ranked by a labeller; held-out.jsonl: held out
    rm/              stage 2: the reward model (of minirl rm: the run itself)
    the run itself   stage 3: PPO; or DPO on the same rankings

Only the labeller knows the true reward. What a run prints of it is evaluation. A model or a file
that --init, --rankings or --reward-model names is used, and not made.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from minirl.app.looks import BeforeAndAfter, verdict, watched
from minirl.app.plots import plot_calibration, plot_epochs
from minirl.app.preflight import Start, check_prompts, refuse
from minirl.app.progress import Progress
from minirl.app.rundir import RunDir
from minirl.app.stages import Look, Settings, Stages, worth_compiling
from minirl.app.text import hanging, table
from minirl.equations.inference_time import best_of_n
from minirl.inference.evaluate import Evaluation, best_of, text_loss
from minirl.inference.intervals import mean_interval
from minirl.lm.checkpoint import load_pretrained, load_reward_model, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer, read_json
from minirl.tasks.instructions import Instructions, answers, pretraining_text
from minirl.tasks.preferences import Ranking, load_rankings, pairs, save_rankings
from minirl.train.dpo import DPOConfig
from minirl.train.encoding import encode_pairs, encode_rankings, encode_texts
from minirl.train.instructgpt import (
    MAX_NEW_TOKENS,
    MOST,
    learn_rewards,
    prefer,
    rank_completions,
    reinforce,
    scored_by,
    supervise,
)
from minirl.train.presets import PRESETS
from minirl.train.reward_model import RewardModelConfig, score_texts
from minirl.train.sft import SFTConfig, train_sft

TASK = Instructions()
SAMPLES = 4                    # problems that a run shows
HELD_OUT = 200                 # rankings of held-out prompts
READ = {"answers": 42_000, "texts": 6_000}         # what the base model reads
BASE_SFT = SFTConfig(batch_size=64)
FRAMES = (1, 1, 1, 1)          # people answer in all ways of speaking
LABELLED = ("ranked_prompts", "labeller_noise")
DEMONSTRATED = ("demonstrations", "right_share")


@dataclass(frozen=True)
class InstructSettings(Settings):
    """And what the commands of InstructGPT take."""

    demonstrations: int = 512          # prompts with an answer that a person wrote
    right_share: float = 0.7           # of those answers are right: people err
    ranked_prompts: int = 2000         # prompts whose completions are ranked
    labeller_noise: float = 0.4        # odds of a before b are exp((r_a - r_b) / noise)
    rankings: str | None = None        # JSONL of rankings (TRL's prompt, chosen, rejected)
    reward_model: str | None = None    # folder of a reward model; without it one is trained
    best_of: int = 16                  # n of best-of-n, for comparison

    @property
    def task_fields(self) -> dict[str, Any]:
        return {"name": "instructions"}


# what people wrote

def reading(seed: int) -> list[tuple[str, str]]:
    """Return what the base model reads: instructions, six of ten followed, and sentences."""
    rng = random.Random(derive_seed(seed, "instruct", "reading"))
    texts = answers(TASK, READ["answers"], rng, right_share=0.6, frame_weights=FRAMES)
    texts += [("", text) for text in pretraining_text(READ["texts"], rng)]
    rng.shuffle(texts)
    return texts


def demonstrations(settings: InstructSettings, split: str = "train") -> list[tuple[str, str]]:
    rng = random.Random(derive_seed(settings.seed, "instruct", "demonstrations", split))
    return answers(TASK, settings.demonstrations, rng, right_share=settings.right_share,
                   frame_weights=FRAMES, split=split)


def pretraining(seed: int, n: int = 2000, split: str = "train") -> list[str]:
    return pretraining_text(n, random.Random(derive_seed(seed, "instruct", "pretraining", split)))


def split_rankings(settings: InstructSettings) -> tuple[list[Ranking], list[Ranking]]:
    """Return the rankings of a file, and those held out: every tenth prompt, with all its lines.

    Where a reward model is given, nothing is held out.
    """
    rankings = load_rankings(str(settings.rankings))
    prompts = list(dict.fromkeys(ranking.prompt for ranking in rankings))
    if settings.reward_model is not None:
        return rankings, []
    if len(prompts) < 2:
        raise ValueError(f"{settings.rankings} has rankings of {len(prompts)} prompt: at least two "
                         "are wanted, as one in ten is held out")
    held_out = set(prompts[::10])
    return ([ranking for ranking in rankings if ranking.prompt not in held_out],
            [ranking for ranking in rankings if ranking.prompt in held_out])


# stages 1 and 2

@dataclass(frozen=True)
class People:
    """The policies that stage 1 leaves, and what people say of their completions.

    sft writes the completions that are ranked, start is what reinforcement learning changes.
    """

    sft: Transformer
    start: Transformer
    rankings: list[Ranking]
    held_out: list[Ranking]


def first_stage(stages: Stages, model: Transformer) -> People:
    """Train the SFT models, and let people rank completions: what is given by flags is not made."""
    settings: Any = stages.settings
    tokenizer, seed = stages.tokenizer, settings.seed
    sft = start = model
    if settings.init is None:
        base = stages("base", BASE_SFT, model, lambda m, **hooks: train_sft(
            m, tokenizer, reading(seed), BASE_SFT, seed=seed, **hooks))
        sft, start = supervise(base, tokenizer, demonstrations(settings), pretraining(seed),
                               seed=seed, stage=stages)
    if settings.rankings is not None:
        return People(sft, start, *split_rankings(settings))

    def rank(split: str, n: int) -> Callable[[], list[Ranking]]:
        def ask() -> list[Ranking]:
            with Progress("answering what is ranked", n * MOST, unit="completion") as progress:
                return rank_completions(sft, tokenizer, TASK, n, split=split, seed=seed,
                                        noise=settings.labeller_noise, progress=progress)
        return ask

    return People(sft, start,
                  stages.file("rankings.jsonl", rank("train", settings.ranked_prompts),
                              load_rankings, save_rankings),
                  stages.file("held-out.jsonl", rank("test", HELD_OUT),
                              load_rankings, save_rankings))


def second_stage(stages: Stages, people: People, config: RewardModelConfig) -> ScalarModel:
    """Return the reward model that --reward-model names, or train one."""
    settings: Any = stages.settings
    if settings.reward_model is not None:
        return load_reward_model(settings.reward_model, device=stages.device)[0]
    written = demonstrations(settings) if settings.rankings is None else []
    stages.looks["rm"] = Agreement(stages, people)
    return learn_rewards(people.sft, stages.tokenizer, lambda: people.rankings, config,
                         demonstrations=written, seed=settings.seed, stage=stages)


class KeepEpochs(Look):
    """Keep the SFT model after each epoch: sft/epoch-01/, ..."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def step(self, run: RunDir, model: Transformer, step: int, steps: int) -> None:
        epoch, rest = divmod(step * run.config["sft"]["epochs"], steps)
        if rest == 0:
            with run.replacing_folder(f"epoch-{epoch:02}") as folder:
                save_pretrained(model, self.tokenizer, folder)


class Agreement(Look):
    """How often a reward model decides held-out comparisons as the labeller did, and how sure.

    Where the epochs of SFT were kept, one of them is chosen by the reward model.
    """

    def __init__(self, stages: Stages, people: People) -> None:
        self.stages, self.people = stages, people

    def after(self, run: RunDir, model: ScalarModel, steps: int) -> dict[str, Any]:
        margins = held_out_margins(model, self.stages.tokenizer, self.people.held_out)
        with run.replacing("calibration.png") as partial:
            plot_calibration(margins.tolist(), partial)
        folders = sorted((run.path / "sft").glob("epoch-??"))
        if folders:
            choose_epoch(self.stages, folders, model)
        rankings = self.people.rankings
        return {"rankings": len(rankings), "comparisons": len(pairs(rankings)),
                "held_out_comparisons": len(margins),
                "pair_accuracy": float((margins > 0).double().mean()),
                "pair_loss": float(-logsigmoid(margins).mean())}


def held_out_margins(model: ScalarModel, tokenizer: Tokenizer,
                     rankings: Sequence[Ranking]) -> Tensor:
    """Return r(better) - r(worse) of every comparison: positive where the model agrees. (N,)"""
    compared = pairs(rankings)
    prompts = [prompt for prompt, _, _ in compared]
    better, worse = (score_texts(model, tokenizer, prompts, [pair[i] for pair in compared])
                     for i in (1, 2))
    return better - worse


def choose_epoch(stages: Stages, folders: Sequence[Path], reward_model: ScalarModel) -> None:
    """Choose the SFT checkpoint with the best reward-model score on held-out prompts.

    Paper      InstructGPT, appendix C.1: and not the one with the least validation loss.

    Writes sft-epochs.json, an entry per epoch of which one has "chosen": true, and sft-epochs.png.
    """
    settings: Any = stages.settings
    run, tokenizer = stages.run, stages.tokenizer
    task = scored_by(reward_model, tokenizer, TASK)
    validation = encode_pairs(tokenizer, demonstrations(settings, split="test"),
                              reward_model.config.max_seq_len)
    epochs = []
    with Progress("choosing the SFT epoch", len(folders), unit="epoch") as progress:
        for folder in folders:
            model, _ = load_pretrained(folder, device=stages.device)
            result = watched("", model, tokenizer, task, n=settings.eval_problems,
                             max_new_tokens=MAX_NEW_TOKENS,
                             seed=derive_seed(settings.seed, "instruct", "epochs"))
            epochs.append({"epoch": int(folder.name[-2:]),
                           "validation_loss": text_loss(model, tokenizer, validation),
                           "score": result.mean("reward_model"),
                           "true_reward": result.mean("true_reward"), "chosen": False})
            progress.update()
    epochs[best_of_n([epoch["score"] for epoch in epochs])]["chosen"] = True
    with run.replacing("sft-epochs.png") as partial:
        plot_epochs(epochs, partial)
    run.write_json("sft-epochs.json", {"epochs": epochs})


# stage 3

class Comparison(BeforeAndAfter):
    """A policy before and after preference learning: what people think, what the reward model does,
    how far the policy went, and what it lost on other text."""

    def __init__(self, stages: Stages, reward_model: ScalarModel, *,
                 max_new_tokens: int = MAX_NEW_TOKENS, temperature: float = 1.0) -> None:
        seed = stages.settings.seed
        super().__init__(stages, scored_by(reward_model, stages.tokenizer, TASK), samples=SAMPLES,
                         verdicts=("true_reward", "reward_model"), max_new_tokens=max_new_tokens,
                         temperature=temperature, seed=derive_seed(seed, "instruct", "evaluate"))
        self.texts = pretraining(seed, 1000, "test")

    def loss_on_text(self, model: Transformer) -> float:
        texts = encode_texts(self.tokenizer, self.texts, model.config.max_seq_len)
        return text_loss(model, self.tokenizer, texts)

    def before(self, run: RunDir, start: Transformer, *, resumed: bool) -> None:
        super().before(run, start, resumed=resumed)
        self.reference, self.text_before = start, self.loss_on_text(start)

    def after(self, run: RunDir, model: Transformer, steps: int) -> dict[str, Any]:
        results = super().after(run, model, steps)
        for name, reward in (("true_reward", "true_reward"), ("score", "reward_model")):
            results |= {f"{name}_before": self.first.mean(reward),
                        f"{name}_after": self.last.mean(reward)}
        return {**results, "kl_after": self.last.kl, "pretraining_loss_before": self.text_before,
                "pretraining_loss_after": self.loss_on_text(model)}


def train_by_dpo(stages: Stages, people: People, config: DPOConfig,
                 reward_model: ScalarModel) -> tuple[Transformer, Comparison]:
    """DPO on the rankings. The reward model is asked for evaluation only."""
    look = stages.looks["dpo"] = Comparison(stages, reward_model)
    policy = prefer(people.start, stages.tokenizer, lambda: people.rankings, config,
                    seed=stages.settings.seed, stage=stages)
    return policy, look


# the commands

def rm(stages: Stages, model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl rm` does, stages 1 and 2 -> what it prints at the end."""
    run, settings = stages.run, configs["settings"]
    model.compiled = compiled(settings, model, configs["rm"])
    stages.looks["sft"] = KeepEpochs(stages.tokenizer)
    people = first_stage(stages, model)
    second_stage(stages, people, configs["rm"])
    summary, epochs = run.summary, read_json(run.path / "sft-epochs.json").get("epochs")
    return (f"\n{summary['rankings']} rankings, {summary['comparisons']} comparisons; of "
            f"{summary['held_out_comparisons']} held-out comparisons the reward model decides "
            f"{summary['pair_accuracy']:.1%} as the labeller did\n"
            + (f"\n{epochs_table(epochs)}\n" if epochs else "")
            + f"\n{stages.seconds:.0f} s. {run.path}/ holds calibration.png, curves.png, "
              "summary.json, metrics.jsonl and final/"
            + (", sft-epochs.png and rankings.jsonl.\n" if epochs else ".\n")
            + f"Next: minirl ppo {same_start(run, settings, run.path / 'final')}")


def ppo(stages: Stages, model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl ppo` does, all three stages, and DPO beside them -> what it prints."""
    run, settings, config = stages.run, configs["settings"], configs["ppo"]
    model.compiled = compiled(settings, model, config)
    people = first_stage(stages, model)
    reward_model = second_stage(stages, people, RewardModelConfig())
    dpo_policy, _ = train_by_dpo(stages, people, DPOConfig(), reward_model)
    look = stages.looks["ppo"] = Comparison(
        stages, reward_model, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    variant = PRESETS["ppo"][run.config["preset"]].arguments(config)
    reinforce(people.start, stages.tokenizer, TASK, config, reward_model=reward_model,
              pretraining=pretraining(settings.seed), seed=settings.seed, stage=stages, **variant)
    rows = compare(stages, people, look, {"DPO": dpo_policy}) | {"PPO": look.last}
    again = same_start(run, settings, settings.reward_model or run.path / "rm" / "final")
    return (f"{report(stages, rows)}\nNext, from the same start ({again}):\n"
            "minirl ppo --kl-coef 0  (what happens without the penalty)  |  "
            "minirl ppo --preset ppo-ptx  |  minirl plot")


def dpo(stages: Stages, model: Transformer, configs: Mapping[str, Any]) -> str:
    """Do what `minirl dpo` does -> what it prints at the end."""
    run, settings = stages.run, configs["settings"]
    model.compiled = compiled(settings, model, configs["dpo"])
    people = first_stage(stages, model)
    reward_model = second_stage(stages, people, RewardModelConfig())
    _, look = train_by_dpo(stages, people, configs["dpo"], reward_model)
    rows = compare(stages, people, look, {}) | {"DPO": look.last}
    again = same_start(run, settings, settings.reward_model or run.path / "rm" / "final")
    return f"{report(stages, rows)}\nNext, from the same start: minirl ppo {again}"


def compiled(settings: InstructSettings, model: Transformer, config: Any) -> bool:
    """Return whether to compile, from the tokens that the run's own page learns from, roughly."""
    texts = getattr(config, "episodes", settings.ranked_prompts * MOST)
    tokens = getattr(config, "steps", config.epochs) * texts * 2 * MAX_NEW_TOKENS
    return worth_compiling(settings.compile, model, tokens)


def same_start(run: RunDir, settings: InstructSettings, reward_model: Path | str) -> str:
    """Return the flags with which another run has the same policy, reward model and rankings."""
    flags = {"init": settings.init or run.path / "rl-init" / "final", "reward-model": reward_model,
             "rankings": settings.rankings or run.path / "rankings.jsonl"}
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())


# what they print

def compare(stages: Stages, people: People, look: Comparison,
            policies: Mapping[str, Transformer]) -> dict[str, Evaluation]:
    """Evaluate the start, best-of-n of it, and other policies, on the same held-out prompts."""
    settings: Any = stages.settings
    best = f"best of {settings.best_of}"
    with compute_in(settings.dtype, stages.device):
        rows = {"SFT": replace(look.first, kl=0.0),
                best: look.evaluate(f"measuring {best}", people.start, samples=settings.best_of,
                                    choose=best_of("reward_model"), reference=people.start)}
        return rows | {name: look.evaluate(f"measuring {name}", policy, reference=people.start)
                       for name, policy in policies.items()}


def report(stages: Stages, rows: Mapping[str, Evaluation]) -> str:
    return (f"\n{comparison(rows)}\n\n{stages.seconds:.0f} s. {stages.run.path}/ holds "
            "curves.png, samples.md, summary.json, metrics.jsonl"
            "\nand final/, a checkpoint in Hugging Face layout.")


def comparison(policies: Mapping[str, Evaluation]) -> str:
    """Return a row per policy, and what the first and the last say to a few problems."""
    first, *_, last = policies.items()
    problems = first[1].problems
    rows = [("", "true reward", "right", "reward model", "KL", "tokens")]
    for name, result in policies.items():
        kl = "" if result.kl is None else f"{round(result.kl, 2) + 0.0:.2f}"       # not -0.00
        rows.append((name, mean_interval(result.numbers("true_reward")), f"{result.accuracy:.3f}",
                     f"{result.mean('reward_model'):.3f}", kl, f"{result.mean_length:.1f}"))
    lines = [f"{len(problems)} distinct held-out instructions", table(rows), ""]
    width = max(len(first[0]), len(last[0]))
    for i, problem in enumerate(problems[:SAMPLES]):
        lines += hanging("", problem.prompt)
        for name, result in (first, last):
            head = f"  {name:{width}}  {verdict(result, i)}  "
            lines += hanging(head, result.completions[i][0])
    return "\n".join(lines)


def epochs_table(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return every other epoch, the chosen one, and the one that validation loss would choose."""
    least = min(epochs, key=lambda epoch: epoch["validation_loss"])
    names = "validation_loss", "score", "true_reward"
    rows: list[tuple[str, ...]] = [("SFT epoch", "validation loss", "reward model",
                                    "true reward", "")]
    for epoch in epochs:
        notes = ["chosen"] * epoch["chosen"] + ["least validation loss"] * (epoch is least)
        if epoch["epoch"] in (1, 2, 4, 8, 16) or notes:
            rows.append((str(epoch["epoch"]), *(f"{epoch[name]:.3f}" for name in names),
                         " and ".join(notes)))
    return table(rows)


# before a run has a folder

def check_instructions(configs: Mapping[str, Any], given: Collection[str], start: Start) -> None:
    """Raise ValueError for what would stop `minirl rm`, `minirl ppo` or `minirl dpo` later."""
    settings: InstructSettings = configs["settings"]
    if settings.rankings is not None:
        refuse(given, LABELLED, "--rankings names rankings, and no labeller is asked")
        if settings.init is not None:
            refuse(given, DEMONSTRATED, "with --init and --rankings nobody writes demonstrations")
    if "rm" in configs:
        refuse(given, ["best_of"], "minirl rm trains no policy to compare it with")
        if settings.reward_model is not None:
            raise ValueError("--reward-model is given to minirl rm, which trains one: leave it out,"
                             " or use minirl ppo or minirl dpo")
    longest = max(MAX_NEW_TOKENS, getattr(configs.get("ppo"), "max_new_tokens", 0))
    check_prompts(start, TASK, longest)
    if settings.rankings is not None:
        for rankings in split_rankings(settings):
            if rankings:
                encode_rankings(start.tokenizer, rankings, start.config.max_seq_len)
    if settings.reward_model is not None:
        check_tokenizers(settings, start.tokenizer)


def check_tokenizers(settings: InstructSettings, tokenizer: Tokenizer) -> None:
    """A reward model must read the policy's ids: the same tokens, under the same numbers."""
    _, other = load_reward_model(str(settings.reward_model))
    if (tokenizer.backend.get_vocab() == other.backend.get_vocab()
            and tokenizer.stop_ids == other.stop_ids):
        return
    raise ValueError(f"the reward model {settings.reward_model} and the policy "
                     f"{settings.init or 'of this toy'} have different tokenizers "
                     f"({other.vocab_size} and {tokenizer.vocab_size} tokens): it would read other "
                     "words than the policy writes; use a reward model that was trained from this "
                     "policy")
