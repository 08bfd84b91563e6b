"""Published models: their config.json, their tokenizer, and the shapes of their weights, scaled
down; SmolLM2 with its own weights. Logits and continuations are those of transformers.

The configurations are as published, in the form of their time, but for the sizes. Weights are
random, and large enough that every part of the model matters.
"""

import json
import shutil

import pytest
import torch

from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.sampling import sample
from tests.parity.real_files import smollm2, tokenizer_files

transformers = pytest.importorskip("transformers")

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
         "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1,
         "rms_norm_eps": 1e-05, "use_cache": True, "initializer_range": 0.02}
LLAMA3 = LLAMA | {
    "vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"}}
QWEN = {"hidden_act": "silu", "attention_dropout": 0.0, "rms_norm_eps": 1e-06, "use_cache": True,
        "initializer_range": 0.02, "use_sliding_window": False, "torch_dtype": "bfloat16",
        "bos_token_id": 151643, "eos_token_id": 151645, "rope_theta": 1000000.0}
QWEN2 = QWEN | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
                "max_position_embeddings": 32768, "sliding_window": 32768, "max_window_layers": 21}
QWEN3 = QWEN | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
                "max_position_embeddings": 40960, "sliding_window": None, "max_window_layers": 28,
                "attention_bias": False, "rope_scaling": None, "head_dim": 128}
STOPS = {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643}


def sizes(layers, hidden, intermediate, heads, kv_heads):
    """Return the sizes: 2 layers instead of 16 to 36, and a narrower model."""
    return {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads}


# name: the tokenizer, config.json, generation_config.json
MODELS = {
    "Llama-2-7b": ("llama2", LLAMA | sizes(2, 512, 1376, 4, 4) | {
        "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096,
        "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16"}, None),
    "Llama-3.1-8B-Instruct": ("llama3_1", LLAMA3 | sizes(2, 256, 896, 8, 2) | {
        "tie_word_embeddings": False,
        "rope_scaling": LLAMA3["rope_scaling"] | {"factor": 8.0}}, None),
    "Llama-3.2-1B-Instruct": ("llama3_1", LLAMA3 | sizes(2, 256, 1024, 4, 1) | {
        "tie_word_embeddings": True, "head_dim": 64},
        {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]}),
    "Qwen2.5-0.5B-Instruct": ("qwen3", QWEN2 | sizes(2, 224, 1216, 7, 1) | {
        "vocab_size": 151936, "tie_word_embeddings": True}, STOPS),
    "Qwen2-7B-Instruct": ("qwen3", QWEN2 | sizes(2, 224, 1184, 7, 1) | {
        "vocab_size": 152064, "tie_word_embeddings": False, "sliding_window": 131072,
        "max_window_layers": 28}, STOPS),
    "Qwen3-0.6B": ("qwen3", QWEN3 | sizes(2, 256, 768, 4, 2) | {
        "vocab_size": 151936, "tie_word_embeddings": True}, STOPS),
    "Qwen3-8B": ("qwen3", QWEN3 | sizes(2, 256, 768, 8, 2) | {
        "vocab_size": 151936, "tie_word_embeddings": False}, STOPS),
}
PROMPTS = ["What is 12 + 30 = ", "안녕하세요! 오늘의 날씨는",
           "def fib(n):\n    if n < 2:\n        return n\n",
           "<think>\nFirst, 7 * 8 is 56, and 1234567 is",
           "e\u0301 naïve café — “quoted”, 😀\n\n\n "]
NEW = 16
TOLERANCE = 2e-4


def random_model(folder, config):
    """Write weights of the shapes of a config.json, in its dtype, and the config.json itself."""
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.uniform_(0.5, 1.5)
            elif p.dim() == 1:                             # biases of queries, keys and values
                p.normal_(std=0.5)
            else:
                p.normal_(std=2.0 * p.shape[1] ** -0.5)
    dtype = getattr(torch, config["torch_dtype"])
    model.to(dtype).save_pretrained(folder, max_shard_size="60MB")
    file.write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").unlink(missing_ok=True)


@pytest.fixture(scope="module", params=[*MODELS, "SmolLM2-135M-Instruct"])
def folder(request, tmp_path_factory):
    if request.param not in MODELS:
        return smollm2()
    tokenizer, config, generation = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(tokenizer_files(tokenizer), folder, dirs_exist_ok=True)
    random_model(folder, config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def both(folder):
    """Our model and tokenizer, and theirs, in float32."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return (*load_pretrained(folder, dtype=torch.float32), theirs,
            transformers.AutoTokenizer.from_pretrained(folder))


def padded_left(rows, pad):
    """Return ids and attention mask, (B, T) each, of rows of several lengths."""
    T = max(map(len, rows))
    ids = torch.tensor([[pad] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def test_the_logits_are_theirs(both):
    ours, tokenizer, theirs, their_tokenizer = both
    largest = 0.0
    for text in PROMPTS:
        ids = tokenizer.encode_prompt(text)
        assert ids == their_tokenizer.encode(text)
        logits, expected = ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        largest = max(largest, float(expected.std(-1).max()))
    assert largest > 1, "logits that hardly differ would agree in any model"


def their_continuations(model, prompts, pad, stops, **options):
    """Return what `generate` puts after each prompt, up to and with a stop."""
    ids, mask = padded_left(prompts, pad)
    rows = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, pad_token_id=pad,
                          eos_token_id=stops, repetition_penalty=1.0, **options)
    continuations = []
    for row in rows[:, ids.shape[1]:].tolist():
        end = next((t + 1 for t, i in enumerate(row) if i in stops), len(row))
        continuations.append(row[:end])
    return continuations


def test_greedy_continuations_are_theirs_token_for_token(both):
    ours, tokenizer, theirs, _ = both
    prompts = [tokenizer.encode_prompt(text) for text in PROMPTS]
    rollouts = sample(ours, prompts, max_new_tokens=NEW, temperature=0, eos_id=tokenizer.stop_ids,
                      pad_id=tokenizer.pad_id)
    continuations = their_continuations(theirs, prompts, tokenizer.pad_id, tokenizer.stop_ids,
                                        do_sample=False)
    assert rollouts.completion_ids() == continuations
    assert len({i for row in continuations for i in row}) > 20, "one token over and over"


def drawing(uniform):
    """Return a torch.multinomial that inverts the cumulative distribution at given numbers."""
    numbers = iter(uniform)                                # a row of the batch's for each token

    def multinomial(p, num_samples):
        cumulative = p.cumsum(-1)
        u = next(numbers) * cumulative[:, -1]
        return torch.searchsorted(cumulative, u[:, None], right=True)

    return multinomial


@pytest.mark.parametrize("choice", [
    {"temperature": 0.8, "top_k": 40, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.9},
], ids=str)
def test_sampled_continuations_are_theirs_token_for_token(both, monkeypatch, choice):
    """`generate` gets the uniform numbers that decide our draws; warping, padding, the cache and
    the stops are its own."""
    ours, tokenizer, theirs, _ = both
    prompts, group = [tokenizer.encode_prompt(text) for text in PROMPTS], 2
    rollouts = sample(ours, prompts, group=group, max_new_tokens=NEW, eos_id=tokenizer.stop_ids,
                      pad_id=tokenizer.pad_id, generator=torch.Generator().manual_seed(7), **choice)
    uniform = torch.rand(NEW, group * len(prompts), generator=torch.Generator().manual_seed(7))
    monkeypatch.setattr(torch, "multinomial", drawing(uniform))
    continuations = their_continuations(theirs, prompts, tokenizer.pad_id, tokenizer.stop_ids,
                                        do_sample=True, num_return_sequences=group, **choice)
    assert rollouts.completion_ids() == continuations
    pairs = zip(continuations[::2], continuations[1::2], strict=True)
    assert sum(a != b for a, b in pairs) > 2, "the draws matter"


@torch.no_grad()
def test_what_we_save_is_the_same_model_to_them(both, tmp_path):
    ours, tokenizer, theirs, their_tokenizer = both
    save_pretrained(ours, tokenizer, tmp_path)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True)
    assert not any(report[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in PROMPTS:
        ids = saved.encode(text)
        assert ids == their_tokenizer.encode(text)
        assert torch.equal(again(torch.tensor([ids])).logits, theirs(torch.tensor([ids])).logits)
