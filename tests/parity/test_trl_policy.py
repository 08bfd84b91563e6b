"""Losses of policy optimisation: compositions of minirl.equations are TRL's losses, with the same
gradient in every log-prob. Skipped where TRL is not installed."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from minirl.equations.advantages import leave_one_out_advantages
from minirl.equations.kl import corrected_k3, k3
from minirl.equations.mismatch import (
    importance_ratio,
    masked_weights,
    sequence_weights,
    truncated_weights,
)
from minirl.equations.objectives import (
    cispo,
    clipped_surrogate,
    dual_clipped_surrogate,
    gspo_token,
    policy_gradient,
    sapo,
    sequence_clipped_surrogate,
    sequence_ratio,
)
from minirl.equations.reduce import aggregate, masked_mean
from tests.parity.trl_stand_ins import (
    MASK,
    NO_TRL,
    REWARDS,
    assert_same_loss,
    columns,
    normal,
    stand_in,
)

trl = pytest.importorskip("trl", reason=NO_TRL)

L_MAX = 9
GAPS = MASK * torch.tensor([[1, 1, 0, 1, 0, 1]]).long()     # MASK with tool output in between
HOW = {
    "grpo": "sequence_mean",
    "sapo": "sequence_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "cispo": "token_mean",
    "dr_grpo": "constant",
    "luspo": "sequence_sum",
}
TOKEN_LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]


@dataclass(frozen=True)
class Variant:
    """Options of TRL's loss: the clip's two bounds, the dual clip's cap, and the KL penalty."""

    clip: tuple[float, float] = (0.2, 0.2)
    delta: float | None = None
    beta: float = 0.0
    corrected: bool = False            # k3 times the ratio of the learner and the old policy


PLAIN = Variant()
VARIANTS = {
    "plain": PLAIN,
    "clip-higher": Variant(clip=(0.2, 0.28)),
    "wide clip": Variant(clip=(0.5, 1.5)),
    "delta": Variant(delta=1.5),
    "KL": Variant(beta=0.04),
    "corrected KL": Variant(beta=0.04, corrected=True),
    "all": Variant(clip=(0.2, 0.28), delta=1.5, beta=0.3, corrected=True),
}


def atol(loss_type):
    """SAPO's temperatures, 1.0 and 1.05, become float32 in a torch.where."""
    return 1e-7 if loss_type == "sapo" else 1e-10


def trl_grpo(loss_type, logp, adv, variant=PLAIN, *, old=None, ref=None, mask=MASK, level="token",
             accumulate=1, tokens=None, weights=None, metrics=None):
    """Return GRPOTrainer._compute_loss of these log-probs.

    tokens: the number in the whole batch, where this is one of `accumulate` micro-batches.
    weights: the importance weights of the learner and the sampler. metrics gets what TRL logs.
    """
    args = SimpleNamespace(
        use_bias_correction_kl=variant.corrected,
        delta=variant.delta,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=accumulate,
    )
    self = stand_in(
        args=args,
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=variant.clip[0],
        epsilon_high=variant.clip[1],
        beta=variant.beta,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=weights is not None,
        current_gradient_accumulation_steps=accumulate,
        max_completion_length=L_MAX,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
    )
    ids = torch.zeros_like(mask)
    inputs = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": mask[:, :2],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": adv[:, 0],
        "num_items_in_batch": torch.as_tensor(float(mask.sum()) if tokens is None else tokens),
    }
    optional = {
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "importance_sampling_ratio": weights,
    }
    inputs.update({name: x for name, x in optional.items() if x is not None})
    loss = trl.GRPOTrainer._compute_loss(self, None, inputs)
    if metrics is not None:
        metrics.update(self._metrics["train"])
    return loss


def reduced(x, loss_type, mask=MASK):
    how = HOW[loss_type]
    return aggregate(x, mask, how, total=len(mask) * L_MAX if how == "constant" else None)


def surrogate(loss_type, logp, old, adv, variant=PLAIN):
    clip_low, clip_high = variant.clip
    if loss_type == "cispo":
        return cispo(logp, old, adv, cap=clip_high)
    if loss_type == "sapo":
        return sapo(logp, old, adv)
    bounds = {"clip_low": clip_low, "clip_high": clip_high}
    if variant.delta is None:
        return clipped_surrogate(logp, old, adv, **bounds)
    return dual_clipped_surrogate(logp, old, adv, **bounds, cap=variant.delta)


@pytest.mark.parametrize("mask", [MASK, GAPS], ids=["ragged", "gaps"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss_type", TOKEN_LOSSES)
def test_grpo_token_level(loss_type, variant, mask):
    """The surrogate minus the KL, then the mean. CISPO: our `cap` is TRL's epsilon_high, which is
    the cap itself (see test_deviation_cispo_cap)."""
    logp, old, ref, adv = columns()
    variant = VARIANTS[variant]
    ours = surrogate(loss_type, logp, old, adv, variant)
    if variant.beta:
        kl = corrected_k3(logp, old, ref) if variant.corrected else k3(logp, ref)
        ours = ours - variant.beta * kl
    theirs = trl_grpo(loss_type, logp, adv, variant, old=old, ref=ref, mask=mask)
    assert_same_loss(theirs, reduced(ours, loss_type, mask), logp, atol=atol(loss_type))


def test_the_columns_reach_every_branch():
    """Otherwise the tests above could agree on ratios that no clip touches."""
    logp, old, _, adv = columns()
    ratio, seen = (logp.detach() - old).exp(), MASK.bool()
    assert ((ratio > 1.28) & (adv > 0) & seen).any()
    assert ((ratio < 0.8) & (adv < 0) & seen).any()
    assert ((ratio > 1.28) & (adv < 0) & seen).any()
    assert ((ratio < 0.8) & (adv > 0) & seen).any()
    assert ((ratio > 1.5) & (adv < 0) & seen).any()


@pytest.mark.parametrize("loss_type", TOKEN_LOSSES)
def test_grpo_on_policy(loss_type):
    """Without old log-probs TRL takes logp.detach(), and so do we. The value is that of the
    advantages alone, and the gradient is the policy gradient."""
    logp, _, _, adv = columns()
    variant = Variant(clip=(0.2, 5.0)) if loss_type == "cispo" else PLAIN
    theirs = trl_grpo(loss_type, logp, adv, variant)
    ours = surrogate(loss_type, logp, logp.detach(), adv, variant)
    assert_same_loss(theirs, reduced(ours, loss_type), logp, atol=atol(loss_type))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss_type", [*TOKEN_LOSSES, "luspo"])
def test_grpo_sequence_level(loss_type, variant):
    """importance_sampling_level="sequence": GSPO's length-normalised ratio s_i takes the place of
    every token's ratio. So a whole completion is one token here, whose log-ratio is log s_i. The
    corrected KL is k3 times s_i then, and no longer times the token's ratio."""
    logp, old, ref, adv = columns()
    variant = VARIANTS[variant]
    s = sequence_ratio(logp, old, MASK, length_normalised=True)[:, None]  # (B, 1)
    if loss_type == "cispo":
        ours = truncated_weights(s, variant.clip[1]) * policy_gradient(logp, adv)
    else:
        one_token = surrogate(loss_type, s.log(), torch.zeros_like(s), adv[:, :1], variant)
        ours = one_token.expand_as(logp)
    if variant.beta:
        kl = s * k3(logp, ref) if variant.corrected else k3(logp, ref)
        ours = ours - variant.beta * kl
    theirs = trl_grpo(loss_type, logp, adv, variant, old=old, ref=ref, level="sequence")
    assert_same_loss(theirs, reduced(ours, loss_type), logp, atol=atol(loss_type))


@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.3)])
def test_gspo_is_the_sequence_level_under_the_mean_per_sequence(clip):
    """GSPO's eq. 5 is TRL's level "sequence" with loss_type "grpo", as its documentation says. The
    form with one value per token is gspo_token."""
    logp, old, _, adv = columns()
    bounds = {"clip_low": clip[0], "clip_high": clip[1]}
    theirs = trl_grpo("grpo", logp, adv, Variant(clip=clip), old=old, level="sequence")
    per_token = aggregate(gspo_token(logp, old, adv, MASK, **bounds), MASK, "sequence_mean")
    assert_same_loss(theirs, per_token, logp)
    per_row = sequence_clipped_surrogate(logp, old, adv[:, 0], MASK, length_normalised=True,
                                         **bounds)
    assert_same_loss(theirs, per_row.mean(), logp)


def test_deviation_sequence_ratio_under_a_token_sum():
    """TRL's default loss_type with level "sequence" counts s_i once for each of its tokens (TRL
    warns, and continues). So a long completion has more weight than GSPO gives it. On-policy, with
    lengths 1 and 3 and A = 1 and -1: GSPO (1 - 1)/2 = 0; TRL's dapo (1 - 3)/4 = -1/2.

    Slopes in the first token: GSPO 1/2 and -1/2 * 1/3 = -1/6; dapo 1/4 and -3/4 * 1/3 = -1/4.
    """
    logp = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    adv = torch.tensor([[1.0] * 3, [-1.0] * 3]).double()
    gspo = sequence_clipped_surrogate(logp, logp.detach(), adv[:, 0], mask, clip_low=0.2,
                                      clip_high=0.2, length_normalised=True).mean()
    theirs = -trl_grpo("dapo", logp, adv, mask=mask, level="sequence")
    assert gspo.item() == 0.0 and theirs.item() == -0.5
    our_slopes, = torch.autograd.grad(gspo, logp)
    their_slopes, = torch.autograd.grad(theirs, logp)
    assert our_slopes[:, 0].tolist() == pytest.approx([1 / 2, -1 / 6])
    assert their_slopes[:, 0].tolist() == pytest.approx([1 / 4, -1 / 4])


def test_deviation_cispo_cap():
    """The paper's weight is min(ρ, 1 + ε_high), and TRL's min(ρ, epsilon_high): an epsilon_high of
    0.2 multiplies every gradient by 0.2. With ratio 2 and A = 1 the slope is 1.2 in the paper (our
    cap=1.2), and in TRL 0.2 with epsilon_high 0.2."""
    old, one = torch.full((1, 1), -2.0).double(), torch.ones(1, 1).double()
    mask = torch.ones(1, 1).long()
    logp = (old + torch.tensor(2.0).log()).requires_grad_()

    def trl_slope(epsilon_high):
        variant = Variant(clip=(0.2, epsilon_high))
        objective = -trl_grpo("cispo", logp, one, variant, old=old, mask=mask)
        return torch.autograd.grad(objective, logp)[0].item()

    assert [trl_slope(0.2), trl_slope(1.2)] == pytest.approx([0.2, 1.2])
    slope, = torch.autograd.grad(cispo(logp, old, one, cap=1.2).sum(), logp)
    assert slope.item() == pytest.approx(1.2)


def test_deviation_bnpo_depends_on_the_micro_batches():
    """Lengths 2, 2, 8, 8 and per-token values 1, 1, 1/4, 1/4, as two micro-batches of two rows.

    The mean over all tokens is 8/20 = 0.4: TRL's dapo, and ours with the whole batch's total.
    TRL's bnpo divides each micro-batch by its own tokens: (1 + 1/4)/2 = 0.625.
    """
    mask = (torch.arange(8) < torch.tensor([[2], [2], [8], [8]])).long()
    adv = torch.tensor([[1.0], [1.0], [0.25], [0.25]]).double().expand(4, 8)
    logp = torch.zeros(4, 8, dtype=torch.float64)
    parts = (slice(0, 2), slice(2, 4))

    def trl_sum(loss_type):
        return -sum(trl_grpo(loss_type, logp[rows], adv[rows], mask=mask[rows], accumulate=2,
                             tokens=20.0).item() for rows in parts)

    assert trl_sum("bnpo") == pytest.approx(0.625)
    assert trl_sum("dapo") == pytest.approx(0.4)
    assert trl_sum("grpo") == pytest.approx(0.625)
    assert trl_sum("dr_grpo") == pytest.approx(8 / 36)                  # 4 rows of L_MAX
    values = clipped_surrogate(logp, logp, adv)
    ours = sum(aggregate(values[rows], mask[rows], "token_mean", total=20) for rows in parts)
    assert ours.item() == pytest.approx(0.4)


@pytest.mark.parametrize("loss_type", TOKEN_LOSSES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_sampler_mismatch_weighs_the_surrogate_but_not_the_kl(loss_type, level):
    """The importance weights multiply the surrogate, and not the KL. Tokens of weight 0 stay in
    the denominator."""
    logp, old, ref, adv = columns()
    if level == "token":
        ratio = importance_ratio(old, old + normal(8, 6, seed=7, scale=0.7))
        weights = masked_weights(ratio, 1.5, floor=0.5)
    else:
        weights = masked_weights(sequence_weights(old, ref, MASK), 1.5)[:, None]
    assert (weights == 0).any() and (weights > 0).any()
    ours = weights * surrogate(loss_type, logp, old, adv) - 0.1 * k3(logp, ref)
    theirs = trl_grpo(loss_type, logp, adv, Variant(beta=0.1), old=old, ref=ref, weights=weights)
    assert_same_loss(theirs, reduced(ours, loss_type), logp, atol=atol(loss_type))


def test_metrics():
    """kl and the clip fractions are means over the tokens under the mask."""
    logp, old, ref, adv = columns()
    metrics = {}
    trl_grpo("grpo", logp, adv, Variant(beta=0.1), old=old, ref=ref, metrics=metrics)
    ratio = importance_ratio(logp.detach(), old)
    expected = {
        "kl": k3(logp, ref),
        "clip_ratio/low_mean": ((ratio < 0.8) & (adv < 0)).double(),
        "clip_ratio/high_mean": ((ratio > 1.2) & (adv > 0)).double(),
    }
    for name, values in expected.items():
        mean = masked_mean(values, MASK).item()
        assert metrics[name] == pytest.approx([mean], abs=1e-6), name


def test_rloo_loss():
    """The ratio of the whole completion, a product and not a mean, is clipped like a token's: R1's
    eq. 1."""
    logp, old, _, _ = columns(seed=3)
    adv = leave_one_out_advantages(REWARDS).flatten()
    self = stand_in(
        epsilon_low=0.2,
        epsilon_high=0.28,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
    )
    ids = torch.zeros_like(MASK)
    theirs = trl.RLOOTrainer._compute_loss(self, None, {
        "prompt_ids": ids[:, :2],
        "prompt_mask": MASK[:, :2],
        "completion_ids": ids,
        "completion_mask": MASK,
        "old_logps": (old * MASK).sum(1),
        "advantages": adv,
    })
    ratio = sequence_ratio(logp, old, MASK, length_normalised=False)
    assert ((ratio > 1.28) & (adv > 0)).any() and ((ratio < 0.8) & (adv < 0)).any()
    ours = sequence_clipped_surrogate(logp, old, adv, MASK, clip_low=0.2, clip_high=0.28,
                                      length_normalised=False)
    assert_same_loss(theirs, ours.mean(), logp)
