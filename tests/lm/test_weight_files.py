"""minirl/lm/weight_files.py: one file or several, read as they are, and never unpickled."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.lm import weight_files
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.digests import DigestError
from minirl.lm.hf_config import CheckpointError
from tests.lm.checkpoints import INDEX, TOKENIZER, VOCAB, WEIGHTS, same_weights, shard


def test_a_sharded_checkpoint_is_read(folder):
    whole = load_pretrained(folder)[0]
    shard(folder)
    assert not (folder / WEIGHTS).exists()
    assert same_weights(load_pretrained(folder)[0], whole)


def resident(folder):
    """Return the kilobytes of a folder's weights that are in this process's memory, and mapped."""
    mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    sizes = [[int(re.search(rf"{field}: +(\d+) kB", mapping)[1]) for field in ("Rss", "Size")]
             for mapping in mappings if f"{folder}/" in mapping.split("\n")[0]]
    return tuple(map(sum, zip(*sizes, strict=True))) if sizes else (0, 0)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_are_mapped_and_read_when_they_are_used(make_model, tmp_path, sharded):
    """All were copied into memory of their own, which took longer than transformers takes."""
    save_pretrained(make_model(**VOCAB, hidden_size=512), TOKENIZER, tmp_path)
    if sharded:
        shard(tmp_path)
    in_memory, mapped = resident(tmp_path)
    assert in_memory == mapped == 0
    loaded = load_pretrained(tmp_path)[0]
    kilobytes = sum(p.nbytes for p in loaded.parameters()) / 1024
    in_memory, mapped = resident(tmp_path)
    assert kilobytes < mapped < 1.2 * kilobytes and in_memory < kilobytes / 2
    loaded(torch.arange(9)[None])
    assert resident(tmp_path)[0] > 0.9 * kilobytes
    # another dtype is another copy, and what was read for it is closed
    del loaded
    loaded = load_pretrained(tmp_path, dtype=torch.bfloat16)[0]
    assert resident(tmp_path) == (0, 0) and loaded.dtype == torch.bfloat16


def test_a_model_that_is_trained_and_saved_over_its_own_file_keeps_its_weights(make_model,
                                                                               tmp_path):
    """Writing into the file would change the weights under the model that has mapped it."""
    save_pretrained(make_model(**VOCAB), TOKENIZER, tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    loaded, reference = (load_pretrained(tmp_path)[0] for _ in range(2))
    before = {name: x.clone() for name, x in loaded.state_dict().items()}
    with torch.no_grad():
        for p in loaded.parameters():
            p.add_(1.0)
    assert (tmp_path / WEIGHTS).read_bytes() == content
    save_pretrained(loaded, TOKENIZER, tmp_path)
    assert same_weights(load_pretrained(tmp_path)[0], loaded)
    assert all(torch.equal(x, before[name]) for name, x in reference.state_dict().items())


@pytest.mark.parametrize("variant", ["untied", "grouped"])
def test_weights_beyond_the_size_of_a_file_are_spread_over_several(
        make_model, tmp_path, monkeypatch, variant):
    model = make_model(variant, **VOCAB)
    save_pretrained(model, TOKENIZER, tmp_path)
    assert load_pretrained(tmp_path)[0] is not None and (tmp_path / WEIGHTS).is_file()
    monkeypatch.setattr(weight_files, "SHARD", 40_000)
    save_pretrained(model, TOKENIZER, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(file.name for file in tmp_path.glob("model-*"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors"
                     for i in range(1, len(files) + 1)] and len(files) > 2
    sizes = [sum(x.nbytes for x in load_file(tmp_path / file).values()) for file in files]
    assert max(sizes) <= 40_000 and index["metadata"]["total_size"] == sum(sizes)
    assert {name: file for file in files for name in load_file(tmp_path / file)
            } == index["weight_map"]
    assert same_weights(load_pretrained(tmp_path)[0], model)
    for name in (files[1], INDEX):                         # each has its digest
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-1] + b" ")
        with pytest.raises(DigestError, match=f"{name} is not what was saved"):
            load_pretrained(tmp_path)
        (tmp_path / name).write_bytes(whole)
    monkeypatch.undo()
    save_pretrained(model, TOKENIZER, tmp_path)
    assert not list(tmp_path.glob("model-*")) and not (tmp_path / INDEX).exists()
    assert same_weights(load_pretrained(tmp_path)[0], model)


def test_a_weight_that_is_larger_than_a_file_gets_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "SHARD", 8)
    (tmp_path / "config.json").touch()
    tensors = {name: torch.zeros(n) for name, n in (("a", 9), ("b", 1), ("c", 1), ("d", 9))}
    *files, index = weight_files.write_weights(tensors, tmp_path)
    assert [list(load_file(tmp_path / file)) for file in files] == [["a"], ["b", "c"], ["d"]]
    assert index == INDEX


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
