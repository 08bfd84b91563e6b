"""minirl/lm/hf_config.py: fields as all versions write them, and fields that are refused.

The files beside config.json are read with the same care, and are damaged here, too.
"""

import time

import pytest
import torch

from minirl.lm.checkpoint import load_pretrained
from minirl.lm.hf_config import CheckpointError
from tests.lm.checkpoints import INDEX, edit, shard


@pytest.mark.parametrize("changes, dtype", [
    ({"dtype": ..., "torch_dtype": "bfloat16"}, torch.bfloat16),
    ({"dtype": "torch.bfloat16"}, torch.bfloat16),
    ({"dtype": ...}, torch.float32),
    ({"dtype": None}, torch.float32),
    ({"dtype": ..., "torch_dtype": None}, torch.float32),
], ids=str)
def test_dtype_is_read_as_all_versions_write_it(folder, changes, dtype):
    edit(folder / "config.json", **changes)
    assert load_pretrained(folder)[0].dtype == dtype


def test_an_unknown_dtype_raises(folder):
    edit(folder / "config.json", dtype="float33")
    with pytest.raises(ValueError, match="float33"):
        load_pretrained(folder)


@pytest.mark.parametrize("changes", [
    {"rope_theta": ..., "rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}},
    {"rope_theta": 77, "rope_scaling": {"type": "default"}},
    {"rope_theta": 77.0, "rope_scaling": ...},
], ids=str)
def test_rope_is_read_as_all_versions_write_it(folder, changes):
    edit(folder / "config.json", **changes)
    config = load_pretrained(folder)[0].config
    assert config.rope_theta == 77.0 and config.rope_scaling is None


def test_llama3_scaling_is_read_from_the_newer_layout(folder):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    edit(folder / "config.json", rope_theta=..., rope_scaling=...,
         rope_parameters={"rope_theta": 77.0, **scaling})
    config = load_pretrained(folder)[0].config
    assert config.rope_theta == 77.0 and config.rope_scaling == scaling


# what does not fit

@pytest.mark.parametrize("changes, message", [
    ({"intermediate_size": 40}, r"mlp.* is \(.*config.json asks for"),
    ({"num_key_value_heads": 2},
     r"k_proj.weight is \(32, 32\), but config.json asks for \(16, 32\)"),
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
def test_a_config_that_does_not_fit_raises(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("changes", [
    {"num_attention_heads": 0},
    {"num_hidden_layers": -1},
    {"head_dim": 7},
    {"rope_scaling": {"rope_type": "yarn"}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"hidden_size": "32"},
], ids=str)
def test_a_config_with_senseless_numbers_is_a_value_error(folder, changes):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError):
        load_pretrained(folder)


def test_the_type_is_judged_before_the_weights(folder):
    """A Mistral folder with .bin files asked to convert them, and then said that it is Mistral."""
    (folder / "model.safetensors").unlink()
    edit(folder / "config.json", model_type="mistral")
    with pytest.raises(CheckpointError, match="type 'mistral'"):
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


@pytest.mark.parametrize("file, changes, message", CASES, ids=lambda x: ascii(x)[:60])
def test_a_field_of_the_wrong_kind_is_one_line_with_its_file_and_name(
        folder, file, changes, message):
    """70 of 318 damaged files ended in a traceback, 6 of them for want of memory."""
    if file == INDEX:
        shard(folder)
    elif not (folder / file).exists():
        (folder / file).write_text("{}")
    edit(folder / file, **changes)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=message) as raised:
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
