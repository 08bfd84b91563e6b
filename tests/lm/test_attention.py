"""minirl/lm/attention.py: grouped heads, and the forms that attention takes."""

import math

import pytest
import torch

from minirl.lm import attention
from minirl.lm.attention import attend, hide


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("short", [64, 0])
def test_grouped_attention_equals_repeated_heads(queries, short, monkeypatch):
    """Heads 0, 1 share key head 0 and heads 2, 3 share key head 1: a transposed grouping
    (0, 2 / 1, 3) has the same shapes."""
    monkeypatch.setattr(attention, "SHORT", short)    # 0: the fused call, as on a GPU
    q, k, v = (randn(2, heads, 5, 6, seed=heads) for heads in (4, 2, 2))
    q = q[:, :, 5 - queries:]
    expected = torch.empty_like(q)
    for b in range(2):
        for h in range(4):
            for t in range(queries):
                seen = 5 - queries + t + 1
                weights = (k[b, h // 2, :seen] @ q[b, h, t] / math.sqrt(6)).softmax(0)
                expected[b, h, t] = weights @ v[b, h // 2, :seen]
    nothing_hidden = None if queries == 5 else hide(torch.zeros(2, 1, 1, 5, dtype=torch.bool))
    for bias in (None, nothing_hidden):
        torch.testing.assert_close(attend(q, k, v, bias), expected)


@torch.no_grad()
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("query_dtype, key_dtype, atol", [
    (torch.float64, torch.float64, 1e-12),
    (torch.float32, torch.float32, 1e-6),
    (torch.bfloat16, torch.bfloat16, 2e-2),
    (torch.float32, torch.bfloat16, 1e-6),
], ids=str)
def test_one_query_in_the_form_for_a_compiler(heads, hidden, query_dtype, key_dtype, atol,
                                              monkeypatch):
    """The numbers of the two products, in the dtype of the query; keys in bfloat16 are read as they
    are, and nothing is rounded on the way."""
    q = randn(3, 4, 1, 6).to(query_dtype)
    k, v = (randn(3, heads, 7, 6, seed=seed).to(key_dtype) for seed in (1, 2))
    bias = None
    if hidden:
        bias = hide(torch.arange(7) < torch.tensor([[0], [3], [6]]))[:, None, None]
    expected = attend(q.double(), k.double(), v.double(), bias)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    got = attend(q, k, v, bias)
    assert got.dtype == query_dtype and got.shape == q.shape
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("allowed", [False, True])
def test_no_shape_is_planned_by_cudnn(allowed, monkeypatch):
    """On a Hopper GPU torch prefers cuDNN, which plans each new shape for about a second: of the
    steps of 0.1 s, one in six took 1.05 s. Afterwards the caller's setting is as before."""
    fused, enabled = attention.F.scaled_dot_product_attention, []

    def noting_fused(*args, **options):
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return fused(*args, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", noting_fused)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        attend(*(randn(1, 1, attention.SHORT + 1, 2) for _ in range(3)), None)
        assert enabled == [False] and torch.backends.cuda.cudnn_sdp_enabled() == allowed
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
