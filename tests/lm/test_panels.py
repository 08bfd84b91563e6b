"""minirl/lm/panels.py: products of a few rows."""

import pytest
import torch
import torch.nn.functional as F

from minirl.lm import panels as module
from minirl.lm.batch_invariant import batch_invariant
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.panels import linear, panels, worth_panels
from minirl.lm.sampling import sample

CPU = torch.device("cpu")


@pytest.mark.parametrize("n, shape", [(384, (2, 5, 192)), (256, (2, 5, 128)), (64, (1, 5, 64)),
                                      (100, (100, 5))])
def test_a_product_with_panels_is_the_product(n, shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 5), torch.randn(n, 5), torch.randn(n)
    own = panels(weight)
    assert own.shape == shape
    torch.testing.assert_close(linear(x, own, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, own), F.linear(x, weight))


def test_only_a_few_rows_of_a_wide_model_in_float32_are_worth_it():
    wide, narrow = (ModelConfig(50, hidden_size=d, num_heads=2) for d in (512, 64))
    assert worth_panels(wide, 8, 48, CPU, torch.float32)
    assert not worth_panels(narrow, 8, 48, CPU, torch.float32)
    assert not worth_panels(wide, 64, 48, CPU, torch.float32)
    assert not worth_panels(wide, 8, 2, CPU, torch.float32)
    assert not worth_panels(wide, 8, 48, CPU, torch.bfloat16)
    assert not worth_panels(wide, 8, 48, torch.device("cuda"), torch.float32)
    with batch_invariant():
        assert not worth_panels(wide, 8, 48, CPU, torch.float32)


@pytest.mark.parametrize("fields", [{}, {"qkv_bias": True, "output_bias": True, "qk_norm": True}])
def test_sampler_with_panels_and_learner_agree(fields, monkeypatch):
    """Rows end at different steps, so that the batch shrinks on the way."""
    monkeypatch.setattr(module, "FEATURES", 1)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(64, hidden_size=64, num_layers=2, num_heads=2,
                                    intermediate_size=128, initializer_range=0.2, **fields))
    calls = []
    monkeypatch.setattr("minirl.lm.cache.panels", lambda x: calls.append(x) or panels(x))
    rollouts = sample(model, [[3, 1, 4], [1, 5]], group=4, max_new_tokens=20, temperature=0.7,
                      eos_id=[7, 8], pad_id=0, generator=torch.Generator().manual_seed(0))
    assert len(calls) == 2 * 4 + 1
    logp = token_logprobs(model, rollouts.tokens, mask=rollouts.mask, temperature=0.7)
    torch.testing.assert_close(logp, rollouts.behavior_logp, atol=1e-5, rtol=0)
    assert len(set(rollouts.completion_lengths.tolist())) > 1
