"""What DeepSeekMath says of its corpus, measured on a web whose truth is known.

    python benchmarks/corpus.py classifier [--fasttext PYTHON]   speed and accuracy, and fastText's
    python benchmarks/corpus.py rounds [--figure FILE]           recall and precision of each round
    python benchmarks/corpus.py memory [--gigabytes 1]           the memory of `minirl mine`

PYTHON is an interpreter that can import fasttext (pip install fasttext-numpy2). Times are of the
processor, so that other work beside it counts little. With --runs what is finished is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import MINIRL, heading, row, table_head
from minirl.corpus.classifier import TextClassifier
from minirl.corpus.decontaminate import NgramIndex
from minirl.corpus.mining import MineConfig, State, mine_round, read_round, survey
from minirl.corpus.pages import Corpus, Page, line_of
from minirl.corpus.web import MATHS, benchmark, seed_texts, web
from minirl.lm.figures import line_styles, new_figure, save, tidy

PAGES, SEEDS = 20_000, 300


# the classifier

FASTTEXT = """
import json, sys, time
import fasttext
out = []
for setting in json.load(open(sys.argv[2])):
    began = time.process_time()
    model = fasttext.train_supervised(sys.argv[1] + "/train.txt", thread=1, verbose=0, **setting)
    fitted = time.process_time()
    lines = open(sys.argv[1] + "/test.txt").read().splitlines()
    middle = time.process_time()
    labels = [int(label[0][-1]) for label in model.predict(lines)[0]]
    out.append([fitted - began, len(lines) / (time.process_time() - middle), labels])
print(json.dumps(out))
"""


def classifier(args: argparse.Namespace) -> None:
    """Whole pages are easy to tell apart; their first words are not."""
    print(table_head("pages", "classifier", "training, s", "pages a second", "accuracy"))
    for name, words in (("whole", None), ("the first 6 words", 6)):
        data = [(" ".join(page.text.split()[:words]), page.label or 0) for page in web(2 * PAGES)]
        train, test = data[:PAGES], data[PAGES:]
        truth = np.array([label for _, label in test])
        for lr in (0.1, 0.5):
            began = time.process_time()
            model = TextClassifier(lr=lr).fit(*zip(*train, strict=True))     # type: ignore[arg-type]
            fitted = time.process_time()
            p = model.predict([text for text, _ in test])
            speed = len(test) / (time.process_time() - fitted)
            print_row(name, f"ours, lr {lr}", fitted - began, speed, (p > 0.5) == truth)
        if args.fasttext:
            for lr, (seconds, speed, labels) in fasttext(args.fasttext, train, test).items():
                print_row(name, f"fastText, lr {lr}", seconds, speed, np.array(labels) == truth)


def print_row(name: str, who: str, seconds: float, speed: float, right: np.ndarray) -> None:
    print(row(name, who, f"{seconds:.1f}", f"{speed:,.0f}", f"{right.mean():.2%}"), flush=True)


def fasttext(python: str, train: Sequence[tuple[str, int]],
             test: Sequence[tuple[str, int]]) -> dict[float, Any]:
    """Run fastText with our numbers, and with higher learning rates -> by learning rate."""
    rates = (0.1, 0.5, 1.0)
    settings = [dict(lr=lr, dim=64, bucket=2 ** 18, wordNgrams=2, epoch=3) for lr in rates]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("train", train), ("test", test)):
            lines = [f"__label__{label} {text}" if name == "train" else text
                     for text, label in data]
            Path(folder, f"{name}.txt").write_text(
                "".join(" ".join(line.split()) + "\n" for line in lines))
        Path(folder, "settings.json").write_text(json.dumps(settings))
        command = [python, "-c", FASTTEXT, folder, f"{folder}/settings.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(rates, json.loads(done.stdout), strict=True))


# the rounds

def mined(runs: Path, seed: int) -> Path:
    """Mine a web in four rounds -> its folder. What is there is not made again."""
    folder = runs / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = MineConfig(seed=seed)
    if not (folder / "web.jsonl").is_file():
        with open(folder / "web.partial", "wb") as file:
            file.writelines(map(line_of, web(PAGES, seed)))
        os.replace(folder / "web.partial", folder / "web.jsonl")
    corpus, overview = Corpus([folder / "web.jsonl"]), None
    state, index = State(seed_texts(SEEDS, seed)), NgramIndex(benchmark(seed))
    for k in range(1, config.rounds + 1):
        out = folder / f"round-{k}"
        if not (out / "round.json").is_file():
            out.mkdir(exist_ok=True)
            overview = overview or survey(corpus, config)
            mine_round(corpus, state, overview, config, out, index)
        _, state = read_round(out, state)
    return folder


def rounds(args: argparse.Namespace) -> None:
    folders = [mined(args.runs, seed) for seed in range(args.seeds)]
    columns = ("recall", "precision", "kept_before")
    print(table_head("round", "seeds", "paths", *columns, *(f"{t}: recall" for t in MATHS)))
    curves: dict[str, list[tuple[int, float]]] = {}
    for k in range(1, MineConfig().rounds + 1):
        reports = [read_round(f / f"round-{k}", State([]))[0] for f in folders]
        found = [topic_recall(f, k) for f in folders]
        values = {t: [recall[t] for recall in found] for t in MATHS}
        values |= {c: [getattr(r, c) or 0.0 for r in reports] for c in columns}
        state = [json.loads((f / f"round-{k}" / "round.json").read_text()) for f in folders]
        print(row(k, medians([s["report"]["seeds"] for s in state], "{:.0f}"),
                  medians([s["report"]["sites"] for s in state], "{:.0f}"),
                  *(medians(values[name]) for name in (*columns, *MATHS))), flush=True)
        for name, of_seeds in values.items():
            curves.setdefault(name, []).append((k, statistics.median(of_seeds)))
    planted, dropped = zip(*(contamination(f) for f in folders), strict=True)
    print(f"\nbenchmark questions in what round 4 keeps: {sum(planted)} of {sum(dropped)} pages "
          "taken out hold one that was planted; none is left in")
    if args.figure:
        draw_rounds(curves, args.figure)


def topic_recall(folder: Path, k: int) -> dict[str, float]:
    kept = np.unpackbits(np.load(folder / f"round-{k}" / "kept.npy"), count=PAGES)
    topics = np.array([page.fields["topic"] for page in Corpus([folder / "web.jsonl"])])
    return {topic: float(kept[topics == topic].mean()) for topic in MATHS}


def contamination(folder: Path) -> tuple[int, int]:
    """Return how many planted pages round 4 kept and left out of its corpus, and how many pages it
    left out."""
    kept = np.unpackbits(np.load(folder / "round-4" / "kept.npy"), count=PAGES)
    pages = [p for p, keep in zip(Corpus([folder / "web.jsonl"]), kept, strict=True) if keep]
    written = list(Corpus([folder / "round-4" / "corpus.jsonl"]))
    assert not any(page.fields["planted"] for page in written), "a planted question is left in"
    return sum(page.fields["planted"] for page in pages), len(pages) - len(written)


def medians(values: Sequence[float], form: str = "{:.1%}") -> str:
    """Return "median (smallest to largest)", or one number where all are the same."""
    if form.format(min(values)) == form.format(max(values)):
        return form.format(values[0])
    middle, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    return f"{middle} ({low} to {high})"


def draw_rounds(curves: dict[str, list[tuple[int, float]]], out: Path) -> None:
    figure, axes = new_figure(1, 2, (9, 3.4))
    for axis, names in zip(axes, (("recall", "precision"), MATHS), strict=True):
        for name, style in zip(names, line_styles(len(names)), strict=True):
            axis.plot(*zip(*curves[name], strict=True), marker="o", label=name, **style)
        axis.set_xticks([k for k, _ in curves["recall"]])
        axis.set_ylim(-0.02, 1.03)
        axis.legend(frameon=False, fontsize=8)
    tidy(axes[0], "What each round keeps", x="round")
    tidy(axes[1], "Recall by topic: the seeds are of the first two", x="round")
    save(figure, out)


# memory

def memory(args: argparse.Namespace) -> None:
    """Mine a file of this size, of pages of the synthetic web again and again."""
    args.runs.mkdir(parents=True, exist_ok=True)
    file, seeds = args.runs / "large.jsonl", args.runs / "seeds.jsonl"
    lines = b"".join(map(line_of, web(100_000)))
    with open(file, "wb") as stream:
        while stream.tell() < args.gigabytes * 1e9:
            stream.write(lines)
    seeds.write_bytes(b"".join(line_of(Page(text)) for text in seed_texts(SEEDS)))
    code = ("import resource, sys\nfrom minirl.app.cli import main\ncode = main(sys.argv[1:])\n"
            "used = resource.getrusage(resource.RUSAGE_SELF)\n"
            "print(f'peak {used.ru_maxrss / 1024:.0f} MiB, processor {used.ru_utime:.0f} s')\n"
            "sys.exit(code)")
    for pages in (seeds, file):
        run = args.runs / f"{pages.stem}-{time.time_ns()}"
        command = [MINIRL[0], "-c", code, "mine", "--input", str(pages), "--seeds", str(seeds),
                   "--rounds", "1", "--run-dir", str(run)]
        print(f"\n{pages.stat().st_size / 1e6:,.1f} MB of pages:", flush=True)
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {f.__name__: f for f in (classifier, rounds, memory)}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--fasttext", default=None, metavar="PYTHON")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--figure", type=Path, default=None)
    args = parser.parse_args()
    print(heading() + "\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        args.runs = args.runs or Path(folder)
        parts[args.part](args)


if __name__ == "__main__":
    main()
