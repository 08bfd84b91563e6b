"""Checkpoints in Hugging Face layout: config.json, model.safetensors (or its shards), tokenizer.json. Nothing is ever unpickled.

A checkpoint of ours loads in transformers as Llama, Qwen2 or Qwen3, and theirs load here. A reward model is such a checkpoint with its head beside it,
in score.safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minirl.lm.heads import ScalarModel
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import Tokenizer, load_tokenizer, read_json

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


SCORE = "score.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is missing, cut short, or of a shape that this model cannot take."""


def save_pretrained(model: Transformer | ScalarModel, tokenizer: Tokenizer, path: str | Path) -> None:
    """Write model and tokenizer into the folder `path`, made if need be. See app/rundir.py for writing it atomically."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCORE).unlink(missing_ok=True)                                # of another model that was here
    if isinstance(model, ScalarModel):
        save_file({name: x.detach().cpu().contiguous() for name, x in model.head.state_dict().items()}, folder / SCORE)
        model = model.backbone
    (folder / "config.json").write_text(json.dumps(to_hf_config(model, tokenizer), indent=2) + "\n", encoding="utf-8")
    tensors = {hf_name(name): x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(folder)


def load_pretrained(path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None, device="cpu") -> tuple[Transformer, Tokenizer]:
    """Read a folder, or download a Hugging Face hub id -> (model in eval mode, tokenizer).

    `dtype` None keeps the dtype that config.json names. Raises CheckpointError for missing or broken weights, a model of another family,
    weights that do not fit config.json, and a reward model; TokenizerError for a tokenizer that cannot be read; ValueError, naming the file, for
    broken JSON.
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
    model = ScalarModel(backbone)
    head = read_safetensors(folder / SCORE)
    if {name: x.shape for name, x in head.items()} != {name: x.shape for name, x in model.head.state_dict().items()}:
        raise CheckpointError(f"{folder / SCORE} does not fit the model beside it, which is {backbone.config.hidden_size} wide: the two are of different models")
    model.head.load_state_dict(head)
    return model.to(device).eval(), tokenizer


def _load(folder: Path, dtype: torch.dtype | None, device) -> tuple[Transformer, Tokenizer]:
    hf = read_json(folder / "config.json")
    tensors = read_tensors(folder)
    config = from_hf_config(hf, tensors, folder)
    model = Transformer(config)
    wanted = {hf_name(name): x for name, x in model.state_dict().items()}
    if config.tie_embeddings:
        wanted.pop("lm_head.weight")
        tensors.pop("lm_head.weight", None)
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        raise CheckpointError(f"{folder}: the weights do not fit config.json: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown "
                              f"{unknown[:3]}; wanted are those of {hf.get('architectures')}")
    for name, x in tensors.items():
        if x.shape != wanted[name].shape:
            raise CheckpointError(f"{folder}: {name} is {tuple(x.shape)}, but config.json asks for {tuple(wanted[name].shape)}: "
                                  "the two files are of different models")
    dtype = dtype or named_dtype(hf, folder)
    model.to(dtype)
    with torch.no_grad():
        for name, x in model.state_dict().items():                         # shares memory with the parameters
            if hf_name(name) in tensors:
                x.copy_(tensors[hf_name(name)])
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}: "
                              "the two are of different models")
    return model.to(device).eval(), tokenizer


def find_checkpoint(path_or_hub_id: str | Path) -> Path:
    """The folder that holds a checkpoint: the path itself, or what huggingface_hub downloads for an `owner/name`."""
    folder = Path(path_or_hub_id)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} holds no config.json: a folder in Hugging Face layout is wanted, such as runs/grpo/final")
    name = str(path_or_hub_id)
    if name.count("/") != 1 or name.startswith((".", "/", "~", "runs/")):
        raise CheckpointError(f"no checkpoint at {name}: give a folder with a config.json, or a hub id such as Qwen/Qwen2.5-0.5B")
    from huggingface_hub import snapshot_download                          # only for downloads
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:                                             # offline, unknown, gated: the library has many classes
        raise CheckpointError(f"no folder {name}, and downloading it from the hub failed ({type(error).__name__}): check the name and the "
                              "network, or give the folder of a checkpoint") from error


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    index = read_json(folder / "model.safetensors.index.json")
    files = sorted(set(index.get("weight_map", {"": "model.safetensors"}).values()))
    tensors = {}
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():       # an index from elsewhere may not lead out of its folder
            raise CheckpointError(f"{folder} lacks {file}: weights in safetensors are wanted (pickled .bin files are not read; convert them first)")
        tensors.update(read_safetensors(folder / file))
    return tensors


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): it may be cut short; save or download it again") from error


def named_dtype(hf: dict, folder: Path) -> torch.dtype:
    name = str(hf.get("dtype") or hf.get("torch_dtype") or "float32").removeprefix("torch.")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{folder / 'config.json'} names the dtype {name!r}: float32, bfloat16 or float16 is wanted")
    return dtype


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


def from_hf_config(hf: dict, tensors: dict, folder: Path) -> ModelConfig:
    """config.json -> ModelConfig; biases, q/k norm and an untied head are seen from the weights that are there."""
    if hf.get("model_type") not in ARCHITECTURES:
        raise CheckpointError(f"{folder} holds a model of type {hf.get('model_type')!r}: {', '.join(ARCHITECTURES)} are supported")
    if hf.get("use_sliding_window"):
        raise CheckpointError(f"{folder} uses sliding-window attention, which this model does not have: choose a checkpoint without it")
    if hf.get("hidden_act", "silu") != "silu" or hf.get("mlp_bias"):
        raise CheckpointError(f"{folder} has hidden_act {hf.get('hidden_act')!r}, mlp_bias {hf.get('mlp_bias')}: silu without bias is supported")
    rope = hf.get("rope_parameters") or {}                                 # transformers 5 writes both in one object
    scaling = hf.get("rope_scaling") or ({k: v for k, v in rope.items() if k != "rope_theta"} or None)
    first = "model.layers.0.self_attn."
    try:
        return ModelConfig(
            vocab_size=hf["vocab_size"], hidden_size=hf["hidden_size"], num_layers=hf["num_hidden_layers"], num_heads=hf["num_attention_heads"],
            num_kv_heads=hf.get("num_key_value_heads"), head_dim=hf.get("head_dim"), intermediate_size=hf["intermediate_size"],
            max_seq_len=hf["max_position_embeddings"], rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0))),
            rope_scaling=scaling if scaling and scaling.get("rope_type", scaling.get("type")) != "default" else None,
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6), initializer_range=hf.get("initializer_range", 0.02),
            qkv_bias=first + "q_proj.bias" in tensors, output_bias=first + "o_proj.bias" in tensors, qk_norm=first + "q_norm.weight" in tensors,
            tie_embeddings=bool(hf.get("tie_word_embeddings", False)) or "lm_head.weight" not in tensors)
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks {error}: a complete Hugging Face configuration is wanted") from error
