"""The folder of all runs: the next free name, the newest run, the newest policy."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from minirl.app.rundir import RunDir
from minirl.lm.checkpoint import SCORE
from minirl.lm.files import room

RUNS = Path("runs")           # where runs are kept unless --run-dir says otherwise


def new_run(root: Path, name: str, config: dict[str, Any]) -> RunDir:
    """Start a run in runs/grpo, or the first of runs/grpo-2, ... that no other process has."""
    while True:
        path = free_name(root, name)
        with contextlib.suppress(FileExistsError):
            with room(path, "start again"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()                               # of several processes one succeeds
            return RunDir.create(path, config)


def free_name(root: Path, name: str) -> Path:
    """Return the first of runs/grpo, runs/grpo-2, runs/grpo-3, ... that is not taken."""
    path, n = root / name, 1
    while os.path.lexists(path):
        n += 1
        path = root / f"{name}-{n}"
    return path


def newest_run(root: Path, name: str) -> Path:
    """Return the newest of runs/grpo, runs/grpo-2, ..., for --resume without --run-dir.

    Those that got as far as a checkpoint, their own or a stage's, go before those that did not.
    """
    runs = [path for path in root.glob(f"{name}*")
            if re.fullmatch(rf"{name}(-\d+)?", path.name) and (path / "config.json").is_file()]
    if not runs:
        raise ValueError(f"there is no run {name} under {root}/ to resume: start one without "
                         "--resume, or give its --run-dir")
    return max(runs, key=lambda path: (has_weights(path), (path / "config.json").stat().st_mtime))


def has_weights(path: Path) -> bool:
    return any(True for pattern in ("", "*/") for name in ("checkpoint-*", "final")
               for _ in path.glob(f"{pattern}{name}/config.json"))


def newest_checkpoint(root: Path) -> Path | None:
    """Return the final policy of the run that ended last, if there is one. Reward models are none.
    """
    finals = [file for file in root.glob("*/final/config.json")
              if RunDir(file.parents[1]).finished and not file.with_name(SCORE).exists()]
    return max(finals, key=lambda file: file.stat().st_mtime).parent if finals else None
