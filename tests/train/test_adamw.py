"""minirl/train/adamw.py: torch's numbers to the bit, without torch's compiler."""

import copy

import pytest
import torch
from torch import nn

from minirl.train.adamw import AdamW

NUMBERS = dict(lr=0.02, betas=(0.9, 0.95))


def make_weights(dtype=torch.float32):
    """Return a matrix that decays and a vector that does not, the same at each call."""
    torch.manual_seed(0)
    matrix, vector = torch.randn(5, 3, dtype=dtype), torch.randn(7, dtype=dtype)
    return [nn.Parameter(matrix), nn.Parameter(vector)]


def groups(weights):
    matrix, vector = weights
    return [{"params": [matrix], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}]


def ours(weights):
    return AdamW(groups(weights), **NUMBERS)


def torchs(weights):
    return torch.optim.AdamW(groups(weights), **NUMBERS, fused=True)


def step(optimizer, weights, seed):
    """Step with gradients drawn from the seed."""
    torch.manual_seed(seed)
    for p in weights:
        p.grad = torch.randn_like(p)
    optimizer.step()


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_by_hand():
    """Step 1: m = 0.1 g and v = 0.01 g², so m / (1 - 0.9) = g and v / (1 - 0.99) = g²: the weight
    moves by lr sign(g). Step 2 with g = 0: m = 0.09 g and v = 0.0099 g², to be divided by
    1 - 0.9² = 0.19 and 1 - 0.99² = 0.0199."""
    p = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.double))
    optimizer = AdamW([{"params": [p]}], lr=0.5, betas=(0.9, 0.99), eps=0.0)
    p.grad = torch.tensor([2.0, -3.0], dtype=torch.double)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.5, 1.5], abs=1e-12)

    p.grad = torch.zeros(2, dtype=torch.double)
    optimizer.step()
    move = 0.5 * (0.09 / 0.19) / (0.0099 / 0.0199) ** 0.5
    assert p.tolist() == pytest.approx([0.5 - move, 1.5 + move], abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_twenty_steps_have_the_same_bits_as_torchs(dtype):
    a, b = make_weights(dtype), make_weights(dtype)
    mine, other = ours(a), torchs(b)
    for n in range(20):
        for optimizer, weights in ((mine, a), (other, b)):
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + n)
            step(optimizer, weights, seed=n)
    assert_same_bits(a, b)


def test_each_optimizer_continues_from_the_others_state():
    a, b = make_weights(), make_weights()
    mine, other = ours(a), torchs(b)
    step(mine, a, seed=0)
    step(other, b, seed=0)

    my_state, other_state = copy.deepcopy(mine.state_dict()), copy.deepcopy(other.state_dict())
    mine.load_state_dict(other_state)
    other.load_state_dict({**other_state, "state": my_state["state"]})
    step(mine, a, seed=1)
    step(other, b, seed=1)
    assert_same_bits(a, b)


def test_a_loaded_state_is_a_copy():
    weights = make_weights()
    optimizer = ours(weights)
    step(optimizer, weights, seed=0)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    step(optimizer, weights, seed=1)
    assert float(saved["state"][0]["step"]) == 1
    assert float(optimizer.state[weights[0]]["step"]) == 2


def test_weights_without_a_gradient_stay():
    matrix, vector = weights = make_weights()
    before = vector.detach().clone()
    optimizer = ours(weights)
    matrix.grad = torch.ones(5, 3)
    optimizer.step()
    assert not torch.equal(matrix, make_weights()[0])
    assert torch.equal(vector, before)


def test_cleared_gradients_are_none():
    """After zero_grad() a step moves nothing, whatever the moments."""
    weights = make_weights()
    optimizer = ours(weights)
    weights[0].grad = torch.ones(5, 3)
    optimizer.step()
    optimizer.zero_grad()
    before = weights[0].detach().clone()
    optimizer.step()
    assert torch.equal(weights[0], before)


def test_a_state_of_another_number_of_weights_is_an_error():
    weights = make_weights()
    optimizer = ours(weights)
    step(optimizer, weights, seed=0)
    other = AdamW([{"params": [nn.Parameter(torch.ones(2))]}], **NUMBERS)
    with pytest.raises(ValueError, match="of another model"):
        other.load_state_dict(optimizer.state_dict())


def test_a_state_of_other_shapes_is_an_error():
    weights = make_weights()
    optimizer = ours(weights)
    step(optimizer, weights, seed=0)
    wider = ours([nn.Parameter(torch.ones(5, 4)), nn.Parameter(torch.ones(7))])
    with pytest.raises(ValueError, match="are no weight's"):
        wider.load_state_dict(optimizer.state_dict())
