"""What a page reports to while it trains: metrics, checkpoints, a progress bar, signals."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from minirl.app.rundir import RunDir
from minirl.app.survival import GO_ON, Stopped, catching_signals, tell_at_once
from minirl.app.trackers import Trackers
from minirl.lm import files, world
from minirl.lm.progress import Progress
from minirl.lm.tokenizer import Tokenizer
from minirl.train.checkpoints import Background
from minirl.train.state import TrainState


class RunLog:
    """What a training page reports to, inside a `with`.

    `log` after each step writes its metrics and moves the bar, `save` writes a checkpoint now and
    then. At a first SIGINT, SIGTERM or SIGHUP the step that is being made is finished and saved,
    and Stopped is raised. It is raised at once where no step has been made since the last
    checkpoint, and at a second signal.

    bar       metrics on the progress bar, with their labels
    state     the training state that is resumed
    steps     of the whole page; None: learnt from `epochs` and the first step's metrics
    every     steps between two checkpoints
    options   of save_checkpoint: how many are kept, and what the page starts from
    seconds   what was spent before the first step
    trackers  where else metrics go: --log
    """

    def __init__(self, run: RunDir, tokenizer: Tokenizer, *, title: str, bar: Mapping[str, str],
                 state: dict[str, Any] | None, steps: int | None, every: int, epochs: int = 1,
                 options: Mapping[str, Any] | None = None, seconds: float = 0.0,
                 trackers: str | None = None) -> None:
        self.run, self.tokenizer, self.title, self.bar = run, tokenizer, title, bar
        self.steps, self.epochs, self.every = steps, epochs, every
        self.options, self._background = options or {}, Background()
        self.step = self._saved = state["step"] if state else 0
        self._began = time.perf_counter() - (state["seconds"] if state else seconds)
        self._tokens: float | None = state["num_tokens"] if state else 0
        self._trackers = Trackers(trackers if world.rank() == 0 else None, run, self.step)
        self._signal: int | None = None
        self._open = contextlib.ExitStack()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.step = step
        self.run.append_metrics(step, metrics)
        self._trackers.log(step, metrics)
        if self.steps is None:
            self.steps = round(self.epochs * step / metrics["epoch"])
            self._progress.expect(self.steps)
        notes = [f"{label} {metrics[name]:.3g}" for name, label in self.bar.items()
                 if name in metrics]
        note = ", ".join([*notes, *self._speed(metrics)])
        with contextlib.suppress(OSError):                 # a terminal that has been closed
            self._progress.update(note=note)

    def _speed(self, metrics: Mapping[str, float]) -> list[str]:
        """Return the tokens per second of this step; none where a page does not count them."""
        tokens = metrics.get("num_tokens")
        before, self._tokens = self._tokens, tokens
        if tokens is None or before is None or not metrics.get("step_time"):
            return []
        return [f"{(tokens - before) / metrics['step_time']:,.0f} tokens/s"]

    def save(self, state: TrainState) -> None:
        with files.room(self.run.path, GO_ON):
            self._background.check()
        if number := max(world.gather(self._signal or 0)):  # all processes stop at one step
            self._signal = number
        if state.step % self.every == 0 or state.step == self.steps or self._signal is not None:
            self.run.save_checkpoint(state, self.tokenizer, self.seconds,
                                     background=self._background, **self.options)
            self._saved = state.step
        if self._signal is not None:
            raise self._stopped(self._signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # torchrun hands Ctrl-C on as SIGTERM, too; and a process cannot stop before the others
        again = number == self._signal if world.size() > 1 else self._signal is not None
        if again or world.size() == 1 and self.step == self._saved:
            raise self._stopped(number)
        self._signal = number
        tell_at_once(f"{signal.Signals(number).name}: stopping when this step is saved; "
                     "a second one stops at once")

    def _stopped(self, number: int) -> Stopped:
        progress = f"step {self._saved} is saved" if self._saved else "nothing is saved yet"
        return Stopped(f"stopped by {signal.Signals(number).name}; {progress}: go on with "
                       f"{self.run.resume_command}", number)

    def __enter__(self) -> RunLog:
        self._progress = Progress(self.title, self.steps, initial=self._saved)
        self._open.enter_context(catching_signals(self._on_signal))
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._open.close()
        self._trackers.close()
        with contextlib.suppress(OSError):
            self._progress.close()
        with files.room(self.run.path, GO_ON):
            self._background.wait()
        if self._signal is not None and kind is None:      # after the last step
            raise self._stopped(self._signal)
