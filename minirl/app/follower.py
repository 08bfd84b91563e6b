"""A run as it is for the processes beside the first, where torchrun started several: one of them
writes, and the others wait until it has."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from minirl.app.rundir import RunDir
from minirl.lm import world
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.tokenizer import Tokenizer
from minirl.train.checkpoints import load_checkpoint
from minirl.train.state import TrainState
from minirl.train.state_files import Start


class Follower(RunDir):
    """A run that another process writes: here its files are read, and writing them means waiting.

    Each method waits where the other's begins and where it ends. So both see the same files at the
    same line of the program.
    """

    def stage(self, name: str, command: str, **configs: Any) -> RunDir:
        with world.writing():
            pass
        return Follower(self.path / name)

    def write_text(self, name: str, content: str) -> None:
        with world.writing():
            pass

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path to write to, which is thrown away."""
        with world.writing(), tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / name

    @contextlib.contextmanager
    def replacing_folder(self, name: str) -> Iterator[Path]:
        """The same for a folder."""
        with world.writing(), tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        with world.writing():
            pass

    def save_checkpoint(self, state: TrainState, tokenizer: Tokenizer, seconds: float,
                        **options: Any) -> None:
        """Nobody reads it before the run is resumed: there is nothing to wait for."""

    def load_checkpoint(self, *, device: torch.device, load: Callable[..., Any] = load_pretrained,
                        start: Start | None = None) -> tuple[Any, Tokenizer, dict[str, Any]] | None:
        with world.writing():
            pass
        return load_checkpoint(self.path, device=device, load=load, start=start,
                               warn=lambda text: None)        # the other process has said it

    def save_final(self, model: Transformer | ScalarModel, tokenizer: Tokenizer) -> None:
        with world.writing():
            pass
