"""minirl/train/state.py"""

import copy

import pytest
import torch

from minirl.train.metrics import NonFiniteError, Sums
from minirl.train.sft import SFTConfig
from minirl.train.state import (
    TrainState,
    apply_update,
    check_weights,
    clip_gradient,
    make_optimizer,
)

CONFIG = SFTConfig(lr=0.1, beta2=0.95)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_an_error(value):
    model = torch.nn.Linear(1, 1)
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    with pytest.raises(NonFiniteError, match="step 3: the gradient norm is (nan|inf)"):
        clip_gradient(model, 1.0, step=3)


def test_clipping_returns_the_norm_before_it():
    """A gradient of (3, 4) has the norm 5."""
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradient(model, 1.0, step=1) == pytest.approx(5.0)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_the_optimizer_has_the_configurations_numbers():
    config = SFTConfig(lr=0.1, beta1=0.8, beta2=0.95)
    for group in make_optimizer(torch.nn.Linear(2, 3), config).param_groups:
        assert group["lr"] == 0.1 and group["betas"] == (0.8, 0.95)
    for group in make_optimizer(torch.nn.Linear(2, 3), config, lr=0.2).param_groups:
        assert group["lr"] == 0.2


def test_weight_decay_is_on_matrices_alone():
    optimizer = make_optimizer(torch.nn.Linear(2, 3), SFTConfig(lr=0.1, weight_decay=0.1))
    matrices, vectors = optimizer.param_groups
    assert matrices["weight_decay"] == 0.1 and [p.dim() for p in matrices["params"]] == [2]
    assert vectors["weight_decay"] == 0.0 and [p.dim() for p in vectors["params"]] == [1]


def linear(value, gradient):
    """Return a model of one weight, with its gradient, and an optimizer for it."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    model.weight.grad = torch.full((1, 1), gradient)
    return model, make_optimizer(model, CONFIG)


def test_an_update_moves_every_model_with_its_own_rate():
    """Adam's first step is -lr * sign(gradient), whatever the gradient's size."""
    policy, policy_optimizer = linear(1.0, 3.0)
    value, value_optimizer = linear(1.0, -4.0)
    sums = Sums()
    apply_update(TrainState(policy, policy_optimizer), 0.5, 1.0, sums,
                 (value, value_optimizer, 0.25))
    assert sums.means() == {"grad_norm": 3.0}, "the policy's, before clipping"
    assert policy.weight.item() == pytest.approx(0.5)
    assert value.weight.item() == pytest.approx(1.25)
    assert policy.weight.grad is None and value.weight.grad is None


def test_an_update_with_one_broken_gradient_moves_no_weight():
    """The policy made its step before the value function's gradient was checked."""
    policy, policy_optimizer = linear(1.0, 3.0)
    value, value_optimizer = linear(1.0, float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the gradient norm is nan"):
        apply_update(TrainState(policy, policy_optimizer), 0.5, 1.0, Sums(),
                     (value, value_optimizer, 0.25))
    assert policy.weight.item() == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e20])
def test_weights_that_an_update_broke_are_an_error(value):
    """A run with lr 1e39 left 320,704 of 320,704 weights NaN in final/, with exit code 0.

    Loss and gradient were checked before the step, and the weights never after it. 1e20 is finite,
    but its square is not, and so the next loss is not either.
    """
    model = torch.nn.Linear(3, 2)
    check_weights(model, 4)
    with torch.no_grad():
        model.bias[1] = value
    message = "step 4: the update made bias as large as .*(nan|inf|1e.20)"
    with pytest.raises(NonFiniteError, match=message):
        check_weights(model, 4)


def test_large_weights_whose_norm_overflows_are_no_error():
    """The quick pass sums squares. Each square, (1.5e18)² = 2.25e36, is a float32 number; the sum
    of 300² of them, 2e41, is not."""
    model = torch.nn.Linear(300, 300)
    with torch.no_grad():
        model.weight.fill_(1.5e18)
    assert torch.nn.utils.get_total_norm([model.weight]).isinf()
    check_weights(model, 1)


def state_after_a_step(width=3):
    """Return a state with a part that the step did not change and a number that it did."""
    torch.manual_seed(width)
    model, reference = torch.nn.Linear(width, 2), torch.nn.Linear(width, 2)
    state = TrainState(model, make_optimizer(model, CONFIG),
                       {"reference": reference}, {"kl_coef": 0.5})
    model(torch.ones(1, width)).sum().backward()
    state.optimizer.step()
    state.step, state.num_tokens, state.numbers["kl_coef"] = 1, 7, 0.25
    return state


def test_a_loaded_state_is_the_same_bit_for_bit():
    before, after = state_after_a_step(), state_after_a_step()
    saved = copy.deepcopy(before.state_dict())
    with torch.no_grad():
        after.model.weight.zero_()
        after.parts["reference"].weight.zero_()
    after.step, after.numbers = 0, {"kl_coef": 0.0}
    after.load_state_dict(saved)

    assert (after.step, after.num_tokens, after.numbers) == (1, 7, {"kl_coef": 0.25})
    modules = [(after.model, before.model), (after.parts["reference"], before.parts["reference"])]
    for a, b in modules:
        assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
    moments = [state.optimizer.state_dict()["state"][0]["exp_avg_sq"] for state in (after, before)]
    assert torch.equal(*moments) and moments[0].any()


@pytest.mark.parametrize("key", ["step", "num_tokens", "model", "optimizer", "parts", "numbers"])
def test_a_state_that_lacks_a_key_is_one_error(key):
    """It was a KeyError, and a traceback, for each of the six."""
    saved = state_after_a_step().state_dict()
    del saved[key]
    with pytest.raises(ValueError, match=f"the training state has no {key}"):
        state_after_a_step().load_state_dict(saved)


@pytest.mark.parametrize("key, value, message", [
    ("step", float("nan"), "has step nan"),
    ("step", -1, "has step -1"),
    ("step", True, "has step True"),
    ("step", "2", "has step '2'"),
    ("num_tokens", None, "no num_tokens"),
    ("model", 3, "has model 3"),
    ("numbers", {"kl_coef": float("nan")}, "kl_coef nan: a finite number"),
    ("numbers", {}, r"the numbers \[\], and this page wants \['kl_coef'\]"),
    ("parts", {}, r"the parts \[\], and this page wants \['reference'\]"),
    ("parts", {"reference": {"weight": torch.zeros(1)}}, "the reference of the training state"),
    ("optimizer", {"state": {}}, "the optimizer of the training state does not fit"),
])
def test_a_state_with_a_wrong_value_is_one_error(key, value, message):
    """A step of NaN ended the loop at once: the run "finished" with its checkpoint's weights."""
    saved = {**state_after_a_step().state_dict(), key: value}
    with pytest.raises(ValueError, match=message):
        state_after_a_step().load_state_dict(saved)


@pytest.mark.parametrize("key", ["model", "optimizer"])
def test_a_state_of_another_model_is_one_error(key):
    """torch's optimizers load averages of any shape, and fail in the next step."""
    saved = state_after_a_step().state_dict()
    saved[key] = state_after_a_step(width=5).state_dict()[key]
    with pytest.raises(ValueError, match=f"the {key} of the training state does not fit.*another"):
        state_after_a_step().load_state_dict(saved)
