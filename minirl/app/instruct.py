"""InstructGPT in miniature: what `minirl rm`, `minirl ppo` and `minirl dpo` do around their pages, on instructions whose true preference is known.

    base/            a model that has read instructions, followed or not, and other text
    sft/             stage 1: 16 epochs of demonstrations, a checkpoint kept of each
    rl-init/         where reinforcement learning starts: 2 epochs of demonstrations and 10 % of pretraining text
    rankings.jsonl   completions of the SFT model, ranked by a labeller who is not quite steady; held-out.jsonl: of held-out prompts
    rm/              stage 2: the reward model (the run itself, of minirl rm)
    the run itself   stage 3: PPO; or DPO on the same rankings

Only the labeller knows the true reward. What a run prints of it is evaluation. What --init, --rankings and --reward-model name is not made anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minirl.app.measure import MAX_NEW_TOKENS, SHOWN, TASK, Measured, completed, markdown, mean, measure, text_loss
from minirl.app.plots import plot_calibration, plot_epochs
from minirl.app.progress import Progress
from minirl.app.rundir import RunDir, RunLog
from minirl.app.training import BaseConfig, CommonConfig, finish, load_policy, profiling, supervised, worth_compiling
from minirl.equations.inference_time import best_of_n
from minirl.lm.checkpoint import load_pretrained, load_reward_model, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.precision import compute_in
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import make_base
from minirl.lm.tokenizer import read_json
from minirl.tasks.instructions import WORDS, Instructions, answers, pretraining_text, right_answer, true_reward
from minirl.tasks.preferences import Ranking, labelled, load_rankings, pairs, save_rankings
from minirl.tasks.problem import Problem, columns
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.encoding import encode_pairs, encode_texts
from minirl.train.ppo import KLControl, PPOConfig, train_ppo
from minirl.train.reward_model import RewardModelConfig, as_reward, score_texts, train_reward_model
from minirl.train.sft import SFT_PRESETS, SFTConfig

FEWEST, MOST = 4, 9            # completions of a ranking: InstructGPT, section 3.5
HELD_OUT = 200                 # rankings of held-out prompts
READ = {"answers": 42_000, "texts": 6_000}                                              # what the base model reads
BASE_SFT = SFTConfig(batch_size=64)
# InstructGPT, appendix C.1, but for the learning rate: 16 epochs, dropout 0.2, cosine to 10 %, no warm-up. And appendix C.3: 2 epochs, 10 % of pretraining text.
DEMONSTRATIONS_SFT = SFTConfig(**SFT_PRESETS["instructgpt"] | {"lr": 1e-3})
RL_INIT_SFT = SFTConfig(epochs=2, lr=1e-3, min_lr_ratio=0.1, warmup_steps=0, beta2=0.95)


@dataclass(frozen=True)
class InstructConfig(CommonConfig):
    """And what the pipeline of InstructGPT takes."""

    demonstrations: int = 512          # prompts with an answer that a person wrote
    right_share: float = 0.7           # of those answers are right: people err
    ranked_prompts: int = 2000         # prompts whose completions are ranked
    labeller_noise: float = 0.4        # of the labeller: odds that a is put before b are exp((r_a - r_b) / noise)
    rankings: str | None = None        # JSONL of rankings to learn from (TRL's prompt, chosen, rejected); without it a labeller makes them
    reward_model: str | None = None    # folder of a reward model; without it one is trained first
    best_of: int = 16                  # n of best-of-n, for comparison


@dataclass(frozen=True)
class JudgedBy:
    """A task's problems with other rewards: what a training page is given. The task's own come with weight 0: drawn, and no part of what is learnt from."""

    task: Instructions
    rewards: dict

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        return self.task.sample(n, rng, split=split)


# stages

def reading(seed: int) -> list[tuple[str, str]]:
    """What the base model reads: instructions, followed in six of ten cases, in all ways of speaking, and other text."""
    rng = random.Random(derive_seed(seed, "instruct", "reading"))
    read = answers(TASK, READ["answers"], rng, right_share=0.6, frame_weights=(1, 1, 1, 1)) + [("", text) for text in pretraining_text(READ["texts"], rng)]
    rng.shuffle(read)
    return read


def demonstrations(common: InstructConfig, split: str = "train") -> list[tuple[str, str]]:
    rng = random.Random(derive_seed(common.seed, "instruct", "demonstrations", split))
    return answers(TASK, common.demonstrations, rng, right_share=common.right_share, frame_weights=(1, 1, 1, 1), split=split)


def pretraining(seed: int, n: int = 2000, split: str = "train") -> list[str]:
    return pretraining_text(n, random.Random(derive_seed(seed, "instruct", "pretraining", split)))


@dataclass(frozen=True)
class Policies:
    """Folders of the policies that a pipeline starts from: `sft` writes what is ranked, `start` is what reinforcement learning changes."""

    sft: Path | str
    start: Path | str
    seconds: float = 0.0


def make_policies(run: RunDir, common: InstructConfig, *, device, keep_epochs: bool = False) -> Policies:
    """base/, sft/ and rl-init/ inside the run, each as far as it has got; or what --init names, for both. keep_epochs: sft/epoch-01/, ... for choose_epoch."""
    if common.init is not None:
        return Policies(common.init, common.init)
    stages = [run.stage(name, "sft", sft=config) for name, config in (("base", BASE_SFT), ("sft", DEMONSTRATIONS_SFT), ("rl-init", RL_INIT_SFT))]
    base, sft, start = stages
    demos = demonstrations(common)
    texts = [("", text) for text in pretraining(common.seed, len(demos) // 9)]                                      # a tenth of what is read

    def keep_epoch(epoch: int, model, tokenizer) -> None:
        with sft.replacing_folder(f"epoch-{epoch:02}") as folder:
            save_pretrained(model, tokenizer, folder)

    def fit(stage: RunDir, data, config: SFTConfig, start: Callable[[], tuple], each_epoch=None) -> None:
        if not stage.finished:
            model, tokenizer, report = supervised(stage, start, data, config, common, device=device, title=stage.path.name, each_epoch=each_epoch)
            finish(stage, model, tokenizer, {"steps": report.steps, "seconds": round(report.seconds, 1)})

    fit(base, reading(common.seed), BASE_SFT, lambda: make_base(BaseConfig(), seed=common.seed, device=device, words=WORDS))
    fit(sft, demos, DEMONSTRATIONS_SFT, lambda: load_policy(base.path / "final", device=device), keep_epoch if keep_epochs else None)
    fit(start, demos + texts, RL_INIT_SFT, lambda: load_policy(base.path / "final", device=device))
    return Policies(sft.path / "final", start.path / "final", sum(read_json(stage.path / "summary.json")["seconds"] for stage in stages))


def make_rankings(run: RunDir, policies: Policies, common: InstructConfig, *, device) -> tuple[list[Ranking], list[Ranking]]:
    """(to learn from, held out): from the file that --rankings names, every tenth prompt of it held out, or sampled from the SFT model and labelled."""
    if common.rankings is not None:
        return split_rankings(common)
    files = run.path / "rankings.jsonl", run.path / "held-out.jsonl"
    model = None
    for file, split, n in zip(files, ("train", "test"), (common.ranked_prompts, HELD_OUT)):
        if not file.exists():
            if model is None:
                model, tokenizer = load_policy(policies.sft, device=device)
            with compute_in(common.dtype, device):
                rankings = label(model, tokenizer, n, split=split, seed=common.seed, noise=common.labeller_noise)
            with run.replacing(file.name) as partial:
                save_rankings(rankings, partial)
    return tuple(load_rankings(file) for file in files)


def split_rankings(common: InstructConfig) -> tuple[list[Ranking], list[Ranking]]:
    """A file's rankings; every tenth prompt is held out, with all its lines, unless a reward model is there already."""
    rankings = load_rankings(common.rankings)
    prompts = list(dict.fromkeys(r.prompt for r in rankings))
    if common.reward_model is not None:
        return rankings, []
    if len(prompts) < 2:
        raise ValueError(f"{common.rankings} has rankings of {len(prompts)} prompt: at least two are wanted, as one in ten is held out")
    held = set(prompts[::10])
    return [r for r in rankings if r.prompt not in held], [r for r in rankings if r.prompt in held]


def label(model, tokenizer, n: int, *, split: str, seed: int, noise: float) -> list[Ranking]:
    """Completions of n prompts, ranked by the labeller; prompts for which fewer than FEWEST differ are left out, and answers that were cut off. Raises ValueError
    where nothing is left."""
    rng = random.Random(derive_seed(seed, "instruct", "labeller", split))
    rankings = []
    with Progress("answering what is ranked", n, unit="prompt") as progress:
        for problems, rollouts in completed(model, tokenizer, n, group=MOST, seed=derive_seed(seed, "instruct", "ranked", split),
                                            split=split, progress=progress):
            texts, cut = [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()], rollouts.truncated.tolist()
            for i, problem in enumerate(problems):
                whole = [texts[j] for j in range(i * MOST, (i + 1) * MOST) if not cut[j]]
                prompts, known = [problem.prompt] * len(whole), columns([problem], repeat=len(whole))
                ranking = labelled(problem.prompt, whole, true_reward(prompts, whole, **known), rng, noise=noise)
                if ranking is not None and len(ranking.completions) >= FEWEST:
                    rankings.append(ranking)
    if not rankings:
        raise ValueError(f"to none of {n} prompts did the policy give {FEWEST} different answers that end within {MAX_NEW_TOKENS} tokens: there is nothing to rank; "
                         "start from a policy that answers (--init)")
    return rankings


# minirl rm

def run_rm(run: RunDir, config: RewardModelConfig, common: InstructConfig, policies: Policies, rankings: Sequence[Ranking], held_out: Sequence[Ranking], *,
           device, profile: bool = False) -> dict:
    """Stage 2: a reward model from the SFT model and its rankings, into `run` -> its summary."""
    start = run.load_checkpoint(device=device, load=load_reward_model)
    (model, tokenizer), state = (load_policy(policies.sft, device=device), None) if start is None else (start[:2], start[2])
    backbone, tokens = model if start is None else model.backbone, sum(len(r.prompt) + len(c) for r in rankings for c in r.completions)
    backbone.compiled = worth_compiling(common.compile, backbone, config.epochs * tokens)
    report = RunLog(run, tokenizer, title="reward model", steps=config.epochs * -(-len(rankings) // config.batch_size), state=state,
                    every=5 * common.checkpoint_every, shown={"loss": "loss", "accuracy": "accuracy"})
    with compute_in(common.dtype, device), report, profiling(profile, train_reward_model, run):
        shown = demonstrations(common) if common.rankings is None else ()
        model = train_reward_model(model, tokenizer, rankings, config, demonstrations=shown, seed=common.seed, log=report.log, save=report.save, resume=state)
        margins = held_out_margins(model, tokenizer, held_out)
    with run.replacing("calibration.png") as partial:
        plot_calibration(margins.tolist(), partial)
    summary = {"steps": report.steps, "rankings": len(rankings), "comparisons": len(pairs(rankings)), "held_out_comparisons": len(margins),
               "pair_accuracy": float((margins > 0).double().mean()), "pair_loss": float(-torch.nn.functional.logsigmoid(margins).mean()),
               "seconds": round(report.seconds, 1)}
    finish(run, model, tokenizer, summary)
    return summary


def held_out_margins(model: ScalarModel, tokenizer, rankings: Sequence[Ranking]) -> Tensor:
    """r(better) - r(worse) of every comparison in some rankings: positive where the reward model agrees. (N,)"""
    compared = pairs(rankings)
    scores = [score_texts(model, tokenizer, [prompt for prompt, _, _ in compared], [pair[i] for pair in compared]) for i in (1, 2)]
    return scores[0] - scores[1]


def choose_epoch(run: RunDir, reward_model: ScalarModel, tokenizer, common: InstructConfig, *, device) -> list[dict]:
    """InstructGPT, appendix C.1: the SFT checkpoint with the best reward-model score on held-out prompts, and not the one with the least validation loss.

    Writes sft-epochs.png and puts the list, an entry per epoch, into sft-epochs.json; the chosen one has "chosen": true.
    """
    if (known := read_json(run.path / "sft-epochs.json")):
        return known["epochs"]
    validation = encode_pairs(tokenizer, demonstrations(common, split="test"), reward_model.config.max_seq_len)
    epochs = []
    folders = sorted((run.path / "sft").glob("epoch-??"))
    with Progress("choosing the SFT epoch", len(folders), unit="epoch") as progress:
        for folder in folders:
            model, _ = load_pretrained(folder, device=device)
            found = measure(model, tokenizer, common.eval_problems, seed=derive_seed(common.seed, "instruct", "epochs"),
                            reward_model=reward_model)
            epochs.append({"epoch": int(folder.name[-2:]), "validation_loss": text_loss(model, tokenizer, validation),
                           "score": mean(found.scores), "true_reward": mean(found.true), "chosen": False})
            progress.update()
    epochs[best_of_n([epoch["score"] for epoch in epochs])]["chosen"] = True
    with run.replacing("sft-epochs.png") as partial:
        plot_epochs(epochs, partial)
    run.write_json("sft-epochs.json", {"epochs": epochs})
    return epochs


# minirl ppo, minirl dpo

def run_ppo(run: RunDir, config: PPOConfig, common: InstructConfig, policies: Policies, reward_model: ScalarModel, *, kl_control: KLControl | None = None,
            device, profile: bool = False, seconds: float = 0.0) -> None:
    """Stage 3."""
    def page(model, tokenizer, **rest):
        judged = JudgedBy(TASK, {"reward_model": as_reward(reward_model, tokenizer), "true_reward": true_reward, "accuracy": right_answer})
        train_ppo(model, tokenizer, judged, config, value_model=reward_model, pretraining=pretraining(common.seed), kl_control=kl_control,
                  reward_weights={"reward_model": 1.0, "true_reward": 0.0, "accuracy": 0.0}, **rest)

    shown = {"objective/scores": "score", "objective/kl": "KL", "value/explained_variance": "explained", "completions/mean_length": "length"}
    improve(run, "PPO", page, train_ppo, config.steps, config.steps * config.episodes * config.max_new_tokens, common, policies, reward_model, shown,
            device=device, profile=profile, seconds=seconds, max_new_tokens=config.max_new_tokens, temperature=config.temperature)


def run_dpo(run: RunDir, config: DPOConfig, common: InstructConfig, policies: Policies, rankings: Sequence[Ranking], reward_model: ScalarModel, *, device,
            profile: bool = False, seconds: float = 0.0) -> None:
    """DPO on rankings; the reward model is asked only to measure."""
    def page(model, tokenizer, **rest):
        train_dpo(model, tokenizer, rankings, config, **rest)

    steps = config.epochs * -(-len(rankings) // config.batch_size)
    tokens = config.epochs * sum(len(r.prompt) + len(c) for r in rankings for c in r.completions)
    shown = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    improve(run, "DPO", page, train_dpo, steps, tokens, common, policies, reward_model, shown, device=device, profile=profile, seconds=seconds)


def improve(run: RunDir, name: str, page: Callable, profiled_page: Callable, steps: int, tokens: int, common: InstructConfig, policies: Policies,
            reward_model: ScalarModel, shown: dict[str, str], *, device, profile: bool, seconds: float, **sampling) -> None:
    """Train from policies.start into the run, and measure before and after on the same held-out prompts, sampled as in training."""
    first, tokenizer = load_policy(policies.start, device=device)
    model, _, state = run.load_checkpoint(device=device) or (*load_policy(policies.start, device=device), None)
    first.compiled = model.compiled = worth_compiling(common.compile, model, tokens)
    report = RunLog(run, tokenizer, title=name, steps=steps, state=state, every=common.checkpoint_every, seconds=seconds, shown=shown)
    measured = dict(seed=derive_seed(common.seed, "instruct", "evaluate"), reward_model=reward_model, **sampling)
    n = common.eval_problems
    texts = encode_texts(tokenizer, pretraining(common.seed, 1000, "test"), model.config.max_seq_len)

    def save(state) -> None:
        if state.step == steps // 2:
            run.write_samples(state.step, "halfway", markdown(measure(model, tokenizer, SHOWN, **measured)))
        report.save(state)

    with compute_in(common.dtype, device):
        before = watched("measuring before", first, tokenizer, n, **measured)
        text_before = text_loss(first, tokenizer, texts)
        if state is None:
            run.write_samples(0, "before", markdown(before))
        with report, profiling(profile, profiled_page, run):
            page(model, tokenizer, seed=common.seed, log=report.log, save=save, resume=state)
        after = watched("measuring after", model, tokenizer, n, reference=first, **measured)
        text_after = text_loss(model, tokenizer, texts)
    run.write_samples(steps, "after", markdown(after))
    summary = {"steps": steps, "accuracy_before": mean(before.right), "accuracy_after": mean(after.right), "mean_length_before": mean(before.lengths),
               "mean_length_after": mean(after.lengths), "true_reward_before": mean(before.true), "true_reward_after": mean(after.true),
               "score_before": mean(before.scores), "score_after": mean(after.scores), "kl_after": after.kl, "pretraining_loss_before": text_before,
               "pretraining_loss_after": text_after, "seconds": round(report.seconds, 1)}
    finish(run, model, tokenizer, summary)


def compare(common: InstructConfig, policies: Policies, reward_model: ScalarModel, trained: dict[str, Path], *, device, **sampling) -> dict[str, Measured]:
    """The policy that the others start from, best-of-n from it, and the others, on the same held-out prompts."""
    first, tokenizer = load_policy(policies.start, device=device)
    measured = dict(seed=derive_seed(common.seed, "instruct", "evaluate"), reward_model=reward_model, reference=first, **sampling)
    def compared(name: str, model, **rest) -> Measured:
        return watched(f"measuring {name}", model, tokenizer, common.eval_problems, **measured, **rest)

    best = f"best of {common.best_of}"
    with compute_in(common.dtype, device):
        found = {"SFT": compared("SFT", first), best: compared(best, first, best_of=common.best_of)}
        return found | {name: compared(name, load_policy(path, device=device)[0]) for name, path in trained.items()}


def watched(title: str, model, tokenizer, n: int, **rest) -> Measured:
    """measure(), with its progress."""
    with Progress(title, n, unit="prompt") as progress:
        return measure(model, tokenizer, n, progress=progress, **rest)
