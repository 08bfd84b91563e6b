"""minirl/train/state.py"""

import copy

import pytest
import torch

from minirl.train.metrics import NonFiniteError
from minirl.train.sft import SFTConfig
from minirl.train.state import TrainState, apply_update, check_weights, clip_gradient, make_optimizer

CONFIG = SFTConfig(lr=0.1, beta2=0.95)


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
    optimizer = make_optimizer(torch.nn.Linear(2, 3), SFTConfig(lr=0.1, weight_decay=0.1))
    assert [(group["weight_decay"], [p.dim() for p in group["params"]]) for group in optimizer.param_groups] == [(0.1, [2]), (0.0, [1])]


def linear(value, gradient):
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    model.weight.grad = torch.full((1, 1), gradient)
    return model, make_optimizer(model, CONFIG)


def test_an_update_clips_steps_and_clears_every_model_with_its_own_rate():
    """Adam's first step is lr * sign(gradient), whatever its size."""
    (model, optimizer), other = linear(1.0, 3.0), linear(1.0, -4.0)
    norm = apply_update(TrainState(model, optimizer), 0.5, 1.0, (*other, 0.25))
    assert norm == 3.0, "of the state's model, before clipping"
    assert model.weight.item() == pytest.approx(0.5)
    assert other[0].weight.item() == pytest.approx(1.25)
    assert model.weight.grad is None and other[0].weight.grad is None


def test_an_update_with_one_broken_gradient_moves_no_weight():
    """The policy was stepped before the value function's gradient was looked at."""
    (model, optimizer), other = linear(1.0, 3.0), linear(1.0, float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the gradient norm is nan"):
        apply_update(TrainState(model, optimizer), 0.5, 1.0, (*other, 0.25))
    assert model.weight.item() == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e20])
def test_weights_that_an_update_broke_are_an_error(value):
    """A run with lr 1e39 left 320,704 of 320,704 weights NaN in final/, and exit code 0.

    Loss and gradient were looked at before the step, the weights never after. 1e20 is finite, but
    its square is not, and with it the next loss.
    """
    model = torch.nn.Linear(3, 2)
    check_weights(model, 4)
    with torch.no_grad():
        model.bias[1] = value
    says = "step 4: the update made bias as large as .*(nan|inf|1e.20)"
    with pytest.raises(NonFiniteError, match=says):
        check_weights(model, 4)


def test_large_weights_whose_norm_overflows_are_none():
    """The one quick pass sums squares: 300 * (1.5e18)^2 is no float32 number, each square is."""
    model = torch.nn.Linear(300, 300)
    with torch.no_grad():
        model.weight.fill_(1.5e18)
    assert torch.nn.utils.get_total_norm([model.weight]).isinf()
    check_weights(model, 1)


def trained(width=3):
    """A state after one step, with a part that does not change and a number that does."""
    torch.manual_seed(width)
    model, reference = torch.nn.Linear(width, 2), torch.nn.Linear(width, 2)
    state = TrainState(model, make_optimizer(model, CONFIG),
                       {"reference": reference}, {"kl_coef": 0.5})
    model(torch.ones(1, width)).sum().backward()
    state.optimizer.step()
    state.step, state.num_tokens, state.numbers["kl_coef"] = 1, 7, 0.25
    return state


def test_a_state_goes_on_bit_for_bit():
    before, after = trained(), trained()
    saved = copy.deepcopy(before.state_dict())
    with torch.no_grad():
        after.model.weight.zero_()
        after.parts["reference"].weight.zero_()
    after.step, after.numbers = 0, {"kl_coef": 0.0}
    after.load_state_dict(saved)
    assert (after.step, after.num_tokens, after.numbers) == (1, 7, {"kl_coef": 0.25})
    for a, b in ((after, before), (after.parts["reference"], before.parts["reference"])):
        a, b = getattr(a, "model", a), getattr(b, "model", b)
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
    moments = [state.optimizer.state_dict()["state"][0]["exp_avg_sq"] for state in (after, before)]
    assert torch.equal(*moments) and moments[0].any()


@pytest.mark.parametrize("key", ["step", "num_tokens", "model", "optimizer", "parts", "numbers"])
def test_a_state_that_lacks_a_key_is_one_error(key):
    """It was a KeyError, and a traceback, for each of the six."""
    saved = trained().state_dict()
    del saved[key]
    with pytest.raises(ValueError, match=f"the training state has no {key}"):
        trained().load_state_dict(saved)


@pytest.mark.parametrize("key, value, says", [
    ("step", float("nan"), "has step nan"), ("step", -1, "has step -1"),
    ("step", True, "has step True"), ("step", "2", "has step '2'"),
    ("num_tokens", None, "no num_tokens"), ("model", 3, "has model 3"),
    ("numbers", {"kl_coef": float("nan")}, "kl_coef nan: a finite number"),
    ("numbers", {}, r"the numbers \[\], and this page wants \['kl_coef'\]"),
    ("parts", {}, r"the parts \[\], and this page wants \['reference'\]"),
    ("parts", {"reference": {"weight": torch.zeros(1)}}, "the reference of the training state"),
    ("optimizer", {"state": {}}, "the optimizer of the training state does not fit")])
def test_a_state_with_something_else_in_it_is_one_error(key, value, says):
    """A step of NaN ended the loop at once: the run "finished" with its checkpoint's weights."""
    with pytest.raises(ValueError, match=says):
        trained().load_state_dict({**trained().state_dict(), key: value})


@pytest.mark.parametrize("key", ["model", "optimizer"])
def test_a_state_of_another_model_is_one_error(key):
    """torch's optimizers take averages of any shape, and fail within the next step."""
    other = trained(width=5).state_dict()[key]
    with pytest.raises(ValueError, match=f"the {key} of the training state does not fit.*another"):
        trained().load_state_dict({**trained().state_dict(), key: other})
