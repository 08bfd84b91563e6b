"""Hugging Face layout: what is saved comes back bit for bit, and what is broken is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.lm.checkpoint import CheckpointError, load_pretrained, load_reward_model, save_pretrained
from minirl.lm.heads import ScalarModel
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

def test_a_hub_id_is_downloaded(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options["allow_patterns"])) or str(folder))
    assert load_pretrained("nobody/nothing-here")[0].dtype == torch.float32
    assert asked[0][0] == "nobody/nothing-here" and not any("bin" in pattern or pattern == "*" for pattern in asked[0][1])


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
        (folder / "model.safetensors").unlink()                            # beside it, no index is read
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
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "sliding-window"),
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
