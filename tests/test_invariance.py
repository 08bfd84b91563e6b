"""What holds for every equation of tokens, sequences and groups: one table, a test per promise."""

import inspect
import itertools

import pytest
import torch

from minirl.equations import (
    advantages,
    entropy,
    objectives,
    reduce,
)
from minirl.equations.objectives import gspo_token, sequence_clipped_surrogate
from minirl.equations.preferences import kto_loss
from minirl.equations.reduce import aggregate, masked_mean, normaliser
from minirl.testing.signatures import TABLE, signatures

NAN, INF = float("nan"), float("inf")
HOWS = reduce.AGGREGATIONS
EXEMPT = {
    "kl.max_log_ratio": "a number for a type",
    "reduce.within_rounding": "a comparison",
    "reduce.normaliser": "a count of the mask",
    "kl.adaptive_kl_coef": "a rule on numbers",
    "kl.AdaptiveKLController": "a rule on numbers",
    "objectives.ptx_objective": "two scalars, already aggregated",
    "entropy.adaptive_entropy_coef": "a rule on numbers",
    "rewards.repetition_penalty": "one list of tokens",
}
ANY_SHAPE = {
    "entropy", "zero_spread", "truncated_weights", "masked_weights", "effective_sample_size",
    "icepop_weights", "sft_coefficient", "ppo_coefficient", "overlong_penalty",
}
BATCH = {
    reduce.masked_whiten,
    advantages.reinforce_plus_plus_advantages,
    advantages.batch_mean_advantages,
    advantages.gdpo_advantages,
    entropy.entropy_mask,
    entropy.token_covariance,
    entropy.kl_cov_mask,
}
TOKENS, LEARNT, GROUPS = set("LCWVU"), set("LVlK"), set("GNSR")


ROWS = {
    f"{row.function.__module__.rpartition('.')[2]}.{row.function.__name__} "
    f"{' '.join(keyword and keyword + '=' + kind or kind for keyword, kind in row.arguments)} {i}":
    row for i, row in enumerate(signatures())}

B = T = 5  # equal, so that a wrong axis would broadcast
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 1, 0],
                     [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()


def rows(choose):
    """The rows of the table whose set of kinds `choose` accepts."""
    names = [name for name, row in ROWS.items() if choose(set(row.kinds))]
    return pytest.mark.parametrize("name", names)


every_row = rows(lambda kinds: True)
learnt_beside_a_constant = rows(lambda kinds: "L" in kinds and "C" in kinds)


def example(name, dtype=torch.float32):
    """Inputs for a row of the table.

    The score of the row without tokens is 0: it has no token to carry it.
    """
    generator = torch.Generator().manual_seed(5)
    inputs = []
    for kind in ROWS[name].kinds:
        shape = (B, T, 3) if kind in "VUSR" else (B,) if kind in "lcwb" else (B, T)
        x = torch.randn(*shape, generator=generator)
        if kind == "c":
            x[4] = 0
        elif kind in "WwGN":
            x = x.abs() + 0.1
        elif kind in "SR":
            x[:, 1, 1:] = x[:, 2, 2:] = NAN
        inputs.append(MASK if kind == "M" else x > 0 if kind == "b" else x.to(dtype))
    return inputs


def apply(name, inputs):
    """The row's function on its inputs: a list of outputs."""
    row = ROWS[name]
    pairs = list(zip(inputs, row.arguments, strict=True))
    positional = [x for x, (keyword, _) in pairs if not keyword]
    named = {keyword: x for x, (keyword, _) in pairs if keyword}
    out = row.function(*positional, **named, **row.options)
    return list(out) if isinstance(out, tuple) else [out]


def weighted_sum(out, mask):
    """A scalar in which every row of an output, (B,) or (B, T), has its own weight."""
    if mask is not None and out.shape == mask.shape:
        return aggregate(out * (1 + torch.arange(len(out)).to(out)[:, None]), mask, "token_mean")
    return (out * (1 + torch.arange(len(out)).to(out.dtype) if out.dim() == 1 else 1)).sum()


def call(name, inputs, mask=MASK):
    """(outputs, gradients): every output, then its weighted sum; one gradient per input, None where
    it has none."""
    kinds = ROWS[name].kinds
    inputs = [x.detach().clone().requires_grad_(kind in LEARNT)
              for x, kind in zip(inputs, kinds, strict=True)]
    outputs = apply(name, inputs)
    learns = bool(set(kinds) & LEARNT)
    assert all(out.requires_grad == learns for out in outputs)
    has_tokens = bool(set(kinds) & TOKENS)
    values = [weighted_sum(out, mask if has_tokens else None) for out in outputs]
    if learns:
        sum(values).backward()
    return [x.detach() for x in outputs + values], [x.grad for x in inputs]


def close(a, b):
    torch.testing.assert_close(a, b, equal_nan=True, atol=2e-6, rtol=2e-5)


def test_the_table_is_complete():
    """A new equation fails here until it has its row (or a reason not to)."""
    public = set()
    for module in {row[0] for row in TABLE}:
        for name, x in vars(module).items():
            own = (inspect.isfunction(x) or inspect.isclass(x)) and x.__module__ == module.__name__
            if own and not name.startswith("_"):
                public.add(f"{module.__name__.rpartition('.')[2]}.{name}")
    covered = {name.split()[0] for name in ROWS}
    assert public - covered - set(EXEMPT) == set()
    assert covered & set(EXEMPT) == set() and set(EXEMPT) <= public


def fill_padding(x, kind, content):
    if kind not in TOKENS:
        return x
    return x.masked_fill(~MASK if x.dim() == 2 else ~MASK[..., None], content)


@rows(lambda kinds: kinds & TOKENS)
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e30])
def test_what_stands_under_a_zero_mask_never_matters(name, junk):
    """After the aggregate no padding is in value or gradient.

    A function that takes the mask keeps the padding's own slot clean too. In one that does not, 0 *
    NaN stays in the gradient of what is learnt where that itself is NaN, and only there.
    """
    kinds, results = ROWS[name].kinds, []
    for content in (0.5, junk):
        inputs = [fill_padding(x, kind, content * (-1) ** i)
                  for i, (x, kind) in enumerate(zip(example(name), kinds, strict=True))]
        results.append(call(name, inputs))
    (plain, gradients), (outputs, junk_gradients) = results
    for a, b in zip(plain, outputs, strict=True):
        shown = (a[MASK], b[MASK]) if a.shape == MASK.shape else (a, b)
        assert torch.equal(*shown) and not a.isnan().any()
        cleans = "M" in kinds and ROWS[name].function is not gspo_token
        if cleans and a.shape == MASK.shape:  # rewards, advantages, returns
            assert (a[~MASK] == 0).all() and (b[~MASK] == 0).all()
    for a, b in zip(gradients, junk_gradients, strict=True):
        if a is not None:
            assert torch.equal(a[MASK], b[MASK]) and (a[~MASK] == 0).all()
            if "M" in kinds or junk == 1e30:
                assert (b[~MASK] == 0).all()


@learnt_beside_a_constant
@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_a_constant_under_a_zero_mask_reaches_no_gradient(name, junk):
    """Advantages or old log-probs that are NaN on padding left the loss as it was and made NaN of
    every weight: the aggregate's gradient there is 0, and 0 * NaN is NaN."""
    inputs = example(name)
    _, gradients = call(name, inputs)
    for i, kind in enumerate(ROWS[name].kinds):
        if kind == "C":
            broken = [x.masked_fill(~MASK, junk) if j == i else x for j, x in enumerate(inputs)]
            for plain, gradient in zip(gradients, call(name, broken)[1], strict=True):
                assert plain is None or torch.equal(gradient, plain)


@learnt_beside_a_constant
def test_a_constant_that_is_no_number_shows(name):
    """It gets no gradient, so the value must show it: no NaN may pass for a small loss."""
    inputs = example(name)
    for i, kind in enumerate(ROWS[name].kinds):
        if kind == "C":
            broken = [x.masked_fill(MASK, NAN) if j == i else x for j, x in enumerate(inputs)]
            assert apply(name, broken)[0].isnan().any()


@rows(lambda kinds: kinds & (TOKENS | GROUPS))
@pytest.mark.parametrize("left, right", [(3, 0), (0, 3), (2, 1)])
def test_padding_left_and_right(name, left, right):
    """Tokens are padded under a zero mask, a group with samples without a verdict (NaN), a solution
    after its last step."""
    kinds, inputs = ROWS[name].kinds, example(name)
    left = 0 if kinds[0] == "S" else left

    def pad(x, kind):
        if kind not in TOKENS | GROUPS | {"M"}:
            return x
        value = {"M": 0, "G": NAN, "S": NAN, "R": NAN}.get(kind, 9.0)
        sides = (left, right) if x.dim() == 2 or kind == "S" else (0, 0, left, right)
        return torch.nn.functional.pad(x, sides, value=value)

    outputs, gradients = call(name, inputs)
    wide_inputs = [pad(x, kind) for x, kind in zip(inputs, kinds, strict=True)]
    wide_outputs, wide_gradients = call(name, wide_inputs, pad(MASK, "M"))
    for plain, wide in zip(outputs, wide_outputs, strict=True):
        if plain.shape != wide.shape:
            width = plain.shape[-1]
            assert wide.shape[-1] == width + left + right
            if kinds[0] in GROUPS:  # no verdict, no advantage
                assert (wide[..., :left] == 0).all() and (wide[..., left + width:] == 0).all()
            wide = wide[..., left:left + width]
        close(wide, plain)
    for plain, wide in zip(gradients, wide_gradients, strict=True):
        if plain is not None:
            close(wide[:, left:left + T], plain)


@every_row
def test_row_order(name):
    """Rows have no order: outputs move with them, a scalar stays. Nor have the samples of a group.

    Gradients move too where the output is a scalar; elsewhere `call` weighs each row differently.
    """
    inputs, order = example(name), torch.tensor([3, 0, 4, 2, 1])
    outputs, gradients = call(name, inputs)
    moved, moved_gradients = call(name, [x[order] for x in inputs], MASK[order])
    half = len(outputs) // 2  # the second half are weighted sums
    for plain, shuffled in zip(outputs[:half], moved[:half], strict=True):
        close(shuffled, plain[order] if plain.dim() else plain)
    if not outputs[0].dim():
        for plain, shuffled in zip(gradients, moved_gradients, strict=True):
            if plain is not None:
                close(shuffled, plain[order])
    if ROWS[name].kinds[0] == "G":
        samples = call(name, [x[:, order] if x.dim() == 2 else x for x in inputs])[0][0]
        close(samples, outputs[0][:, order] if outputs[0].shape == (B, T) else outputs[0])


@every_row
def test_no_row_sees_another(name):
    """Two rows out of five give what they gave among five, except where the whole batch counts."""
    row, plain, inputs = ROWS[name], apply(name, example(name)), example(name)
    if plain[0].dim() and row.function not in BATCH and row.options != {"scale": "batch"}:
        for a, b in zip(plain, apply(name, [x[[1, 3]] for x in inputs]), strict=True):
            close(b, a[[1, 3]])


@rows(lambda kinds: kinds & LEARNT)
@pytest.mark.parametrize("how", HOWS)
def test_any_micro_batch_split_gives_the_same_gradient(name, how):
    """With the whole batch's total, whatever the mean is: nothing but the sum over the batch may
    see more than its own row."""
    if name.startswith("reduce."):
        pytest.skip("test_reduce.py")
    kinds = ROWS[name].kinds
    total = normaliser(MASK, how, max_length=T)

    def gradients(sizes):
        inputs = [x.clone().requires_grad_(kind in LEARNT)
                  for x, kind in zip(example(name, torch.float64), kinds, strict=True)]
        for mask, *part in zip(MASK.split(sizes), *[x.split(sizes) for x in inputs], strict=True):
            out, = apply(name, part)
            per_token = out.dim() == 2
            loss = aggregate(out, mask, how, total=total) if per_token else out.sum() / total
            loss.backward()
        return [x.grad for x in inputs if x.requires_grad]

    whole = gradients([B])
    assert max(x.abs().max() for x in whole) > 1e-4
    for sizes in ([1, 2, 2], [3, 2], [1] * 5):
        for a, b in zip(gradients(sizes), whole, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@every_row
def test_inputs_stay(name):
    inputs = [x.requires_grad_(kind in LEARNT)
              for x, kind in zip(example(name), ROWS[name].kinds, strict=True)]
    before = [x.detach().clone() for x in inputs]
    out = apply(name, inputs)[0]
    if out.requires_grad:
        out.sum().backward()
    for x, y in zip(inputs, before, strict=True):
        assert torch.equal(x.detach().nan_to_num(9.0), y.nan_to_num(9.0))


def wrong_shapes(x, inputs):
    """Shapes that would broadcast in the place of x's."""
    if len(inputs) == 1:
        return {x.shape[:-1], (*x.shape, 1)}
    if x.dim() == 1:
        return {(B, B), (B, 1), (1,), ()}
    wrong = {x.shape[:-1], x.shape[1:], (1, *x.shape[1:]), (*x.shape[:-1], 1)}
    only_per_token = x.dim() == 2 and sum(y.dim() == 2 for y in inputs) == 1
    return wrong - {(B, 1)} if only_per_token else wrong  # one token per sequence, which fits


@every_row
def test_shapes_that_would_broadcast_raise(name):
    """(B,) beside (B, T) with B == T would silently broadcast along the wrong axis.

    The error names the shape that came.
    """
    inputs = example(name)
    if ROWS[name].function.__name__ in ANY_SHAPE:
        assert len(inputs) == 1  # nothing to broadcast with
        return
    for i, x in enumerate(inputs):
        for shape in wrong_shapes(x, inputs):
            bad = torch.ones(shape).to(x.dtype)
            with pytest.raises(ValueError, match="expected") as error:
                apply(name, [bad if j == i else y for j, y in enumerate(inputs)])
            assert str(tuple(shape)) in str(error.value)


def test_kto_takes_one_kl():
    """A KL per sequence as a column, (N, 1), would make (N, N) losses of N completions."""
    zero = torch.zeros(3)
    with pytest.raises(ValueError, match="scalar"):
        kto_loss(zero, zero, zero.bool(), kl=torch.zeros(3, 1))


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_stays_and_is_finite(name, dtype):
    """Inputs ten times as large as usual; outputs have the inputs' type."""
    inputs = [10 * x if kind in "LClcVUGK" else x
              for x, kind in zip(example(name), ROWS[name].kinds, strict=True)]
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    outputs, gradients = call(name, inputs)
    assert all(x.isfinite().all() for x in outputs)
    assert all(x.isfinite().all() for x in gradients if x is not None)
    assert all(x.dtype in (dtype, torch.bool) for x in outputs[:len(outputs) // 2])


def extreme(x, kind, sign, dtype):
    """x at ±100, or e^±80 for weights, striped within a row of logits or of a group."""
    stripes = torch.tensor([1.0, -1, 1, 1, -1])
    if kind in "Mb":
        return x
    if kind in "WwN":
        x = torch.full_like(x, 1.0) * (80 * sign * stripes).exp()
    elif kind in "VUKGSR":
        x = 100 * sign * stripes[:x.shape[-1]] + 0 * x  # NaN stays where a step is missing
    else:
        x = torch.full_like(x, 100 * sign)
        x = x * MASK.any(1) if kind == "c" else x
    return x.to(dtype)


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite_or_raise(name, dtype):
    """Every input at ±100, in all combinations: log-ratios of 0 and ±200, advantages and rewards of
    ±100, weights of e^±80. maxrl_advantages takes no negative reward, so it may always raise."""
    kinds, results = ROWS[name].kinds, 0
    for signs in itertools.product((1.0, -1.0), repeat=len(kinds)):
        inputs = [extreme(x, kind, sign, dtype)
                  for x, kind, sign in zip(example(name), kinds, signs, strict=True)]
        try:
            outputs, gradients = call(name, inputs)
        except ValueError:
            continue
        results += 1
        assert all(x.isfinite().all() for x in outputs[:len(outputs) // 2])
        assert all(x.isfinite().all() for x in gradients if x is not None)
    assert results or name.startswith("advantages.maxrl")


@pytest.mark.parametrize("log_ratio", [100.0, -100.0, 0.1])
@pytest.mark.parametrize("adv", [1.0, -1.0])
def test_gspo_token_is_gspo_also_far_away(log_ratio, adv):
    """One advantage per row: value and gradient of the sequence's surrogate, also where a ratio
    above e^20 is capped and has gradient 0. Otherwise a broken token would pull with 4.9e8."""
    old, mask = torch.zeros(1, 2), torch.ones(1, 2)

    def by_token(logp):
        return masked_mean(gspo_token(logp, old, torch.full((1, 2), adv), mask), mask, 1)

    def by_sequence(logp):
        return sequence_clipped_surrogate(logp, old, torch.full((1,), adv), mask, clip_low=3e-4,
                                          clip_high=4e-4, length_normalised=True)

    results = []
    for function in (by_token, by_sequence):
        logp = torch.full((1, 2), log_ratio, requires_grad=True)
        value = function(logp)
        value.sum().backward()
        results.append((value.detach(), logp.grad))
    close(results[0], results[1])


def test_float64_has_sixteen_digits():
    """A temperature that is float32 on the way, 1.04999995, leaves 8 of them: at ratio 1 the value
    is 2 / 1.05 = 1.904761904761905."""
    zero = torch.zeros(1, 1).double()
    value = objectives.sapo(zero, zero, zero - 1).item()
    assert value == pytest.approx(-1.904761904761905, rel=1e-14)


# A margin of bradley_terry_loss may be learnt; scores for a gain and a bias are the caller's.
CONSTANTS = [
    (name, i)
    for name, row in ROWS.items()
    for i, (keyword, kind) in enumerate(row.arguments)
    if kind in "CUcWGNSR" and not name.startswith("rewards.") and keyword != "margin"
]


@pytest.mark.parametrize("name, i", CONSTANTS, ids=[f"{name} arg {i}" for name, i in CONSTANTS])
def test_constants_get_no_gradient(name, i):
    """A forgotten detach on old_logp, ref_logp, a reward or a baseline raises, or has no gradient:
    never a path that nobody meant."""
    try:
        outputs = apply(name, [x.requires_grad_(j == i) for j, x in enumerate(example(name))])
    except ValueError as error:
        assert "requires" in str(error) and "grad" in str(error)
    else:
        assert not any(x.requires_grad for x in outputs)


def test_whole_numbers_are_rewards_too():
    """Rewards of 0 and 1 come as integers: with gamma 1/2 returns are 1 + 1/2 and 1, not truncated
    to 1 and 1."""
    ones = torch.ones(1, 2).long()
    assert advantages.discounted_returns(ones, ones, gamma=0.5).tolist() == [[1.5, 1.0]]
    zeros = torch.zeros(1, 2).long()
    adv, returns = advantages.gae(ones, zeros, ones, gamma=0.5, lam=1.0)
    assert adv.tolist() == returns.tolist() == [[1.5, 1.0]]


def test_an_infinite_baseline_raises():
    """nan_to_num, meant for "no verdict", made -3.4e38 of it: a finite advantage that nothing
    downstream would notice."""
    with pytest.raises(ValueError, match="finite"):
        advantages.remax_advantages(torch.zeros(1, 2), torch.tensor([INF]))
