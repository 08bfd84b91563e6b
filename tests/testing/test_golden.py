"""The golden tables: every equation gives their values and gradients, and golden.json has them."""

import json
import math

import pytest
import torch

from minirl.testing import golden
from minirl.testing.golden import cases, function, rows

NAMES = sorted(rows())


@pytest.mark.parametrize("name", NAMES)
def test_an_equation_gives_its_golden_values(name):
    for case in cases(name):
        leaves = {key: case.inputs[key].clone().requires_grad_() for key in case.gradient}
        value = function(name)(**case.inputs | leaves)
        if isinstance(case.value, (torch.Tensor, tuple)):
            torch.testing.assert_close(value, case.value, rtol=1e-9, atol=1e-12,
                                       equal_nan=True, msg=lambda m, c=case: f"{c.why}\n{m}")
        elif isinstance(case.value, float):
            assert float(value) == pytest.approx(case.value, rel=1e-9, abs=1e-12), case.why
        else:
            assert value == case.value, case.why
        if leaves:
            gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
            for key, gradient in zip(leaves, gradients, strict=True):
                gradient = torch.zeros_like(leaves[key]) if gradient is None else gradient
                torch.testing.assert_close(
                    gradient, case.gradient[key].expand_as(gradient).to(gradient.dtype),
                    rtol=1e-9, atol=1e-12, msg=lambda m, c=case, k=key: f"{c.why}: {k}\n{m}")


@pytest.mark.parametrize("name", NAMES)
def test_every_equation_has_five_cases_with_their_arithmetic(name):
    table = rows()[name]
    assert len(table) >= 5
    assert len({row.why for row in table}) == len(table)
    assert all(len(row.why) > 10 for row in table)


def test_golden_json_is_made_from_the_tables_and_read_without_torch():
    text = golden.JSON.read_text(encoding="utf-8")
    assert text == golden.to_json(), "run python -m minirl.testing.golden"

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(text, parse_constant=refuse)
    assert content["version"] == golden.VERSION
    case = content["equations"]["k1"]["cases"][0]
    ours = [a - b for a, b in zip(case["inputs"]["logp"], case["inputs"]["ref_logp"], strict=True)]
    assert ours == case["value"] == [math.log(2)]


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(ValueError, match="clipped_surrogate"):
        cases("clip_surrogate")
