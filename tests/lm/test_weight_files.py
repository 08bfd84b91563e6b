"""minirl/lm/weight_files.py: one file or several, read as they are, and never unpickled."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.hf_config import CheckpointError
from tests.lm.checkpoints import INDEX, TOKENIZER, VOCAB, WEIGHTS, same_weights, shard


def test_a_sharded_checkpoint_is_read(folder):
    whole = load_pretrained(folder)[0]
    shard(folder)
    assert not (folder / WEIGHTS).exists()
    assert same_weights(load_pretrained(folder)[0], whole)


def test_the_old_weights_stay_as_they_are_when_their_file_is_overwritten(make_model, tmp_path):
    """What is loaded is no view into a file: a reference model must not change with its file."""
    save_pretrained(make_model(**VOCAB), TOKENIZER, tmp_path)
    loaded = load_pretrained(tmp_path)[0]
    before = {name: x.clone() for name, x in loaded.state_dict().items()}
    size = (tmp_path / WEIGHTS).stat().st_size
    with open(tmp_path / WEIGHTS, "r+b") as file:
        file.write(b"\xff" * size)
    assert all(torch.equal(x, before[name]) for name, x in loaded.state_dict().items())


# broken files

@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_truncated_weights_raise(folder, keep):
    content = (folder / WEIGHTS).read_bytes()
    assert len(content) > 20_000
    (folder / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read.*cut short"):
        load_pretrained(folder)


def test_missing_weights_raise(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="lacks model.safetensors"):
        load_pretrained(folder)


def test_a_missing_shard_raises(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks model-00002-of-00002"):
        load_pretrained(folder)


@pytest.mark.parametrize("where", ["..", "sub", "absolute"])
def test_an_index_that_leads_out_of_its_folder_is_refused(folder, where):
    """A downloaded index may not make us read files elsewhere on the disk, not even sound ones."""
    target = {"..": folder.parent, "sub": folder / "sub", "absolute": folder.parent}[where]
    target.mkdir(exist_ok=True)
    prefix = target if where == "absolute" else where
    shard(folder, moved=lambda file: f"{prefix}/{file}")
    for file in list(folder.glob("model-*.safetensors")):
        file.rename(target / file.name)
    with pytest.raises(CheckpointError, match="lacks"):
        load_pretrained(folder)


class Payload:
    """Unpickling runs code: this one writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_never_read(folder):
    torch.save({"model.norm.weight": Payload(folder / "executed")}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="pickled .bin files are not read"):
        load_pretrained(folder)
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        load_pretrained(folder)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("cast", [torch.int8, torch.int64, torch.uint8, torch.bool,
                                  torch.float8_e4m3fn, torch.complex64], ids=str)
def test_weights_that_are_no_floating_point_numbers_are_refused(folder, cast):
    """Quantised weights were cast to float: another model, without a word."""
    tensors = load_file(folder / WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(cast)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{name} is of type .*not quantised"):
        load_pretrained(folder)


def test_a_weight_in_two_files_raises(folder):
    shard(folder)
    second = folder / "model-00002-of-00002.safetensors"
    first = load_file(folder / "model-00001-of-00002.safetensors")
    save_file({**load_file(second), **first}, second)
    with pytest.raises(CheckpointError, match="stands in .*00001-of-.* and in .*00002-of-"):
        load_pretrained(folder)
