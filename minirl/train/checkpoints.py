"""Checkpoints of a training state, from which a page goes on exactly where it was.

    model, tokenizer, state = load_checkpoint(folder, device=device) or (model, tokenizer, None)
    train_sft(model, tokenizer, pairs, config, resume=state,
              save=lambda state: save_checkpoint(state, tokenizer, folder))

A folder holds the newest ones, checkpoint-<step>/, each with the weights in Hugging Face layout and
the rest of its training state (state_files.py). Each gets its name when it is complete and on the
disk (lm/files.py).
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minirl.lm import files
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.memory import available_bytes
from minirl.lm.tokenizer import Tokenizer
from minirl.train import state_files
from minirl.train.state import TrainState, check_weights
from minirl.train.state_files import ResumeError, Snapshot, Start

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9]\d*)")
KEEP = 2                                                   # the newest checkpoints
METRICS = "metrics.jsonl"                                  # beside them, in a run directory


def save_checkpoint(state: TrainState, tokenizer: Tokenizer, folder: Path, *,
                    seconds: float = 0.0, keep: int = KEEP, start: Start | None = None,
                    background: Background | None = None) -> None:
    """Save a TrainState, so that load_checkpoint gives it back bit for bit, and delete all but the
    `keep` newest checkpoints. `seconds`: what training took so far.

    What equals `start` is not stored, and load_checkpoint wants it again. With `background`, the
    tensors are copied, and written while the caller goes on; without the memory for that, they are
    written at once.

    Raises NonFiniteError where a weight is NaN, infinite or absurdly large.
    """
    if background is not None:
        background.wait()
    check_weights(state.model, state.step)
    moment = state_files.snapshot(state, tokenizer, seconds=seconds, start=start)
    if background is not None and 2 * moment.nbytes <= available_bytes():
        background.do(partial(write_checkpoint, moment.copied(), folder, keep))
    else:
        write_checkpoint(moment, folder, keep)


def write_checkpoint(moment: Snapshot, folder: Path, keep: int) -> None:
    """Write a checkpoint, and delete those that are older than the `keep` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / METRICS).is_file():
        files.sync(folder / METRICS)                       # it must hold a checkpoint's steps
    steps = checkpoint_steps(folder)
    before = folder / f"checkpoint-{steps[-1]}" if steps else None
    with files.replacing_folder(folder / f"checkpoint-{moment.numbers['step']}") as partial_folder:
        state_files.write(moment, partial_folder, before)
    for step in checkpoint_steps(folder)[:-keep]:
        files.delete_folder(folder / f"checkpoint-{step}")


class Background:
    """A thread that does one piece of work at a time, while its caller goes on.

    An error in it is raised by the caller's next call. A process that ends does not wait for it:
    what is half-written then is what a kill leaves.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Do this, once the work before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the work is done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error that ended the work, if one did."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of which there are checkpoints, in order."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(match[1]) for path in paths
                  if (match := CHECKPOINT.fullmatch(path.name)) and path.is_dir())


def load_checkpoint(folder: Path, *, device: torch.device,
                    load: Callable[..., Any] = load_pretrained, start: Start | None = None,
                    warn: Callable[[str], None] = warnings.warn,
                    ) -> tuple[Any, Tokenizer, dict[str, Any]] | None:
    """Return model, tokenizer and training state of the newest checkpoint, None without one.

    A damaged one is put aside, and the one before it is taken; warn(message) says so, and where
    another machine or number of threads may give other bits. `load` loads the model:
    lm.checkpoint.load_reward_model, where it is one. `start` is the one that save_checkpoint had.

    Raises ResumeError for a checkpoint of an earlier version, and where `start` is another model.
    """
    steps = checkpoint_steps(folder)
    while steps:
        step = steps.pop()
        path = folder / f"checkpoint-{step}"
        try:
            model, tokenizer = load(path, device=device)
            for p in model.parameters():                   # not mapped: the file is deleted soon
                p.data = p.data.clone()
            state = state_files.read(path, step, model, start)
        except ResumeError:
            raise
        except (ValueError, OSError) as error:
            then = f"goes on from checkpoint-{steps[-1]}" if steps else "begins again"
            warn(put_aside(path, error, then))
        else:
            if changes := changed_machine(state.get("machine"), device):
                warn(f"{path} goes on with {changes}: the bits may differ from those of a run that "
                     "was not stopped")
            return model, tokenizer, state
    return None


def changed_machine(came: Any, device: torch.device) -> str:
    """Return what is not as it was when a checkpoint was written, "" where all is."""
    now = state_files.machine(device)
    changes = [f"{name} {now[name]} instead of {came[name]}" for name in now
               if isinstance(came, dict) and name in came and came[name] != now[name]]
    return ", ".join(changes)


def put_aside(path: Path, error: Exception, then: str) -> str:
    """Rename a damaged folder -> a message about that, and about what the run does `then`."""
    aside = path.with_name(f"{path.name}.broken")
    files.remove(aside)
    os.replace(path, aside)
    return f"{path} is damaged ({error}): it is now {aside.name}, and the run {then}"
