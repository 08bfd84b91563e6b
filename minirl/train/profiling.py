"""Where the time of a training page goes: the share of each of its five stages, and a trace to look into.

A page marks its stages with comments, "# 1. sample ...", and these are the marks that are used: while the page's function runs, the interpreter
tells which line it is at. So no page carries a word about being measured.
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

import torch

SKIPPED, PROFILED = 2, 3      # steps: the first ones also compile and allocate
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward", "aten::_scaled_dot_product_flash_attention",
            "aten::_scaled_dot_product_flash_attention_backward", "aten::_scaled_dot_product_efficient_attention",
            "aten::_scaled_dot_product_efficient_attention_backward", "aten::_scaled_dot_product_cudnn_attention",
            "aten::_scaled_dot_product_cudnn_attention_backward"}


def stage_lines(page: Callable) -> tuple[list[int], list[str]]:
    """The line numbers of a page's stage comments, and the stages' names: "1 sample", ... Raises ValueError where there are none."""
    source, first = inspect.getsourcelines(page)
    found = [(first + i, f"{m[1]} {m[2]}") for i, line in enumerate(source) if (m := re.match(r"\s+# ([1-5])\. (\w+)", line))]
    if not found:
        raise ValueError(f"{page.__name__} has no stage comments such as \"# 1. sample\": there is nothing to take shares of")
    return [line for line, _ in found], [name for _, name in found]


class StageProfile:
    """Times the stages of a few steps of one call of `page`, under torch's profiler."""

    def __init__(self, page: Callable):
        self.code = page.__code__
        self.lines, self.names = stage_lines(page)
        self.seconds = dict.fromkeys(self.names, 0.0)
        self.stage, self.step, self.since, self.mark = None, 0, 0.0, None
        self.profiler = None

    def start(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(lambda frame, event, arg: self.trace if frame.f_code is self.code else None)

    def stop(self) -> None:
        sys.settrace(self.before)
        self.enter(None)

    def trace(self, frame, event, arg):
        where = bisect(self.lines, frame.f_lineno) - 1
        stage = None if event == "return" else self.names[where] if where >= 0 else self.stage
        if stage != self.stage:
            self.enter(stage)
        return self.trace

    def enter(self, stage: str | None) -> None:
        """A line of another stage is next; None: the page has ended."""
        if self.profiler is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()                  # what a stage started is its own
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
            self.mark = torch.profiler.record_function(stage)
            self.mark.__enter__()
            self.since = time.perf_counter()

    def products(self) -> dict[str, float]:
        """Seconds of matrix products and attention in each stage, on the device that does them."""
        events = self.finished.events()
        ranges = [(e.time_range.start, e.time_range.end, e.name) for e in events if e.name in self.seconds and e.device_type == torch.autograd.DeviceType.CPU]
        spent = defaultdict(float)
        for e in events:
            if e.name in PRODUCTS:
                stage = next((name for start, end, name in ranges if start <= e.time_range.start < end), None)
                spent[stage] += (e.device_time_total or e.cpu_time_total) / 1e6
        return spent

    @property
    def has_steps(self) -> bool:
        """Whether the page made a step behind the first ones: else there is nothing to report."""
        return hasattr(self, "finished")

    def report(self, trace: Path) -> tuple[str, list[tuple[str, ...]]]:
        """Write the trace, and return what it shows: a title and the rows of a table.

        Without profiled steps nothing is written, the title says so, and there are no rows.
        """
        if not self.has_steps:
            return (f"nothing profiled: the run had no step behind its first {SKIPPED}, which also "
                    "compile and allocate"), []
        self.finished.export_chrome_trace(str(trace))
        steps = min(PROFILED, self.step - SKIPPED)
        products, whole = self.products(), sum(self.seconds.values())
        rows = [("stage", "seconds a step", "share", "of it products")]
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
