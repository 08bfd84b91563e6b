"""The run directory: all that a run leaves behind, and how it goes on after it was cut short.

    config.json      what ran                         checkpoint-<step>/   the newest two, each with
    metrics.jsonl    a line per step                                       its training state
    samples.md       the same prompts over time       final/               the trained model
    curves.png       the metrics, drawn               summary.json         the figures at the end

Checkpoints and final/ are in Hugging Face layout. A kill, power loss or a full disk at any moment
loses nothing that a checkpoint had (survival.py). SHA256SUMS in each tells whether a bit was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import sys
import time
import types
import typing
from contextlib import AbstractContextManager
from pathlib import Path

from minirl.app.metrics import cut_metrics, read_lines
from minirl.app.progress import Progress
from minirl.app.survival import GO_ON, Stopped, catching_signals, tell_at_once, warn
from minirl.train.training_state import load_training_state, save_training_state
from minirl.lm.checkpoint import SCORE, CheckpointError, load_pretrained, save_pretrained
from minirl.lm.digests import SUMS, DigestError, seal, verify
from minirl.lm.digests import read as read_sums
from minirl.lm.files import (LOCK, Lock, delete_folder, partial_of, remove, replacing,
                             replacing_folder, room, settle_all, sync)
from minirl.lm.tokenizer import read_json
from minirl.train.state import check_weights

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9]\d*)")
SECTION = re.compile(r"## step (\d+)")
KEEP_CHECKPOINTS = 2
RUNS = Path("runs")           # where runs are kept unless --run-dir says otherwise


class RunDir:
    """A run's folder. Open it with `create` (a new run) or `resume` (one that was cut short).

    Either locks it: one process at a time. RunDir(path) is enough for reading.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: Lock | None = None

    @classmethod
    def create(cls, path: str | Path, config: dict) -> RunDir:
        """Start a run. Raises ValueError where the folder holds one: nothing is overwritten."""
        run = cls(path)
        if Path(path) == Path():
            raise ValueError("--run-dir is empty, or the current folder: name a folder, such as "
                             "runs/mine")
        run._refuse_if_taken()
        new = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
        try:
            with room(run.path, "start again"):
                run.path.mkdir(parents=True, exist_ok=True)
                for folder in new:
                    sync(folder.parent)
                run._lock = Lock.of(run.path)
                run._refuse_if_taken()                     # by one that had the lock before
                run.write_json("config.json", config)
        except OSError:
            if run._lock is not None:
                (run.path / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):             # it holds something
                run.path.rmdir()
            raise
        return run

    @classmethod
    def create_free(cls, root: str | Path, name: str, config: dict) -> RunDir:
        """Start a run in runs/grpo, or the first of runs/grpo-2, ... that no other process has."""
        while True:
            path = free_name(root, name)
            with contextlib.suppress(FileExistsError):
                with room(path, "start again"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.mkdir()                           # of several processes one succeeds
                return cls.create(path, config)

    @classmethod
    def resume(cls, path: str | Path, command: str | None = None) -> RunDir:
        """Open a run to go on with it. Raises ValueError where another command than this has to."""
        run = cls(path)
        if not str(path) or not (run.path / "config.json").is_file():
            raise ValueError(f"{str(path) or repr('')} holds no run to resume: there is no "
                             "config.json in it")
        run._check_command(command)
        with room(run.path, GO_ON):
            run._lock = Lock.of(run.path)
            run._recover()
        return run

    def stage(self, name: str, command: str, **configs) -> RunDir:
        """A run inside this one, for what comes before it: new, or as far as it got.

        `configs` are the configurations that it runs with, by the section of config.json.
        """
        path = self.path / name
        if (path / "config.json").exists():
            return RunDir.resume(path)
        sections = {key: dataclasses.asdict(config) for key, config in configs.items()}
        return RunDir.create(path, {"command": command, "stage_of": self.config.get("command"),
                                    "run": self.config.get("run", {}), **sections})

    @property
    def config(self) -> dict:
        return read_json(self.path / "config.json")

    def read_config(self, section: str, cls: type):
        """The dataclass that config.json has under `section`, exactly as it ran.

        Raises ValueError, naming file and field, for a section or a field that is missing or
        unknown, and for a value of another type.
        """
        file, values = self.path / "config.json", self.config.get(section)
        other = "it was written by another version of minirl, or changed by hand; start a new run"
        if not isinstance(values, dict):
            raise ValueError(f"{file} has no section {section}: {other}")
        kinds = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        for name in (*names, *values):
            if name not in values or name not in names:
                is_it = "is missing" if name in names else "is unknown"
                raise ValueError(f"{file}: {section}.{name} {is_it}: {other}")
            if not fits(values[name], kinds[name]):
                raise ValueError(f"{file}: {section}.{name} is {values[name]!r:.40}: {other}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{file}: {section}: {error}") from error

    @property
    def resume_command(self) -> str:
        """What a person types to go on with this run; for a stage, with the run around it."""
        if "stage_of" in self.config:
            return RunDir(self.path.parent).resume_command
        path = shlex.quote(str(self.path))
        return f"minirl {self.config.get('command')} --resume --run-dir {path}"

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

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, content: str) -> None:
        with self.replacing(name) as partial:
            partial.write_text(content, encoding="utf-8")

    def replacing(self, name: str) -> AbstractContextManager[Path]:
        """A path beside `name` to write to; it takes the name when the block ends well."""
        return replacing(self.path / name, GO_ON)

    def replacing_folder(self, name: str) -> AbstractContextManager[Path]:
        """The same for a folder. A folder that already has the name makes room for the new one."""
        return replacing_folder(self.path / name, GO_ON)

    # metrics

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        with room(self.path, GO_ON), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **metrics}) + "\n")

    def metrics(self) -> list[dict]:
        """What metrics.jsonl says, but for lines that a kill or a bad disk made unreadable.

        Raises ValueError, naming the line, where there is JSON that is no metrics of a step.
        """
        lines = read_lines(self.path / "metrics.jsonl")
        return [metrics for _, metrics in lines if metrics is not None]

    # samples

    def write_samples(self, step: int, heading: str, body: str) -> None:
        """Put a section into samples.md in the place of that of this step, and of later ones."""
        kept = self._sections(step - 1) or "# The same held-out problems over time\n\n"
        self.write_text("samples.md", f"{kept}## step {step}: {heading}\n\n{body}\n\n")

    def _sections(self, last: int) -> str:
        """samples.md up to step `last`."""
        file = self.path / "samples.md"
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        sections = re.split(r"(?m)^(?=## step \d)", text)
        return "".join(section for section in sections
                       if not (match := SECTION.match(section)) or int(match[1]) <= last)

    # checkpoints

    def save_checkpoint(self, state, tokenizer, seconds: float) -> None:
        """Save a TrainState, so that load_checkpoint gives it back bit for bit."""
        check_weights(state.model, state.step)
        steps = self.checkpoints()
        before = self.path / f"checkpoint-{steps[-1]}" if steps else None
        with room(self.path, GO_ON):
            if (self.path / "metrics.jsonl").is_file():
                sync(self.path / "metrics.jsonl")          # a checkpoint has the lines of its steps
            with self.replacing_folder(f"checkpoint-{state.step}") as folder:
                save_pretrained(state.model, tokenizer, folder)
                content = {"seconds": seconds, **state.state_dict()}
                seal(folder, *save_training_state(content, folder, before))
            for step in self.checkpoints()[:-KEEP_CHECKPOINTS]:
                delete_folder(self.path / f"checkpoint-{step}")

    def checkpoints(self) -> list[int]:
        return sorted(int(match[1]) for path in self.path.iterdir()
                      if (match := CHECKPOINT.fullmatch(path.name)) and path.is_dir())

    def load_checkpoint(self, *, device, load=load_pretrained):
        """The newest checkpoint -> (model, tokenizer, training state), or None where there is none.

        One that is damaged is put aside, and the one before it is taken. Metrics and samples are
        cut to its step.
        """
        found, last, steps = None, 0, self.checkpoints()
        while steps:
            step = steps.pop()
            folder = self.path / f"checkpoint-{step}"
            try:
                model, tokenizer = load(folder, device=device)
                state = load_training_state(folder, step, model, device)
            except (ValueError, OSError) as error:
                then = f"goes on from checkpoint-{steps[-1]}" if steps else "begins again"
                self._put_aside(folder.name, error, then)
            else:
                found, last = (model, tokenizer, state), step
                break
        cut_metrics(self.path / "metrics.jsonl", last)
        if (kept := self._sections(last)) != self._sections(sys.maxsize):
            self.write_text("samples.md", kept)
        return found

    def save_final(self, model, tokenizer) -> None:
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
                                 "run is not around it: start a new one from its final/ with --init")
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
        final, partial = self.path / "final", partial_of(self.path / "final")
        if not os.path.lexists(final) and not partial.is_symlink() and (partial / SUMS).is_file():
            with contextlib.suppress(ValueError):              # complete, but for its name
                verify(partial)
                os.replace(partial, final)
        settle_all(self.path)
        if os.path.lexists(final):
            try:
                verify(final)
                if not self.finished:
                    raise CheckpointError("files are missing")
            except (ValueError, OSError) as error:
                self._put_aside("final", error, "makes it again from the last checkpoint")

    def _put_aside(self, name: str, error: Exception, then: str) -> None:
        broken = self.path / f"{name}.broken"
        remove(broken)
        os.replace(self.path / name, broken)
        warn(f"{self.path / name} is damaged ({error}): it is now {broken.name}, and the run "
             f"{then}")


def fits(value: object, kind: type) -> bool:
    """Whether a value from JSON is of a field's type, such as int, float or str | None."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple((int, float) if k is float else k for k in kinds))


class RunLog:
    """What a training page reports to, inside a `with`.

    `log` after each step writes its metrics and moves the bar, `save` writes a checkpoint now and
    then. At a first SIGINT, SIGTERM or SIGHUP the step that is being made is finished and saved,
    and Stopped is raised. It is raised at once where no step has been made since the last
    checkpoint, and at a second signal.
    """

    def __init__(self, run: RunDir, tokenizer, *, title: str, steps: int, state: dict | None,
                 every: int, shown: dict[str, str], seconds: float = 0.0):
        """`state` is the training state that is resumed, `every` the steps between checkpoints,
        `shown` the metrics on the bar with their labels, `seconds` what was spent before the first
        step."""
        self.run, self.tokenizer, self.title, self.steps = run, tokenizer, title, steps
        self.every, self.shown = every, shown
        self._began = time.perf_counter() - (state["seconds"] if state else seconds)
        self._logged = self._saved = state["step"] if state else 0
        self._signal: int | None = None
        self._open = contextlib.ExitStack()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._logged = step
        self.run.append_metrics(step, metrics)
        note = ", ".join(f"{label} {metrics[name]:.3g}" for name, label in self.shown.items()
                         if name in metrics)
        with contextlib.suppress(OSError):                 # a terminal that has been closed
            self._bar.update(note=note)

    def save(self, state) -> None:
        if state.step % self.every == 0 or state.step == self.steps or self._signal is not None:
            self.run.save_checkpoint(state, self.tokenizer, self.seconds)
            self._saved = state.step
        if self._signal is not None:
            raise self._stopped(self._signal)

    def _on_signal(self, number: int, frame) -> None:
        if self._signal is not None or self._logged == self._saved:
            raise self._stopped(number)
        self._signal = number
        tell_at_once(f"{signal.Signals(number).name}: stopping when this step is saved; "
                     "a second one stops at once")

    def _stopped(self, number: int) -> Stopped:
        kept = f"step {self._saved} is saved" if self._saved else "nothing is saved yet"
        return Stopped(f"stopped by {signal.Signals(number).name}; {kept}: go on with "
                       f"{self.run.resume_command}", number)

    def __enter__(self) -> RunLog:
        self._bar = Progress(self.title, self.steps, initial=self._saved)
        self._open.enter_context(catching_signals(self._on_signal))
        return self

    def __exit__(self, kind, *error) -> None:
        self._open.close()
        with contextlib.suppress(OSError):
            self._bar.close()
        if self._signal is not None and kind is None:      # after the last step
            raise self._stopped(self._signal)


def newest_checkpoint(root: str | Path = "runs") -> Path | None:
    """The final policy of the run that ended last, if there is one; a reward model is none."""
    finals = [file for file in Path(root).glob("*/final/config.json")
              if RunDir(file.parents[1]).finished and not file.with_name(SCORE).exists()]
    return max(finals, key=lambda file: file.stat().st_mtime).parent if finals else None


def free_name(root: str | Path, name: str) -> Path:
    """runs/grpo, or runs/grpo-2, runs/grpo-3, ... : the first that is not taken."""
    path, n = Path(root) / name, 1
    while os.path.lexists(path):
        n += 1
        path = Path(root) / f"{name}-{n}"
    return path


def newest_run(root: str | Path, name: str) -> Path:
    """The newest of runs/grpo, runs/grpo-2, ..., for --resume without --run-dir.

    One that got as far as a checkpoint, its own or a stage's, goes before those that did not.
    """
    taken = [path for path in Path(root).glob(f"{name}*")
             if re.fullmatch(rf"{name}(-\d+)?", path.name) and (path / "config.json").is_file()]
    if not taken:
        raise ValueError(f"there is no run {name} under {root}/ to resume: start one without "
                         "--resume, or give its --run-dir")
    return max(taken, key=lambda path: (has_weights(path), (path / "config.json").stat().st_mtime))


def has_weights(path: Path) -> bool:
    return any(True for pattern in ("", "*/") for name in ("checkpoint-*", "final")
               for _ in path.glob(f"{pattern}{name}/config.json"))
