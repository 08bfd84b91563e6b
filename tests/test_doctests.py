"""Every example in a docstring runs, and every equation has one."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import minirl

PACKAGES = pkgutil.walk_packages(minirl.__path__, "minirl.")
MODULES = sorted(m.name for m in PACKAGES if not m.name.endswith("__main__"))
EQUATIONS = [name for name in MODULES if name.startswith("minirl.equations.")]
FIELDS = ["Equation", "Paper", "Erratum", "Shapes", "Gradient", "Raises", "See"]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0


def fields_of(docstring):
    """The first words of the lines that look like "    Field   text", if they are fields."""
    words = [line.split()[0] for line in docstring.splitlines()
             if line[:4] == "    " and line[4:5].isalpha() and "  " in line.strip()]
    return [word for word in words if word in FIELDS]


@pytest.mark.parametrize("name", EQUATIONS)
def test_every_public_equation_has_an_example_and_its_fields(name):
    module = importlib.import_module(name)
    for attribute, value in vars(module).items():
        own = callable(value) and getattr(value, "__module__", None) == name
        if own and not attribute.startswith("_"):
            assert ">>>" in value.__doc__, f"{name}.{attribute} has no worked example"
            fields = fields_of(value.__doc__)
            in_order = sorted(fields, key=FIELDS.index)
            assert fields == in_order, f"{name}.{attribute}: fields are in the order {fields}"
