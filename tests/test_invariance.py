"""What holds for every equation of tokens, sequences and groups: one table, one test per promise."""

import inspect
import itertools

import pytest
import torch

from minirl.equations import advantages, coefficients, kl, mismatch, objectives, preferences, reduce, rewards
from minirl.equations.objectives import gspo_token, sequence_clipped_surrogate
from minirl.equations.preferences import kto_loss
from minirl.equations.reduce import aggregate, masked_mean, normaliser

NAN, INF = float("nan"), float("inf")
HOWS = reduce.AGGREGATIONS
CLIP = {"clip_low": 0.2, "clip_high": 0.28}

# Arguments, in order; with "name=" where keyword-only. Tokens (B, T): L learnt, C constant, W positive, M mask; logits (B, T, V): V learnt,
# U constant. Sequences (B,): l learnt, c constant, w positive, b yes or no. Groups: G rewards and N lengths (P, G), K learnt scores (P, K),
# S rewards of steps (P, G, S).
TABLE = [
    (reduce, "aggregate", "L M", *({"how": how, "total": 7.0} for how in HOWS)),
    (reduce, "masked_mean", "L M", {}, {"dim": 1}),
    (reduce, "masked_whiten", "L M", {}, {"shift_mean": False}),
    (reduce, "explained_variance", "C C M", {}),
    (kl, "k1 k2 k3", "L C", {}),
    (kl, "corrected_k3", "L C C", {}),
    (kl, "exact_kl", "V U", {}),
    (kl, "kl_shaped_rewards", "c C C M", {"kl_coef": 0.1}, {"kl_coef": 0.1, "estimator": kl.k2}),
    (advantages, "discounted_returns", "C M", {"gamma": 0.9}),
    (advantages, "gae", "C C M", {}, {"gamma": 0.9, "lam": 0.5}),
    (advantages, "gae", "C C M bootstrap=c", {}),
    (advantages, "group_advantages", "G", *({"scale": scale} for scale in ("group", "batch", "none"))),
    (advantages, "leave_one_out_advantages maxrl_advantages dynamic_sampling zero_spread", "G", {}),
    (advantages, "batch_mean_advantages", "G", {}),
    (advantages, "optimal_baseline opo_advantages", "G N", {}),
    (advantages, "remax_advantages", "G c", {}),
    (advantages, "spread", "c M", {}),
    (advantages, "process_advantages", "S", {}),
    (advantages, "reinforce_plus_plus_advantages", "c C C M", {"kl_coef": 0.1}),
    (objectives, "policy_gradient value_loss", "L C", {}),
    (objectives, "clipped_surrogate dual_clipped_surrogate clipped_value_loss sapo", "L C C", {}),
    (objectives, "cispo", "L C C", {"cap": 5.0}),
    (objectives, "kl_penalised_surrogate", "L C C L", {"kl_coef": 0.1}),
    (objectives, "sequence_ratio", "L C M", {"length_normalised": True}, {"length_normalised": False}),
    (objectives, "sequence_clipped_surrogate", "L C c M", {"length_normalised": True, **CLIP}, {"length_normalised": False, **CLIP}),
    (objectives, "gspo_token", "L C C M", CLIP),
    (objectives, "entropy", "V", {}),
    (objectives, "ppo_objective", "L L L", {}),
    (preferences, "bradley_terry_loss", "l l", {}),
    (preferences, "bradley_terry_loss", "l l margin=c", {}),
    (preferences, "ranking_loss", "K", {}),
    (preferences, "implicit_reward", "l c", {}),
    (preferences, "dpo_loss label_smoothed_dpo_loss ipo_loss", "l l c c", {}),
    (preferences, "simpo_loss", "l l", {}),
    (preferences, "kto_loss", "l c b", {"kl": 0.3}),
    (mismatch, "importance_ratio", "L C", {}),
    (mismatch, "truncated_weights", "W", {"cap": 1.5}),
    (mismatch, "masked_weights", "W", {"cap": 1.5, "floor": 0.5}),
    (mismatch, "sequence_weights", "C C M", {}),
    (mismatch, "effective_sample_size", "w", {}),
    (coefficients, "sft_coefficient ppo_coefficient", "C", {}),
    (coefficients, "rft_coefficient online_rft_coefficient", "b C", {}),
    (coefficients, "dpo_coefficient", "c c c c", {}),
    (coefficients, "grpo_coefficient", "C C C", {}),
    (rewards, "overlong_penalty", "w", {"max_length": 2, "cache": 1}),
    (rewards, "reward_bias reward_gain_and_bias", "w", {}),
]
EXEMPT = {
    "kl.max_log_ratio": "a number for a type",
    "reduce.within_rounding": "a comparison",
    "reduce.normaliser": "a count of the mask", "kl.adaptive_kl_coef": "a rule on numbers", "kl.AdaptiveKLController": "a rule on numbers",
    "objectives.ptx_objective": "two scalars, already aggregated",
}
ANY_SHAPE = {"entropy", "zero_spread", "truncated_weights", "masked_weights", "effective_sample_size", "sft_coefficient", "ppo_coefficient",
             "overlong_penalty"}
BATCH = {reduce.masked_whiten, advantages.reinforce_plus_plus_advantages,
         advantages.batch_mean_advantages}

ROWS = {}
for _module, _names, _arguments, *_options in TABLE:
    for _name, _option in itertools.product(_names.split(), _options):
        _key = f"{_module.__name__.rpartition('.')[2]}.{_name}"
        ROWS[f"{_key} {_arguments} {len(ROWS)}"] = (getattr(_module, _name), [a.rpartition("=")[::2] for a in _arguments.split()], _option)

B = T = 5                                                                                    # equal, so that a wrong axis would broadcast
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0] * 5]).bool()
TOKENS, LEARNT, GROUPS = set("LCWVU"), set("LVlK"), set("GNS")


def rows(wanted):
    """The rows of the table whose set of kinds is `wanted`."""
    names = [name for name, (_, arguments, _) in ROWS.items() if wanted({kind for _, kind in arguments})]
    return pytest.mark.parametrize("name", names)


every_row = rows(lambda kinds: True)


def example(name, dtype=torch.float32):
    """Inputs for a row of the table. The score of the row without tokens is 0: it has none to carry it."""
    generator = torch.Generator().manual_seed(5)
    inputs = []
    for _, kind in ROWS[name][1]:
        x = torch.randn(*{"V": (B, T, 3), "U": (B, T, 3), "S": (B, T, 3)}.get(kind, (B,) if kind in "lcwb" else (B, T)), generator=generator)
        if kind == "c":
            x[4] = 0
        elif kind in "WwGN":
            x = x.abs() + 0.1
        elif kind == "S":
            x[:, 1, 1:] = x[:, 2, 2:] = NAN
        inputs.append(MASK if kind == "M" else x > 0 if kind == "b" else x.to(dtype))
    return inputs


def apply(name, inputs):
    """The row's function on its inputs: a list of outputs."""
    function, arguments, options = ROWS[name]
    named = {key: x for x, (key, _) in zip(inputs, arguments, strict=True) if key}
    out = function(*[x for x, (key, _) in zip(inputs, arguments) if not key], **named, **options)
    return list(out) if isinstance(out, tuple) else [out]


def call(name, inputs, mask=MASK):
    """(outputs, gradients): every output, then its weighted aggregate; one gradient per input, None where it has none."""
    kinds = [kind for _, kind in ROWS[name][1]]
    inputs = [x.detach().clone().requires_grad_(kind in LEARNT) for x, kind in zip(inputs, kinds, strict=True)]
    outputs = apply(name, inputs)
    values = []
    for out in outputs:
        assert out.requires_grad == bool(set(kinds) & LEARNT)
        if out.shape == mask.shape and set(kinds) & TOKENS:
            values.append(aggregate(out * (1 + torch.arange(len(out)).to(out)[:, None]), mask, "token_mean"))
        else:
            values.append((out * (1 + torch.arange(len(out)).to(out.dtype) if out.dim() == 1 else 1)).sum())
    if outputs[0].requires_grad:
        sum(values).backward()
    return [x.detach() for x in outputs + values], [x.grad for x in inputs]


def close(a, b):
    torch.testing.assert_close(a, b, equal_nan=True, atol=2e-6, rtol=2e-5)


def test_the_table_is_complete():
    """A new equation fails here until it has its row (or a reason not to)."""
    public = {f"{m.__name__.rpartition('.')[2]}.{name}" for m in {row[0] for row in TABLE} for name, x in vars(m).items()
              if not name.startswith("_") and (inspect.isfunction(x) or inspect.isclass(x)) and x.__module__ == m.__name__}
    covered = {name.split()[0] for name in ROWS}
    assert public - covered - set(EXEMPT) == set() and covered & set(EXEMPT) == set() and set(EXEMPT) <= public


@rows(lambda kinds: kinds & TOKENS)
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e30])
def test_what_stands_under_a_zero_mask_never_matters(name, junk):
    """After the aggregate no padding is in value or gradient. A function that knows the mask keeps
    the padding's own slot clean too; in one that does not, 0 * NaN stays in the gradient of what is
    learnt where that itself is NaN, and only there."""
    arguments, results = ROWS[name][1], []
    for content in (0.5, junk):
        inputs = [x if kind not in TOKENS else x.masked_fill(~MASK if x.dim() == 2 else ~MASK[..., None], content * (-1) ** i)
                  for i, (x, (_, kind)) in enumerate(zip(example(name), arguments))]
        results.append(call(name, inputs))
    (plain, gradients), (outputs, junk_gradients) = results
    for a, b in zip(plain, outputs, strict=True):
        assert torch.equal(*(x[MASK] if x.shape == MASK.shape else x for x in (a, b))) and not a.isnan().any()
        if any(kind == "M" for _, kind in arguments) and a.shape == MASK.shape and ROWS[name][0] is not gspo_token:
            assert (a[~MASK] == 0).all() and (b[~MASK] == 0).all()                           # rewards, advantages, returns
    for a, b in zip(gradients, junk_gradients):
        if a is not None:
            assert torch.equal(a[MASK], b[MASK]) and (a[~MASK] == 0).all()
            if any(kind == "M" for _, kind in arguments) or junk == 1e30:
                assert (b[~MASK] == 0).all()


@rows(lambda kinds: "L" in kinds and "C" in kinds)
@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_a_constant_under_a_zero_mask_reaches_no_gradient(name, junk):
    """Advantages or old log-probs that are NaN on padding left the loss as it was and made NaN of
    every weight: the aggregate's gradient there is 0, and 0 * NaN is NaN."""
    inputs, kinds = example(name), [kind for _, kind in ROWS[name][1]]
    _, gradients = call(name, inputs)
    for i, kind in enumerate(kinds):
        if kind == "C":
            spoilt = [x.masked_fill(~MASK, junk) if j == i else x for j, x in enumerate(inputs)]
            for plain, gradient in zip(gradients, call(name, spoilt)[1]):
                assert plain is None or torch.equal(gradient, plain)


@rows(lambda kinds: "L" in kinds and "C" in kinds)
def test_a_constant_that_is_no_number_shows(name):
    """It gets no gradient, so the value must tell: no NaN may pass for a small loss."""
    inputs, kinds = example(name), [kind for _, kind in ROWS[name][1]]
    for i, kind in enumerate(kinds):
        if kind == "C":
            spoilt = [x.masked_fill(MASK, NAN) if j == i else x for j, x in enumerate(inputs)]
            assert apply(name, spoilt)[0].isnan().any()


@rows(lambda kinds: kinds & (TOKENS | GROUPS))
@pytest.mark.parametrize("left, right", [(3, 0), (0, 3), (2, 1)])
def test_padding_left_and_right(name, left, right):
    """Tokens are padded under a zero mask; a group with samples of no verdict (NaN), a solution behind its last step."""
    arguments, inputs = ROWS[name][1], example(name)
    left = 0 if arguments[0][1] == "S" else left

    def pad(x, kind):
        if kind in TOKENS | GROUPS | {"M"}:
            value = {"M": 0, "G": NAN, "S": NAN}.get(kind, 9.0)
            return torch.nn.functional.pad(x, (left, right) if x.dim() == 2 or kind == "S" else (0, 0, left, right), value=value)
        return x

    outputs, gradients = call(name, inputs)
    padded, padded_gradients = call(name, [pad(x, kind) for x, (_, kind) in zip(inputs, arguments)], pad(MASK, "M"))
    for plain, wide in zip(outputs, padded, strict=True):
        if plain.shape != wide.shape:
            assert wide.shape[-1] == plain.shape[-1] + left + right
            if arguments[0][1] in GROUPS:
                assert (wide[..., :left] == 0).all() and (wide[..., left + plain.shape[-1]:] == 0).all()   # no verdict, no advantage
            wide = wide[..., left:left + plain.shape[-1]]
        close(wide, plain)
    for plain, wide in zip(gradients, padded_gradients):
        if plain is not None:
            close(wide[:, left:left + T], plain)


@every_row
def test_row_order(name):
    """Rows carry no order: outputs and gradients move with them, a scalar stays. Nor have the samples of a group one."""
    inputs, order = example(name), torch.tensor([3, 0, 4, 2, 1])
    outputs, gradients = call(name, inputs)
    moved, moved_gradients = call(name, [x[order] for x in inputs], MASK[order])
    for plain, shuffled in zip(outputs[:len(outputs) // 2], moved):
        close(shuffled, plain[order] if plain.dim() else plain)
    if not outputs[0].dim():                                                                 # else each row has its own weight
        for plain, shuffled in zip(gradients, moved_gradients):
            assert plain is None or close(shuffled, plain[order]) is None
    if ROWS[name][1][0][1] == "G":
        samples, = call(name, [x[:, order] if x.dim() == 2 else x for x in inputs])[0][:1]
        close(samples, outputs[0][:, order] if outputs[0].shape == (B, T) else outputs[0])


@every_row
def test_no_row_sees_another(name):
    """Two rows out of five give what they gave among five, except where the whole batch is the point."""
    plain, inputs = apply(name, example(name)), example(name)
    if plain[0].dim() and ROWS[name][0] not in BATCH and ROWS[name][2] != {"scale": "batch"}:
        for a, b in zip(plain, apply(name, [x[[1, 3]] for x in inputs]), strict=True):
            close(b, a[[1, 3]])


@rows(lambda kinds: kinds & LEARNT)
@pytest.mark.parametrize("how", HOWS)
def test_any_micro_batch_split_gives_the_same_gradient(name, how):
    """With the whole batch's total, whatever the means are: nothing but the sum over the batch may see more than its own row."""
    if name.startswith("reduce."):
        pytest.skip("test_reduce.py")
    arguments = ROWS[name][1]
    total = normaliser(MASK, how, max_length=T)

    def gradients(sizes):
        inputs = [x.clone().requires_grad_(kind in LEARNT) for x, (_, kind) in zip(example(name, torch.float64), arguments)]
        for part in zip(MASK.split(sizes), *[x.split(sizes) for x in inputs]):
            out, = apply(name, part[1:])
            (aggregate(out, part[0], how, total=total) if out.dim() == 2 else out.sum() / total).backward()
        return [x.grad for x in inputs if x.requires_grad]

    whole = gradients([B])
    assert max(x.abs().max() for x in whole) > 1e-4
    for sizes in ([1, 2, 2], [3, 2], [1] * 5):
        for a, b in zip(gradients(sizes), whole, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@every_row
def test_inputs_stay(name):
    inputs = [x.requires_grad_(kind in LEARNT) for x, (_, kind) in zip(example(name), ROWS[name][1])]
    before = [x.detach().clone() for x in inputs]
    out = apply(name, inputs)[0]
    if out.requires_grad:
        out.sum().backward()
    assert all(torch.equal(x.detach().nan_to_num(9.0), y.nan_to_num(9.0)) for x, y in zip(inputs, before, strict=True))


@every_row
def test_shapes_that_would_broadcast_raise(name):
    """(B,) against (B, T) with B == T lands on the wrong axis without a word. The error says what came."""
    inputs = example(name)
    if ROWS[name][0].__name__ in ANY_SHAPE:
        assert len(inputs) == 1                                                              # nothing to broadcast with
        return
    for i, x in enumerate(inputs):
        if len(inputs) == 1:
            wrong = {(*x.shape[:-1],), (*x.shape, 1)}
        else:
            wrong = {(B, B), (B, 1), (1,), ()} if x.dim() == 1 else {(*x.shape[:-1],), (*x.shape[1:],), (1, *x.shape[1:]), (*x.shape[:-1], 1)}
            if x.dim() == 2 and sum(y.dim() == 2 for y in inputs) == 1:
                wrong -= {(B, 1)}                                                            # one token per sequence, which fits
        for shape in wrong:
            with pytest.raises(ValueError, match="expected") as error:
                apply(name, [torch.ones(shape).to(x.dtype) if j == i else y for j, y in enumerate(inputs)])
            assert str(shape) in str(error.value)


def test_kto_takes_one_kl():
    """A KL per sequence as a column, (N, 1), would make (N, N) losses of N completions."""
    zero = torch.zeros(3)
    with pytest.raises(ValueError, match="scalar"):
        kto_loss(zero, zero, zero.bool(), kl=torch.zeros(3, 1))


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_stays_and_is_finite(name, dtype):
    """Ten times wider than usual; what comes out has the type of what came in."""
    inputs = [10 * x if kind in "LClcVUGK" else x for x, (_, kind) in zip(example(name), ROWS[name][1])]
    outputs, gradients = call(name, [x.to(dtype) if x.is_floating_point() else x for x in inputs])
    assert all(x.isfinite().all() for x in outputs + [x for x in gradients if x is not None])
    assert all(x.dtype in (dtype, torch.bool) for x in outputs[:len(outputs) // 2])


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite_or_raise(name, dtype):
    """Every input at +-100, in all combinations: log-ratios of 0 and +-200, advantages and rewards of +-100, weights of e^+-80."""
    arguments = ROWS[name][1]
    stripes, answered = torch.tensor([1.0, -1, 1, 1, -1]), 0
    for signs in itertools.product((1.0, -1.0), repeat=len(arguments)):
        inputs = []
        for sign, x, (_, kind) in zip(signs, example(name), arguments):
            if kind in "WwN":
                x = torch.full_like(x, 1.0) * (80 * sign * stripes).exp()
            elif kind in "VUKGS":
                x = 100 * sign * stripes[:x.shape[-1]] + 0 * x                               # NaN stays where a step is missing
            elif kind not in "Mb":
                x = torch.full_like(x, 100 * sign)
                x = x * MASK.any(1) if kind == "c" else x
            inputs.append(x.to(dtype) if kind not in "Mb" else x)
        try:
            outputs, gradients = call(name, inputs)
        except ValueError:
            continue
        answered += 1
        assert all(x.isfinite().all() for x in outputs[:len(outputs) // 2] + [x for x in gradients if x is not None])
    assert answered or name.startswith("advantages.maxrl")                                   # which takes no negative reward


@pytest.mark.parametrize("log_ratio", [100.0, -100.0, 0.1])
@pytest.mark.parametrize("adv", [1.0, -1.0])
def test_gspo_token_is_gspo_also_far_away(log_ratio, adv):
    """One advantage per row: value and gradient of the sequence's surrogate, also where a ratio above e^20 is held and has gradient 0; a broken
    token would pull with 4.9e8 otherwise."""
    results = []
    for function in (lambda x, old: masked_mean(gspo_token(x, old, torch.full((1, 2), adv), torch.ones(1, 2)), torch.ones(1, 2), 1),
                     lambda x, old: sequence_clipped_surrogate(x, old, torch.full((1,), adv), torch.ones(1, 2), clip_low=3e-4, clip_high=4e-4,
                                                               length_normalised=True)):
        logp = torch.full((1, 2), log_ratio, requires_grad=True)
        value = function(logp, torch.zeros(1, 2))
        value.sum().backward()
        results.append((value.detach(), logp.grad))
    close(results[0], results[1])


def test_float64_has_sixteen_digits():
    """A temperature that is float32 on the way, 1.04999995, leaves 8 of them: 2 / 1.05 = 1.904761904761905 at ratio 1."""
    zero = torch.zeros(1, 1).double()
    assert objectives.sapo(zero, zero, zero - 1).item() == pytest.approx(-1.904761904761905, rel=1e-14)


# A margin of bradley_terry_loss may be learnt, the scores that a gain and a bias come from are the caller's.
CONSTANTS = [(name, i) for name, (_, arguments, _) in ROWS.items() for i, (_, kind) in enumerate(arguments)
             if kind in "CUcWGNS" and not name.startswith("rewards.") and arguments[i][0] != "margin"]


@pytest.mark.parametrize("name, i", CONSTANTS, ids=[f"{name} arg {i}" for name, i in CONSTANTS])
def test_constants_get_no_gradient(name, i):
    """A forgotten detach on old_logp, ref_logp, a reward or a baseline: an error, or no gradient; never a path that nobody meant."""
    try:
        outputs = apply(name, [x.requires_grad_(j == i) for j, x in enumerate(example(name))])
    except ValueError as error:
        assert "requires" in str(error) and "grad" in str(error)
    else:
        assert not any(x.requires_grad for x in outputs)


def test_whole_numbers_are_rewards_too():
    """Rewards of 0 and 1 come as integers: with gamma 1/2 they are 1 + 1/2 and 1, not cut down to 1 and 1."""
    ones = torch.ones(1, 2).long()
    assert advantages.discounted_returns(ones, ones, gamma=0.5).tolist() == [[1.5, 1.0]]
    adv, returns = advantages.gae(ones, torch.zeros(1, 2).long(), ones, gamma=0.5, lam=1.0)
    assert adv.tolist() == returns.tolist() == [[1.5, 1.0]]


def test_an_infinite_baseline_raises():
    """nan_to_num, meant for "no verdict", used to make -3.4e38 of it: a finite advantage that nothing downstream would notice."""
    with pytest.raises(ValueError, match="finite"):
        advantages.remax_advantages(torch.zeros(1, 2), torch.tensor([INF]))
