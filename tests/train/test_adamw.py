"""minirl/train/adamw.py: torch's numbers to the bit, without torch's compiler."""

import copy

import pytest
import torch
from torch import nn

from minirl.train.adamw import AdamW


def make_pair(dtype=torch.float32):
    """The same weights twice: one for each optimizer, a matrix that decays and a vector that does not."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3, dtype=dtype)), nn.Parameter(torch.randn(7, dtype=dtype))]
    return ours, [nn.Parameter(p.detach().clone()) for p in ours]


def groups(weights):
    return [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]


def set_gradients(step, *sides):
    torch.manual_seed(step)
    for weights in zip(*sides):
        gradient = torch.randn_like(weights[0])
        for p in weights:
            p.grad = gradient.clone()


def test_by_hand():
    """Step 1: m = 0.1 g and v = 0.01 g^2, so that m / (1 - 0.9) = g and v / (1 - 0.99) = g^2: a move of lr sign(g).
    Step 2 with g = 0: m = 0.09 g, m_hat = 0.09 / 0.19 g; v = 0.0099 g^2, v_hat = 0.0099 / 0.0199 g^2."""
    p = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.double))
    optimizer = AdamW([{"params": [p]}], lr=0.5, betas=(0.9, 0.99), eps=0.0)
    p.grad = torch.tensor([2.0, -3.0], dtype=torch.double)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.5, 1.5], abs=1e-12)
    p.grad = torch.zeros(2, dtype=torch.double)
    optimizer.step()
    move = 0.5 * (0.09 / 0.19) / (0.0099 / 0.0199) ** 0.5
    assert p.tolist() == pytest.approx([0.5 - move, 1.5 + move], abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_bits_as_torch_s(dtype):
    ours, theirs = make_pair(dtype)
    mine = AdamW(groups(ours), lr=0.02, betas=(0.9, 0.95))
    other = torch.optim.AdamW(groups(theirs), lr=0.02, betas=(0.9, 0.95), fused=True)
    for step in range(20):
        set_gradients(step, ours, theirs)
        for optimizer in (mine, other):
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_either_goes_on_from_the_other_s_state():
    ours, theirs = make_pair()
    mine, other = AdamW(groups(ours), lr=0.02, betas=(0.9, 0.95)), torch.optim.AdamW(groups(theirs), lr=0.02, betas=(0.9, 0.95), fused=True)
    set_gradients(0, ours, theirs)
    mine.step(), other.step()
    first, second = copy.deepcopy(mine.state_dict()), copy.deepcopy(other.state_dict())
    mine.load_state_dict(second)
    other.load_state_dict({**second, "state": first["state"]})
    set_gradients(1, ours, theirs)
    mine.step(), other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_a_loaded_state_is_a_copy():
    weights, _ = make_pair()
    optimizer = AdamW(groups(weights), lr=0.02, betas=(0.9, 0.95))
    set_gradients(0, weights)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    set_gradients(1, weights)
    optimizer.step()
    assert float(saved["state"][0]["step"]) == 1 and float(optimizer.state[weights[0]]["step"]) == 2


def test_weights_without_a_gradient_stay():
    weights, _ = make_pair()
    before = [p.detach().clone() for p in weights]
    optimizer = AdamW(groups(weights), lr=0.02, betas=(0.9, 0.95))
    weights[0].grad = torch.ones(5, 3)
    optimizer.step()
    assert not torch.equal(weights[0], before[0]) and torch.equal(weights[1], before[1])
    optimizer.zero_grad()
    moved = weights[0].detach().clone()
    optimizer.step()
    assert torch.equal(weights[0], moved)


def test_a_state_of_another_model_is_refused():
    weights, _ = make_pair()
    optimizer = AdamW(groups(weights), lr=0.02, betas=(0.9, 0.95))
    set_gradients(0, weights)
    optimizer.step()
    other = AdamW([{"params": [nn.Parameter(torch.ones(2))]}], lr=0.02, betas=(0.9, 0.95))
    with pytest.raises(ValueError, match="of another model"):
        other.load_state_dict(optimizer.state_dict())
    wider = AdamW(groups([nn.Parameter(torch.ones(5, 4)), nn.Parameter(torch.ones(7))]), lr=0.02, betas=(0.9, 0.95))
    with pytest.raises(ValueError, match="are no weight's"):
        wider.load_state_dict(optimizer.state_dict())
