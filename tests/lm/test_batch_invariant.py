"""minirl/lm/batch_invariant.py: sampler and learner agree to the bit."""

import pytest
import torch
import torch.nn.functional as F

from minirl.lm import batch_invariant as module
from minirl.lm.attention import Rows, attend
from minirl.lm.batch_invariant import KEYS, QUERIES, ROWS, active, batch_invariant, filled
from minirl.lm.emulation import Emulated
from minirl.lm.logprobs import linear_logprobs, rollout_logprobs, token_logprobs
from minirl.lm.precision import DTYPES, compute_in
from minirl.lm.sampling import sample
from tests.lm.models import VARIANTS, build_model

CPU = torch.device("cpu")
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [1, 2, 3]]    # three lengths: padding


def rollouts_of(model, *, temperature=1.0, prompts=PROMPTS, **options):
    """20 rows of which most end on the way, so that the batch shrinks while they are sampled."""
    return sample(model, prompts, group=5, max_new_tokens=40, eos_id=[0, 1], pad_id=0,
                  temperature=temperature, generator=torch.Generator().manual_seed(1), **options)


def gap(rollouts, logp):
    return float((logp.detach() - rollouts.behavior_logp).abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ratio_is_one_to_the_bit(variant, dtype):
    """In every family and dtype, behind padding, after rows have ended, and at a temperature."""
    model = build_model(variant)
    with compute_in(dtype, CPU):
        plain = rollouts_of(model, temperature=0.8)
        far = gap(plain, token_logprobs(model, plain.tokens, mask=plain.mask, temperature=0.8))
    with compute_in(dtype, CPU, batch_invariant=True):
        rollouts = rollouts_of(model, temperature=0.8)
        logp = token_logprobs(model, rollouts.tokens, mask=rollouts.mask, temperature=0.8)
    assert gap(rollouts, logp) == 0.0 < far, "without it they differ"
    assert len(rollouts.completion_lengths.unique()) > 5, "rows end and leave"
    assert torch.equal((logp - rollouts.behavior_logp).exp(), torch.ones_like(logp))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_split_of_a_batch_changes_a_bit(dtype):
    """Micro-batches of any size, rows in any order, a row alone, and more padding on the right."""
    model = build_model("grouped")
    with compute_in(dtype, CPU, batch_invariant=True):
        rollouts = rollouts_of(model)
        for budget in (1, 37, 150, 10_000):
            assert gap(rollouts, rollout_logprobs(model, rollouts, token_budget=budget)) == 0.0
        for rows in (torch.tensor([7]), torch.arange(19, -1, -1), torch.tensor([3, 3, 11])):
            part = rollouts.rows(rows)
            wide = F.pad(part.tokens, (0, 15), value=9), F.pad(part.mask, (0, 15))
            logp = token_logprobs(model, wide[0], mask=wide[1])[:, :part.tokens.shape[1]]
            assert gap(part, logp) == 0.0


def test_what_is_sampled_beside_a_row_does_not_change_it():
    """The same draws, alone and as the first of 20 rows: the same tokens and log-probs."""
    model = build_model("qwen3")
    uniform = torch.rand(40, 20, generator=torch.Generator().manual_seed(3))

    def first(rows, monkeypatch):
        monkeypatch.setattr(torch, "rand", lambda *size, **_: uniform[:, :size[1]].clone())
        return sample(model, [[1, 2, 3]] * rows, max_new_tokens=40, eos_id=None, pad_id=0)

    with pytest.MonkeyPatch.context() as patch, batch_invariant():
        alone, beside = first(1, patch), first(20, patch).rows(torch.tensor([0]))
    assert torch.equal(alone.tokens, beside.tokens)
    assert torch.equal(alone.behavior_logp, beside.behavior_logp)


def test_tool_output_and_replies_keep_it():
    def reply(row, ids):
        return [12, 13] if len(ids) < 20 else []

    model = build_model("qwen2")
    with compute_in("bfloat16", CPU, batch_invariant=True):
        rollouts = rollouts_of(model, reply=reply)
        logp = token_logprobs(model, rollouts.tokens, mask=rollouts.mask)
    assert (rollouts.completion_lengths < rollouts.lengths - rollouts.prompt_lengths).any()
    assert gap(rollouts, logp) == 0.0


def test_several_threads_do_not_share_a_row():
    """The sum over the logits of a single row: two threads would take half of it each."""
    x, before = torch.rand(64, 50_000, generator=torch.Generator().manual_seed(0)).exp(), (
        torch.get_num_threads())
    torch.set_num_threads(2)
    try:
        with batch_invariant():
            every, alone = x.sum(-1, keepdim=True), torch.cat(
                [x[i:i + 1].sum(-1, keepdim=True) for i in range(64)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(every, alone)


def test_the_numbers_are_those_of_the_usual_arithmetic():
    """Another order of sums, and no other function: values and gradients."""
    model, tokens = build_model("biased"), torch.randint(2, 23, (3, 40))

    def numbers():
        model.zero_grad()
        logp, entropy = token_logprobs(model, tokens, return_entropy=True)
        (logp + entropy).sum().backward()
        return [logp.detach(), *(p.grad.clone() for p in model.parameters())]

    expected = numbers()
    with batch_invariant():
        got = numbers()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("H, K, T, S", [(4, 4, 1, 1), (4, 2, 1, 33), (6, 2, 9, 9), (4, 1, 70, 70)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_of_scores(H, K, T, S, masked):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, m, 8, generator=g) for n, m in ((H, T), (K, S), (K, S)))
    bias = None
    if masked:
        bias = torch.zeros(3, 1, T, S).masked_fill_(torch.ones(T, S).triu(1 + S - T).bool(), -1e4)
        bias[1, :, :, :S // 3] = float("-inf")
        bias[..., S - 1] = 0.0
    with batch_invariant():
        got = attend(q, k, v, bias)
    torch.testing.assert_close(got, attend(q, k, v, bias), rtol=1e-5, atol=1e-5)


def test_keys_stand_in_the_order_of_positions():
    """Padding on the left would shift every key, and with it the partial sums."""
    with batch_invariant():
        rows = Rows(2, 3, device=CPU, starts=torch.tensor([0, 2]))
    assert rows.order.tolist() == [[0, 1, 2], [2, 2, 2]]
    assert rows.positions.tolist() == [0, 1, 2, 0, 0, 0]
    seen = rows.bias[:, 0] == 0
    assert seen.tolist() == [[[True, False, False], [True, True, False], [True, True, True]],
                             [[True, False, False]] * 3]


def test_products_have_one_shape(monkeypatch):
    shapes = []

    class Seen(module.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in module.LEFT:
                shapes.append(tuple(args[module.LEFT[function.overloadpacket]].shape))
            return function(*args, **kwargs or {})

    weight, bias = torch.randn(5, 8), torch.randn(5)
    with Seen(), batch_invariant():
        for n in (0, 1, ROWS, 2 * ROWS + 1):
            x, out = torch.randn(n, 8), torch.empty(n, 5)
            torch.testing.assert_close(F.linear(x, weight, bias), (x @ weight.T + bias))
            assert torch.mm(x, weight.T, out=out) is out and torch.equal(out, x @ weight.T)
    assert set(shapes) == {(ROWS, 8)}


def test_it_is_on_inside_the_context_alone():
    assert not active()
    with batch_invariant():
        assert active()
        with batch_invariant():
            pass
        assert active()
    assert not active()


def test_filled():
    assert filled(torch.ones(2, 3), 1, 4, -1.0).tolist() == [[1.0, 1.0, 1.0, -1.0]] * 2
    assert filled(torch.ones(2, 3), 0, 4).shape == (4, 3)
    assert filled(torch.ones(0, 3), 0, 4).tolist() == torch.zeros(4, 3).tolist()
    whole = torch.ones(KEYS, QUERIES)
    assert filled(whole, 0, KEYS) is whole


def test_another_dtype_for_the_sampler_is_refused():
    with pytest.raises(ValueError, match="'float16': a sampler that rounds otherwise"):
        compute_in("bfloat16", CPU, sampler="float16", batch_invariant=True)
    with compute_in("bfloat16", CPU, sampler="bfloat16", batch_invariant=True):
        assert active()


def test_it_holds_where_a_dtype_is_emulated():
    model = build_model("grouped")
    with Emulated(), compute_in("bfloat16", CPU, batch_invariant=True):
        rollouts = rollouts_of(model)
        logp = token_logprobs(model, rollouts.tokens, mask=rollouts.mask)
    assert gap(rollouts, logp) == 0.0


def test_the_compiler_is_not_asked(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    model = build_model("grouped")
    model.compiled = True
    with batch_invariant():
        rollouts = rollouts_of(model)
        logp = token_logprobs(model, rollouts.tokens.repeat(8, 1), mask=rollouts.mask.repeat(8, 1))
        assert gap(rollouts, logp[:20]) == 0.0
        linear_logprobs(torch.randn(2048, 4), torch.randn(2 ** 15, 4), torch.zeros(2048).long())
