"""minirl/lm/logprobs.py: the shift by one, values and gradients against the naive formula, and how
much is held in memory at once."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minirl.lm.logprobs as module
from minirl.lm.logprobs import (
    WORTH_COMPILING,
    chunk_rows,
    first_slot,
    last_slot,
    linear_logprobs,
    rollout_logprobs,
    token_logprobs,
)
from minirl.lm.rollouts import Rollouts, span_mask

LIKELY = 0.9
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class Stub(nn.Module):
    """A model that puts 0.9 on one token of 5 at each slot: e^s / (e^s + 4) = 0.9 for e^s = 36."""

    def __init__(self, following):
        super().__init__()
        self.states = nn.Parameter(torch.eye(5)[following])  # (B, T, 5)
        self.lm_head = nn.Linear(5, 5, bias=False)
        self.lm_head.weight.data = math.log(36) * torch.eye(5)

    def hidden(self, tokens):
        return self.states[:, :tokens.shape[1]]

    def slots_with_gradient(self):
        return (self.states.grad.abs().sum(-1) > 0).int().tolist()


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest tensor has that any operation makes; of a view its
    whole storage counts."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage().nbytes() // x.itemsize
                self.numel = max(self.numel, x.numel(), storage)
        return out


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive(hidden, weight, targets, temperature=1.0):
    log_p = (hidden @ weight.T / temperature).log_softmax(-1)
    return log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(-1)


def problem(N, d, V, *, dtype=torch.float64, seed=0, scale=1.0):
    g = generator(seed)
    hidden = torch.randn(N, d, generator=g, dtype=dtype) * scale
    weight = torch.randn(V, d, generator=g, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (N,), generator=g)


# the shift by one

def test_the_log_prob_of_token_t_stands_at_slot_t():
    """Logits compared with the token that made them, not with the next one, is the most frequent
    bug of all: it reads 0.025 here, not 0.9."""
    following = torch.tensor([[1, 2, 3, 4, 0, 2], [4, 4, 1, 0, 3, 2]])    # the likely next token
    tokens = torch.cat([torch.tensor([[2], [0]]), following[:, :-1]], dim=1)
    expected = torch.full((2, 6), math.log(LIKELY))
    expected[:, 0] = 0
    torch.testing.assert_close(token_logprobs(Stub(following), tokens), expected)
    tokens[1, 3] = 2    # one token of row 1 is not the likely one: 0.1 / 4
    expected[1, 3] = math.log((1 - LIKELY) / 4)
    torch.testing.assert_close(token_logprobs(Stub(following), tokens), expected)


def test_prompt_states_but_the_last_and_padding_get_no_gradient():
    """Row 0: prompt 2, completion 3, one slot of padding. Row 1: prompt 3, completion 3. States
    1..3 and 2..4 predict the sampled tokens."""
    model = Stub(torch.zeros(2, 6, dtype=torch.long))
    tokens = torch.randint(5, (2, 6), generator=generator())
    mask = span_mask(torch.tensor([2, 3]), torch.tensor([5, 6]), 6)
    token_logprobs(model, tokens, mask=mask).sum().backward()
    assert model.slots_with_gradient() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]


def test_tool_output_in_the_middle_gets_no_gradient():
    model = Stub(torch.zeros(1, 6, dtype=torch.long))
    mask = torch.tensor([[False, False, True, False, False, True]])
    logp = token_logprobs(model, torch.tensor([[1, 2, 3, 4, 0, 1]]), mask=mask)
    logp.sum().backward()
    assert ((logp != 0) == mask).all()
    assert model.slots_with_gradient() == [[0, 1, 0, 0, 1, 0]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_token_logprobs_equals_log_softmax_and_gather(model, temperature):
    tokens = torch.randint(23, (3, 9), generator=generator())
    log_p = (model(tokens) / temperature).log_softmax(-1)  # (B, T, V)
    expected, entropy = torch.zeros(3, 9), torch.zeros(3, 9)
    for b in range(3):
        for t in range(1, 9):
            expected[b, t] = log_p[b, t - 1, tokens[b, t]]
            entropy[b, t] = -(log_p[b, t - 1].exp() * log_p[b, t - 1]).sum()
    every = token_logprobs(model, tokens, temperature=temperature)
    torch.testing.assert_close(every, expected, **CLOSE)
    mask = torch.rand(3, 9, generator=generator(1)) < 0.5
    mask[:, 0] = False
    logp, ent = token_logprobs(model, tokens, mask=mask, temperature=temperature,
                               return_entropy=True)
    torch.testing.assert_close(logp, expected * mask, **CLOSE)
    torch.testing.assert_close(ent, entropy * mask, **CLOSE)
    of_floats = token_logprobs(model, tokens, mask=mask.float(), temperature=temperature)
    assert torch.equal(of_floats, logp)


def test_right_padding_changes_no_log_prob(model):
    tokens = torch.randint(23, (2, 9), generator=generator())
    mask = span_mask(torch.tensor([1, 3]), torch.tensor([6, 6]), 9)
    other = torch.cat([tokens[:, :6], torch.full((2, 3), 22)], dim=1)
    a, b = (token_logprobs(model, x, mask=mask) for x in (tokens, other))
    torch.testing.assert_close(a, b, **CLOSE)


def test_rows_of_many_lengths_see_only_themselves(model):
    """Rows of 3 to 20 tokens are one list of tokens while they are computed. Each must read as if
    it stood alone: positions, attention and gradient."""
    ends = [20, 3, 5, 9, 4, 7, 11, 3]
    tokens = torch.randint(23, (8, 20), generator=generator())
    mask = span_mask(torch.full((8,), 2), torch.tensor(ends), 20)
    weight = torch.randn(8, 20, generator=generator(1))
    parameters = list(model.parameters())
    computed = []
    model.register_forward_pre_hook(lambda module, args: computed.append(args[0].shape))
    together = token_logprobs(model, tokens, mask=mask)
    # 20 + 3 + 5 + 9 + 4 + 7 + 11 + 3, and no row's last token
    assert computed == [(54,)]
    grads = torch.autograd.grad((weight * together).sum(), parameters)
    alone = [token_logprobs(model, tokens[i:i + 1, :end], mask=mask[i:i + 1, :end])[0]
             for i, end in enumerate(ends)]
    for i, row in enumerate(alone):
        torch.testing.assert_close(together[i, :len(row)], row, **CLOSE)
    total = sum((weight[i, :len(row)] * row).sum() for i, row in enumerate(alone))
    for a, b in zip(grads, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_mask_that_asks_for_nothing_gives_zeros_and_zero_gradients(make_model):
    model = make_model("untied")
    logp = token_logprobs(model, torch.ones(2, 4, dtype=torch.long), mask=torch.zeros(2, 4))
    assert torch.equal(logp, torch.zeros(2, 4))
    logp.sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


# against the naive formula

@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("N, V", [(1, 7), (2, 7), (5, 7), (17, 3), (33, 1)])
def test_values_and_gradients_equal_the_naive_formula(N, V, temperature):
    hidden, weight, targets = problem(N, 4, V)
    a, b = torch.randn(2, N, dtype=torch.float64, generator=generator(1))
    got = linear_logprobs(hidden, weight, targets, temperature=temperature, return_entropy=True)
    expected = naive(hidden, weight, targets, temperature)
    torch.testing.assert_close(got, expected)
    losses = [
        lambda logp, entropy: (a * logp).sum() + (b * entropy).sum(),
        lambda logp, entropy: (a * logp).sum(),
        lambda logp, entropy: (b * entropy).sum(),
    ]
    for loss in losses:
        grads = [torch.autograd.grad(loss(*results), [hidden, weight], retain_graph=True)
                 for results in (got, expected)]
        torch.testing.assert_close(*grads)
    alone = linear_logprobs(hidden, weight, targets, temperature=temperature)
    assert torch.equal(alone, got[0])


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradcheck(temperature, fast):
    hidden, weight, targets = problem(5, 3, 6)

    def function(h, w):
        return linear_logprobs(h, w, targets, temperature=temperature, return_entropy=True)

    assert torch.autograd.gradcheck(function, (hidden, weight), fast_mode=fast)


def test_a_second_derivative_is_refused_or_right_but_never_wrong():
    """The backward pass is written by hand: differentiated once more, it takes what it saved for
    constants."""
    hidden, weight, targets = problem(5, 3, 6)
    expected = naive(hidden, weight, targets)[0].sum()
    logp = linear_logprobs(hidden, weight, targets).sum()
    first, = torch.autograd.grad(expected, hidden, create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), hidden)
    ours, = torch.autograd.grad(logp, hidden, create_graph=True)
    try:
        ours, = torch.autograd.grad(ours.square().sum(), hidden)
    except RuntimeError:
        return
    torch.testing.assert_close(ours, second)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(frozen):
    parts = list(problem(5, 3, 6))
    parts[frozen] = parts[frozen].detach()
    linear_logprobs(*parts).sum().backward()
    assert parts[frozen].grad is None and parts[1 - frozen].grad.abs().sum() > 0


def test_no_rows_give_no_log_probs():
    hidden, weight, targets = problem(0, 4, 7)
    logp, entropy = linear_logprobs(hidden, weight, targets, return_entropy=True)
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, 4)
    assert torch.equal(weight.grad, torch.zeros(7, 4, dtype=torch.float64))


def test_inputs_are_unchanged():
    inputs = problem(6, 4, 7)
    before = [x.detach().clone() for x in inputs]
    linear_logprobs(*inputs, temperature=0.5).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(before, inputs, strict=True))


def test_bfloat16_inputs_give_float32_log_probs():
    hidden, weight, targets = problem(16, 8, 50)
    expected = naive(hidden, weight, targets)
    low = [x.detach().to(torch.bfloat16).requires_grad_() for x in (hidden, weight)]
    logp, entropy = linear_logprobs(*low, targets, return_entropy=True)
    assert logp.dtype == entropy.dtype == torch.float32
    assert logp.isfinite().all() and entropy.isfinite().all()
    torch.testing.assert_close((logp.double(), entropy.double()), expected, atol=0.1, rtol=0.02)
    (logp.sum() + entropy.sum()).backward()
    assert all(x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in low)


def test_logits_of_ten_thousand_are_finite():
    """exp(10000) is infinite: a softmax without the largest logit taken out, or 0 * log 0 in the
    entropy, gives NaN.

    Two likeliest ids: log 1/2 = -0.6931. One: 0. The least likely: -20000.6931. float32 numbers
    near 10000 are 0.001 apart.
    """
    hidden = torch.tensor([[1e4], [-1e4], [1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0], [1.0]], requires_grad=True)
    logp, entropy = linear_logprobs(hidden, weight, torch.tensor([0, 1, 1]), return_entropy=True)
    torch.testing.assert_close(logp, torch.tensor([-0.6931, 0.0, -20000.6931]), atol=2e-3, rtol=0)
    torch.testing.assert_close(entropy, torch.tensor([0.6931, 0.0, 0.6931]), atol=2e-3, rtol=0)
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


# memory

@pytest.mark.parametrize("N, V, share", [(64, 40_000, 8), (64, 1_000, 2), (3, 5_000, 1.5)])
def test_no_tensor_of_all_logits_is_ever_made(N, V, share):
    """2 x 256 tokens of a 151,936-word vocabulary are 310 MB of logits in float32, and autograd
    keeps them twice."""
    hidden, weight, targets = problem(N, 2, V, dtype=torch.float32)
    with LargestTensor() as forward:
        logp, entropy = linear_logprobs(hidden, weight, targets, temperature=0.9,
                                        return_entropy=True)
    with LargestTensor() as backward:
        (logp.sum() + entropy.sum()).backward()
    assert weight.numel() <= forward.numel <= N * V / share
    assert weight.numel() <= backward.numel <= N * V / share
    with LargestTensor() as control:    # the naive formula, to see that the meter works
        sum(x.sum() for x in naive(hidden, weight, targets)).backward()
    assert control.numel >= N * V


@pytest.mark.parametrize("rows, vocab, device, expected", [
    (16_384, 151_936, "cpu", 110),        # 2^24 logits
    (65_536, 151_936, "cuda", 3533),      # 2^29 logits
    (65_536, 151_936, "elsewhere", 3533),
    (100_000, 64, "cpu", 12_500),         # an eighth of the rows
    (10_000, 64, "cpu", 4096),            # 2^18 logits, where an eighth is less
    (101, 64, "cpu", 51),                 # half of the rows
    (9, 200_000, "cpu", 2),               # an eighth, rounded up
    (1, 10 ** 9, "cpu", 1),
    (0, 64, "cpu", 1),
])
def test_the_size_of_a_chunk(rows, vocab, device, expected):
    """The times in RESULTS.md are measured with it, and with what is worth compiling."""
    assert chunk_rows(rows, vocab, device) == expected
    assert WORTH_COMPILING == 2 ** 26


@pytest.mark.parametrize("worth, expected", [(70, ["statistics", "gradient"]), (71, [])])
def test_what_is_worth_compiling_is_compiled_both_ways(worth, expected, monkeypatch):
    """Ten rows of seven logits, in chunks of five rows; the compiled functions stand in for
    themselves."""
    calls = []

    def instead(name):
        plain = getattr(module, f"_{name}")
        monkeypatch.setattr(module, f"_compiled_{name}",
                            lambda *args: calls.append(name) or plain(*args))

    instead("statistics")
    instead("gradient")
    monkeypatch.setattr(module, "WORTH_COMPILING", worth)
    hidden, weight, targets = problem(10, 3, 7)
    logp = linear_logprobs(hidden, weight, targets)
    logp.sum().backward()
    assert list(dict.fromkeys(calls)) == expected
    torch.testing.assert_close(logp, naive(hidden, weight, targets)[0])


def test_a_smaller_last_chunk_has_its_own_memory():
    """Eleven rows in chunks of six and five. Where `out` has another shape, torch warns and makes
    it anew."""
    hidden, weight, targets = problem(11, 3, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logp = linear_logprobs(hidden, weight, targets)
        logp.sum().backward()
    torch.testing.assert_close(logp, naive(hidden, weight, targets)[0])


def test_an_entropy_that_is_only_reported_costs_no_backward(monkeypatch):
    from_entropy = []
    gradient = module._gradient
    monkeypatch.setattr(module, "_gradient",
                        lambda *args: from_entropy.append(args[-1]) or gradient(*args))
    logp, entropy = linear_logprobs(*problem(10, 3, 7), return_entropy=True)
    logp.sum().backward(retain_graph=True)
    assert from_entropy == [None, None]
    (logp + entropy).sum().backward()
    assert None not in from_entropy[2:] and len(from_entropy) == 4


# errors

@pytest.mark.parametrize("hidden, weight, targets", [
    ((4, 3), (7, 2), (4,)),
    ((4, 3), (7, 3), (5,)),
    ((2, 2, 3), (7, 3), (2,)),
    ((4, 3), (7,), (4,)),
    ((4, 3), (7, 3), (4, 1)),
], ids=str)
def test_wrong_shapes_raise(hidden, weight, targets):
    with pytest.raises(ValueError, match=r"\(N, d\), \(V, d\) and \(N,\)"):
        linear_logprobs(torch.zeros(hidden), torch.zeros(weight),
                        torch.zeros(targets, dtype=torch.long))


@pytest.mark.parametrize("targets", [[0, 7], [-1, 0], [-100, 0]], ids=str)
def test_a_target_outside_the_vocabulary_raises(targets):
    """-100, the ignored label of other libraries, would count from the end."""
    with pytest.raises(ValueError, match=f"{min(targets)} to {max(targets)}"):
        linear_logprobs(torch.zeros(2, 3), torch.zeros(7, 3), torch.tensor(targets))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_not_positive_raises(make_model, temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}"):
        linear_logprobs(torch.zeros(2, 3), torch.zeros(7, 3), torch.zeros(2, dtype=torch.long),
                        temperature=temperature)
    with pytest.raises(ValueError, match=f"temperature is {temperature}"):
        token_logprobs(make_model(), torch.zeros(1, 3, dtype=torch.long), temperature=temperature)


def test_a_wrong_mask_raises(make_model):
    tokens = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="slot 0"):
        token_logprobs(make_model(), tokens, mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="slot 0"):    # of one row
        token_logprobs(make_model(), tokens, mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    for shape in ((2, 3), (1, 4), (2,)):
        with pytest.raises(ValueError, match=r"mask .* and tokens \(2, 4\)"):
            token_logprobs(make_model(), tokens, mask=torch.zeros(shape))


# frozen columns

@pytest.mark.parametrize("token_budget", [1, 45, 10_000])
def test_rollout_logprobs_do_not_depend_on_the_token_budget(model, token_budget):
    starts, ends = torch.tensor([2, 5, 1, 3, 3, 7]), torch.tensor([4, 12, 9, 4, 12, 8])
    mask = span_mask(starts, ends, 12)
    tokens = torch.randint(23, (6, 12), generator=generator())
    rollouts = Rollouts(tokens, mask, starts, torch.zeros(6, 12), torch.zeros(6, dtype=torch.bool))
    frozen = rollout_logprobs(model, rollouts, temperature=0.8, token_budget=token_budget)
    assert not frozen.requires_grad    # a column that the update may not touch
    expected = token_logprobs(model, tokens, mask=mask, temperature=0.8)
    torch.testing.assert_close(frozen, expected, **CLOSE)
    plain = rollout_logprobs(model, rollouts, token_budget=token_budget)
    torch.testing.assert_close(plain, token_logprobs(model, tokens, mask=mask), **CLOSE)


def test_first_and_last_slots():
    """A row without any has 0 twice; gaps do not count."""
    slots = torch.tensor([[0, 1, 0, 1, 0], [0] * 5, [1] * 5, [0, 0, 0, 0, 1]]).bool()
    assert first_slot(slots).tolist() == [1, 0, 0, 4]
    assert last_slot(slots).tolist() == [3, 0, 4, 4]
