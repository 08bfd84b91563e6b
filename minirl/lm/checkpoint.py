"""Checkpoints in Hugging Face's layout: config.json, model.safetensors and tokenizer.json.

A checkpoint of ours loads in transformers as Llama, Qwen2 or Qwen3, and theirs load here. A reward
model is such a checkpoint with its head beside it, in score.safetensors. Before memory is taken,
what config.json asks for is compared with the shapes in the headers of the weights, and each file
with its digest, if SHA256SUMS lists it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirl.lm.digests import SUMS, seal, verify
from minirl.lm.files import read_json
from minirl.lm.heads import ScalarModel
from minirl.lm.hf_config import CheckpointError, Fields, from_hf_config, named_dtype, to_hf_config
from minirl.lm.hub import find_checkpoint
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import Tokenizer, load_tokenizer
from minirl.lm.weight_files import (
    INDEX,
    SHARD_NAMES,
    WEIGHTS,
    Entry,
    read_entries,
    read_tensors,
    weight_files,
    write_tensors,
    write_weights,
)

SCORE = "score.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def save_pretrained(model: Transformer | ScalarModel, tokenizer: Tokenizer, path: str | Path
                    ) -> None:
    """Write model and tokenizer into the folder `path`, which is made if need be.

    Files of another checkpoint in the folder are deleted, and SHA256SUMS lists those written.
    Weights of more than 5 GB are spread over several files. files.replacing_folder makes the
    writing atomic. Raises CheckpointError, before anything is written, for a weight that is not
    finite.
    """
    contents = contents_of(model, tokenizer)
    check_finite(contents.weights | contents.head)
    write_pretrained(contents, tokenizer, Path(path))


class Contents(NamedTuple):
    """What a checkpoint holds of a model: config.json, the weights by Hugging Face's names, and the
    head's, if it has one."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    head: dict[str, Tensor]


def contents_of(model: Transformer | ScalarModel, tokenizer: Tokenizer) -> Contents:
    """Return what a checkpoint of a model holds. A matrix that is embedding and head is in it once.
    """
    head = {}
    if isinstance(model, ScalarModel):
        head, model = model.head.state_dict(), model.backbone
    weights = {hf_name(name): x for name, x in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights[HEAD]
    return Contents(to_hf_config(model, tokenizer), weights, head)


def write_pretrained(contents: Contents, tokenizer: Tokenizer, folder: Path) -> None:
    """Do what save_pretrained does, but for the check of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [file.name for file in folder.glob(SHARD_NAMES)]
    for stale in (SUMS, SCORE, INDEX, WEIGHTS, "generation_config.json", *shards):
        (folder / stale).unlink(missing_ok=True)
    config = json.dumps(contents.config, indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    names = ["config.json", *tokenizer.save(folder, model_type=contents.config["model_type"]),
             *write_weights(contents.weights, folder)]
    if contents.head:
        write_tensors(contents.head, folder / SCORE)
        names.append(SCORE)
    seal(folder, *names)


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError, naming the weight, where one is NaN or infinite."""
    for name, x in tensors.items():
        if not torch.isfinite(torch.stack(x.detach().aminmax())).all():
            count = int((~x.isfinite()).sum())
            raise CheckpointError(f"{count} of {x.numel()} weights of {name} are not finite: "
                                  "nothing was saved. Training has diverged: go on from an earlier "
                                  "checkpoint, with a smaller learning rate")


def load_pretrained(path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None,
                    device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer]:
    """Read a folder, or download a hub id; return the model, in eval mode, and its tokenizer.

    `dtype` None keeps the dtype that config.json names, or where it names none that of the weights.
    On the CPU, weights of that dtype are mapped from their file (weight_files.read_tensors).

    Raises CheckpointError for missing or broken weights, a model of another family, weights that do
    not fit config.json, and a reward model; TokenizerError for a tokenizer that cannot be read;
    DigestError for a file that has changed since it was saved; ValueError for broken JSON. Each
    names the file.
    """
    return _load(_find_policy(path_or_hub_id), dtype, device)


def inspect_pretrained(path_or_hub_id: str | Path) -> tuple[ModelConfig, Tokenizer]:
    """Return config and tokenizer, after all checks of load_pretrained, without the weights."""
    config, tokenizer, _, _ = _inspect(_find_policy(path_or_hub_id))
    return config, tokenizer


def _find_policy(path_or_hub_id: str | Path) -> Path:
    folder = find_checkpoint(path_or_hub_id)
    if (folder / SCORE).is_file():
        raise CheckpointError(f"{folder} holds a reward model, which scores text and writes none: "
                              "name a policy, or read it with load_reward_model")
    return folder


def load_reward_model(path: str | Path, *, dtype: torch.dtype | None = None,
                      device: torch.device | str = "cpu") -> tuple[ScalarModel, Tokenizer]:
    """Read a folder that save_pretrained wrote for a ScalarModel.

    Raises CheckpointError for a folder without a score.safetensors, and as load_pretrained.
    """
    folder = Path(path)
    if not (folder / SCORE).is_file():
        raise CheckpointError(f"{folder} holds no reward model: a folder with a {SCORE} beside its "
                              "checkpoint is wanted, such as runs/rm/final")
    backbone, tokenizer = _load(folder, dtype, device)
    verify(folder, SCORE)
    model = ScalarModel(backbone)
    entries = read_entries([folder / SCORE])
    shapes = {name: tuple(x.shape) for name, x in model.head.state_dict().items()}
    if {name: entry.shape for name, entry in entries.items()} != shapes:
        raise CheckpointError(f"{folder / SCORE} does not fit the model beside it, which is "
                              f"{backbone.config.hidden_size} wide: the two are of different "
                              "models")
    model.head.load_state_dict(read_tensors(entries))
    return model.to(device).eval(), tokenizer


def _load(folder: Path, dtype: torch.dtype | None, device: torch.device | str
          ) -> tuple[Transformer, Tokenizer]:
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


def _inspect(folder: Path) -> tuple[ModelConfig, Tokenizer, dict[str, Entry], torch.dtype]:
    """Check a folder's files against each other: sizes, tokenizer, headers, and the dtype."""
    verify(folder, "config.json", INDEX)
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
    if config.tie_embeddings:
        entries.pop(HEAD, None)
    check_shapes(config, entries, folder)
    return config, tokenizer, entries, dtype or entries[EMBEDDING].dtype


def is_tied(config: ModelConfig, entries: dict[str, Entry], folder: Path) -> bool:
    """Return whether embedding and head are one matrix; a matrix under the head's name becomes the
    embedding.

    It is as config.json says, unless the weights hold two matrices that differ. Raises
    CheckpointError where config.json says that they are two, and there is only one.
    """
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
    """Raise CheckpointError where config.json asks for other weights than the files hold."""
    if config.num_layers > len(entries):
        raise CheckpointError(f"{folder}: config.json asks for {config.num_layers} layers, but the "
                              f"files hold {len(entries)} weights in all")
    shapes = shapes_of(config, folder)
    missing = sorted(shapes.keys() - entries.keys())
    unknown = sorted(entries.keys() - shapes.keys())
    if missing or unknown:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {len(missing)} "
                              f"missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}")
    for name, entry in entries.items():
        if entry.shape != shapes[name]:
            raise CheckpointError(f"{folder}: {name} is {entry.shape}, but config.json asks for "
                                  f"{shapes[name]}: the two files are of different models")


def shapes_of(config: ModelConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights, by Hugging Face's names."""
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
        del shapes[HEAD]
    return shapes


def hf_name(name: str) -> str:
    """Return Hugging Face's name of a parameter: ours after `model.`, but for the head's."""
    return name if name.startswith("lm_head.") else "model." + name
