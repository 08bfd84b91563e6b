"""minirl/lm/recompute.py: blocks that are computed again in the backward pass."""

import pytest
import torch

from minirl.lm.heads import ScalarModel
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import WIDE, ModelConfig, Transformer
from minirl.lm.precision import compute_in
from minirl.lm.recompute import gradient_checkpointing

CPU = torch.device("cpu")


def model_of(width=32, **fields):
    torch.manual_seed(0)
    return Transformer(ModelConfig(20, hidden_size=width, num_layers=3, num_heads=2,
                                   intermediate_size=48, **fields))


def batch():
    """Four rows of two prompts, which end at different lengths."""
    tokens = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(0))
    tokens[1, :4], tokens[3, :4] = tokens[0, :4], tokens[2, :4]
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, end in enumerate((9, 6, 7, 8)):
        mask[row, 4:end] = True
    return tokens, mask


def gradients(model, on, work):
    model.zero_grad()
    with gradient_checkpointing(on):
        loss = work()
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", [{}, {"width": WIDE}, {"dropout": 0.5}, {"qkv_bias": True}])
def test_loss_and_gradient_have_the_same_bits(fields, dtype):
    model, (tokens, mask) = model_of(**fields).train(), batch()

    def work():
        torch.manual_seed(1)       # of the dropout
        logp, entropy = token_logprobs(model, tokens, mask=mask, return_entropy=True)
        return (logp + 0.1 * entropy).sum()

    with compute_in(dtype, CPU):
        kept, again = (gradients(model, on, work) for on in (False, True))
    assert len(kept) > 20
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_so_have_those_of_a_value_function_and_of_batch_invariant_arithmetic():
    model, (tokens, mask) = ScalarModel(model_of()), batch()
    with compute_in("float32", CPU, batch_invariant=True):
        kept, again = (gradients(model, on, lambda: model(tokens, mask)[0].square().sum())
                       for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def kept_bytes(model, tokens, on):
    """What autograd holds between forward and backward pass, without the parameters."""
    own, kept = {p.data_ptr() for p in model.parameters()}, {}

    def pack(x):
        if x.data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x     # alive, so that no address comes twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), gradient_checkpointing(on):
        model(tokens).sum()
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def test_a_block_keeps_its_input_alone():
    """Three blocks keep 3 x 32 numbers for each of 4 x 9 tokens; before them, ids and positions."""
    model, tokens = model_of(), batch()[0]
    kept, again = (kept_bytes(model, tokens, on) for on in (False, True))
    inputs = 4 * 36 * 32 * 3
    assert inputs <= again < 3 * inputs and again < kept / 4


def test_sampling_and_measuring_do_not_recompute():
    model, tokens = model_of(), batch()[0]
    with gradient_checkpointing(), torch.no_grad():
        assert not model(tokens).requires_grad
