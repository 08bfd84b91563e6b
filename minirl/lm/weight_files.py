"""Weights in safetensors: one file, or the files that an index names. Nothing is ever unpickled.

What the files hold is known from their headers, before any weight takes memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minirl.lm.files import read_json
from minirl.lm.hf_config import CheckpointError, Fields

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 2 ** 26    # bytes
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Entry(NamedTuple):
    """What a header says about one weight."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def weight_files(folder: Path) -> list[Path]:
    """Return model.safetensors, or else the files that its index names."""
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else indexed_files(folder)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}: weights in safetensors are wanted "
                                  "(pickled .bin files are not read; convert them first)")
    return [folder / name for name in names]


def indexed_files(folder: Path) -> list[str]:
    """Return the names of the files that the index lists; without one, model.safetensors."""
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    index = Fields(read_json(folder / INDEX), folder / INDEX)
    names = list(index("weight_map", dict).values())
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / INDEX}: weight_map names no files: the file of each "
                              "weight is wanted")
    for name in names:
        # an index from elsewhere may not lead out of its folder
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder} lacks {name!r:.80}, which its index names: files in "
                                  "the same folder are wanted, in safetensors (pickled .bin "
                                  "files are not read; convert them first)")
    return sorted(set(names))


def read_entries(files: Iterable[Path]) -> dict[str, Entry]:
    """Return the weights in some files, by name, from the headers alone.

    The RoPE angles in files of the first Llama models are left out, as they are computed. Raises
    CheckpointError for a weight that is no floating-point number of 16 bits or more: such a file is
    quantised.
    """
    entries: dict[str, Entry] = {}
    for file in files:
        for entry in _headers(file):
            if entry.name in entries:
                raise CheckpointError(f"{entry.name} stands in {entries[entry.name].file} and in "
                                      f"{file}: one of the two is wanted")
            entries[entry.name] = entry
    return entries


def _headers(file: Path) -> list[Entry]:
    entries = []
    try:
        with safe_open(file, framework="pt") as f:
            for name in f.keys():
                if name.endswith("rotary_emb.inv_freq"):
                    continue
                header = f.get_slice(name)
                kind = header.get_dtype()
                if kind not in DTYPES:
                    raise CheckpointError(f"{file}: {name} is of type {kind}: {', '.join(DTYPES)} "
                                          "are read; choose a checkpoint that is not quantised")
                entries.append(Entry(file, name, tuple(header.get_shape()), DTYPES[kind]))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_unreadable(file, error)) from error
    return entries


def read_tensors(entries: dict[str, Entry], *, device: torch.device | str = "cpu",
                 dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read weights into memory of their own.

    A file is closed after every CHUNK bytes, which frees the pages that were read. Otherwise the
    weights would be in memory twice.
    """
    tensors: dict[str, Tensor] = {}
    waiting = list(entries.items())[::-1]
    while waiting:
        file, size = waiting[-1][1].file, 0
        try:
            with safe_open(file, framework="pt") as f:
                while waiting and waiting[-1][1].file == file and size < CHUNK:
                    name, entry = waiting.pop()
                    tensors[name] = f.get_tensor(entry.name).to(
                        device=device, dtype=dtype or entry.dtype, copy=True)
                    size += tensors[name].nbytes
        except (SafetensorError, OSError) as error:
            raise CheckpointError(_unreadable(file, error)) from error
    return tensors


def _unreadable(file: Path, error: Exception) -> str:
    return f"{file} cannot be read ({error}): it may be cut short; save or download it again"


def write_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict | None = None) -> None:
    """Write weights to a file, with the permissions of config.json beside it."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error}): is there room on the disk?") from error
    # the library gives them to the owner alone
    shutil.copymode(file.parent / "config.json", file)
