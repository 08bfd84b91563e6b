"""Losses of preferences: compositions of minirl.equations are TRL's losses of reward models, DPO,
KTO and CPO, with the same gradients. Skipped where TRL is not installed."""

from types import SimpleNamespace

import pytest
import torch

from minirl.equations.preferences import (
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    label_smoothed_dpo_loss,
    ranking_loss,
    simpo_loss,
)
from minirl.equations.reduce import masked_mean
from tests.parity.trl_stand_ins import NO_TRL, assert_same_loss, normal, stand_in

trl = pytest.importorskip("trl", reason=NO_TRL)

# four chosen completions, then the four rejected ones
MASK = (torch.arange(6) < torch.tensor([6, 3, 1, 5, 2, 4, 6, 3])[:, None]).long()


def log_probs(seed=0):
    """Return log-probs (2N, T): the policy's, a leaf, and the reference's."""
    ref = -1 - normal(8, 6, seed=seed).abs()
    return (ref + normal(8, 6, seed=seed + 1)).requires_grad_(), ref


def sums(x, mask=MASK):
    """Return the sums over tokens of the chosen completions and of the rejected ones."""
    return (x * mask).sum(1).chunk(2)


def means(x, mask=MASK):
    return masked_mean(x, mask, dim=1).chunk(2)


# reward models

def trl_reward_loss(scores, margin=None):
    """Return RewardTrainer.compute_loss. The chosen scores come first, then the rejected ones."""
    inputs = {"attention_mask": torch.ones(len(scores), 2)}
    if margin is not None:
        inputs["margin"] = margin
    self = stand_in(args=SimpleNamespace(center_rewards_coefficient=None))
    return trl.RewardTrainer.compute_loss(
        self, lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)


@pytest.mark.parametrize("margin", [
    None,
    torch.tensor([0.0, 0.5, 1.0, -0.5, 2.0]).double(),
], ids=["plain", "margin"])
def test_reward_model(margin):
    scores = normal(10, seed=3).requires_grad_()
    losses = bradley_terry_loss(scores[:5], scores[5:], margin=margin)
    assert_same_loss(trl_reward_loss(scores, margin), -losses.mean(), scores)


def test_deviation_pairs_instead_of_rankings():
    """InstructGPT takes all pairs of a prompt as one element, so that every prompt counts the
    same. TRL takes pairs: a prompt with four ranked completions has six votes, and one with two
    completions has one.

    Scores (1, 0) and (2, 1, 0, -1): their losses are 0.3133 and 0.2070, with the mean 0.2602. Over
    the seven pairs it is (0.3133 + 6 * 0.2070)/7 = 0.2222.
    """
    two = torch.tensor([[1.0, 0.0]]).double()
    four = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).double()
    better, worse = torch.triu_indices(4, 4, offset=1)
    chosen = torch.cat([two[0, :1], four[0, better]])
    rejected = torch.cat([two[0, 1:], four[0, worse]])
    per_prompt = torch.stack([ranking_loss(two), ranking_loss(four)]).mean()
    assert per_prompt.item() == pytest.approx(0.2602, abs=1e-4)
    assert trl_reward_loss(torch.cat([chosen, rejected])).item() == pytest.approx(0.2222, abs=1e-4)


def test_pairs_are_rankings_where_all_rankings_have_one_size():
    better, worse = torch.triu_indices(4, 4, offset=1)
    scores = normal(3, 4, seed=1).requires_grad_()
    theirs = trl_reward_loss(torch.cat([scores[:, better].flatten(), scores[:, worse].flatten()]))
    assert_same_loss(theirs, -ranking_loss(scores).mean(), scores)


# DPO

def outputs_of(logp, mask):
    zero = torch.zeros_like(logp)
    return SimpleNamespace(log_probs=logp * mask, entropy=zero, mean_logits=zero,
                           is_top1=zero.bool())


def with_prompt(mask):
    """Put one token of a prompt in front. TRL's masks cover the prompt, and its log-probs start at
    the second token."""
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)


def trl_dpo(loss_type, logp, ref, mask=MASK, *, beta=0.1, smoothing=0.0):
    """Return DPOTrainer._compute_loss with the reference's log-probs computed before."""
    self = stand_in(
        args=SimpleNamespace(discopop_tau=0.05),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
    )
    ref_chosen, ref_rejected = sums(ref, mask)
    whole = with_prompt(mask)
    inputs = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return trl.DPOTrainer._compute_loss(self, lambda **_: outputs_of(logp, mask), inputs,
                                        return_outputs=False)


@pytest.mark.parametrize("loss_type, over_tokens", [("sigmoid", sums), ("sigmoid_norm", means)],
                         ids=["sums", "means"])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo(beta, loss_type, over_tokens):
    logp, ref = log_probs()
    losses = dpo_loss(*over_tokens(logp), *over_tokens(ref), beta=beta)
    assert_same_loss(trl_dpo(loss_type, logp, ref, beta=beta), -losses.mean(), logp)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_of_means(beta):
    logp, ref = log_probs()
    losses = ipo_loss(*means(logp), *means(ref), beta=beta)
    assert_same_loss(trl_dpo("ipo", logp, ref, beta=beta), -losses.mean(), logp)


def test_deviation_ipo_averages():
    """IPO's eq. 17 has log-probs of completions, which are sums over tokens, and TRL's trainer
    takes means. Log-ratios of 1, 1 (chosen) and four times -1/4 (rejected), with β = 0.1:
    sums (2 + 1 - 5)² = 4, means (1 + 1/4 - 5)² = 14.0625."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    logp = torch.tensor([[1.0] * 4, [-0.25] * 4]).double()
    ref = torch.zeros(2, 4).double()
    assert ipo_loss(*sums(logp, mask), *sums(ref, mask)).item() == pytest.approx(4.0)
    of_means = ipo_loss(*means(logp, mask), *means(ref, mask)).item()
    assert trl_dpo("ipo", logp, ref, mask).item() == of_means == pytest.approx(14.0625)


def test_deviation_robust_is_not_label_smoothing():
    """Both assume that a share ε of the labels is wrong. cDPO mixes the losses of the label and of
    its opposite, (1 - ε) L + ε L'. TRL's "robust" (arXiv:2403.00409) undoes the noise,
    ((1 - ε) L - ε L')/(1 - 2ε).

    Margin 0.3 and ε = 0.1: L = 0.55436 and L' = 0.85436, so 0.9 L = 0.49892 and 0.1 L' = 0.08544.
    Ours is 0.49892 + 0.08544 = 0.58436, and TRL's is (0.49892 - 0.08544)/0.8 = 0.51685.
    """
    mask, ref = torch.ones(2, 1).long(), torch.zeros(2, 1).double()
    logp = torch.tensor([[2.0], [-1.0]]).double().requires_grad_()
    chosen, rejected = sums(logp, mask)
    ref_chosen, ref_rejected = sums(ref, mask)
    ours = label_smoothed_dpo_loss(chosen, rejected, ref_chosen, ref_rejected)
    theirs = trl_dpo("robust", logp, ref, mask, smoothing=0.1)
    assert ours.item() == pytest.approx(0.5844, abs=1e-4)
    assert theirs.item() == pytest.approx(0.5169, abs=1e-4)
    clean = dpo_loss(chosen, rejected, ref_chosen, ref_rejected)
    flipped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen)
    assert_same_loss(theirs, -((0.9 * clean - 0.1 * flipped) / 0.8).sum(), logp)


# KTO

@pytest.mark.parametrize("drift", [0.3, -0.3], ids=["KL > 0", "KL held at 0"])
def test_kto(drift):
    """z is the mean log-ratio of completions under other prompts, at least 0, without a
    gradient."""
    logp, ref = log_probs()
    label = torch.tensor([True, False, True, True, False, False, True, False])
    self = stand_in(
        _compute_kl_logps=lambda model, batch: ref.sum(1) + drift,
        calculate_KL=True,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=0.2,
        desirable_weight=1.0,
        undesirable_weight=1.5,
    )
    whole = with_prompt(MASK)
    inputs = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "label": label,
        "ref_logps": (ref * MASK).sum(1),
        "ref_KL_logps": ref.sum(1),
    }
    theirs = trl.KTOTrainer._compute_loss(self, lambda **_: outputs_of(logp, MASK), inputs,
                                          return_outputs=False)
    ours = kto_loss((logp * MASK).sum(1), (ref * MASK).sum(1), label, kl=drift, beta=0.2,
                    undesirable_weight=1.5)
    assert_same_loss(theirs, -ours.mean(), logp)


# CPO: SimPO and label smoothing

def cpo_trainer():
    cpo = pytest.importorskip("trl.experimental.cpo", reason="this TRL has no CPO trainer")
    return cpo.CPOTrainer


def trl_cpo(loss_type, chosen, rejected, *, beta, gamma=0.5, smoothing=0.0):
    """Return CPOTrainer.cpo_loss, which has no reference."""
    self = stand_in(alpha=0.0, loss_type=loss_type, beta=beta, simpo_gamma=gamma,
                    label_smoothing=smoothing)
    losses, *_ = cpo_trainer().cpo_loss(self, chosen, rejected)
    return losses.mean()


@pytest.mark.parametrize("beta, gamma", [(2.0, 1.0), (0.1, 0.5), (2.5, 0.0)])
def test_simpo(beta, gamma):
    """From logits on: TRL's mean per token is ours. Its simpo_gamma is β times our
    gamma_over_beta."""
    logits = normal(8, 7, 5, seed=4).requires_grad_()
    ids = torch.randint(5, (8, 7), generator=torch.Generator().manual_seed(5))
    unread = torch.full((8, 1), -100)                       # -100: no label
    labels = torch.cat([unread, ids[:, 1:].masked_fill(MASK == 0, -100)], dim=1)
    average = cpo_trainer().get_batch_logps(logits, labels, average_log_prob=True)
    theirs = trl_cpo("simpo", *average.chunk(2), beta=beta, gamma=gamma)

    logp = logits.log_softmax(-1)[:, :6].gather(-1, ids[:, 1:, None]).squeeze(-1)  # (B, 6)
    losses = simpo_loss(*means(logp), beta=beta, gamma_over_beta=gamma / beta)
    assert_same_loss(theirs, -losses.mean(), logits)


def test_deviation_simpo_margin():
    """γ is added after β has multiplied. So TRL's defaults, β = 0.1 and γ = 0.5, ask for a lead of
    5 nats per token, and the paper asks for about 0.5. With log-probs -1 and -1.5, TRL has
    -log σ(0.05 - 0.5) = 0.9432; with gamma_over_beta 0.5 ours is -log σ(0.05 - 0.05) = 0.6931."""
    chosen, rejected = torch.tensor([-1.0]).double(), torch.tensor([-1.5]).double()
    theirs = trl_cpo("simpo", chosen, rejected, beta=0.1)
    assert theirs.item() == pytest.approx(0.9432, abs=1e-4)
    five = simpo_loss(chosen, rejected, beta=0.1, gamma_over_beta=5.0)
    assert five.item() == pytest.approx(0.9432, abs=1e-4)
    half = simpo_loss(chosen, rejected, beta=0.1, gamma_over_beta=0.5)
    assert half.item() == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_lives_in_cpo(smoothing):
    """TRL has cDPO's mixture in its CPO trainer. It has no reference: ours with a reference of
    0."""
    logp, _ = log_probs()
    zero = torch.zeros(4).double()
    theirs = trl_cpo("sigmoid", *sums(logp), beta=0.3, smoothing=smoothing)
    losses = label_smoothed_dpo_loss(*sums(logp), zero, zero, beta=0.3, smoothing=smoothing)
    assert_same_loss(theirs, -losses.mean(), logp)
