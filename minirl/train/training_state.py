"""The files of a training state, beside a checkpoint's weights: a run resumes from them exactly.

Nothing is written twice. The model's weights are the checkpoint's, and a part that has not changed
since the last checkpoint, such as a reference, is a hard link to that checkpoint's file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import nn

from minirl.lm.checkpoint import CheckpointError
from minirl.lm.digests import verify
from minirl.train.state import check_state

STATE = "training_state.pt"


def part_file(name: str) -> str:
    return f"training_state-{name}.pt"


def save_training_state(state: dict, folder: Path, before: Path | None) -> list[str]:
    """Write what the weights in the folder do not hold -> the names of the files.

    `before` is the folder of the previous checkpoint. It may be deleted later: a hard link stays.
    """
    parts = state["parts"]
    rest = {key: value for key, value in state.items() if key != "model"}
    write_tensors({**rest, "parts": dict.fromkeys(parts)}, folder / STATE)
    for name, part in parts.items():
        file = folder / part_file(name)
        if before is not None and holds(before / file.name, part):
            link(before / file.name, file)
        else:
            write_tensors(part, file)
    return [STATE, *map(part_file, parts)]


def write_tensors(content: dict, file: Path) -> None:
    with open(file, "wb") as f:                            # Python's errors say more than torch's
        torch.save(content, f)


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:                                        # a file system without hard links
        shutil.copyfile(source, target)


def holds(file: Path, content: dict) -> bool:
    """Return whether a file of tensors and numbers exists and has exactly this content."""
    try:
        return same(torch.load(file, map_location="cpu", weights_only=True, mmap=True), content)
    except Exception:                                      # missing, or damaged in one of many ways
        return False


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b.detach().cpu())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def load_training_state(folder: Path, step: int, model: nn.Module, device: torch.device) -> dict:
    """Return the training state of a checkpoint of this step. `model` has been loaded from it, and
    its weights are part of the state.

    Raises ValueError, naming the file, where one is missing, damaged, or of another step.
    """
    verify(folder, *sorted(file.name for file in folder.glob("training_state*.pt")))
    state = load_tensors(folder / STATE, device)
    try:
        state.setdefault("model", model.state_dict())      # an earlier version wrote them here, too
        check_state(state)
        if state["step"] != step:
            raise ValueError(f"it is of step {state['step']}")
        if not isinstance(state.get("seconds"), (int, float)):
            raise ValueError("it has no seconds")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / STATE} is no training state of step {step}: "
                              f"{error}") from error
    parts = {name: load_tensors(folder / part_file(name), device) if part is None else part
             for name, part in state["parts"].items()}
    return {**state, "parts": parts}


def load_tensors(file: Path, device: torch.device) -> dict:
    """Load tensors and numbers. A file that holds anything else is refused, and no code in it runs.
    """
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:                             # missing, or damaged in one of many ways
        raise CheckpointError(f"{file} cannot be read as a training state "
                              f"({type(error).__name__})") from error
