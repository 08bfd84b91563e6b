"""minirl report: what one run or several left behind, as one HTML file that loads nothing: curves,
samples over time, configuration and environment."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minirl.app.commands import check_out, sections
from minirl.app.pages import write_page
from minirl.app.plots import PANELS, heading, metrics_of, names, points
from minirl.app.rundir import RunDir
from minirl.app.runs import RUNS

MOST = 2000                    # points of a curve in the file; of longer ones, means of neighbours
ANSWER = re.compile(r"  - (?P<verdict>[^`]*): (?P<text>`+.*`+)")
QUESTION = re.compile(r"- (?P<prompt>`+.*?`+)(?P<right>.*)")


def command_report(args: argparse.Namespace) -> None:
    check_out(args.out)
    paths = args.runs or [newest_with_metrics(RUNS)]
    runs = [RunDir(path) for path in paths]
    for run in runs:
        check_run(run)
    write_page("report.html", describe(runs), args.out)
    print(f"wrote {args.out}: open it in a browser")


def newest_with_metrics(root: Path) -> Path:
    files = sorted(root.glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ValueError(f"there is no run with metrics under {root}/: train one (minirl grpo), or "
                         "name its folder")
    return files[-1].parent


def check_run(run: RunDir) -> None:
    """Raise ValueError where there is nothing to report."""
    if not run.path.is_dir():
        raise ValueError(f"{run.path} is no run directory: name folders such as runs/grpo")
    if not run.metrics():
        stages = [file.parent for file in sorted(run.path.glob("*/metrics.jsonl"))]
        raise ValueError(f"{run.path} has no metrics of its own: " + (
            f"name its stages, such as {stages[0]}" if stages else "let it make a step"))


def describe(runs: Sequence[RunDir]) -> dict[str, Any]:
    """Return all that report.html shows, as JSON holds it."""
    lines = [run.metrics() for run in runs]
    present = {name for metrics in lines for line in metrics for name in line} - {"step"}
    main = dict.fromkeys(name for run in runs for name in metrics_of(run) if name in present)
    return {
        "title": heading(runs), "about": ", ".join(str(run.path) for run in runs),
        "facts": facts(runs[0]) if len(runs) == 1 else [],
        "longest": max(map(len, lines)), "main": list(main),
        "panels": {name: {"title": panel.title, "unit": panel.unit, "low": panel.low,
                          "high": panel.high} for name, panel in PANELS.items()},
        "runs": [{"name": name, "config": configuration(run), **samples(run),
                  "curves": {key: thinned(points(metrics, key)) for key in sorted(present)
                             if points(metrics, key)}}
                 for name, run, metrics in zip(names(runs), runs, lines, strict=True)]}


def facts(run: RunDir) -> list[tuple[str, str]]:
    """Return labels and values of what summary.json says; of a run that goes on, how far it is."""
    summary = run.summary
    if not summary:
        return [("steps so far", str(run.metrics()[-1]["step"]))]

    def number(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    out = []
    for name, value in summary.items():
        before = summary.get(f"{name.removesuffix('_after')}_before")
        if name.endswith("_after") and before is not None:
            out.append((name.removesuffix("_after").replace("_", " ") + ", before and after",
                        f"{number(before)} → {number(value)}"))
        elif not name.endswith("_before") and isinstance(value, (int, float, str)):
            out.append((name.replace("_", " "), number(value)))
    return out


def configuration(run: RunDir) -> dict[str, list[tuple[str, str, bool]]]:
    """Return the sections of config.json -> (field, value, whether it is not the default)."""
    config = run.config
    try:
        classes = sections(config.get("command", ""))
    except KeyError:                       # a stage, whose classes its pipeline knows
        classes = {}
    environment, out = {}, {}
    for name, section in config.items():
        if not isinstance(section, Mapping):
            environment[name] = section
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(classes[name])
                    } if name in classes else {}
        out[name] = [(field, text(value), field in defaults and value != defaults[field])
                     for field, value in section.items()]
    return {"run": [(name, text(value), False) for name, value in environment.items()], **out}


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def samples(run: RunDir) -> dict[str, Any]:
    """Return the sections of samples.md, taken apart where they have its usual form."""
    file = run.path / "samples.md"
    if not file.is_file():
        return {"samples": [], "text": ""}
    whole = file.read_text(encoding="utf-8", errors="replace")
    parts = []
    for section in re.split(r"(?m)^## ", whole)[1:]:
        title, _, body = section.partition("\n")
        answers: list[dict[str, str]] = []
        for line in body.splitlines():
            if match := QUESTION.match(line):
                answers.append({"prompt": plain(match["prompt"]), "verdict": "", "text": "",
                                "right": match["right"].strip().replace("`", "")})
            elif answers and (match := ANSWER.match(line)):
                answers[-1] |= {"verdict": match["verdict"], "text": plain(match["text"])}
        parts.append({"heading": title, "answers": answers})
    if not all(part["answers"] for part in parts):
        return {"samples": [], "text": whole}
    return {"samples": parts, "text": ""}


def plain(code: str) -> str:
    """Return what stands in inline code of Markdown."""
    fence = len(code) - len(code.lstrip("`"))
    inner = code[fence:-fence]
    padded = fence > 1 and inner.startswith(" ") and inner.endswith(" ") and inner.strip()
    return inner[1:-1] if padded else inner


def thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a curve of at most MOST points: of a longer one, means of as many neighbours each."""
    size = -(-len(curve) // MOST)
    parts = [curve[i:i + size] for i in range(0, len(curve), size)]
    return [(part[len(part) // 2][0], sum(y for _, y in part) / len(part)) for part in parts]
