"""Where two equations are one: each line of the papers' family tree as a test.

The numbers are random; value and gradient are compared.
"""

import pytest
import torch

from minirl.equations.advantages import (
    discounted_returns,
    distillation_advantages,
    gae,
    gdpo_advantages,
    group_advantages,
    leave_one_out_advantages,
    maxrl_advantages,
    opo_advantages,
    pass_at_k_advantages,
    process_advantages,
    reinforce_plus_plus_advantages,
    remax_advantages,
    spread,
)
from minirl.equations.coefficients import dpo_coefficient
from minirl.equations.entropy import entropy_mask
from minirl.equations.kl import (
    corrected_k3,
    exact_kl,
    generalised_jsd,
    k1,
    k2,
    k3,
    kl_shaped_rewards,
)
from minirl.equations.mismatch import (
    geometric_mask,
    minimum_prefix_weights,
    off_policy_mask,
    prefix_weights,
    sequence_weights,
)
from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    clipped_value_loss,
    dppo,
    dual_clipped_surrogate,
    gmpo,
    gspo_token,
    kl_penalised_surrogate,
    luspo,
    policy_gradient,
    ppo_objective,
    ptx_objective,
    sapo,
    sequence_clipped_surrogate,
    sequence_ratio,
    value_loss,
    vespo,
)
from minirl.equations.preferences import dpo_loss, implicit_reward
from minirl.equations.reduce import aggregate, masked_whiten
from minirl.equations.regression import astar_po_loss, optimal_values
from minirl.equations.schedules import update_ema

B, T = 6, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGP, OLD, REF, ADV, REWARDS, VALUES = torch.randn(
    6, B, T, generator=GENERATOR, dtype=torch.float64).mul(0.5).unbind()
# rows: whole, padded on both sides, with a hole, of one token, padded on the right, empty
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1],
                     [0, 0, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]])
FULL = torch.ones(B, T, dtype=torch.long)
GROUPS = torch.rand(4, 8, generator=GENERATOR, dtype=torch.float64)
WIDE = {"clip_low": 1.0, "clip_high": 1e9}  # a clip that never takes effect
NARROW = {"clip_low": 3e-4, "clip_high": 4e-4}
HIGHER = {"clip_low": 0.2, "clip_high": 0.28}


def equal(one, other):
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def same(one, other, x=LOGP, tolerance=1e-12):
    """Two functions of x agree in value and gradient, and the gradient is not 0."""
    results = []
    for function in (one, other):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        value.sum().backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=0)
    assert results[0][1].abs().max() > 1e-6


def same_gradient(one, other, x=LOGP):
    """Two functions of x agree in the gradient, and not in the value."""
    leaf = x.clone().requires_grad_()
    first, second = one(leaf), other(leaf)
    gradients = [torch.autograd.grad(value.sum(), leaf)[0] for value in (first, second)]
    equal(*gradients)
    assert gradients[0].abs().max() > 1e-6 and (first - second).abs().max() > 1e-6


def ppo_clip(x):
    return clipped_surrogate(x, OLD, ADV)


def no_clip(x):
    return clipped_surrogate(x, OLD, ADV, **WIDE)


# ---- advantages

@pytest.mark.parametrize("size", [2, 3, 8])
def test_rloo_is_dr_grpo_times_g_over_g_minus_1(size):
    rewards = GROUPS[:, :size]
    dr_grpo = group_advantages(rewards, scale="none")
    equal(leave_one_out_advantages(rewards), size / (size - 1) * dr_grpo)


@pytest.mark.parametrize("advantages, factor", [
    (leave_one_out_advantages, lambda r: 8 / 7),
    (maxrl_advantages, lambda r: 1 / r.mean(1, keepdim=True)),
    (lambda r: group_advantages(r, eps=0.0), lambda r: 1 / r.std(1, keepdim=True)),
    (lambda r: group_advantages(r, scale="batch", eps=0.0), lambda r: 1 / r.std()),
    # OPO at equal lengths, ReMax with the mean as greedy reward
    (lambda r: opo_advantages(r, torch.full(r.shape, 17)), lambda r: 1.0),
    (lambda r: remax_advantages(r, r.mean(1)), lambda r: 1.0),
])
def test_group_methods_differ_by_a_factor_per_prompt(advantages, factor):
    """All of them weigh the same r - mean(r): they differ only in how much a prompt counts."""
    equal(advantages(GROUPS), factor(GROUPS) * group_advantages(GROUPS, scale="none"))


@pytest.mark.parametrize("options", [{}, {"ddof": 0}, {"eps": 0.0}])
def test_process_advantages_of_one_step_are_the_outcome_s(options):
    one_step = process_advantages(GROUPS[..., None], **options)[..., 0]
    equal(one_step, group_advantages(GROUPS, **options))


def test_process_advantages_are_the_returns_of_normalised_steps():
    """Process supervision is: normalise over all steps of the group, then reward-to-go."""
    normalised = group_advantages(GROUPS.reshape(1, 32)).view(4, 8)
    equal(process_advantages(GROUPS[None])[0], discounted_returns(normalised, torch.ones(4, 8)))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_at_its_two_ends(gamma):
    """lam = 1: the return minus V, with V nowhere else. lam = 0: one step and V of the next
    state."""
    returns = discounted_returns(REWARDS, MASK, gamma=gamma)
    adv, targets = gae(REWARDS, VALUES, MASK, gamma=gamma, lam=1.0)
    equal((adv, targets), (torch.where(MASK.bool(), returns - VALUES, 0), returns))
    one_step = gae(REWARDS, VALUES, FULL, gamma=gamma, lam=0.0)[0]
    next_values = torch.cat([VALUES[:, 1:], torch.zeros(B, 1)], 1)
    equal(one_step, REWARDS + gamma * next_values - VALUES)


@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_a_truncated_row_with_the_right_bootstrap_is_the_whole_row(lam):
    """Truncated after two tokens. The first two need to know only what was to come (lam 1) or V of
    the next state (lam 0). Without a bootstrap truncation is not the end of an episode."""
    whole, returns = gae(REWARDS, VALUES, FULL, gamma=0.9, lam=lam)
    bootstrap = returns[:, 2] if lam else VALUES[:, 2]
    row = REWARDS[:, :2], VALUES[:, :2], FULL[:, :2]
    truncated, _ = gae(*row, gamma=0.9, lam=lam, bootstrap=bootstrap)
    equal(truncated, whole[:, :2])
    assert (gae(*row, gamma=0.9, lam=lam)[0] - truncated).abs().max() > 0.1


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_discounted_returns_are_gae_without_a_value_function(gamma):
    zero = torch.zeros(B, T, dtype=torch.float64)
    adv, returns = gae(REWARDS, zero, MASK, gamma=gamma, lam=1.0)
    expected = discounted_returns(REWARDS, MASK, gamma=gamma)
    torch.testing.assert_close((adv, returns), (expected, expected), atol=0, rtol=0)
    assert adv.abs().max() > 0.1


def test_a_hole_in_the_mask_is_the_row_without_it():
    """Tool output leaves no trace: closing the hole gives the same advantages."""
    shown = [0, 3, 4]
    for options in ({}, {"gamma": 0.5, "lam": 0.3}, {"bootstrap": torch.tensor([2.0])}):
        holes = gae(REWARDS[2:3], VALUES[2:3], MASK[2:3], **options)
        closed = gae(REWARDS[2:3, shown], VALUES[2:3, shown], torch.ones(1, 3), **options)
        torch.testing.assert_close(tuple(x[:, shown] for x in holes), closed, atol=0, rtol=0)


# ---- rewards

def test_k1_shaped_rewards_sum_to_score_minus_beta_times_the_sequence_s_log_ratio():
    """Per token or per sequence is one penalty: RLOO's reward is the sum of PPO's, and the return
    of a first token."""
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 0.0], dtype=torch.float64)
    shaped = kl_shaped_rewards(scores, LOGP, REF, MASK, 0.3)
    log_ratio = sequence_ratio(LOGP, REF, MASK, length_normalised=False).log()
    equal(shaped.sum(1), scores - 0.3 * log_ratio)
    assert log_ratio.abs().max() > 0.5
    first = discounted_returns(shaped, MASK)[:, 0]
    equal(first, torch.where(MASK[:, 0] == 1, scores - 0.3 * log_ratio, 0))


def test_reinforce_plus_plus_without_a_penalty_is_the_whitened_score():
    scores = REWARDS[:, 0] * MASK.any(1)
    expected = masked_whiten(spread(scores, FULL), MASK)
    equal(reinforce_plus_plus_advantages(scores, LOGP, REF, MASK, 0.0), expected)


# ---- objectives: on-policy all are REINFORCE

ON_POLICY = {
    "clip": lambda x, old: clipped_surrogate(x, old, ADV),
    "dual clip": lambda x, old: dual_clipped_surrogate(x, old, ADV),
    "no clip": lambda x, old: kl_penalised_surrogate(x, old, ADV, torch.zeros_like(x), 0.0),
    "CISPO": lambda x, old: cispo(x, old, ADV, cap=1.0),
    "SAPO": lambda x, old: sapo(x, old, ADV),
    "GSPO-token": lambda x, old: gspo_token(x, old, ADV, MASK),
}


@pytest.mark.parametrize("name", list(ON_POLICY))
@pytest.mark.parametrize("how", ["sequence_mean", "token_mean", "sequence_sum"])
def test_at_ratio_one_the_gradient_is_reinforce(name, how):
    """GRPO at ratio 1 is REINFORCE with the group's advantage, under any mean.

    The values differ: the surrogate's is A, REINFORCE's A log pi. CISPO is REINFORCE in value too.
    """
    if name == "CISPO":
        same(lambda x: cispo(x, LOGP, ADV, cap=1.0), lambda x: policy_gradient(x, ADV))
    else:
        same_gradient(lambda x: aggregate(ON_POLICY[name](x, LOGP), MASK, how),
                      lambda x: aggregate(policy_gradient(x, ADV), MASK, how))


def test_cispo_below_its_cap_has_the_gradient_of_the_surrogate_without_a_clip():
    """rho A grad log pi is what rho A has anyway: only the cap is CISPO's own, and it shows."""
    same_gradient(lambda x: cispo(x, OLD, ADV, cap=1e9), no_clip)
    with pytest.raises(AssertionError):
        same_gradient(lambda x: cispo(x, OLD, ADV, cap=1.2), no_clip)


# ---- objectives: clips

def test_dual_clip_with_a_cap_out_of_reach_is_the_clip():
    """Where A > 0, at any cap."""
    same(lambda x: dual_clipped_surrogate(x, OLD, ADV, cap=1e9), ppo_clip)
    good = ADV.abs()
    same(lambda x: dual_clipped_surrogate(x, OLD, good, cap=1.3),
         lambda x: clipped_surrogate(x, OLD, good))
    difference = dual_clipped_surrogate(LOGP, OLD, ADV, cap=1.3) - ppo_clip(LOGP)
    assert difference.max() > 0.1


def test_a_clip_out_of_reach_and_no_penalty_are_the_same_surrogate():
    zero = torch.zeros_like(LOGP)
    same(no_clip, lambda x: kl_penalised_surrogate(x, OLD, ADV, zero, 9.0))
    same(no_clip, lambda x: kl_penalised_surrogate(x, OLD, ADV, k2(x, OLD), 0.0))


def test_sapo_is_the_surrogate_where_the_gate_is_wide_open():
    """As tau goes to 0, 4/tau (sigmoid - 1/2) A goes to (rho - 1) A: the gradient of the unclipped
    surrogate."""
    def slope(function):
        leaf = LOGP.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]

    soft = slope(lambda x: sapo(x, OLD, ADV, temp_pos=1e-3, temp_neg=1e-3))
    torch.testing.assert_close(soft, slope(no_clip), atol=1e-4, rtol=0)


def test_value_clip_out_of_reach_is_no_clip():
    """So is any clip before the first step, where the old values are the values."""
    def loss(v):
        return value_loss(v, REWARDS)

    same(lambda v: clipped_value_loss(v, REF, REWARDS, clip=1e9), loss, x=VALUES)
    same(lambda v: clipped_value_loss(v, VALUES, REWARDS), loss, x=VALUES)


# ---- objectives: sequences

@pytest.mark.parametrize("bounds", [WIDE, NARROW, HIGHER])
def test_gspo_token_with_one_advantage_per_row_is_gspo(bounds):
    """Its mean over a row's tokens is the sequence's value, and the gradient reaches the same
    tokens equally; holes and empty rows included."""
    adv = ADV[:, 0]
    token_adv = adv[:, None].expand(B, T)

    def by_token(x):
        return aggregate(gspo_token(x, OLD, token_adv, MASK, **bounds), MASK, "sequence_mean")

    def by_sequence(x):
        rows = sequence_clipped_surrogate(x, OLD, adv, MASK, length_normalised=True, **bounds)
        return (rows * MASK.any(1)).mean()

    same(by_token, by_sequence)


@pytest.mark.parametrize("bounds", [WIDE, NARROW])
def test_summed_rows_of_gspo_weigh_a_completion_by_its_length(bounds):
    """LUSPO: |o_i| s_i A_i, the sum over the row where GSPO takes its mean. The same terms, another
    aggregate."""
    adv = ADV[:, 0]
    token_adv = adv[:, None].expand(B, T)

    def by_token(x):
        return aggregate(gspo_token(x, OLD, token_adv, MASK, **bounds), MASK, "sequence_sum")

    def by_sequence(x):
        rows = sequence_clipped_surrogate(x, OLD, adv, MASK, length_normalised=True, **bounds)
        return (MASK.sum(1) * rows).mean()

    same(by_token, by_sequence)


@pytest.mark.parametrize("length_normalised", [True, False])
@pytest.mark.parametrize("bounds", [WIDE, NARROW, HIGHER])
def test_sequence_forms_of_one_token_are_the_token_form(length_normalised, bounds):
    x, old, adv, one = LOGP[:, :1], OLD[:, :1], ADV[:, :1], FULL[:, :1]

    def by_token(x):
        return clipped_surrogate(x, old, adv, **bounds)

    def by_sequence(x):
        return sequence_clipped_surrogate(
            x, old, adv[:, 0], one, length_normalised=length_normalised, **bounds)[:, None]

    same(by_sequence, by_token, x=x)
    same(lambda x: gspo_token(x, old, adv, one, **bounds), by_token, x=x)


def test_product_and_mean_of_a_sequence_s_ratios_are_powers_of_each_other():
    mean = sequence_ratio(LOGP, OLD, MASK, length_normalised=True)
    product = sequence_ratio(LOGP, OLD, MASK, length_normalised=False)
    equal(mean ** MASK.sum(1), product)
    assert (mean - product).abs().max() > 0.1


# ---- aggregation

def test_dapo_is_grpo_at_equal_lengths():
    """Three of five slots in every row, not the same ones: then all four means are one, up to a
    constant. At unequal lengths they differ."""
    even = torch.stack([torch.arange(T).roll(i) < 3 for i in range(B)])

    def terms(x):
        return clipped_surrogate(x, OLD, ADV, clip_high=0.28)

    def dapo(x):
        return aggregate(terms(x), even, "token_mean")

    same(dapo, lambda x: aggregate(terms(x), even, "sequence_mean"))
    same(dapo, lambda x: aggregate(terms(x), even, "sequence_sum") / 3)
    same(dapo, lambda x: aggregate(terms(x), even, "constant", total=B * T) * T / 3)
    by_token = aggregate(terms(LOGP), MASK, "token_mean")
    by_sequence = aggregate(terms(LOGP), MASK, "sequence_mean")
    assert (by_token - by_sequence).abs() > 1e-3


# ---- whole objectives

def test_ptx_zero_is_ppo_and_ppo_without_coefficients_is_the_surrogate():
    def without_ptx(x):
        return ptx_objective(ppo_clip(x).mean(), REF.mean() + x.mean(), ptx_coef=0.0)

    def without_coefficients(x):
        loss = value_loss(x, REWARDS)
        return ppo_objective(ppo_clip(x), loss, x * x, value_coef=0.0, entropy_coef=0.0)

    same(without_ptx, lambda x: ppo_clip(x).mean())
    same(without_coefficients, ppo_clip)


def test_corrected_k3_at_the_old_policy():
    """At pi = pi_old the ratio is 1 and the value k3's. The slope is k3's plus k3 itself, from the
    ratio: the half that k3 lacks as a loss."""
    equal(corrected_k3(LOGP, LOGP, REF), k3(LOGP, REF))
    same_gradient(lambda x: corrected_k3(x, LOGP, REF), lambda x: k3(x, REF) + x * k3(LOGP, REF))


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_estimators_at_the_reference(estimator):
    """Each is 0 there, and has slope 0, except k1."""
    leaf = REF.clone().requires_grad_()
    value = estimator(leaf, REF)
    value.sum().backward()
    assert (value == 0).all() and (leaf.grad == (1 if estimator is k1 else 0)).all()


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_dpo_s_gradient_is_beta_times_its_coefficient(beta):
    """Plus for the chosen and minus for the rejected, in what is maximised (the negative loss):
    eq. 15 of DeepSeekMath is eq. 8 of DPO without beta."""
    chosen, rejected = LOGP[:, 0].clone().requires_grad_(), LOGP[:, 1].clone().requires_grad_()
    references = REF[:, 0], REF[:, 1]
    (-dpo_loss(chosen, rejected, *references, beta=beta)).sum().backward()
    weight = beta * dpo_coefficient(chosen, rejected, *references, beta=beta)
    equal((chosen.grad, rejected.grad), (weight, -weight))
    assert weight.std() > 1e-3


# ---- the newer branches

def test_trl_s_delta_is_the_dual_clip():
    """TRL caps the ratio at δ in the unclipped term alone; the clipped one is below δ anyway."""
    def trl(x, delta=1.5):
        ratio = (x - OLD).exp()
        return torch.minimum(ratio.clamp(max=delta) * ADV, ratio.clamp(0.8, 1.28) * ADV)

    same(trl, lambda x: dual_clipped_surrogate(x, OLD, ADV, cap=1.5, **HIGHER))


def test_dppo_without_a_region_is_cispo():
    same(lambda x: dppo(x, OLD, ADV, delta=1e9, cap=1.5), lambda x: cispo(x, OLD, ADV, cap=1.5))


def test_dppo_at_ratio_one_is_the_policy_gradient():
    same(lambda x: dppo(x, LOGP, ADV, delta=1e-9), lambda x: policy_gradient(x, ADV))


def test_three_branches_of_gspo_are_one_for_a_single_token():
    """With one token a row, mean, product and length are the same thing: PPO without a clip."""
    one = torch.ones(B, 1)
    x, old, adv = LOGP[:, :1], OLD[:, :1], ADV[:, 0]
    ppo = lambda x: clipped_surrogate(x, old, adv[:, None], **WIDE)[:, 0]   # noqa: E731
    same(lambda x: luspo(x, old, adv, one, **WIDE), ppo, x)
    same(lambda x: gmpo(x, old, adv, one, clip=1e9), ppo, x)


def test_vespo_of_one_token_is_the_clip_made_smooth():
    """k = 1 and a λ near 0 leave w alone: CISPO without a cap."""
    one = torch.ones(B, 1)
    old, adv = OLD[:, :1], ADV[:, :1]
    tiny = {"k_pos": 1.0, "k_neg": 1.0, "lam_pos": 1e-12, "lam_neg": 1e-12}
    same(lambda x: vespo(x, old, adv, one, **tiny), lambda x: cispo(x, old, adv, cap=1e9),
         LOGP[:, :1], tolerance=1e-9)


def test_luspo_summed_is_gspo_token_summed():
    """|o| times the row's value is one value for each token, added up."""
    rows = ADV[:, 0]
    spread_adv = spread(rows, MASK)
    same(lambda x: luspo(x, OLD, rows, MASK, **NARROW)[:5].mean(),  # the last row is empty
         lambda x: aggregate(gspo_token(x, OLD, spread_adv, MASK, **NARROW)[:5], MASK[:5],
                             "sequence_sum"))


def test_distillation_is_rl_with_a_kl_to_the_teacher_and_nothing_else():
    """A score of 0 and kl_coef = 1: the shaped reward of each token is log π_T - log π."""
    shaped = kl_shaped_rewards(torch.zeros(B).double(), LOGP, REF, MASK, 1.0)
    adv = torch.where(MASK.bool(), distillation_advantages(LOGP, REF), 0)
    equal(shaped, adv)
    equal(adv, torch.where(MASK.bool(), -k1(LOGP, REF), 0))


def test_the_generalised_jsd_ends_in_the_kl():
    same(lambda x: generalised_jsd(x, REF, 1.0), lambda x: exact_kl(x, REF))


def test_gdpo_of_one_reward_is_grpo_s_z_score_over_the_batch():
    once = group_advantages(GROUPS, eps=0.0)
    equal(gdpo_advantages(GROUPS[..., None], [5.0], eps=0.0), once / once.std())


def test_pass_at_k_of_a_pair_is_the_positive_part_of_rloo():
    pairs = GROUPS[:, :2]
    equal(pass_at_k_advantages(pairs), leave_one_out_advantages(pairs).clamp(min=0))


def test_prefix_weights_end_in_the_sequence_s_and_begin_in_the_token_s():
    weights = prefix_weights(LOGP, OLD, FULL)
    equal(weights[:, -1], sequence_weights(LOGP, OLD, FULL))
    equal(weights[:, 0], (LOGP - OLD)[:, 0].exp())
    equal(minimum_prefix_weights(LOGP, OLD, FULL)[:, :2], weights[:, :2])


def test_masks_that_keep_everything():
    rows = ADV[:, 0]
    assert off_policy_mask(LOGP, OLD, rows, MASK, delta=1e9).all()
    assert geometric_mask(LOGP, OLD, MASK, low=0.0, high=1e9).all()
    assert torch.equal(entropy_mask(LOGP, MASK, quantile=1.0), MASK.bool())


def test_the_two_masks_of_completions_are_one_condition_where_advantages_are_negative():
    """exp(-δ) ≤ the geometric mean of π / μ."""
    bad = -torch.ones(B).double()
    for delta in (0.05, 0.2, 0.5):
        lower = torch.tensor(-delta).double().exp().item()
        assert torch.equal(off_policy_mask(LOGP, OLD, bad, MASK, delta=delta),
                           geometric_mask(LOGP, OLD, MASK, low=lower, high=1e9))


def test_astar_po_fits_dpo_s_implicit_reward():
    logp, ref_logp, rewards = LOGP.sum(1), REF.sum(1), REWARDS[:, 0]
    values = optimal_values(rewards[:, None])  # one sample each: its reward is the value
    equal(values, rewards)
    same(lambda x: astar_po_loss(x, ref_logp, rewards, values, beta=0.1),
         lambda x: implicit_reward(x, ref_logp).square(), logp)


def test_mixing_the_reference_is_an_average_of_weights():
    """TRL's ref_model_mixup_alpha: ref <- α policy + (1 - α) ref is update_ema with decay 1 - α."""
    ref = [torch.tensor([1.0, 2.0])]
    update_ema(ref, [torch.tensor([3.0, -2.0])], decay=1 - 0.6)
    torch.testing.assert_close(ref[0], torch.tensor([0.6 * 3 + 0.4, 0.6 * -2 + 0.4 * 2]))
