"""`minirl mine`: DeepSeekMath's rounds, over given files or over a web whose truth is known.

    config.json   what ran            round-<k>/     a round's corpus, seeds and counts
    rounds.png    recall, by round    summary.json   the counts of all rounds

A round's folder appears when it is complete. `--resume` goes on behind the last one.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minirl.app.commands import given_flags
from minirl.app.rundir import RunDir
from minirl.app.runs import RUNS, new_run, newest_run
from minirl.app.survival import warn
from minirl.corpus.decontaminate import NgramIndex
from minirl.corpus.mining import MineConfig, Report, State, mine_round, read_round, survey
from minirl.corpus.pages import Corpus, Page, line_of
from minirl.corpus.web import MATHS, benchmark, seed_texts, web
from minirl.lm.figures import COLOURS, new_figure, save, tidy
from minirl.lm.progress import Progress
from minirl.lm.text import flag, table

SEEDS = 300                                     # pages of the synthetic web's seed corpus
PAGES = 20_000
MOST = 10 ** 8
FILES = "input", "seeds", "benchmarks"
HEADINGS = ("round", "seeds", "kept", "words", "as before", "precision", "recall", "benchmarks",
            "paths")


def command_mine(args: argparse.Namespace) -> None:
    run = resumed_run(args) if args.resume else started_run(args)
    given, config = run.config["files"], run.read_config("mine", MineConfig)
    names = {name: [Path(file) for file, _ in given[name]] for name in FILES}
    print(f"minirl mine: {config.rounds} rounds over "
          f"{', '.join(map(str, names['input'])) or 'a synthetic web'} -> {run.path}/", flush=True)
    if not names["input"]:
        names = synthetic_files(run, run.config["pages"], config.seed)
    with Progress("mine", unit="page") as progress:
        reports, corpus = mine(run, names, config, progress.update)
    by_topic = [] if given["input"] else [HEADINGS[:1] + MATHS, *topics(corpus, run, config.rounds)]
    run.write_json("summary.json", {"rounds": [asdict(report) for report in reports],
                                    "malformed": corpus.malformed})
    if reports[0].recall is not None:
        draw(reports, run)
    if by_topic:
        print("\nrecall by topic; the seeds are of the first two\n" + table(by_topic))
    print(f"\n{reports[-1].pages - reports[-1].contaminated:,} pages are in "
          f"{run.path}/round-{config.rounds}/corpus.jsonl; {corpus.malformed} malformed lines were "
          "skipped")


def mine(run: RunDir, names: dict[str, list[Path]], config: MineConfig,
         progress: Any) -> tuple[list[Report], Corpus]:
    """Do the rounds that are not there yet, and print a line for each -> all reports."""
    corpus = Corpus(names["input"], progress)
    index = NgramIndex(page.text for page in Corpus(names["benchmarks"]))
    state, reports = State([page.text for page in Corpus(names["seeds"])]), list[Report]()
    overview = survey(corpus, config)
    for complaint in corpus.complaints:
        warn(f"{complaint}; skipped")
    print(f"{len(overview.words):,} pages, {overview.words.sum():,} words\n")
    for k in range(1, config.rounds + 1):
        if not (run.path / f"round-{k}").is_dir():
            with run.replacing_folder(f"round-{k}") as folder:
                mine_round(corpus, state, overview, config, folder, index)
        report, state = read_round(run.path / f"round-{k}", state)
        reports.append(report)
        lines = table([HEADINGS, cells(k, report)]).splitlines()
        print("\n".join(lines if k == 1 else lines[1:]), flush=True)
    print("as before: the round before kept it, too (DeepSeekMath stopped at 98 %);\nbenchmarks: "
          "pages that hold a question of one, taken out")
    return reports, corpus


def cells(k: int, report: Report) -> list[str]:
    shares = report.kept_before, report.precision, report.recall
    counts = report.seeds, report.pages, report.words
    return [f"{k:<5}", *(f"{n:9,}" for n in counts), *map(percent, shares),
            f"-{report.contaminated}", str(report.sites)]


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


# what a run starts from

def started_run(args: argparse.Namespace) -> RunDir:
    """Start a run, once all that can be checked is checked."""
    config = MineConfig(**given_flags(args))
    if bool(args.input) != bool(args.seeds):
        raise ValueError("--input and --seeds belong together: the pages to look through, and some "
                         "like those that are wanted")
    if args.benchmarks and not args.input:
        raise ValueError("--benchmarks is for --input: the synthetic web has its own")
    if args.pages is not None and args.input:
        raise ValueError("--pages is the size of the synthetic web, but --input names files")
    pages = PAGES if args.pages is None else args.pages
    if not 100 <= pages <= MOST:
        raise ValueError(f"--pages is {pages}: 100 to {MOST:,} is wanted")
    files = {name: files_of(name, getattr(args, name) or ()) for name in FILES}
    content = {"command": "mine", "mine": asdict(config), "files": files, "pages": pages}
    return (new_run(RUNS, "mine", content) if args.run_dir is None
            else RunDir.create(args.run_dir, content))


def resumed_run(args: argparse.Namespace) -> RunDir:
    """Open a run to go on with it. Its files must have the size that they had."""
    others = [name for name in (*FILES, "pages") if getattr(args, name) is not None]
    for name in [*given_flags(args), *others]:
        raise ValueError(f"{flag(name)} is given with --resume, but a resumed run keeps what it "
                         "was started with: leave it out")
    path = newest_run(RUNS, "mine") if args.run_dir is None else args.run_dir
    run = RunDir.resume(path, command="mine")
    for file, before in (pair for name in FILES for pair in run.config["files"][name]):
        if (now := Path(file).stat().st_size) != before:
            raise ValueError(f"{file} has {now:,} bytes and had {before:,} when the run was "
                             "started: restore it, or start a new run")
    return run


def files_of(name: str, files: Sequence[Path]) -> list[tuple[str, int]]:
    """Return each file with its size. Raises ValueError where there is no page in all of them."""
    corpus = Corpus(files)
    if files and next(iter(corpus), None) is None:
        raise ValueError(f"{flag(name)}: there is no page in {files[0]}"
                         + "".join(f" ({text})" for text in corpus.complaints[:1]))
    return [(os.path.abspath(file), file.stat().st_size) for file in files]


def synthetic_files(run: RunDir, pages: int, seed: int) -> dict[str, list[Path]]:
    """Write the synthetic web, its seeds and its benchmark, where they are not there yet."""
    made: dict[str, Iterable[Page]] = {
        "input": web(pages, seed), "seeds": map(Page, seed_texts(SEEDS, seed)),
        "benchmarks": map(Page, benchmark(seed))}
    for name, content in made.items():
        if not (run.path / f"{name}.jsonl").is_file():
            with run.replacing(f"{name}.jsonl") as partial, open(partial, "wb") as file:
                file.writelines(map(line_of, content))
    return {name: [run.path / f"{name}.jsonl"] for name in made}


# what it ends with

def topics(corpus: Corpus, run: RunDir, rounds: int) -> list[list[str]]:
    """Return the share of each topic of mathematics that each round has in its corpus."""
    of_web = Counter(page.fields["topic"] for page in corpus)
    rows = []
    for k in range(1, rounds + 1):
        kept = Counter(page.fields["topic"]
                       for page in Corpus([run.path / f"round-{k}" / "corpus.jsonl"]))
        rows.append([str(k), *(percent(kept[t] / max(1, of_web[t])) for t in MATHS)])
    return rows


def draw(reports: list[Report], run: RunDir) -> None:
    figure, (axis,) = new_figure(1, 1, (5, 3.2))
    for name, colour in zip(("recall", "precision"), COLOURS, strict=False):
        values = [getattr(report, name) for report in reports]
        axis.plot(range(1, len(values) + 1), values, "o-", color=colour, label=name)
    axis.set_xticks(range(1, len(reports) + 1))
    axis.set_ylim(0, 1.03)
    axis.legend(frameon=False, fontsize=8)
    tidy(axis, "What the rounds keep", x="round")
    with run.replacing("rounds.png") as partial:
        save(figure, partial)
