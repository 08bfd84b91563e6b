"""minirl/train/regularisers.py: what is added to the surrogate."""

import pytest
import torch

from minirl.equations.kl import corrected_k3, k2, k3
from minirl.train.checks import CHOICES
from minirl.train.grpo import GRPOConfig
from minirl.train.metrics import Sums
from minirl.train.regularisers import KL_ESTIMATORS, EntropyBonus
from minirl.train.weights import IMPORTANCE

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
ENTROPY = torch.tensor([[0.6, 0.9, 7.0], [0.3, 7.0, 7.0]])      # mean 0.6


def test_names_are_those_that_a_configuration_may_have():
    assert set(KL_ESTIMATORS) == set(CHOICES["kl_estimator"])
    assert {"none", *IMPORTANCE} == set(CHOICES["importance"])


def test_every_estimator_is_its_equation():
    logp, old, ref = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(KL_ESTIMATORS["k3"](logp, old, ref), k3(logp, ref))
    assert torch.equal(KL_ESTIMATORS["k2"](logp, old, ref), k2(logp, ref))
    assert torch.equal(KL_ESTIMATORS["corrected_k3"](logp, old, ref), corrected_k3(logp, old, ref))


def test_without_a_coefficient_there_is_no_bonus():
    numbers = {}
    bonus = EntropyBonus(GRPOConfig(), numbers)
    bonus.begin(MASK)
    assert bonus.of(ENTROPY, MASK) == 0.0
    bonus.adapt(sums := Sums())
    assert numbers == {} and sums.means() == {}


def test_a_constant_bonus_by_hand():
    """0.5 times the mean entropy of the tokens that count; its gradient is 0.5/3 for each."""
    numbers, entropy = {}, ENTROPY.clone().requires_grad_()
    bonus = EntropyBonus(GRPOConfig(entropy_coef=0.5), numbers)
    bonus.begin(MASK)
    value = bonus.of(entropy, MASK)
    value.backward()
    assert value.item() == pytest.approx(0.3)
    assert entropy.grad.tolist() == [pytest.approx([1 / 6, 1 / 6, 0]),
                                     pytest.approx([1 / 6, 0, 0])]
    assert numbers == {}                 # nothing to resume: checkpoints are as they were


def test_micro_batches_add_up_to_the_minibatch():
    bonus = EntropyBonus(GRPOConfig(entropy_coef=0.5), {})
    bonus.begin(MASK)
    parts = [bonus.of(ENTROPY[i:i + 1], MASK[i:i + 1]).item() for i in range(2)]
    assert parts == pytest.approx([0.25, 0.05])


def test_the_coefficient_adapts_by_hand():
    """Target 0.5: at a mean of 0.6 the coefficient falls, and there is no bonus; at 0.3 it rises,
    and the next update has one."""
    numbers, config = {}, GRPOConfig(entropy_coef=0.1, entropy_target=0.5, entropy_coef_delta=0.02,
                                     entropy_coef_max=0.11)
    bonus = EntropyBonus(config, numbers)
    assert numbers == {"entropy_coef": 0.1, "entropy_bonus": 0.0}
    for entropy, coef, active in ((0.5 * ENTROPY, 0.11, 0.11),      # bounded by its maximum
                                  (ENTROPY, 0.09, 0.0), (ENTROPY, 0.07, 0.0),
                                  (0.5 * ENTROPY, 0.09, 0.09)):
        before = numbers["entropy_bonus"]
        bonus.begin(MASK)
        parts = [bonus.of(entropy[i:i + 1], MASK[i:i + 1]) for i in range(2)]
        mean = 0.6 if entropy is ENTROPY else 0.3
        assert sum(map(float, parts)) == pytest.approx(before * mean)
        bonus.adapt(sums := Sums())
        assert numbers == {"entropy_coef": pytest.approx(coef),
                           "entropy_bonus": pytest.approx(active)}
        assert sums.means() == {"entropy_coef": pytest.approx(coef)}


def test_an_entropy_at_its_target_is_low_enough():
    """As in TRL: the coefficient rises, and the next update has a bonus."""
    numbers = {}
    bonus = EntropyBonus(GRPOConfig(entropy_coef=0.25, entropy_target=0.5), numbers)
    bonus.begin(MASK)
    bonus.of(torch.full((2, 3), 0.5), MASK)
    bonus.adapt(Sums())
    assert numbers["entropy_bonus"] == numbers["entropy_coef"] > 0.25
