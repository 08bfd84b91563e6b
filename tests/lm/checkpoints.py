"""What the tests of checkpoints share: a tokenizer, and ways to change the files of a folder."""

import json

import torch
from safetensors.torch import load_file, save_file

from minirl.lm.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
VOCAB = {"vocab_size": TOKENIZER.vocab_size}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit(file, **changes):
    """Change entries of a JSON file, or with ... as the value drop them."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def shard(folder, moved=lambda file: file):
    """Split the weights into two files and write the index.

    `moved` says under which name the index lists a file.
    """
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map.update({name: moved(file) for name in names})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
