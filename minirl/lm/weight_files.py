"""Weights in safetensors: one file, or the files that an index names. Nothing is ever unpickled.

What the files hold is known from their headers, before any weight takes memory.
"""

from __future__ import annotations

import json
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
SHARD_NAMES = "model-*-of-*.safetensors"
SHARD = 5 * 10 ** 9    # bytes of weights in a file, at most
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
    """Return weights: mapped, where they stay on the CPU in the dtype of their file.

    The first use of a mapped weight reads it. Writing to it copies it, page by page: the file never
    changes. But whoever writes over the file in place changes the weights. save_pretrained does
    not, as it makes a new file.

    A file whose weights are copied is closed after every CHUNK bytes, which frees the pages that
    were read. Otherwise the weights would be in memory twice.
    """
    tensors: dict[str, Tensor] = {}
    waiting = list(entries.items())[::-1]
    while waiting:
        file, copied = waiting[-1][1].file, 0
        try:
            with safe_open(file, framework="pt") as f:
                while waiting and waiting[-1][1].file == file and copied < CHUNK:
                    name, entry = waiting.pop()
                    mapped = f.get_tensor(entry.name)
                    tensors[name] = mapped.to(device=device, dtype=dtype or entry.dtype)
                    copied += 0 if tensors[name] is mapped else tensors[name].nbytes
        except (SafetensorError, OSError) as error:
            raise CheckpointError(_unreadable(file, error)) from error
    return tensors


def _unreadable(file: Path, error: Exception) -> str:
    return f"{file} cannot be read ({error}): it may be cut short; save or download it again"


def write_weights(tensors: dict[str, Tensor], folder: Path) -> list[str]:
    """Write model.safetensors -> the names of the files that were written.

    Weights of more than SHARD bytes become several files, and an index that says which holds what.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, x in tensors.items():
        if shards[-1] and size + x.nbytes > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = x
        size += x.nbytes
    n = len(shards)
    files = [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    if n == 1:
        files = [WEIGHTS]
    for file, shard in zip(files, shards, strict=True):
        write_tensors(shard, folder / file, metadata={"format": "pt"})
    if n == 1:
        return files
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
             "weight_map": {name: file for file, shard in zip(files, shards, strict=True)
                            for name in shard}}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*files, INDEX]


def write_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict | None = None) -> None:
    """Write weights to a file, with the permissions of config.json beside it."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    # a new file: whoever has mapped the old one keeps it
    file.unlink(missing_ok=True)
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error}): is there room on the disk?") from error
    # the library gives them to the owner alone
    shutil.copymode(file.parent / "config.json", file)
