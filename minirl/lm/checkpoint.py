"""Checkpoints in Hugging Face layout: config.json, model.safetensors (or its shards), tokenizer.json. Nothing is ever unpickled.

A checkpoint of ours loads in transformers as Llama, Qwen2 or Qwen3, and theirs load here. A reward model is such a checkpoint with its head beside it,
in score.safetensors. What config.json asks for is compared with the shapes in the weights' headers
before memory is taken, and each file with its digest, where SHA256SUMS has one.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minirl.lm.digests import SUMS, seal, verify
from minirl.lm.heads import ScalarModel
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.rope import MAX_POSITIONS
from minirl.lm.tokenizer import Tokenizer, load_tokenizer, read_json

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
WEIGHTS, INDEX, SCORE = "model.safetensors", "model.safetensors.index.json", "score.safetensors"
CHUNK = 2 ** 26
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HUB_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
             "chat_template.jinja", "chat_templates/*.jinja", WEIGHTS, INDEX)


class CheckpointError(ValueError):
    """A checkpoint that is missing, cut short, or of a shape that this model cannot take."""


def save_pretrained(model: Transformer | ScalarModel, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write model and tokenizer into the folder `path`, made if need be. See app/rundir.py for writing it atomically.

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
    for stale in (SUMS, SCORE, INDEX, "generation_config.json", *map(str, folder.glob("model-*-of-*.safetensors"))):
        (folder / stale).unlink(missing_ok=True)                            # of another model that was here
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
            raise CheckpointError(f"{int((~x.isfinite()).sum())} of {x.numel()} weights of {name} are not finite: nothing was saved. "
                                  "Training has diverged: go on from an earlier checkpoint, with a smaller learning rate")


def write_safetensors(tensors: dict[str, torch.Tensor], file: Path, metadata: dict | None = None) -> None:
    try:
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error}): is there room on the disk?") from error
    shutil.copymode(file.parent / "config.json", file)                      # the library writes for the owner alone


def load_pretrained(path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None, device="cpu") -> tuple[Transformer, Tokenizer]:
    """Read a folder, or download a Hugging Face hub id -> (model in eval mode, tokenizer).

    `dtype` None keeps the dtype that config.json names, or where it names none that of the weights. Raises CheckpointError for missing or broken
    weights, a model of another family, weights that do not fit config.json, and a reward model; TokenizerError for a tokenizer that cannot be read;
    DigestError for a file that SHA256SUMS lists otherwise; ValueError, naming the file, for broken JSON.
    """
    folder = find_checkpoint(path_or_hub_id)
    if (folder / SCORE).is_file():
        raise CheckpointError(f"{folder} holds a reward model, which scores text and writes none: name a policy, or read it with load_reward_model")
    return _load(folder, dtype, device)


def load_reward_model(path: str | Path, *, dtype: torch.dtype | None = None, device="cpu") -> tuple[ScalarModel, Tokenizer]:
    """Read a folder that save_pretrained wrote for a ScalarModel. Raises CheckpointError for a folder without a score.safetensors, and as load_pretrained."""
    folder = Path(path)
    if not (folder / SCORE).is_file():
        raise CheckpointError(f"{folder} holds no reward model: a folder with a {SCORE} beside its checkpoint is wanted, such as runs/rm/final")
    backbone, tokenizer = _load(folder, dtype, device)
    verify(folder, SCORE)
    model = ScalarModel(backbone)
    entries = read_entries([folder / SCORE])
    if {name: e.shape for name, e in entries.items()} != {name: tuple(x.shape) for name, x in model.head.state_dict().items()}:
        raise CheckpointError(f"{folder / SCORE} does not fit the model beside it, which is {backbone.config.hidden_size} wide: the two are of different models")
    model.head.load_state_dict(read_tensors(entries))
    return model.to(device).eval(), tokenizer


def _load(folder: Path, dtype: torch.dtype | None, device) -> tuple[Transformer, Tokenizer]:
    verify(folder, "config.json")
    fields = Fields(read_json(folder / "config.json"), folder / "config.json")
    config = from_hf_config(fields)
    dtype = dtype or named_dtype(fields)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
                              "the two are of different models")
    files = weight_files(folder)
    verify(folder, *(file.name for file in files))
    entries = read_entries(files)
    config = replace(config, tie_embeddings=is_tied(config, entries, folder))
    check_shapes(config, entries, folder)
    model = Transformer.without_weights(config)
    tensors = read_tensors(entries, device=device, dtype=dtype or entries[EMBEDDING].dtype)
    if config.tie_embeddings:
        tensors[HEAD] = tensors[EMBEDDING]
    model.load_state_dict({name: tensors[hf_name(name)] for name in model.state_dict()}, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.to(device=device, dtype=model.dtype).eval(), tokenizer


def find_checkpoint(path_or_hub_id: str | Path) -> Path:
    """The folder that holds a checkpoint: the path itself, or what huggingface_hub downloads for an `owner/name`."""
    name, folder = str(path_or_hub_id), Path(path_or_hub_id)
    if not name.strip():
        raise CheckpointError("the path of the checkpoint is empty: give a folder such as runs/grpo/final, or a hub id")
    config = folder / "config.json"
    if config.is_file() and "model_type" in read_json(config):
        return folder
    steps = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    for inner in (folder / "final", *reversed(steps)):
        if (inner / "config.json").is_file():
            raise CheckpointError(f"{folder} is a run, and holds several checkpoints: did you mean {inner}?")
    if config.is_file():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} holds no config.json: a folder in Hugging Face layout is wanted, such as runs/grpo/final")
    if name.count("/") != 1 or name.startswith((".", "/", "~", "runs/")):
        raise CheckpointError(f"no checkpoint at {name}: give a folder with a config.json, or a hub id such as Qwen/Qwen2.5-0.5B")
    return download(name)


def download(name: str) -> Path:
    """Fetch config.json, see whether the model is one that we can read, and only then the rest: the
    tokenizer, and the weights in one file, or else its index and the files that it names."""
    from huggingface_hub import snapshot_download                          # only for downloads

    def fetch(*patterns: str) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=list(patterns)))
        except Exception as error:                                         # offline, unknown, gated: the library has many classes
            raise CheckpointError(f"no folder {name}, and downloading it from the hub failed ({type(error).__name__}): check the name and the "
                                  "network, or give the folder of a checkpoint") from error

    file = fetch("config.json") / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{name} holds no config.json on the hub: a model in Hugging Face layout is wanted")
    from_hf_config(Fields(read_json(file), file))
    folder = fetch(*HUB_FILES)
    return folder if (folder / WEIGHTS).is_file() else fetch(*indexed_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or else the files that its index names."""
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else indexed_files(folder)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}: weights in safetensors are wanted (pickled .bin files are not read; convert them first)")
    return [folder / name for name in names]


def indexed_files(folder: Path) -> list[str]:
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    index = Fields(read_json(folder / INDEX), folder / INDEX)
    names = list(index("weight_map", dict).values())
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / INDEX}: weight_map names no files: the file of each weight is wanted")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):   # an index from elsewhere may not lead out of its folder
            raise CheckpointError(f"{folder} lacks {name!r:.80}, which its index names: files in the same folder are wanted, in safetensors "
                                  "(pickled .bin files are not read; convert them first)")
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
                    kind, shape = f.get_slice(name).get_dtype(), tuple(f.get_slice(name).get_shape())
                    if kind not in DTYPES:
                        raise CheckpointError(f"{file}: {name} is of type {kind}: {', '.join(DTYPES)} are read; "
                                              "choose a checkpoint that is not quantised")
                    if name in entries:
                        raise CheckpointError(f"{name} stands in {entries[name].file} and in {file}: one of the two is wanted")
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
                    tensors[name] = f.get_tensor(entry.name).to(device=device, dtype=dtype or entry.dtype, copy=True)
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
        raise CheckpointError(f"{folder / 'config.json'}: tie_word_embeddings is false, but the weights hold no {HEAD}: set it to true if "
                              "the model's head is its embedding, or download the weights again")
    return False


def check_shapes(config: ModelConfig, entries: dict[str, Entry], folder: Path) -> None:
    """Raises CheckpointError where config.json asks for other weights than the files hold."""
    if config.num_layers > len(entries):
        raise CheckpointError(f"{folder}: config.json asks for {config.num_layers} layers, but the files hold {len(entries)} weights in all")
    try:
        one = Transformer.without_weights(replace(config, num_layers=1, max_seq_len=1))
    except (RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{folder}: config.json asks for weights that no memory holds: {config}") from error
    shapes = {hf_name(name): tuple(x.shape) for name, x in one.state_dict().items()}
    first = {name: shape for name, shape in shapes.items() if name.startswith("model.layers.0.")}
    for i in range(1, config.num_layers):
        shapes |= {name.replace(".0.", f".{i}.", 1): shape for name, shape in first.items()}
    if config.tie_embeddings:
        entries.pop(HEAD, None)
        del shapes[HEAD]
    missing, unknown = sorted(shapes.keys() - entries.keys()), sorted(entries.keys() - shapes.keys())
    if missing or unknown:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown "
                              f"{unknown[:3]}")
    for name, entry in entries.items():
        if entry.shape != shapes[name]:
            raise CheckpointError(f"{folder}: {name} is {entry.shape}, but config.json asks for {shapes[name]}: "
                                  "the two files are of different models")


class Fields:
    """The fields of a JSON object from a file, each read with its type: fields("vocab_size", int).

    Raises CheckpointError, naming file and field, for one that is missing and has no default, for
    null where the default is not None, for another type, and for a number out of range.
    """

    REQUIRED = object()
    WANTED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", dict: "an object", list: "a list"}

    def __init__(self, values: dict, where: object):
        self.values, self.where = values, where

    def __call__(self, name: str, kind: type, default=REQUIRED, *, low: float = -math.inf, high: float = math.inf):
        value = self.values.get(name, default)
        if value is self.REQUIRED:
            raise CheckpointError(f"{self.where} lacks {name!r}: a complete Hugging Face configuration is wanted")
        if value is None and default is None:
            return None
        number = kind in (int, float)
        if type(value) is kind or kind is float and type(value) is int:
            if not number or low <= value <= high and abs(value) <= sys.float_info.max:
                return kind(value)
        limits = [f"{word} {limit}" for word, limit in (("from", low), ("to", high)) if number and math.isfinite(limit)]
        raise CheckpointError(f"{self.where}: {name} is {json.dumps(value):.60}: {' '.join([self.WANTED[kind], *limits])} is wanted")


def named_dtype(fields: Fields) -> torch.dtype | None:
    name = fields("dtype", str, None) or fields("torch_dtype", str, None)
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    if name is not None and name.removeprefix("torch.") not in dtypes:
        raise CheckpointError(f"{fields.where} names the dtype {name!r:.60}: one of {', '.join(dtypes)} is wanted")
    return None if name is None else dtypes[name.removeprefix("torch.")]


def hf_name(name: str) -> str:
    """Our parameter names are Hugging Face's without the leading `model.`."""
    return name if name.startswith("lm_head.") else "model." + name


def to_hf_config(model: Transformer, tokenizer: Tokenizer) -> dict:
    c = model.config
    kind = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias and not c.output_bias else "llama"
    return {
        "architectures": [ARCHITECTURES[kind]], "model_type": kind, "dtype": str(model.dtype).removeprefix("torch."),
        "vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len, "rope_theta": c.rope_theta, "rope_scaling": c.rope_scaling, "rms_norm_eps": c.rms_norm_eps,
        "attention_bias": c.qkv_bias, "mlp_bias": False, "hidden_act": "silu", "tie_word_embeddings": c.tie_embeddings,
        "initializer_range": c.initializer_range, "attention_dropout": 0.0, "use_cache": True,
        "pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id if tokenizer.stop_ids == [tokenizer.eos_id] else tokenizer.stop_ids,
    }


def from_hf_config(fields: Fields) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers."""
    kind = fields("model_type", str, None)
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{fields.where} is of a model of type {kind!r:.60}: {', '.join(ARCHITECTURES)} are supported")
    act, mlp_bias = fields("hidden_act", str, "silu"), fields("mlp_bias", bool, False)
    if act != "silu" or mlp_bias:
        raise CheckpointError(f"{fields.where} has hidden_act {act!r}, mlp_bias {mlp_bias}: silu without bias is supported")
    sizes = {name: fields(key, int, low=1) for name, key in (
        ("vocab_size", "vocab_size"), ("hidden_size", "hidden_size"), ("intermediate_size", "intermediate_size"),
        ("num_layers", "num_hidden_layers"), ("num_heads", "num_attention_heads"))}
    context = fields("max_position_embeddings", int, low=1, high=MAX_POSITIONS)
    if kind != "llama":
        check_full_attention(fields, sizes["num_layers"], context)
    theta, scaling = read_rope(fields, context)
    bias = fields("attention_bias", bool, False) and kind != "qwen2"
    try:
        return ModelConfig(
            **sizes, num_kv_heads=fields("num_key_value_heads", int, None, low=1),
            head_dim=fields("head_dim", int, 128 if kind == "qwen3" else None, low=1), max_seq_len=context,
            rope_theta=theta, rope_scaling=scaling, rms_norm_eps=fields("rms_norm_eps", float, 1e-6, low=0),
            initializer_range=fields("initializer_range", float, 0.02, low=0),
            qkv_bias=bias or kind == "qwen2", output_bias=bias, qk_norm=kind == "qwen3",
            tie_embeddings=fields("tie_word_embeddings", bool, False))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{fields.where}: {error}") from error


def check_full_attention(fields: Fields, layers: int, context: int) -> None:
    """Raises CheckpointError if a Qwen layer would see only a part of the context."""
    window = fields("sliding_window", int, None, low=1) if fields("use_sliding_window", bool, False) else None
    first, types = fields("max_window_layers", int, 28), fields("layer_types", list, None)
    if types is None:
        types = ["sliding_attention" if window and i >= first else "full_attention" for i in range(min(layers, 1000))]
    elif len(types) != layers:
        raise CheckpointError(f"{fields.where}: layer_types lists {len(types)} layers, num_hidden_layers is {layers}: the same number is wanted")
    full = ("full_attention", "attention", *(["sliding_attention"] if window and window >= context else []))
    others = sorted({str(kind) for kind in types} - set(full))
    if others:
        raise CheckpointError(f"{fields.where}: use_sliding_window, max_window_layers or layer_types ask for {', '.join(others)[:60]}: only full "
                              "attention is supported; choose a checkpoint without sliding-window or other layers")


def read_rope(fields: Fields, context: int) -> tuple[float, dict | None]:
    """theta and scaling. transformers 5 writes both into one object, `rope_parameters`, with an
    inner one for each type of layer where a model has several; before, theta stood outside."""
    key = "rope_scaling" if fields("rope_scaling", dict, None) else "rope_parameters"
    rope = Fields(fields(key, dict, None) or {}, f"{fields.where}: {key}")
    if "full_attention" in rope.values:
        rope = Fields(rope("full_attention", dict), f"{rope.where}: full_attention")
    theta = rope("rope_theta", float, fields("rope_theta", float, 10_000.0, low=1), low=1)
    kind = rope("rope_type", str, rope("type", str, "default"))
    if kind not in ("default", "llama3"):
        raise CheckpointError(f"{rope.where} is of the type {kind!r:.60}: default and llama3 are supported")
    if rope("partial_rotary_factor", float, fields("partial_rotary_factor", float, 1.0)) != 1:
        raise CheckpointError(f"{rope.where}: partial_rotary_factor is not 1: only whole heads are turned here")
    if kind == "default":
        return theta, None
    numbers = {name: rope(name, float, low=low) for name, low in
               (("factor", 1), ("low_freq_factor", 0), ("high_freq_factor", 0))}
    if numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        raise CheckpointError(f"{rope.where}: low_freq_factor is not below high_freq_factor")
    name = "original_max_position_embeddings"
    original = fields(name, int, rope(name, int, context, low=1), low=1)
    return theta, {"rope_type": kind, **numbers, name: original}
