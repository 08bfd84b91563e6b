"""A study: many runs on several seeds, a line of JSON for each in one file, which goes on where it
was cut short."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import commit, heading

Record = dict[str, Any]
FIGURES = Path(__file__).parent / "figures"


def study(doc: str | None, one_seed: Callable[[int, Path], None], *, option: str = "--figures",
          default: Path = FIGURES) -> tuple[list[Record], Path]:
    """Read a study's command line and, without --draw, call one_seed(seed, file), which trains what
    the file does not hold -> all records, and where the figures go: what `option` names."""
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON per finished run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument(option, dest="figures", type=Path, default=default)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.draw:
        print(f"{heading()}, commit {commit()}\n", flush=True)
        for seed in range(args.seeds):
            one_seed(seed, args.out)
    return records(args.out), args.figures


def records(out: Path) -> list[Record]:
    """Return the finished runs; none where there is no file yet."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def add_record(out: Path, record: Record) -> None:
    with open(out, "a") as file:
        file.write(json.dumps(record) + "\n")
