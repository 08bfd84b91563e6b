"""Checkpoints of a training state, from which a page goes on exactly where it was.

    model, tokenizer, state = load_checkpoint(folder, device=device) or (model, tokenizer, None)
    train_sft(model, tokenizer, pairs, config, resume=state,
              save=lambda state: save_checkpoint(state, tokenizer, folder))

A folder holds the newest two, checkpoint-<step>/, each with the weights in Hugging Face layout and
its training state. Each gets its name when it is complete and on the disk (lm/files.py).

Nothing is written twice. The model's weights are the checkpoint's, and a part that has not changed
since the last checkpoint, such as a reference, is a hard link to that checkpoint's file.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minirl.lm import files
from minirl.lm.checkpoint import CheckpointError, load_pretrained, save_pretrained
from minirl.lm.digests import seal, verify
from minirl.lm.tokenizer import Tokenizer
from minirl.train.state import TrainState, check_state, check_weights

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9]\d*)")
KEEP = 2                                                   # the newest checkpoints
STATE = "training_state.pt"


def save_checkpoint(state: TrainState, tokenizer: Tokenizer, folder: Path, *,
                    seconds: float = 0.0) -> None:
    """Save a TrainState, so that load_checkpoint gives it back bit for bit, and delete all but the
    newest two checkpoints. `seconds`: what training took so far.

    Raises NonFiniteError where a weight is NaN, infinite or absurdly large.
    """
    model: Any = state.model
    check_weights(model, state.step)
    folder.mkdir(parents=True, exist_ok=True)
    steps = checkpoint_steps(folder)
    before = folder / f"checkpoint-{steps[-1]}" if steps else None
    with files.replacing_folder(folder / f"checkpoint-{state.step}") as partial:
        save_pretrained(model, tokenizer, partial)
        content = {"seconds": seconds, **state.state_dict()}
        seal(partial, *save_training_state(content, partial, before))
    for step in checkpoint_steps(folder)[:-KEEP]:
        files.delete_folder(folder / f"checkpoint-{step}")


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of which there are checkpoints, in order."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(match[1]) for path in paths
                  if (match := CHECKPOINT.fullmatch(path.name)) and path.is_dir())


def load_checkpoint(folder: Path, *, device: torch.device,
                    load: Callable[..., Any] = load_pretrained,
                    warn: Callable[[str], None] = warnings.warn,
                    ) -> tuple[Any, Tokenizer, dict[str, Any]] | None:
    """Return model, tokenizer and training state of the newest checkpoint, None without one.

    A damaged one is put aside, and the one before it is taken; warn(message) says so. `load` loads
    the model: lm.checkpoint.load_reward_model, where it is one.
    """
    steps = checkpoint_steps(folder)
    while steps:
        step = steps.pop()
        path = folder / f"checkpoint-{step}"
        try:
            model, tokenizer = load(path, device=device)
            return model, tokenizer, load_training_state(path, step, model, device)
        except (ValueError, OSError) as error:
            then = f"goes on from checkpoint-{steps[-1]}" if steps else "begins again"
            warn(put_aside(path, error, then))
    return None


def put_aside(path: Path, error: Exception, then: str) -> str:
    """Rename a damaged folder -> a message about that, and about what the run does `then`."""
    aside = path.with_name(f"{path.name}.broken")
    files.remove(aside)
    os.replace(path, aside)
    return f"{path} is damaged ({error}): it is now {aside.name}, and the run {then}"


# the files of a training state

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
