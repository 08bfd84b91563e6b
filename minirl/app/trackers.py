"""A run's metrics where people look at them: TensorBoard and Weights & Biases.

Both are optional, and only copies: metrics.jsonl has everything. So a tracker that fails is left
out with a warning, and training goes on. Names are those of transformers' Trainer: "train/loss".
"""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from minirl.app.rundir import RunDir
from minirl.app.survival import warn


class Tracker(Protocol):
    """What takes the metrics of a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder tensorboard/. What an earlier process wrote of steps that are
    now made again is hidden."""

    def __init__(self, run: RunDir, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of the project "minirl". WANDB_MODE, WANDB_PROJECT and its like are read by wandb
    itself. The file wandb-id holds the run's id, so that a resumed run goes on with it; wandb
    ignores steps that it has seen."""

    def __init__(self, run: RunDir, step: int) -> None:
        import wandb
        file = run.path / "wandb-id"
        if not file.is_file():
            run.write_text(file.name, secrets.token_hex(4))
        self.run = wandb.init(
            project="minirl", name=run.path.name, id=file.read_text(encoding="utf-8"),
            dir=str(run.path), config=run.config, resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({f"train/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[RunDir, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def tracker_names(names: str | None) -> list[str]:
    """Return the trackers that --log names, "tensorboard,wandb".

    Raises ValueError for one that does not exist, or whose package is not installed.
    """
    chosen = [] if names is None else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in TRACKERS:
            raise ValueError(f"--log {name!r}: one of {', '.join(TRACKERS)}, or both with a comma "
                             "between them, is wanted")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--log {name} needs a package: python -m pip install {name}")
    return chosen


class Trackers:
    """All trackers of a run that has made `step` steps so far."""

    def __init__(self, names: str | None, run: RunDir, step: int) -> None:
        self.open: dict[str, Tracker] = {}
        for name in tracker_names(names):
            with self._surviving(name):
                self.open[name] = TRACKERS[name](run, step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, tracker in list(self.open.items()):
            with self._surviving(name):
                tracker.log(step, metrics)

    def close(self) -> None:
        for name, tracker in list(self.open.items()):
            with self._surviving(name):
                tracker.close()

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Any:
        try:
            yield
        except Exception as error:
            self.open.pop(name, None)
            warn(f"{name} failed, and gets nothing more of this run ({error}); metrics.jsonl has "
                 "all of it")
