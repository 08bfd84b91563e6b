"""SIGKILLs at random moments, a third of them while a checkpoint is being written, and whether runs
that are resumed after them end with the bits of a run that nobody killed.

    python benchmarks/kills.py [--kills 24] [--pages sft grpo ppo r1]          about 10 minutes

A run is killed, resumed, killed again and so on, until it has had its share of the kills; then it
is left alone. Compared are the weights of every final/ and, but for times, the metrics of every
stage and the samples. "while saving": a file or folder was left half-written.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MINIRL, heading, row, run_minirl, table_head
from minirl.app.rundir import RunDir

SUMS = ["--digits", "1", "--eval-problems", "8", "--checkpoint-every", "1", "--device", "cpu"]
BASE = ["--hidden-size", "32", "--num-layers", "1", "--num-heads", "2", "--intermediate-size", "64",
        "--examples", "2048", "--batch-size", "32"]
RL = ["--max-new-tokens", "8", "--lr", "1e-3", "--task", "addition"]
PAGES: dict[str, tuple[str, list[str]]] = {    # command and flags; all but sft and r1 get an --init
    "sft": ("sft", [*SUMS, *BASE]),
    "grpo": ("grpo", [*SUMS, *RL, "--steps", "40", "--prompts-per-step", "4", "--group-size", "4",
                      "--ref-sync-steps", "9", "--off-policy", "1", "--keep-checkpoints", "3"]),
    "ppo": ("ppo", [*SUMS, *RL, "--steps", "24", "--episodes", "16", "--minibatch-size", "8"]),
    "r1": ("r1", ["--number-length", "1", "--examples", "1600", "--general-examples", "400",
                  "--cold-start-examples", "64", "--demonstrations", "32", "--ranked-prompts", "40",
                  "--eval-problems", "4", "--samples", "2", "--device", "cpu",
                  "--checkpoint-every", "2", "--scale", "128", "--zero-steps", "3",
                  "--reasoning-steps", "3", "--final-steps", "3", "--preference-steps", "4",
                  "--too-long", "1", "--kept-problems", "64", "--cold-start-problems", "16",
                  "--max-new-tokens", "24"]),
}
PATIENCE = 900             # seconds without a step, after which a process is taken to hang


def folders(run: Path) -> list[Path]:
    """Return the folders of a run and of its stages."""
    return [run, *(path.parent for path in run.glob("*/config.json")
                   if not path.parent.name.startswith(("checkpoint-", "final")))]


def steps(run: Path) -> int:
    """Return how many steps a run and its stages have written down."""
    files = [folder / "metrics.jsonl" for folder in folders(run)]
    return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())


def half_written(run: Path) -> list[str]:
    """Return the names of checkpoints and final/ that are being written."""
    return [path.name for folder in folders(run) for path in folder.glob("*.partial")
            if path.is_dir()]


def outcome(run: Path) -> dict[str, Any]:
    """Return what two runs that computed the same have in common, to the bit."""
    content: dict[str, Any] = {}
    for folder in folders(run):
        name = str(folder.relative_to(run))
        content[f"{name}: metrics"] = [
            {key: value for key, value in line.items() if key != "step_time"}
            for line in RunDir(folder).metrics()]
        for file in (folder / "samples.md", *(folder / "final").glob("*.safetensors")):
            if file.is_file():
                content[f"{name}: {file.name}"] = file.read_bytes()
    return content


def kill_once(argv: list[str], run: Path, rng: random.Random, *, whole: int, while_saving: bool
              ) -> str | None:
    """Start a process and kill it -> "saving", "random", or None where it ended by itself."""
    target = min(whole - 1, steps(run) + rng.randrange(0, max(2, whole // 5)))
    with open(f"{run}.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    began = time.perf_counter()
    while process.poll() is None and steps(run) <= target:
        time.sleep(0.002)
        if time.perf_counter() - began > PATIENCE:
            raise RuntimeError(f"no step in {PATIENCE} s: see {run}.log")
    while while_saving and process.poll() is None and not half_written(run):
        pass
    time.sleep(rng.uniform(0, 0.02 if while_saving else 0.3))
    process.kill()
    if process.wait() == 0:
        return None
    if process.returncode != -9:
        raise RuntimeError(f"{' '.join(argv[3:])} ended with {process.returncode}: see {run}.log")
    return "saving" if half_written(run) else "random"


def killed_run(command: str, flags: list[str], run: Path, kills: int, rng: random.Random,
               whole: int) -> dict[str, int]:
    """Make a run with this many kills -> how many there were, and of which kind."""
    counts = {"random": 0, "saving": 0}
    while counts["random"] + counts["saving"] < kills:
        begun = (run / "config.json").is_file()
        argv = [*MINIRL, command, "--run-dir", str(run), *(["--resume"] if begun else flags)]
        done = counts["random"] + counts["saving"]
        kind = kill_once(argv, run, rng, whole=whole, while_saving=3 * counts["saving"] <= done)
        if kind is None:
            break
        counts[kind] += 1
    run_minirl(command, run, *flags)                       # to its end
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="in all")
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=list(PAGES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    print(heading() + "\n")
    print(table_head("page", "kills", "while saving", "runs", "other weights, metrics or samples"))
    different = False
    with tempfile.TemporaryDirectory() as work:
        base = run_minirl("sft", Path(work) / "base", *PAGES["sft"][1]).path / "final"
        for page in args.pages:
            command, flags = PAGES[page]
            if page not in ("sft", "r1"):
                flags = [*flags, "--init", str(base)]
            whole = run_minirl(command, Path(work) / page, *flags).path
            left = -(-args.kills // len(args.pages))
            kills = saving = runs = 0
            differing: list[str] = []
            while left > 0:
                run = Path(work) / f"{page}-{runs}"
                counts = killed_run(command, flags, run, min(left, 8), rng, steps(whole))
                left -= max(1, counts["random"] + counts["saving"])
                kills, saving, runs = (kills + counts["random"] + counts["saving"],
                                       saving + counts["saving"], runs + 1)
                expected, came = outcome(whole), outcome(run)
                differing += [f"{run.name}/{name}" for name in expected.keys() | came.keys()
                              if expected.get(name) != came.get(name)]
                differing += [f"{run.name} has {name}" for name in half_written(run)]
            print(row(page, kills, saving, runs, ", ".join(sorted(differing)) or "none"),
                  flush=True)
            different |= bool(differing)
    sys.exit(different)


if __name__ == "__main__":
    main()
