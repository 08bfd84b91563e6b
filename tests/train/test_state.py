"""minirl/train/state.py"""

import pytest
import torch

from minirl.train.state import NonFiniteError, Sums, clip_gradient, derive_seed, make_optimizer


def test_means_are_those_of_all_values_and_not_of_the_parts():
    """Means of micro-batch means weigh a micro-batch of one token like one of a thousand: 100 tokens of 2.0 and 900 of 0.5 are 0.65, not 1.25."""
    sums = Sums()
    sums.add("loss", torch.full((10, 10), 2.0))
    sums.add("loss", torch.full((2, 900), 0.5), torch.tensor([[1] * 900, [0] * 900]))
    assert sums.means() == {"loss": pytest.approx(0.65)}


def test_an_empty_mask_adds_nothing():
    sums = Sums()
    sums.add("kl", torch.tensor([[float("nan")]]), torch.tensor([[0]]))
    assert sums.means() == {"kl": 0.0}


def test_seeds_are_stable_and_differ_by_purpose():
    """The number is pinned: another one would silently change what every published run computed."""
    assert derive_seed(0, "grpo", 0, "sample") == 4968650417455394554
    assert len({derive_seed(seed, name, step) for seed in range(3) for name in "ab" for step in range(50)}) == 300
    assert 0 <= derive_seed(7, "x") < 2 ** 63


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_an_error(value):
    model = torch.nn.Linear(1, 1)
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    with pytest.raises(NonFiniteError, match="step 3: the gradient norm is (nan|inf)"):
        clip_gradient(model, 1.0, step=3)


def test_clipping_reports_the_length_before_it():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradient(model, 1.0, step=1) == pytest.approx(5.0)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_weight_decay_is_on_matrices_alone():
    optimizer = make_optimizer(torch.nn.Linear(2, 3), lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
    assert [(group["weight_decay"], [p.dim() for p in group["params"]]) for group in optimizer.param_groups] == [(0.1, [2]), (0.0, [1])]
