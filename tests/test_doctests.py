"""Every example in a docstring is run."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import minirl

MODULES = sorted(m.name for m in pkgutil.walk_packages(minirl.__path__, "minirl.") if not m.name.endswith("__main__"))
EQUATIONS = [name for name in MODULES if name.startswith("minirl.equations.")]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0


@pytest.mark.parametrize("name", EQUATIONS)
def test_every_public_equation_has_an_example_and_its_fields(name):
    module = importlib.import_module(name)
    for attribute, value in vars(module).items():
        if callable(value) and getattr(value, "__module__", None) == name and not attribute.startswith("_"):
            assert ">>>" in value.__doc__, f"{name}.{attribute} has no worked example"
            fields = [line.split()[0] for line in value.__doc__.splitlines() if line[:4] == "    " and line[4:5].isalpha() and "  " in line.strip()]
            order = ["Equation", "Paper", "Erratum", "Shapes", "Gradient", "Raises", "See"]
            found = [f for f in fields if f in order]
            assert found == sorted(found, key=order.index), f"{name}.{attribute}: fields are in the order {found}"
