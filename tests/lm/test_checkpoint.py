"""minirl/lm/checkpoint.py: what is saved comes back bit for bit, and what is broken is named."""

import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.lm.checkpoint import (
    CheckpointError,
    load_pretrained,
    load_reward_model,
    save_pretrained,
)
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.tokenizer import EOS, Tokenizer, build_tokenizer
from tests.lm.checkpoints import INDEX, TOKENIZER, VOCAB, WEIGHTS, same_weights, shard
from tests.lm.models import VARIANTS

# round trips

@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_is_bit_equal(make_model, tmp_path, variant, dtype):
    """A resumed run goes on bit for bit only if the weights do."""
    model = make_model(variant, **VOCAB, rope_theta=50_000.0, rms_norm_eps=1e-5,
                       initializer_range=0.01).to(dtype)
    save_pretrained(model, TOKENIZER, tmp_path / "deep" / "er")
    loaded, tokenizer = load_pretrained(tmp_path / "deep" / "er")
    assert same_weights(model, loaded) and loaded.config == model.config and not loaded.training
    tokens = torch.randint(200, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(tokens), model(tokens)) and loaded.rope.cos.dtype == torch.float32
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == model.config.tie_embeddings
    assert tokenizer.encode("<think>2 + 2") == TOKENIZER.encode("<think>2 + 2")
    assert tokenizer.stop_ids == TOKENIZER.stop_ids
    save_pretrained(loaded, tokenizer, str(tmp_path / "again"))
    for name in ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"):
        first, second = (tmp_path / folder / name for folder in ("deep/er", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_saving_changes_no_weight_and_overwrites(make_model, tmp_path):
    model = make_model(**VOCAB)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_pretrained(make_model(seed=1, **VOCAB), TOKENIZER, tmp_path)
    save_pretrained(model, TOKENIZER, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert same_weights(load_pretrained(tmp_path)[0], model)
    loaded = load_pretrained(tmp_path)[0]    # and it is independent of the file
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
        "SHA256SUMS", "config.json", WEIGHTS, "notes.txt", "tokenizer.json",
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
    """A chat model that ends on several ids, trained and saved, must still end on all of them when
    the result is loaded."""
    tokenizer = Tokenizer(TOKENIZER.backend, pad=None, bos=None, eos=EOS, stops=[5, 6])
    save_pretrained(make_model(**VOCAB), tokenizer, tmp_path)
    loaded = load_pretrained(tmp_path)[1]
    eos = tokenizer.eos_id
    assert (loaded.eos_id, loaded.pad_id, loaded.bos_id) == (eos, eos, None)
    assert loaded.stop_ids == [2, 5, 6]


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("other", [None, torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_kept_or_overridden(make_model, tmp_path, own, other):
    model = make_model("qwen3", **VOCAB).to(own)
    save_pretrained(model, TOKENIZER, tmp_path)
    loaded = load_pretrained(tmp_path, dtype=other)[0]
    assert same_weights(loaded, model.to(other or own))


def test_a_tied_head_saved_twice_is_read(make_model, tmp_path):
    """Some files hold the tied matrix under both names."""
    model = make_model("grouped", **VOCAB)
    save_pretrained(model, TOKENIZER, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "SHA256SUMS").unlink()
    loaded = load_pretrained(tmp_path)[0]
    assert same_weights(loaded, model) and loaded.lm_head.weight is loaded.embed_tokens.weight


# broken checkpoints

@pytest.mark.parametrize("content, message", [
    (b"", "not valid JSON"),
    (b'{"model_type": "lla', "not valid JSON"),
    (b"[1]", "holds a list"),
    (b"\xff", "not valid"),
], ids=str)
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_broken_json_raises(folder, file, content, message):
    if file == INDEX:
        (folder / WEIGHTS).unlink()    # beside it, no index is read
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} .*{message}"):
        load_pretrained(folder)


def test_a_missing_tensor_raises(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="1 missing .*norm"):
        load_pretrained(folder)


def test_a_tensor_of_another_shape_raises(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].contiguous()
    save_file(tensors, folder / WEIGHTS)
    message = r"model.norm.weight is \(31,\), but config.json asks for \(32,\)"
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder)


def test_a_tokenizer_larger_than_the_model_raises(make_model, tmp_path):
    """Its highest ids would index past the embedding: an error deep inside, or on a GPU a dead
    process."""
    save_pretrained(make_model(vocab_size=200), TOKENIZER, tmp_path)
    with pytest.raises(CheckpointError, match="263 tokens, the model 200"):
        load_pretrained(tmp_path)
    # the other way round is usual: sizes are rounded up for speed
    save_pretrained(make_model(vocab_size=304), TOKENIZER, tmp_path)
    assert load_pretrained(tmp_path)[0].config.vocab_size == 304


def test_a_missing_tokenizer_raises(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        load_pretrained(folder)


def test_an_untied_model_without_a_head_raises(folder):
    """The head was tied without a word: transformers draws one at random."""
    tensors = load_file(folder / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="config.json: tie_word_embeddings is false"):
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
    assert not again.training and same_weights(model, again)


def test_policies_and_reward_models_are_not_taken_for_each_other(reward_model, tmp_path):
    """A reward model loaded as a policy would sample from a transformer whose output nobody
    trained."""
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
