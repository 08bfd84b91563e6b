"""minirl/lm/precision.py: devices, lower precision, rounding, and the scale of the loss."""

import random
import warnings

import pytest
import torch

from minirl.lm.logprobs import linear_logprobs, token_logprobs
from minirl.lm.precision import (
    DTYPES,
    LossScaler,
    compute_in,
    pick_device,
    round_to,
    sampling_in,
    slowdown,
)
from minirl.lm.sampling import sample
from minirl.train.adamw import AdamW

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_pick_device(monkeypatch):
    assert pick_device("cpu") == CPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == CUDA and pick_device("cpu") == CPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(ValueError, match="'cuda'.*--device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cuda:0"])
def test_an_unknown_device_raises(name):
    with pytest.raises(ValueError, match=f"device is '{name}': auto, cpu or cuda"):
        pick_device(name)


@pytest.mark.parametrize("name", ["half", "bf16", "", "float64"])
def test_an_unknown_dtype_raises(name):
    with pytest.raises(ValueError, match=f"dtype is '{name}': one of float32, bfloat16"):
        compute_in(name, CPU)
    with pytest.raises(ValueError, match=f"sampler_dtype is '{name or 'x'}': one of float32"):
        compute_in("float32", CPU, sampler=name or "x")


def test_matrix_products_alone_change_their_dtype():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with compute_in("float32", CPU):
            assert layer(x).dtype == torch.float32
        with compute_in("float16", CPU):
            assert layer(x).dtype == torch.float16 and (x + 1).dtype == torch.float32
        with compute_in("bfloat16", CPU):
            assert layer(x).dtype == torch.bfloat16 and (x + 1).dtype == torch.float32
            with compute_in("float32", CPU):
                assert layer(x).dtype == torch.float32
    assert layer(x).dtype == layer.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 0.05), ("float16", 0.05 / 8)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_logprobs_in_a_lower_precision_stays_near_float32(temperature, dtype, bound):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=g).requires_grad_()
    weight = (0.3 * torch.randn(60, 16, generator=g)).requires_grad_()
    targets = torch.randint(60, (40,), generator=g)

    def run():
        logp, entropy = linear_logprobs(hidden, weight, targets, temperature=temperature,
                                        return_entropy=True)
        grads = torch.autograd.grad(logp.sum() + entropy.sum(), [hidden, weight])
        return logp, entropy, *grads

    expected = run()
    with compute_in(dtype, CPU):
        got = run()
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32 and a.isfinite().all()
        assert 0 < (a - b).abs().max() < bound * b.abs().max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_a_lower_precision_trains_float32_weights(model, dtype):
    tokens = torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(0))
    expected = token_logprobs(model, tokens)
    with compute_in(dtype, CPU):
        logp, entropy = token_logprobs(model, tokens, return_entropy=True)
        (logp.sum() + entropy.sum()).backward()
    assert logp.dtype == torch.float32 and (logp - expected).abs().max() < 0.2
    for p in model.parameters():
        assert p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all()


def test_no_stale_weights_after_an_update_inside_the_context(make_model):
    """Autocast keeps its bfloat16 copy of each weight until the context ends: a loop inside one
    context trained on weights that never changed."""
    model, tokens = make_model("qwen2"), torch.tensor([[1, 2, 3, 4]])
    with compute_in("bfloat16", CPU):
        before = token_logprobs(model, tokens)
        hidden_before = model.hidden(tokens)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        after, hidden_after = token_logprobs(model, tokens), model.hidden(tokens)
    with compute_in("bfloat16", CPU):
        fresh, hidden_fresh = token_logprobs(model, tokens), model.hidden(tokens)
    assert torch.equal(after, fresh) and torch.equal(hidden_after, hidden_fresh)
    assert not torch.equal(after, before) and not torch.equal(hidden_after, hidden_before)


def test_slowdown_is_what_the_clock_says(monkeypatch):
    """On a processor without bfloat16 instructions a run in bfloat16 took several times as long,
    without a word about it."""
    ticks = iter([0, 7, 10, 12, 20, 26, 30, 31])    # two products each: 7 and 2 s, then 6 and 1 s
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert slowdown("bfloat16", size=2, repeats=2) == 2 / 1
    monkeypatch.undo()
    assert 0.2 < slowdown("float32") < 5    # against itself


# a sampler with a dtype of its own

def products_of(work):
    """The dtypes of the matrix products while `work` runs."""
    seen = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                seen.add(args[-1].dtype)
            return function(*args, **(kwargs or {}))

    with Watch():
        work()
    return seen


@pytest.mark.parametrize("learner", DTYPES)
@pytest.mark.parametrize("sampler", [None, *DTYPES])
def test_the_sampler_computes_in_its_own_dtype(make_model, sampler, learner):
    model, tokens = make_model("qwen2"), torch.tensor([[1, 2, 3, 4]])

    def draw():
        sample(model, [[1, 2]], max_new_tokens=3, eos_id=None, pad_id=0)

    with compute_in(learner, CPU, sampler=sampler):
        assert products_of(draw) == {DTYPES[sampler or learner]}
        assert products_of(lambda: model.hidden(tokens)) == {DTYPES[learner]}
        with compute_in("float32", CPU):    # the inner one counts, for both
            assert products_of(draw) == {torch.float32}
        assert products_of(draw) == {DTYPES[sampler or learner]}
    assert products_of(draw) == {torch.float32}


def test_an_error_while_sampling_leaves_no_dtype_behind(make_model):
    with pytest.raises(ZeroDivisionError), compute_in("float32", CPU, sampler="float16"):
        raise ZeroDivisionError
    with sampling_in(CPU):
        assert not torch.is_autocast_enabled("cpu")


# rounding

def bits(x):
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same_bits(x, dtype):
    """Whether round_to is torch's cast there and back; any NaN is as good as another."""
    ours, torchs = round_to(x, dtype), x.to(DTYPES[dtype]).to(x.dtype)
    assert ours.dtype == x.dtype
    return bool(((bits(ours) == bits(torchs)) | (ours.isnan() & torchs.isnan())).all())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_every_number_of_a_format_its_midpoints_and_their_neighbours(dtype, wide):
    """All 65,536 of them, with subnormals, zeros of either sign, infinities and NaN. A midpoint is
    a tie; a float32 above or below it is none."""
    every = torch.arange(-2 ** 15, 2 ** 15).to(torch.int16).view(DTYPES[dtype]).to(wide)
    finite = every[every.isfinite()].sort().values
    middle = (finite[:-1].double() + finite[1:].double()).div(2).to(wide)
    up, down = (middle.nextafter(torch.full_like(middle, s * torch.inf)) for s in (1, -1))
    assert torch.equal(round_to(every, dtype).nan_to_num(7.0), every.nan_to_num(7.0))
    for x in (every, middle, up, down):
        assert same_bits(x, dtype)
    if wide is torch.float32:    # torch casts float64 by way of float32, where there are ties again
        apart = (round_to(up, dtype) != round_to(down, dtype)).sum()
        assert apart == len(finite) - 2    # of n numbers: n - 1 midpoints, and one of -0 and +0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_of_any_float32(dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-2 ** 31, 2 ** 31, (200_000,), generator=g).to(torch.int32)
    assert same_bits(x.view(torch.float32), dtype)
    assert same_bits(torch.randn(3, 4, 5, generator=g).half(), dtype)
    assert same_bits(torch.randn(7, generator=g).bfloat16() * 1e6, dtype)
    assert round_to(torch.zeros(0), dtype).shape == (0,)


def test_rounding_by_hand():
    """float16: neighbours of 1 are 2^-11 below and 2^-10 above; 65519 is nearer to 65504, 65520 a
    tie, which goes to the even 2^16, and that is infinite. 2^-25 is half of the smallest number."""
    x = torch.tensor([1 + 2 ** -11, 1 + 3 * 2 ** -11, 65519, 65520, -65520, 2 ** -25, 3 * 2 ** -25])
    inf, tiny = float("inf"), 2 ** -24
    assert round_to(x, "float16").tolist() == [1, 1 + 2 ** -9, 65504, inf, -inf, 0, 2 * tiny]
    assert round_to(torch.tensor([1 - 1e-3]), "bfloat16").item() == 1.0
    assert round_to(torch.tensor([-1e-9]), "float16").signbit().item()


def test_rounding_has_no_gradient_and_wants_a_dtype_that_it_knows():
    x = torch.ones(2, requires_grad=True)
    assert not round_to(x, "float16").requires_grad
    for name in ("float32", "half", ""):
        with pytest.raises(ValueError, match=f"dtype is '{name}': one of float16, bfloat16"):
            round_to(x, name)


# the scale of the loss

def trainer(scaler, optimizer=torch.optim.SGD):
    """Return two weights, and a step with gradients of 1 and `gradient` (before the scale)."""
    weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.ones(1))]
    optimizers = [optimizer([weight], lr=0.1) for weight in weights]
    unscale = getattr(scaler, "unscale_", None) or scaler.unscale

    def step(broken, unscale_first):
        scaler.scale(weights[0].sum() + weights[1].sum()).backward()
        for weight, value in zip(weights, broken, strict=True):
            weight.grad[-1:] += value
        if unscale_first:
            unscale(optimizers[0])
            torch.nn.utils.clip_grad_norm_(weights[:1], 0.5)
        for one in optimizers:
            scaler.step(one)
        scaler.update()
        for one in optimizers:
            one.zero_grad()
        return [weight.tolist() for weight in weights]

    return step


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [
    {}, {"growth_interval": 3}, {"init_scale": 1.0, "growth_interval": 1},
    {"init_scale": 2.0 ** 126, "growth_interval": 2},
    {"init_scale": 3.7, "growth_factor": 1.3, "backoff_factor": 0.7, "growth_interval": 2},
    {"init_scale": 1e-30, "growth_interval": 5},
])
def test_the_scaler_is_torchs_step_by_step(settings, seed):
    """Scale and weights to the bit, where gradients overflow at random in one of two optimizers."""
    ours = LossScaler(**settings)
    torchs = torch.amp.GradScaler("cpu", **settings)
    step, expected = trainer(ours), trainer(torchs)
    rng = random.Random(seed)
    for _ in range(40):
        broken = [rng.choice([0.0] * 8 + [float("inf"), float("nan")]) for _ in range(2)]
        first = rng.random() < 0.5
        assert str(step(broken, first)) == str(expected(broken, first))
        assert ours.value == torchs.get_scale()
        assert ours.steps == torchs._get_growth_tracker()


def test_a_scaler_goes_on_where_another_one_was():
    one, other = LossScaler(growth_interval=3), LossScaler(growth_interval=3)
    first, then = trainer(one), trainer(other)
    for broken in (float("inf"), 0.0, 0.0):
        first([broken, 0.0], False)
    assert one.state_dict() == {"value": 2.0 ** 15, "steps": 2}
    other.load_state_dict(one.state_dict())
    then([0.0, 0.0], False)
    assert other.value == 2.0 ** 16 and other.steps == 0


def test_a_loss_in_float16_is_scaled_in_float32():
    """A loss of 2 in float16 times 2^16 would be infinite."""
    assert LossScaler().scale(torch.tensor(2.0).half()).item() == 2.0 ** 17


def test_gradients_that_float16_loses_are_kept():
    """A gradient of 2^-26 is 0 in float16; times 2^16 it is 2^-10."""
    weight = torch.nn.Parameter(torch.ones(1, 1))
    x = torch.full((1, 1), 2.0 ** -26)

    def gradient(scaler):
        weight.grad = None
        with compute_in("float16", CPU):
            loss = (torch.ones(1, 1) @ weight.T).float() * x
        (loss.sum() if scaler is None else scaler.scale(loss.sum())).backward()
        if scaler is not None:
            assert scaler.unscale(AdamW([{"params": [weight]}], lr=1.0, betas=(0.9, 0.9)))
        return weight.grad.item()

    assert gradient(None) == 0.0 and gradient(LossScaler()) == 2.0 ** -26


def test_calls_out_of_order_raise():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    scaler, optimizer = LossScaler(), torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(ValueError, match="before a step"):
        scaler.update()
    scaler.unscale(optimizer)
    with pytest.raises(ValueError, match="unscale was called twice"):
        scaler.unscale(optimizer)
    scaler.step(optimizer)
    with pytest.raises(ValueError, match="step was called twice"):
        scaler.step(optimizer)
    scaler.update()
    scaler.value = 1e-40    # 1 / 1e-40 is no float32; torch.amp.GradScaler makes the weights NaN
    with pytest.raises(ValueError, match="the scale has fallen to"):
        scaler.unscale(optimizer)
    half = torch.nn.Parameter(torch.ones(1).half())
    half.grad = torch.ones(1).half()
    with pytest.raises(ValueError, match="a gradient is in float16"):
        scaler.unscale(torch.optim.SGD([half], lr=0.1))


@pytest.mark.parametrize("settings", [
    {"init_scale": 0.0}, {"init_scale": float("inf")}, {"init_scale": float("nan")},
    {"growth_factor": 1.0}, {"backoff_factor": 1.0}, {"backoff_factor": 0.0},
    {"growth_interval": 0},
])
def test_numbers_that_no_scale_can_have(settings):
    with pytest.raises(ValueError, match="expected a positive number"):
        LossScaler(**settings)
