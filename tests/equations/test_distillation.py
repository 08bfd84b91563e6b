"""Tests of minirl.equations.distillation.

tests/test_ground_truth_further.py has the expectations.
"""

import math

import pytest
import torch

from minirl.equations import advantages
from minirl.equations.distillation import distillation_advantages, distillation_values


def test_distillation_advantages_hand_numbers():
    """1/4 for 1/2: -ln 2; 3/4 for 1/4: ln 3. A student that is sure of what the teacher never says
    learns that it is infinitely bad: the caller sees it."""
    logp = torch.tensor([[0.5, 0.25, 1.0]]).log()
    teacher_logp = torch.tensor([[0.25, 0.75, 0.0]]).log()
    adv = distillation_advantages(logp, teacher_logp)
    torch.testing.assert_close(adv, torch.tensor([[-math.log(2), math.log(3), -math.inf]]))


def test_neither_student_nor_teacher_gets_a_gradient():
    """As a loss, log π_T - log π would have the gradient -∇ log π of every token: nothing of the
    teacher is left, and whatever was sampled becomes rarer."""
    student, teacher = torch.zeros(2, 2, 3, requires_grad=True)
    assert not distillation_advantages(student, teacher).requires_grad
    assert not distillation_values(student, teacher).requires_grad


def test_distillation_values_hand_numbers():
    """(1/2, 1/2) under (1/4, 3/4): -(ln 2 + ln 2/3) / 2 = -0.1438. 0 at the teacher, -inf where it
    never says what the student may."""
    logits = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]).log()
    teacher = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.0, 1.0]]).log()
    values = distillation_values(logits, teacher)
    torch.testing.assert_close(values, torch.tensor([-0.143841, 0.0, -math.inf]), atol=1e-6, rtol=0)


def test_the_module_that_a_reader_looks_in_first_has_them():
    assert advantages.distillation_advantages is distillation_advantages
    assert advantages.distillation_values is distillation_values


@pytest.mark.parametrize("function", [distillation_advantages, distillation_values])
def test_shapes_that_would_broadcast_raise(function):
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2,\).*same shape"):
        function(torch.zeros(2, 2), torch.zeros(2))
