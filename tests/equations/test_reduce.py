"""Tests of minirl.equations.reduce."""

import pytest
import torch

from minirl.equations.advantages import gae
from minirl.equations.reduce import (
    AGGREGATIONS,
    aggregate,
    explained_variance,
    masked_mean,
    masked_whiten,
    normaliser,
    within_rounding,
)

NAN, INF = float("nan"), float("inf")
HOWS = ("sequence_mean", "token_mean", "sequence_sum", "constant")
REDUCTIONS = {
    "masked_mean": masked_mean,
    "masked_mean by row": lambda x, mask: masked_mean(x, mask, 1),
    "masked_whiten": masked_whiten,
    "masked_whiten, mean kept": lambda x, mask: masked_whiten(x, mask, shift_mean=False),
    **{how: lambda x, mask, how=how: aggregate(x, mask, how, total=30.0) for how in HOWS},
}
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
every_how = pytest.mark.parametrize("how", HOWS)
pad = torch.nn.functional.pad


def ragged(*rows, junk=7.0):
    """Rows of different lengths as (x, mask), padded with junk on the right."""
    width = max(map(len, rows))
    x = torch.tensor([list(row) + [junk] * (width - len(row)) for row in rows])
    return x, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def example():
    """Five rows: ragged, padded on the left, with a hole, of one token, empty."""
    mask = torch.tensor(
        [[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), mask


@pytest.mark.parametrize("rows, total, expected", [
    # 14/5 = 2.8 and 19/10 = 1.9; tokens 33 of 15; sums 14 and 19; slots 2 * 10
    (([1, 1, 1, 1, 10], [1] * 9 + [10]), 20, (2.35, 2.2, 16.5, 1.65)),
    # means 1, 1, 1/4, 1/4; every row sums to 2; 20 tokens; slots 4 * 8
    (([1] * 2, [1] * 2, [0.25] * 8, [0.25] * 8), 32, (0.625, 0.4, 2.0, 0.25)),
    # a short good answer and a long bad one: 1 - 1; 2 - 6 = -4 over 8 tokens, 2 rows, 2 * 8 slots
    (([1] * 2, [-1] * 6), 16, (0.0, -0.5, -2.0, -0.25)),
    # 100 tokens of mean 2 and 900 of mean 1/2: (2 + 1/2) / 2; 650 / 1000; (200 + 450) / 2;
    # 650 / 2000
    (([2] * 100, [0.5] * 900), 2000, (1.25, 0.65, 325.0, 0.325)),
])
def test_aggregate_hand_numbers(rows, total, expected):
    """"The GRPO loss" is four losses. Code bases mean different things by Dr. GRPO and DAPO: 2.35,
    2.2 and 1.65 are each somebody's number."""
    x, mask = ragged(*[[float(v) for v in row] for row in rows])
    for how, value in zip(HOWS, expected, strict=True):
        actual = aggregate(x, mask, how, total=total if how == "constant" else None)
        assert actual.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("how, short, long", [
    ("sequence_mean", 1 / 2, 1 / 6),
    ("token_mean", 1 / 4, 1 / 4),
    ("sequence_sum", 1 / 2, 1 / 2),
    ("constant", 1 / 6, 1 / 6),
])
def test_aggregate_weight_of_a_token(how, short, long):
    """Rows of 1 and 3 tokens, 6 slots: the weight of one token in the gradient is the whole
    difference between the means."""
    x, mask = torch.zeros(2, 3, requires_grad=True), torch.tensor([[1, 0, 0], [1, 1, 1]])
    aggregate(x, mask, how, total=6 if how == "constant" else None).backward()
    torch.testing.assert_close(x.grad, torch.tensor([[short, 0, 0], [long] * 3]))


def test_masked_mean_hand_numbers():
    x, mask = ragged([1.0, 2.0, 6.0], [5.0])
    assert masked_mean(x, mask).item() == 3.5  # 14 / 4
    assert masked_mean(x, mask, 1).tolist() == [3.0, 5.0]
    assert masked_mean(x, mask, 0).tolist() == [3.0, 2.0, 6.0]  # (1 + 5) / 2, 2, 6


@pytest.mark.parametrize("x, options, expected", [
    ([1.0, 3.0], {}, [-0.7071, 0.7071]),  # var (1 + 1) / 1
    ([1.0, 3.0], {"ddof": 0}, [-1.0, 1.0]),  # var (1 + 1) / 2
    ([1.0, 3.0], {"shift_mean": False}, [1.2929, 2.7071]),  # mean 2
    ([1.0, 2.0, 3.0, 4.0], {}, [-1.1619, -0.3873, 0.3873, 1.1619]),  # var 5/3, std 1.29099
    # eps is added to the variance: 2 / sqrt(4 + 5)
    ([0.0, 4.0], {"ddof": 0, "eps": 5.0}, [-0.6667, 0.6667]),
])
def test_masked_whiten_hand_numbers(x, options, expected):
    x, mask = ragged(x, [])
    white = masked_whiten(x, mask, **options)
    torch.testing.assert_close(white[0], torch.tensor(expected), atol=5e-5, rtol=0)
    assert white[1].tolist() == [0.0] * len(expected)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 100])
def test_masked_whiten_of_equal_values(n):
    """The float32 mean of eight 0.7 is not 0.7: the remainder over sqrt(1e-8) would be an advantage
    out of nothing."""
    x, mask = ragged([0.7] * n)
    assert masked_whiten(x, mask).tolist() == [[0.0] * n]
    torch.testing.assert_close(masked_whiten(x, mask, shift_mean=False), x)


def test_normaliser():
    assert set(AGGREGATIONS) == set(HOWS)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert [normaliser(mask, how, max_length=5) for how in HOWS] == [3.0, 3.0, 3.0, 15.0]
    assert normaliser(mask[:2], "token_mean") == 3.0
    assert normaliser(mask[:2], "sequence_mean") == 2.0


@every_how
@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 2, 3), (1,) * 6])
def test_any_micro_batch_split_gives_the_same_gradient(how, sizes):
    """Losses that divide by the tokens of the micro-batch change with gradient accumulation, in the
    wild by factors from 0.5 to 4. The total of the whole batch is the default."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([5, 1, 3, 0, 2, 5])
    features = torch.randn(6, 5, 3, generator=generator)
    mask = (torch.arange(5) < lengths[:, None]).long()
    total = normaliser(mask, how, max_length=5)

    def gradient_and_value(sizes):
        weight, value = torch.ones(3, requires_grad=True), 0.0
        for x, m in zip(features.split(sizes), mask.split(sizes), strict=True):
            part = aggregate((x @ weight).sin(), m, how, total=total)
            part.backward()
            value += part.item()
        return weight.grad, value

    whole, value = gradient_and_value((6,))
    split, split_value = gradient_and_value(sizes)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    assert split_value == pytest.approx(value, abs=1e-6)
    if how != "constant":
        terms = (features @ torch.ones(3)).sin()
        assert aggregate(terms, mask, how).item() == pytest.approx(value, abs=1e-6)


def test_mean_of_micro_batch_means_is_another_number():
    """Rows of 2, 2, 8, 8 tokens in two halves: the mean of the halves' means is 0.625, the mean
    over tokens 0.4. With `total` the halves add up."""
    x, mask = ragged([1.0] * 2, [1.0] * 2, [0.25] * 8, [0.25] * 8)
    halves = list(zip(x.split(2), mask.split(2), strict=True))
    own = sum(aggregate(a, m, "token_mean") for a, m in halves).item() / 2
    whole = sum(aggregate(a, m, "token_mean", total=20) for a, m in halves).item()
    assert own == pytest.approx(0.625) and whole == pytest.approx(0.4)


@every_reduction
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e30])
def test_what_stands_under_a_zero_mask_never_matters(reduction, junk):
    """NaN * 0 is NaN: a mask that multiplies lets padding into value and gradient.

    Outputs are summed with weights, because the plain sum of whitened values has no gradient.
    """
    x, mask = example()
    results = []
    for content in (0.0, junk):
        leaf = x.masked_fill(mask == 0, content).requires_grad_()
        value = reduction(leaf, mask)
        weights = torch.arange(1.0, value.numel() + 1).view_as(value)
        (value * weights).sum().backward()
        assert (leaf.grad[mask == 0] == 0).all() and leaf.grad.isfinite().all() and leaf.grad.any()
        results.append((value, leaf.grad))
    (value, grad), (junk_value, junk_grad) = results
    assert torch.equal(value, junk_value) and torch.equal(grad, junk_grad)


@every_reduction
@pytest.mark.parametrize("left, right", [(3, 0), (0, 3), (2, 1)])
def test_padding_left_and_right(reduction, left, right):
    x, mask = example()
    padded = reduction(pad(x, (left, right), value=9.0), pad(mask, (left, right)))
    plain = reduction(x, mask)
    torch.testing.assert_close(padded[:, left:left + 4] if plain.dim() == 2 else padded, plain)


@every_reduction
def test_row_order(reduction):
    x, mask = example()
    order = torch.tensor([3, 0, 4, 2, 1])
    plain, shuffled = reduction(x, mask), reduction(x[order], mask[order])
    torch.testing.assert_close(shuffled, plain[order] if plain.dim() else plain)


@every_reduction
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_dtype_does_not_matter_and_inputs_stay(reduction, dtype):
    x, mask = example()
    mask = mask.to(dtype)
    before = x.clone(), mask.clone()
    torch.testing.assert_close(reduction(x, mask), reduction(x, mask.float()), atol=0, rtol=0)
    assert torch.equal(x, before[0]) and torch.equal(mask, before[1])


@every_reduction
def test_empty_mask_gives_zero_and_stays_on_the_graph(reduction):
    """A batch of nothing but truncated or tool-made tokens gives 0, not 0/0, and its backward gives
    zeros instead of an error."""
    x = torch.full((2, 3), NAN, requires_grad=True)
    value = reduction(x, torch.zeros(2, 3))
    value.sum().backward()
    assert (value == 0).all() and (x.grad == 0).all()


@every_how
def test_empty_mask_without_total(how):
    x = torch.ones(2, 3, requires_grad=True)
    value = aggregate(x, torch.zeros(2, 3), how, total=0.0 if how == "constant" else None)
    value.backward()
    assert value.item() == 0 and (x.grad == 0).all()


def test_empty_row_adds_zero_and_counts_as_a_sequence():
    """A completion without tokens made 0/0 = NaN of the whole batch."""
    x, mask = ragged([2.0, 4.0], [])
    totals = (None, None, None, 4)
    values = [aggregate(x, mask, how, total=total).item()
              for how, total in zip(HOWS, totals, strict=True)]
    assert values == [1.5, 3.0, 3.0, 1.5]
    assert masked_mean(x, mask, 1).tolist() == [3.0, 0.0]


@every_reduction
@pytest.mark.parametrize("x_shape, mask_shape", [
    ((3, 3), (3,)), ((3,), (3, 3)), ((3, 3), (3, 1)), ((2, 3), (3, 2)),
])
def test_shapes_that_would_broadcast_raise(reduction, x_shape, mask_shape):
    """With B == T a (B,) mask would silently broadcast along the wrong axis."""
    with pytest.raises(ValueError, match="same shape"):
        reduction(torch.ones(x_shape), torch.ones(mask_shape))


@pytest.mark.parametrize("total", [0.0, -1.0, float("inf"), float("nan")])
def test_a_total_of_nothing_raises_where_anything_is_visible(total):
    with pytest.raises(ValueError, match=f"total is {total}: expected the positive number"):
        aggregate(torch.ones(2, 2), torch.tensor([[1, 0], [0, 0]]), "constant", total=total)


@pytest.mark.parametrize("how", [*HOWS, "mean"])
@pytest.mark.parametrize("total", [None, 4.0])
def test_unknown_how_and_missing_total_raise(how, total):
    """A misspelt name must not fall back to some default sum, with a total or without."""
    x, mask = torch.ones(2, 2), torch.ones(2, 2)
    if how == "mean" or (how == "constant" and total is None):
        with pytest.raises(ValueError, match="one of" if how == "mean" else "total"):
            aggregate(x, mask, how, total=total)
    else:
        assert aggregate(x, mask, how, total=total).item() > 0


def test_other_bad_arguments_raise():
    x, mask = torch.ones(2, 2), torch.ones(2, 2)
    for total in (0, -1.0, NAN, torch.tensor(0.0)):
        with pytest.raises(ValueError, match="total"):
            aggregate(x, mask, "token_mean", total=total)
    for shape in ((4,), (2, 2, 1), ()):
        with pytest.raises(ValueError, match=r"\(B, T\)"):
            aggregate(torch.ones(shape), torch.ones(shape), "token_mean")
    with pytest.raises(ValueError, match="one of"):
        normaliser(mask, "mean")
    with pytest.raises(ValueError, match="L_max"):
        normaliser(mask, "constant")


@every_reduction
def test_bfloat16_stays_finite(reduction):
    x, mask = example()
    value = reduction((1e4 * x).bfloat16(), mask)
    assert value.dtype == torch.bfloat16 and value.isfinite().all()
    torch.testing.assert_close(value.float(), reduction(1e4 * x, mask), rtol=0.03, atol=0.03)


# explained_variance

@pytest.mark.parametrize("values, expected", [
    ([1.0, 2.0, 3.0, 99.0], 1.0),  # predicted exactly; the last slot is under a zero mask
    ([11.0, 12.0, 13.0, 99.0], 1.0),  # up to a constant
    ([5.0, 5.0, 5.0, 99.0], 0.0),  # a constant predicts nothing
    # the wrong way round: returns - values = -2, 0, 2, variance 8/3 of 2/3
    ([3.0, 2.0, 1.0, 99.0], -3.0),
    # returns - values = 0, 0, 1, variance 2/9 of 6/9
    ([1.0, 2.0, 2.0, 99.0], 2 / 3),
])
def test_explained_variance_by_hand(values, expected):
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, NAN]]), torch.tensor([[1, 1, 1, 0]])
    explained = explained_variance(torch.tensor([values]), returns, mask)
    assert float(explained) == pytest.approx(expected, abs=1e-6)


def test_explained_variance_of_equal_returns_is_zero_and_of_nothing_too():
    """0 / 0: PPO's first step on constant rewards logged NaN, and a plot with one NaN has no
    curve."""
    ones = torch.ones(1, 3)
    assert float(explained_variance(torch.rand(1, 3), ones, ones)) == 0.0
    assert float(explained_variance(ones, ones, torch.zeros(1, 3))) == 0.0


@pytest.mark.parametrize("returns", [
    torch.full((1, 10), 0.7),
    torch.full((1, 10), 1e4),
    0.7 + torch.tensor([[0.0, 6e-8] * 5]),
    torch.full((1, 10), 0.7).double(),
    torch.full((1, 10), -3.3),
    torch.full((1, 10), 7),
    torch.full((1, 10), 0.7).bfloat16(),
    torch.zeros(1, 10),
    torch.tensor([[0.0, 1e-30] * 5]),
])
def test_returns_without_spread_are_explained_by_nothing(returns):
    """The float32 mean of ten 0.7 is not 0.7. The result was divided by its variance of 1e-14:
    -2.9e13 in the log, and a plot of nothing else."""
    values, ones = torch.linspace(0, 1, 10)[None], torch.ones(1, 10)
    assert float(explained_variance(values, returns, ones)) == 0.0


@pytest.mark.parametrize("tokens", [5, 50, 500])
def test_returns_that_are_sums_of_many_tokens_may_be_equal(tokens):
    """A reward of 0.7 at the end, lambda 1: every return is 0.7. But each is the sum of as many
    differences of values as there are tokens after it, and is rounded as often."""
    values = torch.randn(16, tokens, generator=torch.Generator().manual_seed(0))
    rewards, ones = torch.zeros(16, tokens), torch.ones(16, tokens)
    rewards[:, -1] = 0.7
    returns = gae(rewards, values, ones, lam=1.0)[1]
    assert returns.unique().numel() > 1
    assert float(explained_variance(values, returns, ones)) == 0.0
    assert float(explained_variance(returns, returns + 0.01 * values, ones)) != 0.0


def test_a_small_spread_is_a_spread():
    returns = 1000 + torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    assert float(explained_variance(returns - 1000, returns, torch.ones(1, 4))) == 1.0
    values = torch.tensor([[1.0, 1.0 + 2 ** -12, 1.0]]).double()
    assert float(explained_variance(values - 1, values, torch.ones(1, 3))) == 1.0


# numbers as computers hold them

def test_a_mask_counts_what_it_shows():
    """Any number but 0 shows a slot: a mask of twos once halved the mean."""
    x, mask = torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[2.0, 0.5, 0.0]])
    assert masked_mean(x, mask) == 2
    assert aggregate(x, mask, "token_mean") == aggregate(x, mask, "sequence_mean") == 2


def test_whitening_in_float16():
    """300 squared overflows float16: the variance was infinite, and everything 0.

    The variance is (2 * 300^2) / 3, so 300 becomes sqrt(3 / 2).
    """
    white = masked_whiten(torch.tensor([[300.0, -300.0, 0.0, 0.0]]).half(), torch.ones(1, 4))
    assert white.dtype == torch.float16
    expected = torch.tensor([[1.2247, -1.2247, 0.0, 0.0]])
    torch.testing.assert_close(white.float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype, size", [
    (torch.float32, 1e4),
    (torch.float32, 1e8),
    (torch.float64, 1e12),
    (torch.bfloat16, 1.0),
    (torch.float16, 500.0),
])
def test_whitening_of_what_differs_by_rounding_alone(dtype, size):
    """eps 1e-8 does not help where numbers are large: neighbours of 10,000 are 1e-3 apart, and
    became -0.58 and 1.15."""
    x = torch.tensor([[size] * 3], dtype=torch.float64).to(dtype)
    x[0, 2] = torch.nextafter(x[0, 2], x.new_tensor(torch.inf))
    ones = torch.ones(1, 3)
    assert x[0, 2] != x[0, 0] and masked_whiten(x, ones).tolist() == [[0.0] * 3]
    torch.testing.assert_close(masked_whiten(x, ones, shift_mean=False), x)


def test_neighbours_are_within_rounding_and_the_next_but_one_is_not():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for size in (1.0, 1.5, 0.3, 3e4, -1.0, -0.7):
            low = torch.tensor(size, dtype=dtype)
            high = torch.nextafter(low, low.new_tensor(torch.inf))
            assert bool(within_rounding(low, high)) and bool(within_rounding(low, low))
            far = low + 3 * torch.finfo(dtype).eps * low.abs()
            assert not bool(within_rounding(low, far))
    pairs = ((0.0, 1e-38), (-1e-9, 1e-9), (0.0, INF), (-INF, INF), (-65_504.0, 65_504.0))
    for low, high in pairs:
        assert not bool(within_rounding(torch.tensor(low), torch.tensor(high), operations=64))
    assert not bool(within_rounding(torch.tensor(-65_504.0).half(), torch.tensor(65_504.0).half()))
    low, high = torch.tensor([1, 10 ** 9]), torch.tensor([1, 10 ** 9 + 1])
    assert within_rounding(low, high).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_whole_numbers_have_means_that_are_not_whole(dtype):
    """The mean of 0 and 1 was 0: it was converted to the type of the input."""
    x, ones = torch.tensor([[0, 1]], dtype=dtype), torch.ones(1, 2)
    assert masked_mean(x, ones).item() == 0.5 and masked_mean(x, ones, 1).tolist() == [0.5]
    for how, mean in (("sequence_mean", 0.5), ("token_mean", 0.5), ("sequence_sum", 1.0)):
        assert aggregate(x, ones, how).item() == mean
    torch.testing.assert_close(masked_whiten(x, ones), torch.tensor([[-0.5, 0.5]]) * 2 ** 0.5)
    explained = explained_variance(x, torch.tensor([[1, 3]]), ones)  # 1 - 0, 3 - 1
    assert explained.item() == 0.75  # 1/4 of 1 is left


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_wider_than_their_terms(dtype):
    """400 tokens of 300 are 120,000, which overflows float16: their mean was infinite."""
    x, mask = torch.full((2, 400), 300.0).to(dtype), torch.ones(2, 400)
    for how, total in (("sequence_mean", None), ("token_mean", None), ("constant", 800)):
        value = aggregate(x, mask, how, total=total)
        assert value.dtype == dtype and value.item() == 300.0
    spread = x * torch.tensor([[0.0], [1.0]]).to(dtype)
    assert explained_variance(spread, x, mask).item() == 0.0
    assert explained_variance(spread, spread, mask).item() == 1.0


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_at_all(shape):
    """The largest of no numbers was a RuntimeError in masked_whiten."""
    none = torch.zeros(shape)
    assert masked_whiten(none, none).shape == shape and masked_mean(none, none).item() == 0
    assert explained_variance(none, none, none).item() == 0
    assert all(aggregate(none, none, how, total=5).item() == 0 for how in HOWS)
