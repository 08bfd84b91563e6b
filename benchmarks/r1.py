"""What DeepSeek-R1 claims of its stages, of the language reward, of preference rewards and of distillation, measured on sums and stories in two languages.

    python benchmarks/r1.py [--seeds 3] [--jobs 2] [--runs FOLDER] [--figure benchmarks/figures/r1.png]

For each seed the whole of `minirl r1`, and from the same base model its stages with reasoning wanted in Korean, in English, and without the language reward. Prints
a table per claim (means over seeds, and the 95 % interval of the mean by Student's t), and draws the figure. Runs are processes of one thread, --jobs at a time.
With --runs what is finished is kept and not made again, and a run that was cut short goes on. On two cores 40 minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
from common import commit, heading, row, table_head

from minirl.app.plots import COLOURS, smooth, tidy
from minirl.app.worths import SIDE
from minirl.app.rundir import RunDir
from minirl.lm.tokenizer import read_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}                       # 97.5 % quantile with n - 1 degrees of freedom
SHORT = ("--too-long", "0", "--small", "0")
VARIANTS = {"none": ("--language-weight", "0"), "ko": ("--language", "ko"), "en": ("--language", "en")}
PREFERENCE, TRUE = "rewards/preference/mean", "rewards/general/true_reward/mean"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--runs", type=Path, default=None, help="keep the runs here")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parent / "figures" / "r1.png")
    args = parser.parse_args()
    if args.seeds not in STUDENT_T:
        parser.error(f"--seeds is {args.seeds}: {min(STUDENT_T)} to {max(STUDENT_T)} are wanted")
    print(f"{heading()}, commit {commit()}; runs of one thread, {args.jobs} at a time\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = args.runs or Path(folder)
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda seed: train(root, seed, "prompt", ()), range(args.seeds)))
            list(pool.map(lambda job: train(root, *job), [(seed, name, (*flags, *SHORT, "--init", str(root / f"seed-{seed}" / "prompt" / "base" / "final")))
                                                          for seed in range(args.seeds) for name, flags in VARIANTS.items()]))
        found = [{name: {s["stage"]: s for s in read_json(run(root, seed, name).path / "stages.json")["stages"]} for name in ("prompt", *VARIANTS)} for seed in range(args.seeds)]
        stages(found)
        languages(found)
        distillation(found)
        hacking([run(root, seed, "prompt") for seed in range(args.seeds)])
        draw(found, [run(root, seed, "prompt") for seed in range(args.seeds)], args.figure)
    print(f"\n{args.figure}")


def run(root: Path, seed: int, name: str) -> RunDir:
    return RunDir(root / f"seed-{seed}" / name)


def train(root: Path, seed: int, name: str, flags: tuple[str, ...]) -> None:
    """A run of minirl r1 that has ended, or that is made or gone on with now."""
    made = run(root, seed, name)
    if made.finished:
        return
    given = ("--resume",) if (made.path / "config.json").exists() else ("--seed", str(seed), "--device", "cpu", *flags)
    made.path.parent.mkdir(parents=True, exist_ok=True)
    with open(made.path.with_suffix(".log"), "a", encoding="utf-8") as log:
        subprocess.run([sys.executable, "-m", "minirl", "r1", "--run-dir", str(made.path), *given], check=True, stdout=log, stderr=subprocess.STDOUT,
                       env=os.environ | {"OMP_NUM_THREADS": "1"})


def over_seeds(values: list[float], digits: int = 3) -> str:
    """Mean, and half the width of its 95 % interval."""
    half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} +- {half:.{digits}f}"


def stages(found: list[dict]) -> None:
    columns = ("easy", "hard", "majority", "pass", "format", "language", "length", "win_rate", "seconds")
    print("**Stage by stage** (hard problems but for the first column; win rate: general answers against the sft stage's)\n")
    print(table_head("", "easy, pass@1", "hard, pass@1", "maj@16", "pass@16", "format", "language", "tokens", "win rate", "seconds"))
    for name in (name for name in found[0]["prompt"] if name not in SIDE):
        print(row(name, *(over_seeds([f["prompt"][name][c] for f in found], 1 if c in ("length", "seconds") else 3) for c in columns)))
    print()


def languages(found: list[dict]) -> None:
    """Each against the runs without the language reward, seed by seed."""
    print("**The language reward** (all have a cold start and kept reasonings in the language wanted; it is left out of the reward alone)\n")
    print(table_head("reasoning wanted in", "rl-1: language", "hard", "less than without", "final: language", "hard", "less than without"))
    last = [name for name in found[0]["ko"]][-1]
    for name, title in (("none", "the prompt's language, and not rewarded"), ("prompt", "the prompt's language"), ("ko", "Korean"), ("en", "English")):
        cells = []
        for stage in ("rl-1", last):
            hard = [f[name][stage]["hard"] for f in found]
            loss = [f["none"][stage]["hard"] - f[name][stage]["hard"] for f in found]
            cells += [over_seeds([f[name][stage]["language"] for f in found]), over_seeds(hard), "" if name == "none" else over_seeds(loss)]
        print(row(title, *cells))
    print()


def distillation(found: list[dict]) -> None:
    last = [name for name in found[0]["prompt"] if name not in SIDE][-1]
    print("**Distillation**\n")
    print(table_head("", "easy", "hard", "maj@16", "pass@16", "language", "tokens", "seconds"))
    for name, title in (("small-base", "smaller base model"), ("small-rl", "RL on it"), ("distilled", "SFT on the final model's kept reasonings"), (last, "the final model")):
        print(row(title, *(over_seeds([f["prompt"][name][c] for f in found], 1 if c in ("length", "seconds") else 3)
                           for c in ("easy", "hard", "majority", "pass", "language", "length", "seconds"))))
    print()


def hacking(runs: list[RunDir]) -> None:
    """The mean of the first and the last ten steps, and the best ten in a row."""
    print("**The preference reward for too long** (general answers while training, means of ten steps)\n")
    print(table_head("", "score, first", "score, last", "true reward, first", "best", "last"))
    rows = [window_means(made) for made in runs]
    print(row("one reward model, for too long", *(over_seeds([r[i] for r in rows]) for i in range(5))))
    print()


def window_means(made: RunDir, size: int = 10) -> tuple[float, ...]:
    score, true = ([m[name] for m in RunDir(made.path / "too-long").metrics() if name in m] for name in (PREFERENCE, TRUE))
    windows = [statistics.mean(true[i:i + size]) for i in range(len(true) - size + 1)]
    return statistics.mean(score[:size]), statistics.mean(score[-size:]), windows[0], max(windows), windows[-1]


def draw(found: list[dict], runs: list[RunDir], out: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10.6, 6.6), layout="constrained")
    names = [name for name in found[0]["prompt"] if name not in SIDE]

    def line(axis, stages: list[str], key: str, label: str, colour: str, variant: str = "prompt") -> None:
        values = [[f[variant][name][key] for f in found] for name in stages]
        axis.plot(range(len(stages)), list(map(statistics.mean, values)), "o-", color=colour, markersize=5, linewidth=1.6, label=label)
        axis.fill_between(range(len(stages)), list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15, linewidth=0)

    for key, label, colour in (("easy", "easy", COLOURS[2]), ("hard", "hard", COLOURS[0]), ("majority", "hard, majority of 16", COLOURS[1]), ("pass", "hard, any of 16", COLOURS[5])):
        line(axes[0, 0], names, key, label, colour)
    axes[0, 0].set_title("Right answers, stage by stage", fontsize=10, loc="left", fontweight="bold")
    for variant, label, colour in (("none", "not rewarded", COLOURS[5]), ("prompt", "the prompt's", COLOURS[0]), ("ko", "Korean", COLOURS[1]), ("en", "English", COLOURS[2])):
        line(axes[0, 1], names, "language", label, colour, variant)
    axes[0, 1].set_title("Reasoning in the language asked for, share of words", fontsize=10, loc="left", fontweight="bold")
    for axis in axes[0]:
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axis.set_ylim(0, 1.03)
    for x, (name, colour) in enumerate((("small-base", COLOURS[5]), ("small-rl", COLOURS[1]), ("distilled", COLOURS[0]), (names[-1], COLOURS[2]))):
        for i, (key, alpha) in enumerate((("easy", 0.45), ("hard", 0.9))):
            values = [f["prompt"][name][key] for f in found]
            axes[1, 0].bar(x + 0.36 * i - 0.18, statistics.mean(values), 0.34, color=colour, alpha=alpha, yerr=[[statistics.mean(values) - min(values)], [max(values) - statistics.mean(values)]],
                           error_kw=dict(linewidth=1))
    axes[1, 0].set_xticks(range(4), ["smaller\nbase model", "RL on it", "SFT on the final\nmodel's reasonings", "the final\nmodel"])
    axes[1, 0].set_ylim(0, 1.03)
    axes[1, 0].set_title("Distillation: right answers to easy (pale) and hard problems", fontsize=10, loc="left", fontweight="bold")
    for name, label, colour in ((TRUE, "true reward: what people want", COLOURS[0]), (PREFERENCE, "reward model's score", COLOURS[1])):
        curves = [smooth([m[name] for m in RunDir(made.path / "too-long").metrics() if name in m], 5) for made in runs]
        columns = list(zip(*curves))
        axes[1, 1].plot(range(1, len(columns) + 1), list(map(statistics.mean, columns)), color=colour, linewidth=2, label=label)
        axes[1, 1].fill_between(range(1, len(columns) + 1), list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, linewidth=0)
    axes[1, 1].set_xlabel("rollouts with the preference reward", fontsize=9)
    axes[1, 1].set_title("The preference reward for too long", fontsize=10, loc="left", fontweight="bold")
    for axis in axes.flat:
        tidy(axis)
    for axis in (axes[0, 0], axes[0, 1], axes[1, 1]):
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(f"DeepSeek-R1 in miniature: means and ranges of {len(found)} seeds", fontsize=11, x=0.01, ha="left")
    figure.savefig(out, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
