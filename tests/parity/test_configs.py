"""A config.json is read as transformers 5 reads it: the same logits, or a clear error.

Each test takes a checkpoint that transformers wrote, changes its config.json or its weights by
hand, and lets both libraries load the result.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.lm.checkpoint import CheckpointError, load_pretrained
from minirl.lm.tokenizer import build_tokenizer

transformers = pytest.importorskip("transformers")

TOKENIZER = build_tokenizer()
SIZES = {"vocab_size": TOKENIZER.vocab_size, "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "max_position_embeddings": 48, "initializer_range": 0.3, "tie_word_embeddings": False}
CLASSES = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The folder of one checkpoint of each family, written by transformers."""
    folders = {}
    for kind, name in CLASSES.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        config = getattr(transformers, name)(**SIZES)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 1:
                    p.add_(0.3 * torch.randn(p.shape))
        model.save_pretrained(folders[kind])
        TOKENIZER.save(folders[kind])
    return folders


def change(source, target, weights=None, **changes):
    """Copy a checkpoint with other entries of config.json and other weights; ... drops one."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not ...}
    (target / "config.json").write_text(json.dumps(config))
    if weights is not None:
        tensors = load_file(target / "model.safetensors")
        tensors = {k: v for k, v in {**tensors, **weights(tensors)}.items() if v is not ...}
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@torch.no_grad()
def both_logits(folder):
    """Return the logits of the same tokens from our model and from transformers'."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(TOKENIZER.vocab_size, (2, 40), generator=generator)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = load_pretrained(folder)[0]
    assert ours.dtype == theirs.dtype
    if ours.dtype == torch.bfloat16:             # the two round differently: compare the weights
        ours, theirs = ours.float(), theirs.float()
    return ours(tokens), theirs(tokens).logits


def rotary_frequencies(tensors):
    """The first Llama models have the frequencies of rotary embeddings in each layer."""
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}


def another_head(tensors):
    return {HEAD: tensors[HEAD].flip(0).contiguous()}


def head_equal_to_embedding(tensors):
    return {HEAD: tensors[EMBEDDING].clone()}


def no_embedding(tensors):
    return {EMBEDDING: ...}


def bfloat16(tensors):
    return {name: x.bfloat16() for name, x in tensors.items()}


def windows(use, size, first, types=...):
    return {"use_sliding_window": use, "sliding_window": size, "max_window_layers": first,
            "layer_types": types}


TIED = {"tie_word_embeddings": True}


SAME = [
    ("llama", {"rope_parameters": ..., "rope_theta": 77}),
    ("llama", {"rope_parameters": ...}),
    ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "default", "rope_theta": 77.0}}),
    ("llama", {"rope_parameters": {"rope_theta": 500.0, "type": "default"}, "rope_theta": 77.0}),
    ("llama", {"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": {"type": "default"}}),
    ("llama", {"rope_parameters": ..., "rope_scaling": {**LLAMA3, "rope_theta": 77.0}}),
    ("llama", {"rope_parameters": {k: LLAMA3[k] for k in list(LLAMA3)[:-1]}}),
    ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 24}),
    ("llama", {"rms_norm_eps": ..., "tie_word_embeddings": ..., "head_dim": ..., "mlp_bias": ...}),
    ("llama", {"rms_norm_eps": 0.1, "head_dim": None}),
    ("llama", windows(True, 4, 0)),
    ("llama", {"weights": rotary_frequencies}),
    ("llama", {**TIED, "weights": another_head}),
    ("qwen2", {**TIED, "weights": another_head}),
    ("qwen3", {**TIED, "weights": head_equal_to_embedding}),
    ("qwen3", {**TIED, "weights": no_embedding}),
    ("qwen2", windows(True, 4, 2)),
    ("qwen2", windows(True, 4, ...)),
    ("qwen3", windows(True, 4, 0, ["full_attention"] * 2)),
    ("qwen3", windows(True, 48, 1)),
    ("qwen3", windows(True, None, 0)),
    ("qwen3", windows(False, 4, 0)),
    ("qwen3", {"dtype": ..., "weights": bfloat16}),
    ("llama", {"dtype": ..., "torch_dtype": "float64"}),
]


def name_of(value) -> str:
    """Return a test's id: a function's name, as its address is another one in each process."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {name_of(entry)}" for key, entry in value.items())
    return value.__name__ if callable(value) else str(value)


@pytest.mark.parametrize("kind, changes", SAME, ids=name_of)
def test_the_logits_are_theirs(checkpoints, tmp_path, kind, changes):
    """A tied flag dropped a head that differs from the embedding (logits off by 6.5); theta inside
    rope_scaling was read as 10,000; a QwQ whose window reaches no layer was an error."""
    ours, theirs = both_logits(change(checkpoints[kind], tmp_path / "changed", **changes))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


SLIDING = [windows(True, 4, 1), windows(True, 4, ..., ["full_attention", "sliding_attention"])]


@torch.no_grad()
@pytest.mark.parametrize("changes", SLIDING, ids=name_of)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_layers_with_a_window_are_an_error(checkpoints, tmp_path, kind, changes):
    """They were loaded as layers that see everything, and transformers' logits differ."""
    folder = change(checkpoints[kind], tmp_path / "changed", **changes)
    with pytest.raises(CheckpointError, match="config.json.*layer_types ask for sliding_attention"):
        load_pretrained(folder)
    tokens = torch.arange(40)[None]
    with_windows, without = (
        transformers.AutoModelForCausalLM.from_pretrained(path).eval()(tokens).logits
        for path in (folder, checkpoints[kind]))
    assert (with_windows - without).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_single_file_counts_where_there_is_an_index_too(checkpoints, tmp_path, kind):
    """A sharded checkpoint was trained, saved in its own folder as one file, and loaded untrained
    from its old shards. Here the shard is all zeros."""
    folder = change(checkpoints[kind], tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    save_file({name: torch.zeros_like(x) for name, x in tensors.items()}, folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ours, theirs = both_logits(folder)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert ours.abs().max() > 0.1


def test_theta_by_type_of_layer(checkpoints, tmp_path):
    """A model with several types of layers has an inner object for each. Qwen's code in
    transformers reads none of them; here all layers are of the first type."""
    rope = {"full_attention": {"rope_theta": 77.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}}
    folder = change(checkpoints["qwen3"], tmp_path / "changed", rope_parameters=rope)
    config = load_pretrained(folder)[0].config
    assert config.rope_theta == 77.0 and config.rope_scaling is None
