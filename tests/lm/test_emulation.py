"""minirl/lm/emulation.py: products in a lower precision without instructions for it."""

import pytest
import torch

from minirl.lm import precision
from minirl.lm.emulation import Emulated, has_instructions
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample

CPU = torch.device("cpu")
LOWER = [torch.float16, torch.bfloat16]


def matrices(dtype, *shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g).to(dtype) for shape in shapes]


def near(got, expected, dtype):
    """Equal but for the last bit of few results: where the sums were in another order."""
    assert got.dtype == expected.dtype == dtype
    size = expected.float().abs()
    wrong = (got.float() - expected.float()).abs()
    assert bool((wrong <= torch.finfo(dtype).eps * size + 1e-6 * size.max()).all())
    assert (wrong > 0).float().mean() < 0.02


@pytest.mark.parametrize("dtype", LOWER)
def test_products_are_torchs_but_for_the_order_of_sums(dtype):
    a, b, bias = matrices(dtype, (64, 256), (256, 32), (32,))
    c, d, start = matrices(dtype, (4, 9, 70), (4, 70, 5), (4, 9, 5))
    out, summed = torch.empty(64, 32, dtype=dtype), torch.zeros(64, 32, dtype=dtype)

    def results():
        torch.mm(a, b, out=out)
        again = summed.clone().addmm_(a, b)
        return [a @ b, torch.addmm(bias, a, b), c @ d, out.clone(), again,
                torch.baddbmm(start, c, d, beta=1, alpha=0.3)]

    expected = results()
    out.zero_()
    with Emulated():
        got = results()
    for one, other in zip(got, expected, strict=True):
        near(one, other, dtype)


@pytest.mark.parametrize("dtype", LOWER)
def test_the_definition(dtype):
    """Rounded inputs, a product in float32, a rounded result: to the bit."""
    a, b = matrices(dtype, (33, 80), (80, 21))
    with Emulated():
        got = a @ b
    assert torch.equal(got, (a.float() @ b.float()).to(dtype))


def test_products_in_float32_are_left_alone():
    a, b = matrices(torch.float32, (8, 8), (8, 8))
    expected = a @ b
    with Emulated():
        assert torch.equal(a @ b, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_learns_and_samples_as_with_instructions(make_model, dtype, monkeypatch):
    model, tokens = make_model("qwen3"), torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]])

    def run():
        model.zero_grad()
        with compute_in(dtype, CPU):
            logp, entropy = token_logprobs(model, tokens, return_entropy=True)
            (logp.sum() + entropy.sum()).backward()
            rollouts = sample(model, [[1, 2]], group=4, max_new_tokens=5, eos_id=None, pad_id=0,
                              generator=torch.Generator().manual_seed(0))
        return logp.detach(), rollouts, model.lm_head.weight.grad.clone()

    logp, rollouts, grad = run()
    seen = []

    class Counting(Emulated):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.overloadpacket.__name__)
            return super().__torch_dispatch__(function, types, args, kwargs)

    monkeypatch.setattr(precision, "has_instructions", lambda dtype, device: False)
    monkeypatch.setattr(precision, "Emulated", Counting)
    emulated_logp, emulated_rollouts, emulated_grad = run()
    assert {"mm", "addmm"} & set(seen)
    eps = torch.finfo(precision.DTYPES[dtype]).eps
    assert (logp - emulated_logp).abs().max() < 8 * eps
    assert torch.equal(rollouts.tokens, emulated_rollouts.tokens)
    assert (grad - emulated_grad).abs().max() < 8 * eps * grad.abs().max()


def test_where_it_is_used(monkeypatch):
    for dtype in (torch.float32, torch.float64):
        assert has_instructions(dtype, CPU)
    assert has_instructions(torch.float16, torch.device("cuda"))
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for answer in (True, False):
            supported = f"_is_mkldnn_{name}_supported"
            monkeypatch.setattr(torch.ops.mkldnn, supported, lambda answer=answer: answer)
            assert has_instructions(dtype, CPU) is answer
