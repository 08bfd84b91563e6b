"""The files of a training state, beside the weights of its checkpoint.

    training_state.json      the numbers: step, learning rates, coefficients, the machine
    optimizer.safetensors    the optimizer's moments
    <part>.safetensors       what else changes while a page runs: a value function, its optimizer

Each weight is written once. A part that equals the weights beside it, or the model that the run
started from, is a word in training_state.json: a reference until it is replaced, an average without
a memory. A part that is as in the checkpoint before is a hard link to the file there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minirl.lm import world
from minirl.lm.checkpoint import CheckpointError, Contents, contents_of, write_pretrained
from minirl.lm.digests import seal, verify
from minirl.lm.files import read_json
from minirl.lm.tokenizer import Tokenizer
from minirl.lm.weight_files import read_entries, read_tensors, write_tensors
from minirl.train.state import TrainState, check_state

STATE, PICKLED = "training_state.json", "training_state.pt"
FILE, START, MODEL = "file", "start", "model"    # where a part's tensors are, if it has any


class ResumeError(CheckpointError):
    """A checkpoint that is whole, but that training cannot go on from here."""


class Start:
    """The model that a run starts from. It must not change while the run goes on."""

    def __init__(self, model: nn.Module) -> None:
        self.state = model.state_dict()

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the weights, with their names, dtypes and shapes."""
        sha = hashlib.sha256()
        for name, x in sorted(split(self.state).tensors.items()):
            sha.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
            sha.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return sha.hexdigest()


# a state_dict as numbers and tensors

class Split(NamedTuple):
    """A state_dict in two. `tied` are the names of tensors that stand under another name, too."""

    numbers: dict[Any, Any]
    tied: dict[str, str]
    tensors: dict[str, Tensor]


def split(state: dict) -> Split:
    """Take the tensors out of a state_dict. Their names are the keys that lead to them.

    >>> x = torch.ones(2)
    >>> split({"state": {0: {"exp_avg": x}}, "groups": [{"lr": 0.1}]})
    Split(numbers={'groups': [{'lr': 0.1}]}, tied={}, tensors={'state/0/exp_avg': tensor([1., 1.])})
    """
    tied: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    names: dict[tuple, str] = {}

    def without_tensors(content: dict, keys: tuple[object, ...]) -> dict[str, Any]:
        numbers = {}
        for key, value in content.items():
            path = (*keys, key)
            if isinstance(value, Tensor):
                name = "/".join(map(str, path))
                place = value.data_ptr(), value.dtype, value.shape, value.stride()
                if value.numel() and place in names:
                    tied[name] = names[place]
                else:
                    names[place], tensors[name] = name, value
            elif not isinstance(value, dict):
                numbers[str(key)] = value
            elif (rest := without_tensors(value, path)) or not value:
                numbers[str(key)] = rest
        return numbers

    return Split(without_tensors(state, ()), tied, tensors)


def join(parts: Split) -> dict:
    """Undo split. A key of digits alone is the number of a weight."""
    state = parts.numbers
    for name in (*parts.tensors, *parts.tied):
        *keys, last = (int(key) if key.isdigit() else key for key in name.split("/"))
        inner = state
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last] = parts.tensors[parts.tied.get(name, name)]
    return state


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether the same names have the same values, to the bit."""
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and torch.equal(x, b[name].to(x.device)) for name, x in a.items())


# writing

class Snapshot(NamedTuple):
    """All that a checkpoint is written from. The tensors are the run's own, until they are copied.

    numbers   the content of training_state.json
    tensors   of each file of the training state, by the name of its part
    start     what a part equals, if one does
    """

    contents: Contents
    tokenizer: Tokenizer
    numbers: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    start: Start | None

    @property
    def nbytes(self) -> int:
        every = (self.contents.weights, self.contents.head, *self.tensors.values())
        return sum(x.nbytes for tensors in every for x in tensors.values())

    def copied(self) -> Snapshot:
        """Return the same with tensors of its own, in the CPU's memory."""
        def copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x.detach().to("cpu", copy=True) for name, x in tensors.items()}

        config, weights, head = self.contents
        return self._replace(contents=Contents(config, copy(weights), copy(head)),
                             tensors={name: copy(part) for name, part in self.tensors.items()})


def snapshot(state: TrainState, tokenizer: Tokenizer, *, seconds: float, start: Start | None
             ) -> Snapshot:
    """Return what a checkpoint of this moment holds."""
    model: Any = state.model
    content = {**state.state_dict(), "seconds": seconds,
               "machine": machine(next(model.parameters()).device)}
    elsewhere = {MODEL: split(content.pop("model")).tensors}
    if start is not None:
        elsewhere[START] = split(start.state).tensors
    entries, stored, places = {}, {}, set()
    for name, part in {"optimizer": content.pop("optimizer"), **content["parts"]}.items():
        numbers, tied, tensors = split(part)
        place = None
        if tensors:
            place = next((place for place, weights in elsewhere.items() if same(tensors, weights)),
                         FILE)
        if place == FILE:
            stored[name] = tensors
        entries[name] = {"in": place, "numbers": numbers, "tied": tied}
        places.add(place)
    content["parts"] = entries
    return Snapshot(contents_of(model, tokenizer), tokenizer, content, stored,
                    start if START in places else None)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the bits of a result depend on, beside the program."""
    return {"threads": torch.get_num_threads(), "processes": world.size(),
            "torch": torch.__version__, "device": torch.device(device).type}


def write(moment: Snapshot, folder: Path, before: Path | None) -> None:
    """Write a checkpoint into a folder.

    `before` is the folder of the previous one. It may be deleted later: a hard link stays.
    """
    write_pretrained(moment.contents, moment.tokenizer, folder)
    numbers = moment.numbers
    if moment.start is not None:
        numbers = {**numbers, START: moment.start.digest}
    (folder / STATE).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    for name, tensors in moment.tensors.items():
        file = folder / file_of(name)
        if before is not None and holds(before / file.name, tensors):
            link(before / file.name, file)
        else:
            write_tensors(tensors, file)
    seal(folder, STATE, *map(file_of, moment.tensors))


def file_of(name: str) -> str:
    return f"{name}.safetensors"


def holds(file: Path, tensors: dict[str, Tensor]) -> bool:
    """Return whether a file exists and has exactly these tensors."""
    try:
        return same(read_tensors(read_entries([file])), tensors)
    except (CheckpointError, OSError):
        return False


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:                                        # a file system without hard links
        shutil.copyfile(source, target)


# reading

def read(folder: Path, step: int, model: nn.Module, start: Start | None) -> dict:
    """Return the training state of a checkpoint of this step, as TrainState.state_dict() returned
    it, with tensors that are mapped from its files. `model` has been loaded from the checkpoint,
    and its weights are part of the state.

    Raises CheckpointError, naming the file, where one is missing, damaged, or of another step;
    ResumeError for a checkpoint of an earlier version, and where `start` is not the run's.
    """
    if (folder / PICKLED).is_file():
        raise ResumeError(f"{folder} was written by an earlier version, which pickled the training "
                          "state, and no pickle is read. Its weights are good: start a new run "
                          f"from them with --init {folder}")
    verify(folder, STATE)
    if not (folder / STATE).is_file():
        raise CheckpointError(f"{folder / STATE} is missing")
    content = read_json(folder / STATE)
    try:
        content["model"] = model.state_dict()
        parts = {name: read_part(folder, name, entry, content, start)
                 for name, entry in content["parts"].items()}
        content["optimizer"] = parts.pop("optimizer", None)
        content["parts"] = parts
        check_state(content)
        if content["step"] != step:
            raise ValueError(f"it is of step {content['step']}")
        if not isinstance(content.get("seconds"), (int, float)):
            raise ValueError("it has no seconds")
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / STATE} is no training state of step {step}: "
                              f"{error}") from error
    return content


def read_part(folder: Path, name: str, entry: dict[str, Any], content: dict[str, Any],
              start: Start | None) -> dict:
    """Return the state_dict of a part."""
    if entry["in"] == MODEL:
        return content["model"]
    if entry["in"] == START:
        if start is None:
            raise ResumeError(f"{folder}: the {name} is the model that the run started from: "
                              "load_checkpoint needs that one as `start`")
        if start.digest != content[START]:
            raise ResumeError(f"{folder}: the {name} is the model that the run started from, and "
                              "that has changed since: restore it, or start a new run from this "
                              f"checkpoint with --init {folder}")
        return start.state
    tensors: dict[str, Tensor] = {}
    if entry["in"] == FILE:
        file = folder / file_of(name)
        if file.parent != folder:
            raise ValueError(f"{name!r:.60} is no name of a part")
        verify(folder, file.name)
        tensors = read_tensors(read_entries([file]))
    return join(Split(entry["numbers"], entry["tied"], tensors))
