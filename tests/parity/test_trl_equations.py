"""The newer equations, alone: each is what TRL's trainer or static method of that name computes, in
value and gradient. Skipped where TRL is not installed.

test_trl_options.py has the same through GRPO's page.
"""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch

from minirl.equations.distillation import distillation_advantages
from minirl.equations.entropy import entropy_mask
from minirl.equations.kl import exact_kl, generalised_jsd
from minirl.equations.mismatch import off_policy_mask
from minirl.equations.objectives import gmpo, vespo
from minirl.equations.reduce import aggregate
from minirl.equations.regression import astar_po_loss, optimal_values
from minirl.equations.schedules import update_ema
from tests.parity.trl_stand_ins import (
    ACCELERATOR,
    MASK,
    NO_TRL,
    assert_close,
    assert_same_loss,
    columns,
    normal,
    stand_in,
)

trl = pytest.importorskip("trl", reason=NO_TRL)


# ---- distillation

def trl_divergence(student, teacher, beta):
    """Return GKDTrainer.generalized_jsd_loss of every state, (B, T)."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    per_word = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none")
    return per_word.sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalised_jsd(beta):
    """Also where a word is so unlikely that its probability is 0 in float64, for either."""
    student, teacher = normal(8, 6, 5, seed=0), normal(8, 6, 5, seed=1)
    student[0, 0, 0] = teacher[0, 1, 2] = -40.0
    student.requires_grad_()
    theirs, ours = trl_divergence(student, teacher, beta), generalised_jsd(student, teacher, beta)
    assert_close(ours, theirs)
    assert_same_loss(aggregate(theirs, MASK, "token_mean"),
                     -aggregate(ours, MASK, "token_mean"), student)


def test_trl_s_distillation_at_beta_one_is_the_mean_of_our_advantages():
    """TRL sums the reverse KL over the vocabulary. Under the student's own samples the mean of
    log π_T - log π is minus that, and so is the gradient of A log π."""
    student, teacher = normal(4, 5, seed=2).requires_grad_(), normal(4, 5, seed=3)
    theirs = trl_divergence(student, teacher, 1.0)
    assert_close(theirs, exact_kl(student, teacher))
    logp, teacher_logp = student.log_softmax(-1), teacher.log_softmax(-1)
    p, adv = logp.detach().exp(), distillation_advantages(logp, teacher_logp)
    assert_close((p * adv).sum(-1), -theirs)
    gradients = [torch.autograd.grad(x.sum(), student, retain_graph=True)[0]
                 for x in (theirs, -(p * adv * logp))]
    assert_close(*gradients)


# ---- objectives

def trl_gmpo(logp, old, adv, clip):
    """Return GMPOTrainer._compute_loss of these log-probs."""
    trainer = pytest.importorskip("trl.experimental.gmpo").GMPOTrainer
    self = stand_in(
        top_entropy_quantile=1.0, epsilon_low=clip, epsilon_high=clip, beta=0.0,
        current_gradient_accumulation_steps=1,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None))
    ids = torch.zeros_like(MASK)
    return trainer._compute_loss(self, None, {
        "prompt_ids": ids[:, :2], "prompt_mask": MASK[:, :2], "completion_ids": ids,
        "completion_mask": MASK, "advantages": adv, "old_per_token_logps": old})


@pytest.mark.parametrize("clip", [0.4, 0.1, 2.0])
def test_gmpo(clip):
    logp, old, _, adv = columns()
    d, gains = (logp.detach() - old)[MASK.bool()], (adv > 0)[MASK.bool()]
    assert clip == 2.0 or ((d > clip) & gains).any() and ((d < -clip) & ~gains).any()
    theirs = trl_gmpo(logp, old, adv[:, 0], clip)
    assert_same_loss(theirs, gmpo(logp, old, adv[:, 0], MASK, clip=clip).mean(), logp)


@pytest.mark.parametrize("numbers", [(2.0, 3.0, 3.0, 2.0), (1.0, 0.5, 2.0, 1.5)])
def test_vespo_s_weights(numbers):
    """φ of each completion: our slope over the advantage. TRL's k and λ become float32 in a
    torch.where."""
    logp, old, _, adv = columns()
    old = logp.detach() + 0.3 * (old - logp.detach())  # or some products are too far away to see
    theirs = trl.GRPOTrainer.get_gamma_weights(adv[:, :1], (logp - old).detach(), MASK, None,
                                               *numbers)
    k_pos, lam_pos, k_neg, lam_neg = numbers
    ours = vespo(logp, old, adv, MASK, k_pos=k_pos, lam_pos=lam_pos, k_neg=k_neg, lam_neg=lam_neg)
    slopes, = torch.autograd.grad(ours.sum(), logp)
    shown = MASK.bool()
    assert_close((slopes / adv)[shown], theirs.expand_as(logp)[shown], atol=1e-7)
    assert theirs.max() > 1.05 and theirs.min() < 0.9


def test_deviation_vespo_of_a_completion_that_the_policy_gave_up():
    """TRL keeps w above 1e-8 (and says: to match the original implementation). Ours has no floor.
    At w = e^-30, k = 2, λ = 3: φ = e^(3 - 60) = 1.8e-25, theirs e^(3 + 2 ln 1e-8) = 2.0e-15.
    Neither trains anything."""
    logp, old = torch.full((1, 1), -30.0).double().requires_grad_(), torch.zeros(1, 1).double()
    one = torch.ones(1, 1).double()
    theirs = trl.GRPOTrainer.get_gamma_weights(one, (logp - old).detach(), one, None)
    slope, = torch.autograd.grad(vespo(logp, old, one, one).sum(), logp)
    assert slope.item() == pytest.approx(math.exp(-57))
    assert theirs.item() == pytest.approx(math.exp(3) * 1e-16)


# ---- masks

@pytest.mark.parametrize("delta", [0.05, 0.2, 1.0])
def test_off_policy_mask(delta):
    logp, old, ref, adv = columns()
    for sampler in (old, ref, logp.detach()):
        theirs = trl.GRPOTrainer.get_off_policy_mask(adv[:, :1], logp, sampler, MASK, delta)
        ours = off_policy_mask(logp, sampler, adv[:, 0], MASK, delta=delta)
        assert theirs[:, 0].bool().tolist() == ours.tolist()


def test_deviation_a_sampler_without_a_log_prob():
    """TRL counts a token whose sampler's log-prob is NaN as no drift. Ours has no such tokens: the
    mean is NaN, not below δ, and the bad completion is dropped."""
    logp, mask, adv = torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([-1.0, 1.0])
    sampler = torch.tensor([[float("nan"), 0.0]] * 2)
    theirs = trl.GRPOTrainer.get_off_policy_mask(adv[:, None], logp, sampler, mask, 0.1)
    assert theirs[:, 0].tolist() == [1, 1]
    assert off_policy_mask(logp, sampler, adv, mask, delta=0.1).tolist() == [False, True]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.0])
def test_entropy_mask(share):
    """TRL's quantile is in float32: entropies that are float32 numbers anyway."""
    entropies = normal(8, 6, seed=5).abs().float()
    accelerator = SimpleNamespace(**{**vars(ACCELERATOR),
                                     "pad_across_processes": lambda x, **_: x})
    self = stand_in(accelerator=accelerator)
    theirs = trl.GRPOTrainer.get_high_entropy_mask(self, entropies, MASK, 1 - share)
    ours = entropy_mask(entropies, MASK, quantile=share)
    assert torch.equal(theirs, ours) and 0 < ours.sum() < MASK.sum()


# ---- regression, and the reference

def test_astar_po_loss():
    """A2POTrainer.compute_loss, with the implicit reward's β_2 and a V* for each completion."""
    trainer = pytest.importorskip("trl.experimental.a2po").A2POTrainer
    logp, ref_logp = normal(8, seed=1).requires_grad_(), normal(8, seed=2)
    rewards, values = normal(8, seed=3), normal(8, seed=4)
    self = stand_in(args=SimpleNamespace(beta2=0.3), _get_sequence_logps=lambda *_: logp)
    theirs = trainer.compute_loss(self, SimpleNamespace(training=True), {
        "input_ids": None, "attention_mask": None, "logits_to_keep": None, "ref_logps": ref_logp,
        "rewards": rewards, "v_star": values})
    ours = astar_po_loss(logp, ref_logp, rewards, values, beta=0.3)
    assert_same_loss(theirs, -ours.mean(), logp)


def test_optimal_values():
    """The one line of A2PO's first stage that is an equation; the rest samples and scores."""
    trainer = pytest.importorskip("trl.experimental.a2po").A2POTrainer
    source = inspect.getsource(trainer._estimate_optimal_values)
    line, = (line for line in source.splitlines() if line.strip().startswith("v_star ="))
    names = {"beta1": 0.5, "rewards": normal(3, 5, seed=6), "n": 5, "torch": torch, "math": math}
    theirs = eval(line.split("=", 1)[1].strip(), names)
    assert_close(optimal_values(names["rewards"]), theirs)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_the_reference_s_mixture(alpha):
    """ref_model_mixup_alpha is an exponential moving average with decay 1 - α."""
    from trl.trainer.callbacks import SyncRefModelCallback
    policy, theirs = (torch.nn.Linear(3, 2).double() for _ in range(2))
    ours = [p.detach().clone() for p in theirs.parameters()]
    SyncRefModelCallback._sync_target_model(policy, theirs, alpha)
    update_ema(ours, policy.parameters(), decay=1 - alpha)
    assert_close(ours, [p.detach() for p in theirs.parameters()])
