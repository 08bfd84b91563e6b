"""minirl/lm/precision.py: devices and lower precision."""

import warnings

import pytest
import torch

from minirl.lm.logprobs import linear_logprobs, token_logprobs
from minirl.lm.precision import compute_in, pick_device, slowdown

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_pick_device(monkeypatch):
    assert pick_device("cpu") == CPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == CUDA and pick_device("cpu") == CPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(ValueError, match="'cuda'.*--device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:0"])
def test_an_unknown_device_raises(name):
    with pytest.raises(ValueError, match=f"device is '{name}': auto, cpu or cuda"):
        pick_device(name)


@pytest.mark.parametrize("name", ["half", "bf16", "", "float64"])
def test_an_unknown_dtype_raises(name):
    with pytest.raises(ValueError, match=f"dtype is '{name}': one of float32, bfloat16"):
        compute_in(name, CPU)


def test_matrix_products_alone_change_their_dtype():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with compute_in("float32", CPU):
            assert layer(x).dtype == torch.float32
        with compute_in("bfloat16", CPU):
            assert layer(x).dtype == torch.bfloat16 and (x + 1).dtype == torch.float32
            with compute_in("float32", CPU):
                assert layer(x).dtype == torch.float32
    assert layer(x).dtype == layer.weight.dtype == torch.float32


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_logprobs_in_bfloat16_stays_near_float32(temperature):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=g).requires_grad_()
    weight = (0.3 * torch.randn(60, 16, generator=g)).requires_grad_()
    targets = torch.randint(60, (40,), generator=g)

    def run():
        logp, entropy = linear_logprobs(hidden, weight, targets, temperature=temperature,
                                        return_entropy=True)
        grads = torch.autograd.grad(logp.sum() + entropy.sum(), [hidden, weight])
        return logp, entropy, *grads

    expected = run()
    with compute_in("bfloat16", CPU):
        got = run()
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32 and a.isfinite().all()
        assert 0 < (a - b).abs().max() < 0.05 * b.abs().max()


def test_a_model_in_bfloat16_trains_float32_weights(model):
    tokens = torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(0))
    expected = token_logprobs(model, tokens)
    with compute_in("bfloat16", CPU):
        logp, entropy = token_logprobs(model, tokens, return_entropy=True)
        (logp.sum() + entropy.sum()).backward()
    assert logp.dtype == torch.float32 and (logp - expected).abs().max() < 0.2
    for p in model.parameters():
        assert p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all()


def test_no_stale_weights_after_an_update_inside_the_context(make_model):
    """Autocast keeps its bfloat16 copy of each weight until the context ends: a loop inside one
    context trained on weights that never changed."""
    model, tokens = make_model("qwen2"), torch.tensor([[1, 2, 3, 4]])
    with compute_in("bfloat16", CPU):
        before = token_logprobs(model, tokens)
        hidden_before = model.hidden(tokens)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        after, hidden_after = token_logprobs(model, tokens), model.hidden(tokens)
    with compute_in("bfloat16", CPU):
        fresh, hidden_fresh = token_logprobs(model, tokens), model.hidden(tokens)
    assert torch.equal(after, fresh) and torch.equal(hidden_after, hidden_fresh)
    assert not torch.equal(after, before) and not torch.equal(hidden_after, hidden_before)


def test_slowdown_is_what_the_clock_says(monkeypatch):
    """On a processor without bfloat16 instructions a run in bfloat16 took several times as long,
    without a word about it."""
    ticks = iter([0, 7, 10, 12, 20, 26, 30, 31])    # two products each: 7 and 2 s, then 6 and 1 s
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert slowdown("bfloat16", size=2, repeats=2) == 2 / 1
    monkeypatch.undo()
    assert 0.2 < slowdown("float32") < 5    # against itself
