"""SIGKILLs at random moments, a third of them while a checkpoint is being written, and whether runs
that are resumed after them end with the bits of a run that nobody killed.

    python benchmarks/kills.py --out FILE [--kills 100] [--pages sft grpo ppo r1] [--minutes 30]
    python benchmarks/kills.py --out FILE --pages real --real FOLDER --data GSM8K   a real model
    python benchmarks/kills.py --out FILE --processes 2                             of torchrun
    python benchmarks/kills.py --out FILE --table                                   what it holds

A run is killed, resumed, killed again and so on, until it has had its share of the kills; then it
is left alone. FILE gets a line of JSON for each such run, so the kills can be made in portions:
--kills counts those of these pages that it holds.

Compared are the weights and the optimizer in every checkpoint and final/ and, but for times, the
metrics of every stage and the samples. A kill is "while saving" where the dead process left a
half-written checkpoint or final/ that was not there when it started. A kill in the first seconds
hits a process that loads, or tidies up after the kill before. Lost is a checkpoint or a step that
was on the disk before a kill and is gone after it, and whatever a resumed run complains of.

Of several processes a kill hits one, or all at once. Where it hits one, the others have to end by
themselves. Each page is also resumed once with another number of threads, and has to say so.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import commit, heading, row, table_head
from killing import FIRST, KINDS, SAVING, Job, Kill, half_written, kill_once, log_of, outcome, steps
from study import Record, add_record, records

SUMS = ["--digits", "1", "--eval-problems", "8", "--checkpoint-every", "2", "--device", "cpu"]
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
    "real": ("grpo", ["--task", "gsm8k", "--reward", "kills:vowels", "--eval-problems", "1",
                      "--max-new-tokens", "4", "--group-size", "2",
                      "--steps", "6", "--checkpoint-every", "1", "--lr", "1e-5", "--device", "cpu",
                      "--compile", "off"]),
}
AT_ONCE = 8                # kills of one run, at most
COMPLAINTS = ("is damaged", "begins again", "cannot be read", "is missing", "are repeated",
              "bits may differ")


def vowels(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
    """Return the share of vowels: a reward by which nearly any two completions differ."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


# runs

def killed_run(job: Job, run: Path, kills: int, rng: random.Random, whole: int) -> list[Kill]:
    """Make a run with this many kills, fewer where it ends before that -> the kills."""
    met: list[Kill] = []
    while len(met) < kills:
        saving = sum(kill.kind == SAVING for kill in met)
        others = [kind for kind in KINDS if kind != SAVING]
        aim = SAVING if 3 * saving <= len(met) else rng.choice([*others, others[-1]])
        kill = kill_once(job, run, rng, whole=whole, aim=aim)
        if kill is None:
            break
        met.append(kill)
    job.finish(run)
    return met


def complaints(run: Path) -> list[str]:
    """Return the lines of a log that a run which goes on as if nothing had been does not write."""
    lines = log_of(run).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if any(words in line for words in COMPLAINTS)]


def differences(run: Path, whole: Path) -> list[str]:
    """Return the names of what is not as in a run that was left alone."""
    came, expected = outcome(run), outcome(whole)
    return sorted([name for name in expected.keys() | came.keys()
                   if expected.get(name) != came.get(name)]
                  + [f"{name} is left" for name, _ in half_written(run)])


class Page:
    """A page on so many processes: its run that nobody kills, and those that are killed."""

    def __init__(self, name: str, job: Job, work: Path) -> None:
        self.name, self.job, self.work = name, job, work
        self.whole = work / f"{name}-{job.processes}"

    def prepare(self) -> None:
        if not (self.whole / "final" / "config.json").exists():
            self.job.finish(self.whole)

    def record(self, number: int, kills: int) -> Record:
        """Kill a run, compare it, and delete it where it is as it should be."""
        began, run = time.perf_counter(), self.work / f"{self.whole.name}-killed-{number}"
        rng = random.Random(f"{self.whole.name} {number}")
        met = killed_run(self.job, run, kills, rng, steps(self.whole))
        differing, lost = differences(run, self.whole), complaints(run)
        lost += [text for kill in met for text in kill.lost]
        if not differing and not lost:
            delete(run)
        return {"what": "kills", **self.about, "kills": [asdict(kill) for kill in met],
                "differing": differing, "lost": lost,
                "seconds": round(time.perf_counter() - began)}

    def threads(self) -> Record:
        """Kill a run once, go on with twice as many threads, and look for the line about it."""
        run, rng = self.work / f"{self.whole.name}-threads", random.Random(self.whole.name)
        kill_once(self.job, run, rng, whole=steps(self.whole), aim=SAVING)
        self.job.finish(run, threads=2 * int(os.environ["OMP_NUM_THREADS"]))
        said = [line for line in complaints(run) if "bits may differ" in line]
        differing = differences(run, self.whole)
        delete(run)
        return {"what": "threads", **self.about, "said": said, "differing": len(differing)}

    @property
    def about(self) -> Record:
        return {"page": self.name, "processes": self.job.processes, "commit": commit(),
                "date": str(datetime.date.today())}


def delete(run: Path) -> None:
    shutil.rmtree(run)
    log_of(run).unlink()


def make_pages(args: argparse.Namespace, work: Path) -> list[Page]:
    """Return the pages, with a base model where one of them needs it."""
    base = work / "base"
    if {"grpo", "ppo"} & set(args.pages) and not (base / "final" / "config.json").exists():
        Job("sft", PAGES["sft"][1]).finish(base)
    pages = []
    for name in args.pages:
        command, flags = PAGES[name]
        if name == "real":
            flags = [*flags, "--init", str(args.real), "--data", str(args.data),
                     "--prompts-per-step", str(args.processes)]
        elif name in ("grpo", "ppo"):
            flags = [*flags, "--init", str(base / "final")]
        pages.append(Page(name, Job(command, flags, args.processes), work))
    return pages


def kill_pages(args: argparse.Namespace, end: float) -> None:
    """Kill runs, those of the page with the fewest kills first, until there are --kills."""
    work = args.out.parent / f"{args.out.stem}-{commit()}"
    work.mkdir(parents=True, exist_ok=True)
    pages = make_pages(args, work)
    while time.monotonic() < end:
        earlier = [line for line in records(args.out) if line["processes"] == args.processes]
        counts = Counter({page.name: 0 for page in pages})
        for line in earlier:
            if line["page"] in counts and line["what"] == "kills":
                counts[line["page"]] += len(line["kills"])
        page = min(pages, key=lambda page: counts[page.name])
        left = args.kills - counts.total()
        page.prepare()
        if page.name not in {line["page"] for line in earlier if line["what"] == "threads"}:
            line = page.threads()
        elif left > 0:
            share = -(-args.kills // len(pages)) - counts[page.name]
            number = sum(line["page"] == page.name for line in earlier)
            line = page.record(number, min(left, max(1, share), AT_ONCE))
        else:
            break
        add_record(args.out, line)
        print(f"{page.name}, {summary(line)}", flush=True)


# what came of it

def summary(line: Record) -> str:
    if line["what"] == "threads":
        return f"resumed with other threads: {' '.join(line['said']) or 'no word about it'}"
    kinds = Counter(kill["kind"] for kill in line["kills"])
    what = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
    faults = [f"{name} differs" for name in line["differing"]] + line["lost"]
    return f"kills: {what}; {'; '.join(faults) or 'the same to the bit'}; {line['seconds']} s"


def table(lines: Sequence[Record]) -> None:
    """Print a row for each page and number of processes, and their sum."""
    print(table_head("page", "processes", "runs", "kills", "while saving",
                     f"in the first {FIRST:g} s", "steps done again, at most",
                     "the others ended within, s", "lost", "runs with other bits",
                     "other threads are said"))
    groups = sorted({(line["processes"], list(PAGES).index(line["page"])) for line in lines})
    for processes, page in groups:
        name = list(PAGES)[page]
        table_row(name, str(processes), [line for line in lines
                                         if (line["page"], line["processes"]) == (name, processes)])
    table_row("all", "", lines)


def table_row(name: str, processes: str, lines: Sequence[Record]) -> None:
    runs = [line for line in lines if line["what"] == "kills"]
    kills = [kill for line in runs for kill in line["kills"]]
    kinds = Counter(kill["kind"] for kill in kills)
    threads = [bool(line["said"]) for line in lines if line["what"] == "threads"]
    print(row(name, processes, len(runs), len(kills), *(kinds[kind] for kind in KINDS[:2]),
              max((kill["again"] for kill in kills), default=0),
              max((kill["seconds"] for kill in kills), default=0.0) or "-",
              sum(len(line["lost"]) for line in runs),
              sum(bool(line["differing"]) for line in runs),
              f"{sum(threads)} of {len(threads)}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON per killed run")
    parser.add_argument("--kills", type=int, default=100, help="in all, with those of the file")
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=list(PAGES)[:-1])
    parser.add_argument("--real", type=Path, help="a checkpoint's folder, for the page real")
    parser.add_argument("--data", type=Path, help="GSM8K, for the page real")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"),
                        help="begin no run after that many")
    parser.add_argument("--table", action="store_true", help="kill nothing")
    args = parser.parse_args()
    if "real" in args.pages and not (args.table or args.real and args.data):
        parser.error("the page real needs --real FOLDER and --data FILE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(       # where the reward function is
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not args.table:
        print(f"{heading()}, commit {commit()}\n", flush=True)
        kill_pages(args, time.monotonic() + 60 * args.minutes)
        print()
    lines = records(args.out)
    table(lines)
    sys.exit(any(line["differing"] or line["lost"] for line in lines if line["what"] == "kills"))


if __name__ == "__main__":
    main()
