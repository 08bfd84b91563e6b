"""Checkpoints in Hugging Face layout: config.json, model.safetensors (or its shards) and
tokenizer.json. Nothing is ever unpickled.

A checkpoint of ours loads in transformers as Llama, Qwen2 or Qwen3, and theirs load here. A reward
model is such a checkpoint with its head beside it, in score.safetensors. What config.json asks for
is compared with the shapes in the weights' headers before memory is taken, and each file with its
digest, where SHA256SUMS has one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minirl.lm.digests import SUMS, seal, verify
from minirl.lm.heads import ScalarModel
from minirl.lm.hf_config import (CheckpointError, Fields, from_hf_config, named_dtype,
                                 to_hf_config)
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import Tokenizer, load_tokenizer, read_json

WEIGHTS, INDEX, SCORE = "model.safetensors", "model.safetensors.index.json", "score.safetensors"
CHUNK = 2 ** 26
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HUB_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
             "generation_config.json", "chat_template.jinja", "chat_templates/*.jinja",
             WEIGHTS, INDEX)


def save_pretrained(model: Transformer | ScalarModel, tokenizer: Tokenizer,
                    path: str | Path) -> None:
    """Write model and tokenizer into the folder `path`, made if need be. See app/rundir.py for
    writing it atomically.

    What another checkpoint left there goes, and SHA256SUMS lists what was written. Raises
    CheckpointError, before anything is written, for a weight that is not finite.
    """
    folder, head = Path(path), {}
    if isinstance(model, ScalarModel):
        head, model = model.head.state_dict(), model.backbone
    tensors = {hf_name(name): x for name, x in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors[HEAD]
    check_finite(tensors | head)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [file.name for file in folder.glob("model-*-of-*.safetensors")]
    for stale in (SUMS, SCORE, INDEX, "generation_config.json", *shards):   # of another model
        (folder / stale).unlink(missing_ok=True)
    hf = to_hf_config(model, tokenizer)
    (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
    written = ["config.json", *tokenizer.save(folder, model_type=hf["model_type"]), WEIGHTS]
    write_safetensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if head:
        write_safetensors(head, folder / SCORE)
        written.append(SCORE)
    seal(folder, *written)


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, x in tensors.items():
        if not torch.isfinite(torch.stack(x.detach().aminmax())).all():
            count = int((~x.isfinite()).sum())
            raise CheckpointError(f"{count} of {x.numel()} weights of {name} are not finite: "
                                  "nothing was saved. Training has diverged: go on from an earlier "
                                  "checkpoint, with a smaller learning rate")


def write_safetensors(tensors: dict[str, torch.Tensor], file: Path,
                      metadata: dict | None = None) -> None:
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error}): is there room on the disk?") from error
    shutil.copymode(file.parent / "config.json", file)      # the library writes for the owner alone


def load_pretrained(path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None,
                    device="cpu") -> tuple[Transformer, Tokenizer]:
    """Read a folder, or download a Hugging Face hub id -> (model in eval mode, tokenizer).

    `dtype` None keeps the dtype that config.json names, or where it names none that of the weights.

    Raises CheckpointError for missing or broken weights, a model of another family, weights that do
    not fit config.json, and a reward model; TokenizerError for a tokenizer that cannot be read;
    DigestError for a file that has changed since it was saved; ValueError for broken JSON. Each
    names the file.
    """
    return _load(_find_policy(path_or_hub_id), dtype, device)


def inspect_pretrained(path_or_hub_id: str | Path) -> tuple[ModelConfig, Tokenizer]:
    """What load_pretrained would load, all its checks made, but without the weights in memory."""
    config, tokenizer, _, _ = _inspect(_find_policy(path_or_hub_id))
    return config, tokenizer


def _find_policy(path_or_hub_id: str | Path) -> Path:
    folder = find_checkpoint(path_or_hub_id)
    if (folder / SCORE).is_file():
        raise CheckpointError(f"{folder} holds a reward model, which scores text and writes none: "
                              "name a policy, or read it with load_reward_model")
    return folder


def load_reward_model(path: str | Path, *, dtype: torch.dtype | None = None,
                      device="cpu") -> tuple[ScalarModel, Tokenizer]:
    """Read a folder that save_pretrained wrote for a ScalarModel. Raises CheckpointError for one
    without a score.safetensors, and as load_pretrained."""
    folder = Path(path)
    if not (folder / SCORE).is_file():
        raise CheckpointError(f"{folder} holds no reward model: a folder with a {SCORE} beside its "
                              "checkpoint is wanted, such as runs/rm/final")
    backbone, tokenizer = _load(folder, dtype, device)
    verify(folder, SCORE)
    model = ScalarModel(backbone)
    entries = read_entries([folder / SCORE])
    wanted = {name: tuple(x.shape) for name, x in model.head.state_dict().items()}
    if {name: entry.shape for name, entry in entries.items()} != wanted:
        raise CheckpointError(f"{folder / SCORE} does not fit the model beside it, which is "
                              f"{backbone.config.hidden_size} wide: the two are of different "
                              "models")
    model.head.load_state_dict(read_tensors(entries))
    return model.to(device).eval(), tokenizer


def _inspect(folder: Path) -> tuple[ModelConfig, Tokenizer, dict[str, Entry], torch.dtype]:
    """What a folder holds, compared with itself: sizes, tokenizer, headers, and the dtype."""
    verify(folder, "config.json")
    fields = Fields(read_json(folder / "config.json"), folder / "config.json")
    config = from_hf_config(fields)
    dtype = named_dtype(fields)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the "
                              f"model {config.vocab_size}: the two are of different models")
    files = weight_files(folder)
    verify(folder, *(file.name for file in files))
    entries = read_entries(files)
    config = replace(config, tie_embeddings=is_tied(config, entries, folder))
    check_shapes(config, entries, folder)
    return config, tokenizer, entries, dtype or entries[EMBEDDING].dtype


def _load(folder: Path, dtype: torch.dtype | None, device) -> tuple[Transformer, Tokenizer]:
    config, tokenizer, entries, own_dtype = _inspect(folder)
    model = Transformer.without_weights(config)
    tensors = read_tensors(entries, device=device, dtype=dtype or own_dtype)
    if config.tie_embeddings:
        tensors[HEAD] = tensors[EMBEDDING]
    state = {name: tensors[hf_name(name)] for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.to(device=device, dtype=model.dtype).eval(), tokenizer


def find_checkpoint(path_or_hub_id: str | Path) -> Path:
    """The folder that holds a checkpoint: the path itself, or what huggingface_hub downloads for an
    `owner/name`."""
    name, folder = str(path_or_hub_id), Path(path_or_hub_id)
    if not name.strip():
        raise CheckpointError("the path of the checkpoint is empty: give a folder such as "
                              "runs/grpo/final, or a hub id")
    config = folder / "config.json"
    if config.is_file() and "model_type" in read_json(config):
        return folder
    steps = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    for inner in (folder / "final", *reversed(steps)):
        if (inner / "config.json").is_file():
            raise CheckpointError(f"{folder} is the folder of a run: did you mean {inner}?")
    if config.is_file():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} holds no config.json: a folder in Hugging Face layout is "
                              "wanted, such as runs/grpo/final")
    if name.count("/") != 1 or name.startswith((".", "/", "~", "runs/")):
        raise CheckpointError(f"no checkpoint at {name}: give a folder with a config.json, or a "
                              "hub id such as Qwen/Qwen2.5-0.5B")
    return download(name)


def download(name: str) -> Path:
    """Fetch config.json, see whether the model is one that we can read, and only then the rest: the
    tokenizer, and the weights in one file, or else its index and the files that it names."""
    from huggingface_hub import snapshot_download                          # only for downloads

    def fetch(*patterns: str) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=list(patterns)))
        except Exception as error:      # offline, unknown, gated: the library has many classes
            raise CheckpointError(f"no folder {name}, and downloading it from the hub failed "
                                  f"({type(error).__name__}): check the name and the network, "
                                  "or give the folder of a checkpoint") from error

    file = fetch("config.json") / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{name} holds no config.json on the hub: a model in Hugging Face "
                              "layout is wanted")
    from_hf_config(Fields(read_json(file), file))
    folder = fetch(*HUB_FILES)
    return folder if (folder / WEIGHTS).is_file() else fetch(*indexed_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or else the files that its index names."""
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else indexed_files(folder)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}: weights in safetensors are wanted "
                                  "(pickled .bin files are not read; convert them first)")
    return [folder / name for name in names]


def indexed_files(folder: Path) -> list[str]:
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


class Entry(NamedTuple):
    """What a header says of one weight."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_entries(files: Iterable[Path]) -> dict[str, Entry]:
    """The weights in some files, by name, from their headers alone. The angles that files of the
    first Llama models hold are computed, and left out. Raises CheckpointError for a weight that is
    no floating-point number of 16 bits or more: such a file is quantised."""
    entries = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as f:
                for name in f.keys():
                    if name.endswith("rotary_emb.inv_freq"):
                        continue
                    header = f.get_slice(name)
                    kind, shape = header.get_dtype(), tuple(header.get_shape())
                    if kind not in DTYPES:
                        raise CheckpointError(f"{file}: {name} is of type {kind}: "
                                              f"{', '.join(DTYPES)} are read; choose a "
                                              "checkpoint that is not quantised")
                    if name in entries:
                        raise CheckpointError(f"{name} stands in {entries[name].file} and in "
                                              f"{file}: one of the two is wanted")
                    entries[name] = Entry(file, name, shape, DTYPES[kind])
        except (SafetensorError, OSError) as error:
            raise CheckpointError(unreadable(file, error)) from error
    return entries


def read_tensors(entries: dict[str, Entry], *, device="cpu",
                 dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The weights, in memory of their own. A file is closed after every CHUNK bytes, which gives
    back the pages that were read: else the weights would be held twice."""
    tensors, waiting = {}, list(entries.items())[::-1]
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
            raise CheckpointError(unreadable(file, error)) from error
    return tensors


def unreadable(file: Path, error: Exception) -> str:
    return f"{file} cannot be read ({error}): it may be cut short; save or download it again"


def is_tied(config: ModelConfig, entries: dict[str, Entry], folder: Path) -> bool:
    """Whether embedding and head are one matrix: as config.json says, unless the weights hold two
    that differ. Raises CheckpointError where it says that they are two, and only one is there."""
    if config.tie_embeddings:
        if HEAD not in entries:
            return True
        if EMBEDDING not in entries:
            entries[EMBEDDING] = entries[HEAD]
            return True
        both = read_tensors({name: entries[name] for name in (EMBEDDING, HEAD)})
        return torch.equal(both[EMBEDDING], both[HEAD])
    if HEAD not in entries and EMBEDDING in entries:
        raise CheckpointError(f"{folder / 'config.json'}: tie_word_embeddings is false, but the "
                              f"weights hold no {HEAD}: set it to true if the model's head is "
                              "its embedding, or download the weights again")
    return False


def check_shapes(config: ModelConfig, entries: dict[str, Entry], folder: Path) -> None:
    """Raises CheckpointError where config.json asks for other weights than the files hold."""
    if config.num_layers > len(entries):
        raise CheckpointError(f"{folder}: config.json asks for {config.num_layers} layers, but the "
                              f"files hold {len(entries)} weights in all")
    try:
        one = Transformer.without_weights(replace(config, num_layers=1, max_seq_len=1))
    except (RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{folder}: config.json asks for weights that no memory holds: "
                              f"{config}") from error
    shapes = {hf_name(name): tuple(x.shape) for name, x in one.state_dict().items()}
    first = {name: shape for name, shape in shapes.items() if name.startswith("model.layers.0.")}
    for i in range(1, config.num_layers):
        shapes |= {name.replace(".0.", f".{i}.", 1): shape for name, shape in first.items()}
    if config.tie_embeddings:
        entries.pop(HEAD, None)
        del shapes[HEAD]
    missing = sorted(shapes.keys() - entries.keys())
    unknown = sorted(entries.keys() - shapes.keys())
    if missing or unknown:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {len(missing)} "
                              f"missing {missing[:3]}, {len(unknown)} unknown "
                              f"{unknown[:3]}")
    for name, entry in entries.items():
        if entry.shape != shapes[name]:
            raise CheckpointError(f"{folder}: {name} is {entry.shape}, but config.json asks for "
                                  f"{shapes[name]}: "
                                  "the two files are of different models")


def hf_name(name: str) -> str:
    """Our parameter names are Hugging Face's without the leading `model.`."""
    return name if name.startswith("lm_head.") else "model." + name
