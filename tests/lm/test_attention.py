"""Where tokens meet: grouped heads, shared prompts, and any mixture of lengths, against rows that stand alone."""

import math

import pytest
import torch

from minirl.lm import attention
from minirl.lm.attention import attend, take
from minirl.lm.logprobs import token_logprobs


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


def test_similar_lengths_by_hand():
    """Two rows of 10 and two of 2: together 4 * 100, apart 2 * 100 + 2 * 4. Rows of almost one length stay together."""
    assert [rows.tolist() for rows in attention.similar(torch.tensor([2, 10, 2, 10]))] == [[1, 3], [0, 2]]
    assert [rows.tolist() for rows in attention.similar(torch.tensor([9, 10, 9, 10]))] == [[0, 1, 2, 3]]
    assert [rows.tolist() for rows in attention.similar(torch.tensor([5]))] == [[0]]


def test_a_shared_prompt_is_computed_once_and_gets_every_gradient(make_model):
    """Rows 0, 1 and 3 begin alike, row 2 does not; each of 3 + 2 + 4 + 1 completions. As if every row stood alone, in values and gradients."""
    model, T = make_model(), 9
    tokens = torch.randint(23, (4, T), generator=generator())
    tokens[1, :4] = tokens[3, :4] = tokens[0, :4]
    ends = torch.tensor([7, 6, 8, 5])
    mask = (torch.arange(T) >= 4) & (torch.arange(T) < ends[:, None])
    computed = []
    inner, model.hidden_of = model.hidden_of, lambda ids, context: (computed.append(len(ids)), inner(ids, context))[1]
    weight = torch.randn(4, T, generator=generator(1))
    got = token_logprobs(model, tokens, mask=mask)
    assert computed == [2 * 4 + 2 + 1 + 3 + 0]                             # two prompts of 4, and each completion but its last token
    grads = torch.autograd.grad((weight * got).sum(), list(model.parameters()))
    alone = [token_logprobs(model, tokens[i:i + 1], mask=mask[i:i + 1]) for i in range(4)]
    torch.testing.assert_close(got, torch.cat(alone), atol=1e-5, rtol=1e-5)
    for a, b in zip(grads, torch.autograd.grad((weight * torch.cat(alone)).sum(), list(model.parameters()))):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("short", [0, 12, 64])
def test_any_batch_reads_as_if_every_row_stood_alone(make_model, monkeypatch, seed, short):
    """Prompts shared by 1 to 5 rows, completions of 0 to 20 tokens, some rows asked for nothing; attention by plain products, fused, or both."""
    monkeypatch.setattr(attention, "SHORT", short)
    g = generator(seed)
    model = make_model("qwen3").double()
    prompts = [torch.randint(23, (int(n),), generator=g) for n in torch.randint(1, 9, (4,), generator=g)]
    which, T = torch.randint(4, (12,), generator=g), 30
    tokens, mask = torch.randint(23, (12, T), generator=g), torch.zeros(12, T, dtype=torch.bool)
    for b, p in enumerate(which.tolist()):
        tokens[b, :len(prompts[p])] = prompts[p]
        mask[b, len(prompts[p]):len(prompts[p]) + int(torch.randint(21, (), generator=g))] = True
    mask &= torch.rand(12, T, generator=g) < 0.9                           # gaps, as tool output leaves them
    weight = torch.randn(12, T, generator=g).double()
    got = token_logprobs(model, tokens, mask=mask)
    want = torch.cat([token_logprobs(model, tokens[b:b + 1], mask=mask[b:b + 1]) for b in range(12)])
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad((weight * x).sum(), list(model.parameters())) for x in (got, want))):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


# taking rows

@pytest.mark.parametrize("there", [[], [0, 1, 2], [2, 2, 2, 0], [1], [3, 3, 0, 3, 1, 1]])
def test_taken_rows_and_their_gradient_are_those_of_indexing(there):
    there = torch.tensor(there, dtype=torch.long)
    x, weight = torch.randn(4, 3, dtype=torch.double, requires_grad=True), torch.randn(len(there), 3, dtype=torch.double)
    assert torch.equal(take(x, there), x[there])
    ours, theirs = (torch.autograd.grad((rows * weight).sum(), x)[0] for rows in (take(x, there), x[there]))
    torch.testing.assert_close(ours, theirs)


def test_a_row_that_is_taken_often_has_the_same_gradient_every_time():
    """The state before a completion's first token belongs to every row with that prompt. Indexing adds their gradients up as threads come, and two runs of
    one seed drifted apart from the first step in which a prompt was shared by three rows (two additions commute)."""
    g = torch.Generator().manual_seed(0)
    x, there = torch.randn(64, 96, generator=g).requires_grad_(), torch.randint(8, (20_000,), generator=g)
    weight = torch.randn(20_000, 96, generator=g)
    first = torch.autograd.grad((take(x, there) * weight).sum(), x)[0]
    for _ in range(10):
        assert torch.equal(torch.autograd.grad((take(x, there) * weight).sum(), x)[0], first)
