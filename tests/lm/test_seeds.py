"""minirl/lm/seeds.py"""

import pytest
import torch

from minirl.lm.seeds import derive_seed, seeded


def test_seeds_are_the_same_in_every_process_and_differ_between_purposes():
    """The number is pinned: another one would silently change what every published run computed."""
    assert derive_seed(0, "grpo", 0, "sample") == 4968650417455394554
    seeds = {derive_seed(seed, name, step)
             for seed in range(3) for name in "ab" for step in range(50)}
    assert len(seeds) == 300
    assert 0 <= derive_seed(7, "x") < 2 ** 63


def test_inside_the_seed_counts_and_outside_nothing_has_happened():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(7)
    inner = torch.rand(2)
    torch.manual_seed(5)
    before = torch.rand(2)
    with seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(2), inner)
    assert torch.equal(torch.cat([before, torch.rand(2)]), expected)


def test_after_an_error_too():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(7, torch.device("cpu")):
        torch.rand(2)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
