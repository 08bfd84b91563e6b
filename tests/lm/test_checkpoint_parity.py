"""The same weights give the same logits in Hugging Face transformers, whichever of the two wrote
them. Skipped where it is not installed."""

import pytest
import torch

from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.tokenizer import build_tokenizer
from tests.lm.models import VARIANTS

transformers = pytest.importorskip("transformers")

TOKENIZER = build_tokenizer()
SIZES = {"vocab_size": TOKENIZER.vocab_size, "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 48, "initializer_range": 0.3}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
THEIRS = {
    "llama": ("LlamaConfig", {}),
    "llama tied, theta": ("LlamaConfig", {"tie_word_embeddings": True, "rope_theta": 500.0,
                                          "rms_norm_eps": 1e-3}),
    "llama biased": ("LlamaConfig", {"attention_bias": True}),
    "llama 3.1": ("LlamaConfig", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 12}),
    "qwen3 tied": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
}


def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(TOKENIZER.vocab_size, (2, 40), generator=generator)


def perturbed(model):
    """Norms and biases moved away from their first values of 1 and 0, so that a lost one shows."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape))
    return model


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_they_read_ours(make_model, tmp_path, variant):
    model = make_model(variant, vocab_size=TOKENIZER.vocab_size)
    save_pretrained(model, TOKENIZER, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem]
    t = tokens()[:, :model.config.max_seq_len]
    torch.testing.assert_close(theirs.eval()(t).logits, model(t), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_we_read_theirs(tmp_path, name, shard_size):
    config_class, options = THEIRS[name]
    config = getattr(transformers, config_class)(**SIZES, **options)
    torch.manual_seed(0)
    theirs = perturbed(transformers.AutoModelForCausalLM.from_config(config)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    TOKENIZER.save(tmp_path)
    ours, _ = load_pretrained(tmp_path)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, atol=1e-4, rtol=1e-4)


def test_they_read_our_tokenizer(tmp_path):
    TOKENIZER.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("12 + 345 = 357", "<think>안녕 😀</think><answer>4</answer>", "  two  spaces\n ."):
        assert theirs.encode(text, add_special_tokens=False) == TOKENIZER.encode(text)
        assert theirs.decode(TOKENIZER.encode(text)) == text
    their_ids = theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id
    assert their_ids == (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id)
