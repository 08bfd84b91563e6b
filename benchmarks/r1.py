"""What DeepSeek-R1 claims of its stages, of the language reward, of the cold start, of distillation
and of preference rewards, measured on sums and stories in two languages.

    python benchmarks/r1.py [--seeds 3] [--jobs 2] [--runs FOLDER] [--figure FILE]
    python benchmarks/r1.py --claims cold-start          one of the tables, and the runs it needs

For each seed all of `minirl r1`, and from the same base model its stages in other variants: with
the target language Korean, English, or the prompt's but without the language reward; and with a
cold start from demonstrations that people wrote, in place of R1-Zero's own outputs.

Prints a table per claim (means over seeds, with the 95 % interval of the mean by Student's t), and
draws the figure if all claims are asked for. Runs are processes of one thread, --jobs at a time.
With --runs, what is finished is kept and not made again, and a run that was cut short goes on. On
two cores it takes about 50 minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import r1_report as report
from common import commit, heading, run_minirl
from minirl.app.rundir import RunDir
from minirl.lm.files import read_json

WHOLE = "prompt"                       # the run with all stages: reasoning in the prompt's language
VARIANTS: dict[str, tuple[object, ...]] = {
    "none": ("--language-weight", 0), "ko": ("--language", "ko"), "en": ("--language", "en"),
    "demonstrations": ("--cold-start-problems", 0, "--cold-start-examples", 300)}
# claim -> the variants that it needs beside the whole run
CLAIMS: dict[str, tuple[str, ...]] = {
    "stages": (), "languages": ("none", "ko", "en"), "cold-start": ("demonstrations",),
    "distillation": (), "hacking": ()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--claims", nargs="+", choices=tuple(CLAIMS), default=list(CLAIMS),
                        help="the tables to make (default: all)")
    parser.add_argument("--runs", type=Path, default=None, help="keep the runs here")
    parser.add_argument("--fast", action="store_true", help="small runs: does it work?")
    parser.add_argument("--figure", type=Path,
                        default=Path(__file__).parent / "figures" / "r1.png")
    args = parser.parse_args()
    if args.seeds not in report.STUDENT_T:
        few, many = min(report.STUDENT_T), max(report.STUDENT_T)
        parser.error(f"--seeds is {args.seeds}: it must be between {few} and {many}")
    size = "small runs (--fast)" if args.fast else "runs"
    print(f"{heading()}, commit {commit()}; {size} of one thread, {args.jobs} at a time\n",
          flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = args.runs or Path(folder)
        names = [name for claim in args.claims for name in CLAIMS[claim]]
        make_runs(root, args.seeds, names, jobs=args.jobs, fast=args.fast)
        whole = [RunDir(root / f"seed-{seed}" / WHOLE) for seed in range(args.seeds)]
        seeds = [{name: stages_of(root / f"seed-{seed}" / name) for name in (WHOLE, *names)}
                 for seed in range(args.seeds)]
        tables = {"stages": partial(report.stages, seeds),
                  "languages": partial(report.languages, seeds),
                  "cold-start": partial(report.cold_start, seeds),
                  "distillation": partial(report.distillation, seeds),
                  "hacking": partial(report.hacking, whole)}
        for claim in args.claims:
            tables[claim]()
        if set(args.claims) == set(CLAIMS):
            report.draw(seeds, whole, args.figure)
            print(f"\n{args.figure}")


def make_runs(root: Path, seeds: int, names: Sequence[str], *, jobs: int, fast: bool) -> None:
    """Make the whole run of each seed, then the variants from their base models."""
    size = ("--fast",) if fast else ()

    def whole(seed: int) -> None:
        run_minirl("r1", root / f"seed-{seed}" / WHOLE, "--seed", seed, "--device", "cpu", *size,
                   threads=1)

    def variant(seed: int, name: str) -> None:
        folder = root / f"seed-{seed}"
        run_minirl("r1", folder / name, "--seed", seed, "--device", "cpu", *size, *VARIANTS[name],
                   "--too-long", 0, "--small", 0, "--init", folder / WHOLE / "base" / "final",
                   threads=1)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(whole, range(seeds)))
        list(pool.map(lambda job: variant(*job),
                      [(seed, name) for seed in range(seeds) for name in names]))


def stages_of(run: Path) -> report.Stages:
    """Return what each policy of a run is worth."""
    return {entry["stage"]: entry for entry in read_json(run / "stages.json")["stages"]}


if __name__ == "__main__":
    main()
