"""Where the time of a training page goes: the share of each stage, and a trace to look into.

A page marks its stages with comments, "# 1. sample ...". While the page's function runs, Python's
trace function reports which line comes next, and so which stage. No page contains a word about
being measured.
"""

from __future__ import annotations

import inspect
import re
import sys
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

SKIPPED, PROFILED = 2, 3      # steps: the first ones also compile and allocate
ATTENTION = "aten::_scaled_dot_product_"
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
            f"{ATTENTION}flash_attention_for_cpu", f"{ATTENTION}flash_attention_for_cpu_backward",
            f"{ATTENTION}flash_attention", f"{ATTENTION}flash_attention_backward",
            f"{ATTENTION}efficient_attention", f"{ATTENTION}efficient_attention_backward",
            f"{ATTENTION}cudnn_attention", f"{ATTENTION}cudnn_attention_backward"}


def stage_lines(page: Callable) -> tuple[list[int], list[str]]:
    """Return the line numbers of a page's stage comments, and the stages' names ("1 sample", ...).

    Raises ValueError where there are none.
    """
    source, first = inspect.getsourcelines(page)
    lines, names = [], []
    for number, line in enumerate(source, start=first):
        if match := re.match(r"\s+# ([1-5])\. (\w+)", line):
            lines.append(number)
            names.append(f"{match[1]} {match[2]}")
    if not names:
        raise ValueError(f'{page.__name__} has no stage comments such as "# 1. sample": there is '
                         "nothing to take shares of")
    return lines, names


class StageProfile:
    """Times the stages of a few steps of one call of `page`, under torch's profiler."""

    def __init__(self, page: Callable):
        self.code = page.__code__
        self.lines, self.names = stage_lines(page)
        self.seconds = dict.fromkeys(self.names, 0.0)
        self.stage: str | None = None
        self.step, self.since = 0, 0.0
        self.profiler: Any = None            # while it records
        self.mark: Any = None                # torch's record of the stage that runs
        self.finished: Any = None            # the profiler, after the last step

    def start(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(lambda frame, event, arg: self.trace if frame.f_code is self.code else None)

    def stop(self) -> None:
        sys.settrace(self.before)
        self.enter(None)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Callable:
        """What Python calls before each line of the page."""
        where = bisect(self.lines, frame.f_lineno) - 1
        stage = self.names[where] if where >= 0 else self.stage
        if event == "return":
            stage = None
        if stage != self.stage:
            self.enter(stage)
        return self.trace

    def enter(self, stage: str | None) -> None:
        """Leave the stage that runs and enter another; None: the page has ended."""
        if self.profiler is not None and self.stage is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()     # the kernels that a stage launches count as its own
            self.mark.__exit__(None, None, None)
            self.seconds[self.stage] += time.perf_counter() - self.since
        self.step += stage == self.names[0]
        self.stage = stage
        if self.profiler is not None and (stage is None or self.step > SKIPPED + PROFILED):
            self.profiler.stop()
            self.finished, self.profiler = self.profiler, None
            sys.settrace(self.before)
        elif self.profiler is None and self.step == SKIPPED + 1 and stage == self.names[0]:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        if self.profiler is not None:
            self.mark = torch.profiler.record_function(str(stage))
            self.mark.__enter__()
            self.since = time.perf_counter()

    def products(self) -> dict[str, float]:
        """Return the seconds of matrix products and attention in each stage, on the device that
        computes them."""
        events = self.finished.events()
        spans = [(event.time_range.start, event.time_range.end, event.name) for event in events
                 if event.name in self.seconds
                 and event.device_type == torch.autograd.DeviceType.CPU]
        seconds: dict[str, float] = defaultdict(float)
        for event in events:
            if event.name in PRODUCTS:
                stages = (name for start, end, name in spans
                          if start <= event.time_range.start < end)
                seconds[next(stages, "")] += (event.device_time_total or event.cpu_time_total) / 1e6
        return seconds

    @property
    def has_steps(self) -> bool:
        """Whether the page made a step after the first ones: else there is nothing to report."""
        return self.finished is not None

    def report(self, trace: Path) -> tuple[str, list[tuple[str, ...]]]:
        """Write the trace, and return a title and the rows of a table.

        Without profiled steps nothing is written, the title says so, and there are no rows.
        """
        if not self.has_steps:
            return (f"nothing profiled: the run had no step behind its first {SKIPPED}, which also "
                    "compile and allocate"), []
        self.finished.export_chrome_trace(str(trace))
        steps = min(PROFILED, self.step - SKIPPED)
        products, whole = self.products(), sum(self.seconds.values())
        rows: list[tuple[str, ...]] = [("stage", "seconds a step", "share", "of it products")]
        rows += [(name, f"{s / steps:.4f}", f"{s / whole:.0%}",
                  f"{products[name] / s:.0%}" if s else "-") for name, s in self.seconds.items()]
        rows += [("all", f"{whole / steps:.4f}", "100%",
                  f"{sum(products.values()) / whole:.0%}")]
        title = (f"steps {SKIPPED + 1} to {SKIPPED + steps} under the profiler, which slows them; "
                 f"trace: {trace} (open it in https://ui.perfetto.dev)")
        return title, rows


@contextmanager
def profiled(page: Callable) -> Iterator[StageProfile]:
    """Profile a few steps of a page that runs inside; ask the profile for its report afterwards."""
    profile = StageProfile(page)
    profile.start()
    try:
        yield profile
    finally:
        profile.stop()
