"""minirl/lm/hub.py: where a checkpoint is, and what is downloaded."""

import fnmatch
import shutil

import pytest
import torch

from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.hf_config import CheckpointError
from tests.lm.checkpoints import TOKENIZER, VOCAB, edit, shard


@pytest.fixture
def hub(folder, monkeypatch, tmp_path):
    """A hub whose repository is `folder`: requested files are copied, as huggingface_hub does. ->
    the patterns of each request"""
    requests = []

    def snapshot_download(name, *, allow_patterns):
        requests.append(allow_patterns)
        for file in folder.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                (tmp_path / "cache").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return requests


def downloaded(folder):
    return sorted(file.name for file in (folder.parent / "cache").iterdir())


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hub_id_is_downloaded(folder, hub, sharded):
    """Only what is read: a repository of Mistral's came with its weights twice, and adapters."""
    weights = ["model.safetensors"]
    if sharded:
        shard(folder)
        weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                   "model.safetensors.index.json"]
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin",
                 "notes.json"):
        (folder / name).write_bytes(b"")
    assert load_pretrained("nobody/nothing-here")[0].dtype == torch.float32
    names = ["config.json", *weights, "tokenizer.json", "tokenizer_config.json"]
    assert downloaded(folder) == names
    assert hub[0] == ["config.json"]


def test_a_model_that_cannot_be_read_is_not_downloaded(folder, hub):
    edit(folder / "config.json", model_type="mistral")
    with pytest.raises(CheckpointError, match="type 'mistral'"):
        load_pretrained("nobody/nothing-here")
    assert hub == [["config.json"]]


def test_a_repository_without_config_is_named(folder, hub):
    (folder / "config.json").rename(folder / "params.json")
    with pytest.raises(CheckpointError, match="nobody/nothing-here holds no config.json on the"):
        load_pretrained("nobody/nothing-here")


def test_a_failed_download_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(CheckpointError, match="nobody/nothing-here.*ZeroDivisionError"):
        load_pretrained("nobody/nothing-here")


@pytest.mark.parametrize("path", ["runs/nowhere", "./nowhere", "../no/where", "~/nowhere",
                                  "nowhere", "/no/where", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download",
                        lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_pretrained(path)


# paths that a person types

@pytest.mark.parametrize("names, hint", [
    (["checkpoint-8", "checkpoint-12", "final"], "final"),
    (["checkpoint-8", "checkpoint-12"], "checkpoint-12"),
])
@pytest.mark.parametrize("content", [None, '{"run": {"lr": 1}}'])
def test_a_run_names_its_checkpoint(make_model, tmp_path, names, hint, content):
    """`--init runs/grpo` said that model.safetensors is lacking, and to convert .bin files."""
    for name in names:
        save_pretrained(make_model(**VOCAB), TOKENIZER, tmp_path / "grpo" / name)
    if content:
        (tmp_path / "grpo" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"did you mean .*grpo/{hint}\\?"):
        load_pretrained(tmp_path / "grpo")


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_raises(folder, monkeypatch, path):
    """The empty path is the current folder: a base model was trained, or another was read."""
    monkeypatch.chdir(folder)
    with pytest.raises(CheckpointError, match="the path of the checkpoint is empty"):
        load_pretrained(path)


def test_a_folder_without_config_raises(folder):
    (folder / "config.json").unlink()
    for path in (folder, folder / "model.safetensors", str(folder)):
        with pytest.raises(CheckpointError, match="holds no config.json"):
            load_pretrained(path)
