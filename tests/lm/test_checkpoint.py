"""Hugging Face layout: what is saved comes back bit for bit, and what is broken is named."""

import fnmatch
import json
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.lm.checkpoint import CheckpointError, load_pretrained, load_reward_model, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import EOS, Tokenizer, build_tokenizer

TOKENIZER = build_tokenizer()
VOCAB = {"vocab_size": TOKENIZER.vocab_size}


@pytest.fixture
def folder(make_model, tmp_path):
    """A sound checkpoint, for the tests to damage: as from elsewhere, without digests."""
    save_pretrained(make_model("untied", **VOCAB), TOKENIZER, tmp_path / "sound")
    (tmp_path / "sound" / "SHA256SUMS").unlink()
    return tmp_path / "sound"


def edit(file, **changes):
    """Change (or with ... as the value, drop) entries of a JSON file."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def shard(folder, moved=lambda file: file):
    """Split the weights in two files and write the index; `moved` says under which name the index lists a file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map.update({name: moved(file) for name in names})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


# ---------------------------------------------------------------- round trips

@pytest.mark.parametrize("variant", ["plain", "grouped", "qwen2", "qwen3", "untied", "biased", "llama3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_is_bit_equal(make_model, tmp_path, variant, dtype):
    """A resumed run goes on bit for bit only if the weights do."""
    model = make_model(variant, **VOCAB, rope_theta=50_000.0, rms_norm_eps=1e-5, initializer_range=0.01).to(dtype)
    save_pretrained(model, TOKENIZER, tmp_path / "deep" / "er")
    loaded, tokenizer = load_pretrained(tmp_path / "deep" / "er")
    assert same_weights(model, loaded) and loaded.config == model.config and not loaded.training
    tokens = torch.randint(200, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(tokens), model(tokens)) and loaded.rope.cos.dtype == torch.float32
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == model.config.tie_embeddings
    assert tokenizer.encode("<think>2 + 2") == TOKENIZER.encode("<think>2 + 2") and tokenizer.stop_ids == TOKENIZER.stop_ids
    save_pretrained(loaded, tokenizer, str(tmp_path / "again"))
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "deep" / "er" / name).read_bytes()


def test_saving_changes_no_weight_and_overwrites(make_model, tmp_path):
    model = make_model(**VOCAB)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_pretrained(make_model(seed=1, **VOCAB), TOKENIZER, tmp_path)
    save_pretrained(model, TOKENIZER, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert same_weights(load_pretrained(tmp_path)[0], model)
    loaded = load_pretrained(tmp_path)[0]                                  # and what is loaded does not hang on the file
    with torch.no_grad():
        loaded.embed_tokens.weight.zero_()
    assert same_weights(load_pretrained(tmp_path)[0], model)


def test_what_was_saved_is_what_is_loaded(make_model, tmp_path):
    """A sharded checkpoint was trained on and saved in its own folder, and the old weights came
    back: its index was still there, and was read first."""
    save_pretrained(make_model("untied", **VOCAB), TOKENIZER, tmp_path)
    shard(tmp_path)
    stale = ("generation_config.json", "chat_template.jinja", "special_tokens_map.json",
             "added_tokens.json")
    (tmp_path / "chat_templates").mkdir()
    for name in (*stale, "chat_templates/tool_use.jinja"):
        (tmp_path / name).write_text('{"eos_token_id": 7}')
    (tmp_path / "notes.txt").write_text("mine")
    model = make_model("grouped", seed=1, **VOCAB)
    save_pretrained(model, TOKENIZER, tmp_path)
    loaded, tokenizer = load_pretrained(tmp_path)
    assert same_weights(loaded, model) and tokenizer.stop_ids == TOKENIZER.stop_ids
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "SHA256SUMS", "config.json", "model.safetensors", "notes.txt", "tokenizer.json",
        "tokenizer_config.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_all_files_have_the_mode_that_the_umask_leaves(make_model, tmp_path, umask):
    """The weights were for their owner alone, so that a colleague could read all but them."""
    before = os.umask(umask)
    try:
        save_pretrained(ScalarModel(make_model(**VOCAB)), TOKENIZER, tmp_path / "saved")
    finally:
        os.umask(before)
    files = list((tmp_path / "saved").iterdir())
    modes = {stat.S_IMODE(file.stat().st_mode) for file in files}
    assert len(files) == 6 and modes == {0o666 & ~umask}


def test_reading_draws_no_random_numbers(folder):
    """Weights were drawn, only to be overwritten: half of the time that loading took."""
    before = torch.get_rng_state()
    load_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_old_weights_stay_as_they_are_when_their_file_is_overwritten(make_model, tmp_path):
    """What is loaded is no view into a file: a reference model must not change with its file."""
    save_pretrained(make_model(**VOCAB), TOKENIZER, tmp_path)
    loaded = load_pretrained(tmp_path)[0]
    before = {name: x.clone() for name, x in loaded.state_dict().items()}
    size = (tmp_path / "model.safetensors").stat().st_size
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(b"\xff" * size)
    assert all(torch.equal(x, before[name]) for name, x in loaded.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.1.mlp.up_proj.weight",
                                  "norm.weight"])
def test_weights_that_are_not_finite_are_not_saved(make_model, tmp_path, bad, name):
    """With a learning rate of 1e39, all of 320,704 weights were NaN, and `final/` was written over
    the last sound checkpoint with exit code 0."""
    sound, model = make_model(**VOCAB), make_model(**VOCAB)
    save_pretrained(sound, TOKENIZER, tmp_path)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[3:5] = bad
    for broken in (model, model.to(torch.bfloat16), ScalarModel(model)):
        with pytest.raises(CheckpointError, match=rf"2 of \d+ weights of model.{name} are not"):
            save_pretrained(broken, TOKENIZER, tmp_path)
        with pytest.raises(CheckpointError, match="nothing was saved"):
            save_pretrained(broken, TOKENIZER, tmp_path / "new")
    assert same_weights(load_pretrained(tmp_path)[0], sound) and not (tmp_path / "new").exists()


def test_a_head_that_is_not_finite_is_not_saved(reward_model, tmp_path):
    model, tokenizer = reward_model
    model.shift(torch.tensor(float("inf")))
    with pytest.raises(CheckpointError, match="weights of linear.bias are not finite"):
        save_pretrained(model, tokenizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_one_flipped_bit_is_found_in_every_file(reward_model, tmp_path):
    """Of 20 bits flipped in weights, all were loaded without a word, and 4 changed the samples."""
    model, tokenizer = reward_model
    tokenizer.templates["chat_template.jinja"] = "{{ messages }}"
    save_pretrained(model, tokenizer, tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir() if file.name != "SHA256SUMS")
    assert len(names) == 6
    load_reward_model(tmp_path)
    for name in names:
        whole = (tmp_path / name).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[place] ^= 1
            (tmp_path / name).write_bytes(flipped)
            with pytest.raises(ValueError, match=f"{name} is not what was saved"):
                load_reward_model(tmp_path)
        (tmp_path / name).write_bytes(whole)
    load_reward_model(tmp_path)


def test_all_stop_ids_survive_a_round_trip(make_model, tmp_path):
    """A chat model that ends on several ids, trained and saved, must still end on all of them when the result is loaded."""
    tokenizer = Tokenizer(TOKENIZER.backend, pad=None, bos=None, eos=EOS, stops=[5, 6])
    save_pretrained(make_model(**VOCAB), tokenizer, tmp_path)
    loaded = load_pretrained(tmp_path)[1]
    assert (loaded.eos_id, loaded.pad_id, loaded.bos_id) == (tokenizer.eos_id, tokenizer.eos_id, None)
    assert loaded.stop_ids == [2, 5, 6]


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("asked", [None, torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_kept_or_overridden(make_model, tmp_path, saved, asked):
    model = make_model("qwen3", **VOCAB).to(saved)
    save_pretrained(model, TOKENIZER, tmp_path)
    loaded = load_pretrained(tmp_path, dtype=asked)[0]
    assert same_weights(loaded, model.to(asked or saved))


@pytest.mark.parametrize("changes, dtype", [({"dtype": ..., "torch_dtype": "bfloat16"}, torch.bfloat16),
                                            ({"dtype": "torch.bfloat16"}, torch.bfloat16), ({"dtype": ...}, torch.float32),
                                            ({"dtype": None}, torch.float32), ({"dtype": ..., "torch_dtype": None}, torch.float32)], ids=str)
def test_dtype_is_read_as_all_versions_write_it(folder, changes, dtype):
    edit(folder / "config.json", **changes)
    assert load_pretrained(folder)[0].dtype == dtype


def test_an_unknown_dtype_raises(folder):
    edit(folder / "config.json", dtype="float33")
    with pytest.raises(ValueError, match="float33"):
        load_pretrained(folder)


def test_a_sharded_checkpoint_is_read(folder):
    want = load_pretrained(folder)[0]
    shard(folder)
    assert not (folder / "model.safetensors").exists() and same_weights(load_pretrained(folder)[0], want)


@pytest.mark.parametrize("changes", [{"rope_theta": ..., "rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}},
                                     {"rope_theta": 77, "rope_scaling": {"type": "default"}}, {"rope_theta": 77.0, "rope_scaling": ...}], ids=str)
def test_rope_is_read_as_all_versions_write_it(folder, changes):
    edit(folder / "config.json", **changes)
    config = load_pretrained(folder)[0].config
    assert config.rope_theta == 77.0 and config.rope_scaling is None


def test_llama3_scaling_is_read_from_the_newer_layout(folder):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    edit(folder / "config.json", rope_theta=..., rope_scaling=..., rope_parameters={"rope_theta": 77.0, **scaling})
    config = load_pretrained(folder)[0].config
    assert config.rope_theta == 77.0 and config.rope_scaling == scaling


def test_a_tied_head_saved_twice_is_read(make_model, tmp_path):
    """Some files hold the tied matrix under both names."""
    model = make_model("grouped", **VOCAB)
    save_pretrained(model, TOKENIZER, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors")
    (tmp_path / "SHA256SUMS").unlink()
    loaded = load_pretrained(tmp_path)[0]
    assert same_weights(loaded, model) and loaded.lm_head.weight is loaded.embed_tokens.weight


# ---------------------------------------------------------------- the hub

@pytest.fixture
def hub(folder, monkeypatch, tmp_path):
    """A hub whose repository is `folder`: what is asked for is copied, as huggingface_hub does."""
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append(allow_patterns)
        for file in folder.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                (tmp_path / "cache").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def fetched(folder):
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
    assert fetched(folder) == ["config.json", *weights, "tokenizer.json", "tokenizer_config.json"]
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


@pytest.mark.parametrize("path", ["runs/nowhere", "./nowhere", "../no/where", "~/nowhere", "nowhere", "/no/where", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_pretrained(path)


# ---------------------------------------------------------------- broken checkpoints

def test_a_folder_without_config_raises(folder):
    (folder / "config.json").unlink()
    for path in (folder, folder / "model.safetensors", str(folder)):
        with pytest.raises(CheckpointError, match="holds no config.json"):
            load_pretrained(path)


@pytest.mark.parametrize("content, says", [(b"", "not valid JSON"), (b'{"model_type": "lla', "not valid JSON"), (b"[1]", "holds a list"),
                                           (b"\xff", "not valid")], ids=str)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_broken_json_raises(folder, file, content, says):
    if file == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()              # beside it, no index is read
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} .*{says}|{file} {says}"):
        load_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_truncated_weights_raise(folder, keep):
    content = (folder / "model.safetensors").read_bytes()
    assert len(content) > 20_000
    (folder / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read.*cut short"):
        load_pretrained(folder)


def test_missing_weights_raise(folder):
    (folder / "model.safetensors").unlink()
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
    shard(folder, moved=lambda file: str(target / file) if where == "absolute" else f"{where}/{file}")
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
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled .bin files are not read"):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "pytorch_model.bin"}}))
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        load_pretrained(folder)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("changes, says", [
    ({"intermediate_size": 40}, r"mlp.* is \(.*config.json asks for"),
    ({"num_key_value_heads": 2}, r"k_proj.weight is \(32, 32\), but config.json asks for \(16, 32\)"),
    ({"vocab_size": 300}, r"is \(263, 32\), but config.json asks for \(300, 32\)"),
    ({"num_hidden_layers": 3}, "9 missing .*0 unknown"),
    ({"num_hidden_layers": 1}, "0 missing .*9 unknown"),
    ({"model_type": "gpt2"}, "type 'gpt2': llama, qwen2, qwen3"),
    ({"model_type": ...}, "type None"),
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16,
      "max_window_layers": 1}, "sliding windows"),
    ({"hidden_act": "gelu"}, "'gelu'"),
    ({"mlp_bias": True}, "mlp_bias True"),
    ({"hidden_size": ...}, "config.json lacks 'hidden_size'"),
    ({"max_position_embeddings": ...}, "lacks 'max_position_embeddings'"),
], ids=str)
def test_a_config_that_does_not_fit_raises(folder, changes, says):
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=says):
        load_pretrained(folder)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 0}, {"num_hidden_layers": -1}, {"head_dim": 7}, {"rope_scaling": {"rope_type": "yarn"}},
                                     {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, {"hidden_size": "32"}], ids=str)
def test_a_config_with_senseless_numbers_is_a_value_error(folder, changes):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError):
        load_pretrained(folder)


@pytest.mark.parametrize("broken, says", [(lambda x: x[:-1], r"model.norm.weight is \(31,\), but config.json asks for \(32,\)"),
                                          (None, "1 missing .*norm")])
def test_a_wrong_or_missing_tensor_raises(folder, broken, says):
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors if broken is None else {**tensors, "model.norm.weight": broken(norm).contiguous()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        load_pretrained(folder)


def test_a_tokenizer_larger_than_the_model_raises(make_model, tmp_path):
    """Its highest ids would index behind the embedding: an error deep inside, or on a GPU a dead process."""
    save_pretrained(make_model(vocab_size=200), TOKENIZER, tmp_path)
    with pytest.raises(CheckpointError, match="263 tokens, the model 200"):
        load_pretrained(tmp_path)
    save_pretrained(make_model(vocab_size=304), TOKENIZER, tmp_path)       # the other way round is usual: rounded up for speed
    assert load_pretrained(tmp_path)[0].config.vocab_size == 304


def test_a_missing_tokenizer_raises(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        load_pretrained(folder)


WRONG = {
    "config.json": [
        ({"rope_theta": None}, "rope_theta is null: a finite number from 1 is wanted"),
        ({"rope_theta": "1"}, 'rope_theta is "1"'),
        ({"rope_theta": 10 ** 400}, "rope_theta is 1000"),
        ({"rope_theta": float("nan")}, "rope_theta is NaN"),
        ({"rope_scaling": "x"}, 'rope_scaling is "x": an object'),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is of the type 'yarn'"),
        ({"rope_scaling": {"type": []}}, "rope_scaling: type is"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling lacks 'factor'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                           "high_freq_factor": 4}},
         "low_freq_factor is not below high_freq_factor"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_parameters: rope_theta is null"),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention is 3"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ({"rms_norm_eps": None}, "rms_norm_eps is null"),
        ({"rms_norm_eps": "a"}, 'rms_norm_eps is "a"'),
        ({"initializer_range": -1}, "initializer_range is -1: a finite number from 0 is wanted"),
        ({"model_type": []}, r"model_type is \[\]: a text is wanted"),
        ({"hidden_act": 5}, "hidden_act is 5"),
        ({"vocab_size": True}, "vocab_size is true: a whole number from 1 is wanted"),
        ({"vocab_size": 10 ** 30}, "config.json asks for weights that no memory holds"),
        ({"hidden_size": 2 ** 40}, "config.json asks for"),
        ({"num_hidden_layers": 10 ** 9}, "asks for 1000000000 layers, but the files hold"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"head_dim": 7}, "config.json: head_dim 7 is odd"),
        ({"max_position_embeddings": 4 * 10 ** 7},
         "max_position_embeddings is 40000000: a whole number from 1 to 4194304"),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no": true or false'),
        ({"dtype": "int8"}, "names the dtype 'int8': one of float64, float32, float16, bfloat16"),
        ({"dtype": ..., "torch_dtype": "int32"}, "names the dtype 'int32'"),
        ({"dtype": 16}, "dtype is 16: a text"),
        ({"model_type": "qwen2", "layer_types": [1]},
         "layer_types lists 1 layers, num_hidden_layers is 2"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 2},
         "ask for linear_attention"),
        ({"model_type": "qwen2", "use_sliding_window": 1}, "use_sliding_window is 1"),
        ({"eos_token_id": "2"}, "config.json: eos_token_id is '2'"),
        ({"eos_token_id": [2, None]}, "config.json: eos_token_id is"),
    ],
    "generation_config.json": [
        ({"eos_token_id": True}, "generation_config.json: eos_token_id is True"),
    ],
    "tokenizer_config.json": [
        ({"eos_token": 5}, "tokenizer_config.json: eos_token is 5"),
        ({"pad_token": {"content": None}}, "tokenizer_config.json: pad_token is"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder is an object"),
        ({"added_tokens_decoder": {"3": 3}}, "added_tokens_decoder is 3"),
        ({"extra_special_tokens": 3}, "extra_special_tokens a list, not dict and int"),
    ],
    "model.safetensors.index.json": [
        ({"weight_map": None}, "index.json: weight_map is null: an object"),
        ({"weight_map": ...}, "index.json lacks 'weight_map'"),
        ({"weight_map": {}}, "weight_map names no files"),
        ({"weight_map": {"a": 3}}, "weight_map names no files"),
    ],
}
CASES = [(file, *case) for file, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize("file, changes, says", CASES, ids=lambda x: ascii(x)[:60])
def test_a_field_of_the_wrong_kind_is_one_line_with_its_file_and_name(folder, file, changes, says):
    """70 of 318 damaged files ended in a traceback, 6 of them for want of memory."""
    if file == "model.safetensors.index.json":
        shard(folder)
    elif not (folder / file).exists():
        (folder / file).write_text("{}")
    edit(folder / file, **changes)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=says) as raised:
        load_pretrained(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000,
                                     '{"vocab_size": ' + "9" * 5000 + "}"],
                         ids=["list", "object", "number"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json",
                                  "generation_config.json", "special_tokens_map.json"])
def test_json_too_deep_or_too_long_is_named(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=f"{file} is not valid JSON"):
        load_pretrained(folder)


@pytest.mark.parametrize("cast", [torch.int8, torch.int64, torch.uint8, torch.bool,
                                  torch.float8_e4m3fn, torch.complex64], ids=str)
def test_weights_that_are_no_floating_point_numbers_are_refused(folder, cast):
    """Quantised weights were cast to float: another model, without a word."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(cast)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} is of type .*not quantised"):
        load_pretrained(folder)


def test_a_weight_in_two_files_raises(folder):
    shard(folder)
    second = folder / "model-00002-of-00002.safetensors"
    first = load_file(folder / "model-00001-of-00002.safetensors")
    save_file({**load_file(second), **first}, second)
    with pytest.raises(CheckpointError, match="stands in .*00001-of-.* and in .*00002-of-"):
        load_pretrained(folder)


def test_the_type_is_judged_before_the_weights(folder):
    """A Mistral folder with .bin files asked to convert them, and then said that it is Mistral."""
    (folder / "model.safetensors").unlink()
    edit(folder / "config.json", model_type="mistral")
    with pytest.raises(CheckpointError, match="type 'mistral'"):
        load_pretrained(folder)


def test_an_untied_model_without_a_head_raises(folder):
    """The head was tied without a word: transformers draws one at random."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="config.json: tie_word_embeddings is false"):
        load_pretrained(folder)


# paths that a person types

@pytest.mark.parametrize("kept, hint", [(["checkpoint-8", "checkpoint-12", "final"], "final"),
                                        (["checkpoint-8", "checkpoint-12"], "checkpoint-12")])
@pytest.mark.parametrize("content", [None, '{"run": {"lr": 1}}'])
def test_a_run_names_its_checkpoint(make_model, tmp_path, kept, hint, content):
    """`--init runs/grpo` said that model.safetensors is lacking, and to convert .bin files."""
    for name in kept:
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


# a reward model is a checkpoint with a head beside it

@pytest.fixture
def reward_model(make_model):
    tokenizer = build_tokenizer()
    torch.manual_seed(5)
    model = ScalarModel(make_model("grouped", vocab_size=tokenizer.vocab_size))
    model.shift(torch.tensor(0.5))
    return model.eval(), tokenizer


def test_a_reward_model_comes_back_bit_for_bit(reward_model, tmp_path):
    model, tokenizer = reward_model
    save_pretrained(model, tokenizer, tmp_path)
    again, _ = load_reward_model(tmp_path)
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())) and model.state_dict().keys() == again.state_dict().keys()


def test_policies_and_reward_models_are_not_taken_for_each_other(reward_model, tmp_path):
    """A reward model loaded as a policy would sample from a transformer whose output nobody trained."""
    model, tokenizer = reward_model
    save_pretrained(model, tokenizer, tmp_path / "rm")
    save_pretrained(model.backbone, tokenizer, tmp_path / "policy")
    with pytest.raises(CheckpointError, match="holds a reward model"):
        load_pretrained(tmp_path / "rm")
    with pytest.raises(CheckpointError, match="holds no reward model"):
        load_reward_model(tmp_path / "policy")


def test_a_head_that_does_not_fit_or_was_cut_short_is_named(reward_model, tmp_path):
    model, tokenizer = reward_model
    save_pretrained(model, tokenizer, tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    head = tmp_path / "score.safetensors"
    whole = head.read_bytes()
    head.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="score.safetensors cannot be read"):
        load_reward_model(tmp_path)
    save_file({"linear.weight": torch.zeros(1, 7), "linear.bias": torch.zeros(1)}, head)
    with pytest.raises(CheckpointError, match="score.safetensors does not fit"):
        load_reward_model(tmp_path)


# what is built, and what is not

def test_loading_loads_no_compiler(make_model, tmp_path):
    """Drawing on the device "meta" loaded it, which took three times as long as all the rest."""
    save_pretrained(make_model("qwen2", **VOCAB), TOKENIZER, tmp_path)
    code = ("import sys; from minirl.lm.checkpoint import load_pretrained; "
            f"load_pretrained({str(tmp_path)!r}); sys.exit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_model_without_weights_has_their_shapes_and_its_tables(make_model):
    model = make_model("qwen3")
    empty = Transformer.without_weights(model.config)
    assert {name: x.shape for name, x in empty.state_dict().items()} == {
        name: x.shape for name, x in model.state_dict().items()}
    assert all(p.is_meta for p in empty.parameters())
    assert torch.equal(empty.rope.cos, model.rope.cos)
    empty.load_state_dict(model.state_dict(), assign=True)
    tokens = torch.arange(9)[None]
    assert torch.equal(empty.eval()(tokens), model(tokens))


@pytest.mark.parametrize("options, says", [
    ({"vocab_size": True}, "vocab_size is True"),
    ({"max_seq_len": 2 ** 22 + 1}, "max_seq_len is 4194305: at most 4194304"),
    ({"qk_norm": True, "qkv_bias": True}, "no family has"),
    ({"qk_norm": True, "output_bias": True}, "no family has"),
], ids=str)
def test_a_model_that_could_not_be_saved_is_not_built(options, says):
    with pytest.raises(ValueError, match=says):
        ModelConfig(**{"vocab_size": 9, **options})
