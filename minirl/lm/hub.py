"""Where a checkpoint is: in a folder, or on Hugging Face's hub, from which it is downloaded."""

from __future__ import annotations

from pathlib import Path

from minirl.lm.files import read_json
from minirl.lm.hf_config import CheckpointError, Fields, from_hf_config
from minirl.lm.weight_files import INDEX, WEIGHTS, indexed_files

HUB_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
             "generation_config.json", "chat_template.jinja", "chat_templates/*.jinja",
             WEIGHTS, INDEX)


def find_checkpoint(path_or_hub_id: str | Path) -> Path:
    """Return the folder of a checkpoint: the path itself, or where an `owner/name` is downloaded.

    Raises CheckpointError where there is none, with a hint where the path is that of a run.
    """
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
    """Download a checkpoint from the hub, and return its folder.

    config.json comes first, and the rest only if the model is one that can be read: the tokenizer,
    and the weights in one file, or else the index and the files that it names.
    """
    from huggingface_hub import snapshot_download  # loaded for downloads alone

    def fetch(*patterns: str) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=list(patterns)))
        except Exception as error:    # offline, unknown, gated: the library has many classes
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
