"""minirl/lm/distinct.py: shared prompts and rows of any lengths, against rows that stand alone."""

import pytest
import torch

from minirl.lm import attention
from minirl.lm.distinct import similar, take
from minirl.lm.logprobs import token_logprobs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(model, logp, weight):
    return torch.autograd.grad((weight * logp).sum(), list(model.parameters()))


@pytest.mark.parametrize("lengths, pieces", [
    ([2, 10, 2, 10], [[1, 3], [0, 2]]),    # together 4 * 100, apart 2 * 100 + 2 * 4
    ([9, 10, 9, 10], [[0, 1, 2, 3]]),      # rows of almost one length stay together
    ([5], [[0]]),
], ids=str)
def test_similar_lengths_by_hand(lengths, pieces):
    assert [rows.tolist() for rows in similar(torch.tensor(lengths))] == pieces


def test_a_shared_prompt_is_computed_once_and_gets_every_gradient(make_model):
    """Rows 0, 1 and 3 begin alike, row 2 does not; completions of 3, 2, 4 and 1 tokens. Values and
    gradients are as if every row stood alone."""
    model, T = make_model(), 9
    tokens = torch.randint(23, (4, T), generator=generator())
    tokens[1, :4] = tokens[3, :4] = tokens[0, :4]
    ends = torch.tensor([7, 6, 8, 5])
    mask = (torch.arange(T) >= 4) & (torch.arange(T) < ends[:, None])
    computed = []
    model.register_forward_pre_hook(lambda module, args: computed.append(len(args[0])))
    weight = torch.randn(4, T, generator=generator(1))
    together = token_logprobs(model, tokens, mask=mask)
    # two prompts of 4, and each completion but its last token
    assert computed == [2 * 4 + 2 + 1 + 3 + 0]
    grads = gradients(model, together, weight)
    alone = torch.cat([token_logprobs(model, tokens[i:i + 1], mask=mask[i:i + 1])
                       for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    for a, b in zip(grads, gradients(model, alone, weight), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("short", [0, 12, 64])
def test_any_batch_reads_as_if_every_row_stood_alone(make_model, monkeypatch, seed, short):
    """Prompts shared by 1 to 5 rows, completions of 0 to 20 tokens, some rows with nothing under
    the mask; attention by plain products, fused, or both."""
    monkeypatch.setattr(attention, "SHORT", short)
    g = generator(seed)
    model = make_model("qwen3").double()
    prompts = [torch.randint(23, (int(n),), generator=g)
               for n in torch.randint(1, 9, (4,), generator=g)]
    which, T = torch.randint(4, (12,), generator=g), 30
    tokens = torch.randint(23, (12, T), generator=g)
    mask = torch.zeros(12, T, dtype=torch.bool)
    for b, p in enumerate(which.tolist()):
        start = len(prompts[p])
        tokens[b, :start] = prompts[p]
        mask[b, start:start + int(torch.randint(21, (), generator=g))] = True
    mask &= torch.rand(12, T, generator=g) < 0.9    # gaps, as tool output leaves them
    weight = torch.randn(12, T, generator=g).double()
    together = token_logprobs(model, tokens, mask=mask)
    alone = torch.cat([token_logprobs(model, tokens[b:b + 1], mask=mask[b:b + 1])
                       for b in range(12)])
    torch.testing.assert_close(together, alone)
    both = (gradients(model, logp, weight) for logp in (together, alone))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


# taking rows

@pytest.mark.parametrize("there", [[], [0, 1, 2], [2, 2, 2, 0], [1], [3, 3, 0, 3, 1, 1]], ids=str)
def test_taken_rows_and_their_gradient_are_those_of_indexing(there):
    there = torch.tensor(there, dtype=torch.long)
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(len(there), 3, dtype=torch.double)
    assert torch.equal(take(x, there), x[there])
    ours, theirs = (torch.autograd.grad((rows * weight).sum(), x)[0]
                    for rows in (take(x, there), x[there]))
    torch.testing.assert_close(ours, theirs)


def test_a_row_that_is_taken_often_has_the_same_gradient_every_time():
    """The state before a completion's first token belongs to every row with that prompt. Indexing
    adds their gradients up as threads come, and two runs of one seed drifted apart from the first
    step in which three rows shared a prompt (two additions commute)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 96, generator=g).requires_grad_()
    there = torch.randint(8, (20_000,), generator=g)
    weight = torch.randn(20_000, 96, generator=g)
    first = torch.autograd.grad((take(x, there) * weight).sum(), x)[0]
    for _ in range(10):
        again = torch.autograd.grad((take(x, there) * weight).sum(), x)[0]
        assert torch.equal(again, first)
