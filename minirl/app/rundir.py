"""The run directory: all that a run leaves behind, and how it goes on after it was cut short.

    config.json      what ran                         checkpoint-<step>/   the newest, each with its
    metrics.jsonl    a line per step                                       training state
    samples.md       the same prompts over time       final/               the trained model
    curves.png       the metrics, drawn               summary.json         the figures at the end

Checkpoints and final/ are in Hugging Face layout. A kill, a power loss or a full disk at any moment
loses nothing that a checkpoint had (lm/files.py). SHA256SUMS in each tells whether a bit was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from minirl.app.survival import GO_ON, warn
from minirl.lm import files, world
from minirl.lm.checkpoint import CheckpointError, load_pretrained, save_pretrained
from minirl.lm.digests import SUMS, DigestError, verify
from minirl.lm.digests import read as read_sums
from minirl.lm.files import read_json
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.tokenizer import Tokenizer
from minirl.train.checkpoints import (
    CHECKPOINT,
    checkpoint_steps,
    load_checkpoint,
    put_aside,
    save_checkpoint,
)
from minirl.train.metrics_file import append_metrics, cut_metrics, read_metrics
from minirl.train.state import TrainState, check_weights
from minirl.train.state_files import Start

SECTION = re.compile(r"## step (\d+)")
C = TypeVar("C")


class RunDir:
    """A run's folder. Open it with `create` (a new run) or `resume` (one that was cut short).

    Either locks it: one process at a time may write to it. RunDir(path) is enough for reading.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: files.Lock | None = None

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> RunDir:
        """Start a run. Raises ValueError where the folder holds one: nothing is overwritten."""
        run = cls(path)
        if run.path == Path():
            raise ValueError("--run-dir is empty, or the current folder: name a folder, such as "
                             "runs/mine")
        run._refuse_if_taken()
        new = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
        try:
            with files.room(run.path, "start again"):
                run.path.mkdir(parents=True, exist_ok=True)
                for folder in new:
                    files.sync(folder.parent)
                run._lock = files.Lock.of(run.path)
                run._refuse_if_taken()                     # by one that had the lock before
                run._write("config.json", json.dumps(config, indent=2) + "\n")
        except OSError:
            if run._lock is not None:
                (run.path / files.LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):             # it holds something
                run.path.rmdir()
            raise
        return run

    @classmethod
    def resume(cls, path: str | Path, command: str | None = None) -> RunDir:
        """Open a run to go on with it. Raises ValueError where another command than this has to."""
        run = cls(path)
        if not str(path) or not (run.path / "config.json").is_file():
            raise ValueError(f"{str(path) or repr('')} holds no run to resume: there is no "
                             "config.json in it")
        run._check_command(command)
        with files.room(run.path, GO_ON):
            run._lock = files.Lock.of(run.path)
            run._recover()
        return run

    def stage(self, name: str, command: str, **configs: Any) -> RunDir:
        """Open a run inside this one, for one of its stages: a new one, or as far as it got.

        It inherits the run's settings and task. `configs` are its own sections of config.json.
        """
        path = self.path / name
        with world.writing():
            if (path / "config.json").exists():
                return RunDir.resume(path)
            config = {"command": command, "stage_of": self.config.get("command")}
            config |= {key: self.config[key] for key in ("task", "settings") if key in self.config}
            config |= {key: dataclasses.asdict(value) for key, value in configs.items()}
            return RunDir.create(path, config)

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    @property
    def summary(self) -> dict[str, Any]:
        """The figures at the end; {} where there are none yet."""
        return read_json(self.path / "summary.json")

    def read_config(self, section: str, cls: Callable[..., C]) -> C:
        """Return the dataclass that config.json has under `section`, exactly as it ran.

        Raises ValueError, naming file and field, for a section or a field that is missing or
        unknown, and for a value that the dataclass refuses.
        """
        file, values = self.path / "config.json", self.config.get(section)
        other = "it was written by another version of minirl, or changed by hand; start a new run"
        if not isinstance(values, dict):
            raise ValueError(f"{file} has no section {section}: {other}")
        names = [field.name for field in dataclasses.fields(cls)]      # type: ignore[arg-type]
        for name in (*names, *values):
            if name not in values or name not in names:
                problem = "is missing" if name in names else "is unknown"
                raise ValueError(f"{file}: {section}.{name} {problem}: {other}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{file}: {section}.{error}; {other}") from error

    @property
    def resume_command(self) -> str:
        """What a person types to go on with this run; for a stage, with the run around it."""
        if "stage_of" in self.config:
            return RunDir(self.path.parent).resume_command
        path = shlex.quote(str(self.path))
        many = f"torchrun --nproc-per-node {world.size()} -m " if world.size() > 1 else ""
        return f"{many}minirl {self.config.get('command')} --resume --run-dir {path}"

    @property
    def finished(self) -> bool:
        """Whether final/ has all its files. `resume` looks at their content too."""
        final = self.path / "final"
        try:
            names = read_sums(final)
        except DigestError:
            return False
        return (any(final.glob("model*.safetensors"))
                and all((final / name).is_file() for name in (*names, "config.json")))

    # files

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, content: str) -> None:
        with world.writing():
            self._write(name, content)

    def _write(self, name: str, content: str) -> None:
        with files.replacing(self.path / name, GO_ON) as partial:
            partial.write_text(content, encoding="utf-8")

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path beside `name` to write to; it takes the name when the block ends well."""
        with world.writing(), files.replacing(self.path / name, GO_ON) as partial:
            yield partial

    @contextlib.contextmanager
    def replacing_folder(self, name: str) -> Iterator[Path]:
        """The same for a folder. A folder that already has the name makes room for the new one."""
        with world.writing(), files.replacing_folder(self.path / name, GO_ON) as partial:
            yield partial

    # metrics

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        with world.writing(), files.room(self.path, GO_ON):
            append_metrics(self.path / "metrics.jsonl", step, metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, without those that a kill or a bad disk spoiled.

        Raises ValueError, naming the line, where there is JSON that is not a step's metrics.
        """
        return read_metrics(self.path / "metrics.jsonl")

    # samples

    def write_samples(self, step: int, heading: str, body: str) -> None:
        """Put a section into samples.md, in place of this step's and of all later ones."""
        earlier = self._sections(step - 1) or "# The same held-out problems over time\n\n"
        self.write_text("samples.md", f"{earlier}## step {step}: {heading}\n\n{body}\n\n")

    def _sections(self, last: int) -> str:
        """Return samples.md up to step `last`."""
        file = self.path / "samples.md"
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        sections = re.split(r"(?m)^(?=## step \d)", text)
        return "".join(section for section in sections
                       if not (match := SECTION.match(section)) or int(match[1]) <= last)

    # checkpoints

    def save_checkpoint(self, state: TrainState, tokenizer: Tokenizer, seconds: float,
                        **options: Any) -> None:
        """Save a checkpoint. The options are those of train.checkpoints.save_checkpoint."""
        with files.room(self.path, GO_ON):
            save_checkpoint(state, tokenizer, self.path, seconds=seconds, **options)

    def checkpoints(self) -> list[int]:
        return checkpoint_steps(self.path)

    def load_checkpoint(self, *, device: torch.device, load: Callable[..., Any] = load_pretrained,
                        start: Start | None = None) -> tuple[Any, Tokenizer, dict[str, Any]] | None:
        """Return model, tokenizer and training state of the newest checkpoint, None without one.

        Metrics and samples are cut to its step.
        """
        with world.writing(), files.room(self.path, GO_ON):
            checkpoint = load_checkpoint(self.path, device=device, load=load, start=start,
                                         warn=warn)
            last = checkpoint[2]["step"] if checkpoint else 0
            cut_metrics(self.path / "metrics.jsonl", last, warn)
            if (samples := self._sections(last)) != self._sections(sys.maxsize):
                self._write("samples.md", samples)
        return checkpoint

    def save_final(self, model: Transformer | ScalarModel, tokenizer: Tokenizer) -> None:
        """Save the trained model. With final/ a run is finished."""
        steps = self.checkpoints()
        check_weights(model, steps[-1] if steps else 0)
        with self.replacing_folder("final") as folder:
            save_pretrained(model, tokenizer, folder)

    # after a kill

    def _check_command(self, command: str | None) -> None:
        config = self.config
        if command is None:
            return
        if "stage_of" in config:
            if not RunDir(self.path.parent).config:
                raise ValueError(f"{self.path} was a stage of minirl {config['stage_of']}, whose "
                                 "run is not around it: start anew from its final/ with --init")
            raise ValueError(f"{self.path} is a stage of {self.path.parent}: go on with "
                             f"{self.resume_command}")
        if config.get("command") != command:
            raise ValueError(f"{self.path} is a run of minirl {config.get('command')}: go on with "
                             f"{self.resume_command}")

    def _refuse_if_taken(self) -> None:
        if (self.path / "config.json").exists():
            raise ValueError(f"{self.path} already holds a run: go on with it (--resume), or "
                             "choose another --run-dir")
        for name in sorted(os.listdir(self.path) if self.path.is_dir() else ()):
            if CHECKPOINT.fullmatch(name) or name in ("metrics.jsonl", "final"):
                raise ValueError(f"{self.path} holds {name} of a run whose config.json is gone: "
                                 "restore that, empty the folder, or choose another --run-dir")

    def _recover(self) -> None:
        """Sort out what a kill left half-done, and put a damaged final/ aside."""
        final, partial = self.path / "final", files.partial_of(self.path / "final")
        if not os.path.lexists(final) and not partial.is_symlink() and (partial / SUMS).is_file():
            with contextlib.suppress(ValueError):              # complete, but for its name
                verify(partial)
                os.replace(partial, final)
        files.settle_all(self.path)
        if os.path.lexists(final):
            try:
                verify(final)
                if not self.finished:
                    raise CheckpointError("files are missing")
            except (ValueError, OSError) as error:
                warn(put_aside(final, error, "makes it again from the last checkpoint"))
