"""minirl/lm/attention.py: grouped heads, and the forms that attention takes."""

import math

import pytest
import torch

from minirl.lm import attention
from minirl.lm.attention import attend


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("short", [64, 0])
def test_grouped_attention_equals_repeated_heads(queries, short, monkeypatch):
    """Heads 0, 1 share key head 0 and heads 2, 3 share key head 1: a transposed grouping (0, 2 / 1, 3) has the same shapes."""
    monkeypatch.setattr(attention, "SHORT", short)                # 0: the fused call, as on a GPU
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 6, generator=g, dtype=torch.float64) for heads in (4, 2, 2))
    q = q[:, :, 5 - queries:]
    want = torch.empty_like(q)
    for b in range(2):
        for h in range(4):
            for t in range(queries):
                seen = 5 - queries + t + 1
                weights = (k[b, h // 2, :seen] @ q[b, h, t] / math.sqrt(6)).softmax(0)
                want[b, h, t] = weights @ v[b, h // 2, :seen]
    bias = None if queries == 5 else attention.hide(torch.zeros(2, 1, 1, 5, dtype=torch.bool))
    for given in (None, bias):
        torch.testing.assert_close(attend(q, k, v, given), want)


@torch.no_grad()
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("asks, keeps", [("float64", "float64"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_one_query_in_the_form_for_a_compiler(heads, hidden, asks, keeps, monkeypatch):
    """The same numbers as the two products, in the type of the question; keys in bfloat16 are read as they are, and nothing is rounded on the way."""
    asks, keeps = getattr(torch, asks), getattr(torch, keeps)
    q = torch.randn(3, 4, 1, 6, generator=generator()).to(asks)
    k, v = (torch.randn(3, heads, 7, 6, generator=generator(seed)).to(keeps) for seed in (1, 2))
    bias = attention.hide(torch.arange(7) < torch.tensor([[0], [3], [6]]))[:, None, None] if hidden else None
    want = attend(q.double(), k.double(), v.double(), bias)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    got = attend(q, k, v, bias)
    assert got.dtype == asks and got.shape == q.shape
    torch.testing.assert_close(got.double(), want, rtol=0, atol={torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[asks])


@pytest.mark.parametrize("allowed", [False, True])
def test_no_shape_is_planned_by_cudnn(allowed, monkeypatch):
    """On a Hopper GPU torch asks cuDNN first, which plans each new shape for about a second: of a step of 0.1 s, one in six took 1.05 s. What the
    caller has allowed is as before afterwards."""
    fused, asked = attention.F.scaled_dot_product_attention, []
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *a, **k: (asked.append(torch.backends.cuda.cudnn_sdp_enabled()), fused(*a, **k))[1])
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        attend(*(torch.randn(1, 1, attention.SHORT + 1, 2) for _ in range(3)), None)
        assert asked == [False] and torch.backends.cuda.cudnn_sdp_enabled() == allowed
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
