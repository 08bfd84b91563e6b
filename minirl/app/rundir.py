"""The run directory: everything a run leaves behind, written so that a kill at any moment loses nothing that a checkpoint had.

    config.json      what ran                          checkpoint-<step>/   Hugging Face layout + training_state.pt
    metrics.jsonl    a line per step                   final/               the trained model, Hugging Face layout
    samples.md       the same prompts over time        summary.json         the figures at the end
    curves.png       the metrics, drawn

Whole files and folders appear under their names only when they are complete: they are written beside and then renamed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from minirl.lm.checkpoint import SCORE, CheckpointError, load_pretrained, save_pretrained
from minirl.lm.tokenizer import read_json

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
KEEP_CHECKPOINTS = 2
RUNS = Path("runs")           # where runs are kept unless --run-dir says otherwise


class RunDir:
    """A run's folder. Open it with `create` (a new run) or `resume` (one that was cut short)."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: str | Path, config: dict) -> RunDir:
        """Start a run. Raises ValueError where the folder already holds one: nothing is overwritten."""
        path = Path(path)
        if (path / "config.json").exists():
            raise ValueError(f"{path} already holds a run: go on with it (--resume), or choose another --run-dir")
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run.write_json("config.json", config)
        return run

    @classmethod
    def resume(cls, path: str | Path) -> RunDir:
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} holds no run to resume: there is no config.json in it")
        for leftover in path.glob("*.partial"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return cls(path)

    def stage(self, name: str, command: str, **configs) -> RunDir:
        """A run of its own inside this one, for what comes before it: new, with the configurations that it runs with, or as far as it got."""
        path, common = self.path / name, {"run": self.config.get("run", {})}
        if (path / "config.json").exists():
            return RunDir.resume(path)
        return RunDir.create(path, {"command": command, **common, **{key: dataclasses.asdict(config) for key, config in configs.items()}})

    @property
    def config(self) -> dict:
        return read_json(self.path / "config.json")

    @property
    def finished(self) -> bool:
        return (self.path / "final" / "config.json").is_file()

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, content: str) -> None:
        with self.replacing(name) as partial:
            partial.write_text(content, encoding="utf-8")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path beside `name` to write to; it takes the name when the block ends without an error."""
        partial, final = self.path / f"{name}.partial", self.path / name
        yield partial
        with open(partial, "rb") as f:
            os.fsync(f.fileno())
        os.replace(partial, final)

    @contextmanager
    def replacing_folder(self, name: str) -> Iterator[Path]:
        """The same for a folder. A folder that already has the name makes room for the new one."""
        partial, final = self.path / f"{name}.partial", self.path / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)

    # metrics

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **metrics}) + "\n")

    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl; one that a kill cut short is left out."""
        file = self.path / "metrics.jsonl"
        lines = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    # samples

    def write_samples(self, step: int, heading: str, body: str) -> None:
        """Put a section into samples.md, after those of earlier steps; a section of this or a later step (of before a resume) goes."""
        file = self.path / "samples.md"
        sections = re.split(r"(?m)^(?=## step \d+)", file.read_text(encoding="utf-8")) if file.is_file() else ["# The same held-out problems over time\n\n"]
        kept = [section for section in sections if not (match := re.match(r"## step (\d+)", section)) or int(match[1]) < step]
        self.write_text("samples.md", "".join(kept) + f"## step {step}: {heading}\n\n{body}\n\n")

    # checkpoints

    def save_checkpoint(self, state, tokenizer, seconds: float) -> None:
        with self.replacing_folder(f"checkpoint-{state.step}") as folder:
            save_pretrained(state.model, tokenizer, folder)
            torch.save({"seconds": seconds, **state.state_dict()}, folder / "training_state.pt")
        for step in self.checkpoints()[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(self.path / f"checkpoint-{step}")

    def checkpoints(self) -> list[int]:
        return sorted(int(match[1]) for path in self.path.iterdir() if (match := CHECKPOINT.fullmatch(path.name)))

    def load_checkpoint(self, *, device, load=load_pretrained):
        """The newest checkpoint -> (model, tokenizer, training state), or None. What came after it is taken out of metrics and samples."""
        steps = self.checkpoints()
        last = steps[-1] if steps else 0
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= last))
        if not steps:
            return None
        folder = self.path / f"checkpoint-{last}"
        model, tokenizer = load(folder, device=device)
        return model, tokenizer, load_training_state(folder / "training_state.pt", device)

    def save_final(self, model, tokenizer) -> None:
        with self.replacing_folder("final") as folder:
            save_pretrained(model, tokenizer, folder)


def load_training_state(file: Path, device) -> dict:
    """Tensors and numbers alone: a file that holds anything else is refused, not run."""
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:                       # missing, cut short, or not tensors: torch has a class for each
        raise CheckpointError(f"{file} cannot be read as a training state ({type(error).__name__}): delete its folder, and --resume starts from the "
                              "checkpoint before it") from error


class RunLog:
    """What a training page reports to: `log` after each step writes the metrics and moves the bar, `save` writes a checkpoint now and then."""

    def __init__(self, run: RunDir, tokenizer, *, title: str, steps: int, state: dict | None, every: int, shown: dict[str, str], seconds: float = 0.0):
        """`state` is the training state that is resumed, `every` the steps between checkpoints, `shown` the metrics on the bar with their labels,
        `seconds` what was spent before the first step."""
        self.run, self.tokenizer, self.title, self.steps, self.every, self.shown = run, tokenizer, title, steps, every, shown
        self._began = time.perf_counter() - (state["seconds"] if state else seconds)
        self._bar = tqdm(total=steps, initial=state["step"] if state else 0, desc=title, unit="step", disable=None, dynamic_ncols=True)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.append_metrics(step, metrics)
        self._bar.set_postfix_str("  ".join(f"{label} {metrics[name]:.3g}" for name, label in self.shown.items() if name in metrics), refresh=False)
        self._bar.update()

    def save(self, state) -> None:
        if state.step % self.every == 0 or state.step == self.steps:
            self.run.save_checkpoint(state, self.tokenizer, self.seconds)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()


def newest_checkpoint(root: str | Path = "runs") -> Path | None:
    """The final policy of the run that ended last, if there is one; a reward model is none."""
    finals = sorted((path for path in Path(root).glob("*/final/config.json") if not path.with_name(SCORE).exists()), key=lambda path: path.stat().st_mtime)
    return finals[-1].parent if finals else None


def free_name(root: str | Path, name: str) -> Path:
    """runs/grpo, or runs/grpo-2, runs/grpo-3, ... : the first that is not taken."""
    path, n = Path(root) / name, 1
    while path.exists():
        n += 1
        path = Path(root) / f"{name}-{n}"
    return path


def newest_run(root: str | Path, name: str) -> Path:
    """The newest of runs/grpo, runs/grpo-2, ..., for --resume without --run-dir."""
    taken = [p for p in Path(root).glob(f"{name}*") if re.fullmatch(rf"{name}(-\d+)?", p.name) and (p / "config.json").is_file()]
    if not taken:
        raise ValueError(f"there is no run {name} under {root}/ to resume: start one without --resume, or give its --run-dir")
    return max(taken, key=lambda p: (p / "config.json").stat().st_mtime)
