"""A pipeline's stage: a page that starts from a model. A pipeline knows no file; whoever runs it
decides what a stage keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from minirl.train.state import Log

Page = Callable[..., nn.Module]      # page(model, log=, save=, resume=) -> the trained model


class Stage(Protocol):
    """Run a page on a copy of `start` -> the trained model. `name` is unique in the pipeline, and
    `config` is the page's configuration."""

    def __call__(self, name: str, config: Any, start: nn.Module, page: Page) -> Any: ...


def in_memory(log: Log | None) -> Stage:
    """Return a stage that keeps nothing but the model."""
    def stage(name: str, config: Any, start: nn.Module, page: Page) -> Any:
        return page(copy.deepcopy(start), log=log, save=None, resume=None)

    return stage
