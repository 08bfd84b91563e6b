"""What the comparisons with TRL share.

TRL's own methods run in these tests, so no line of its losses is typed again. A stand-in takes the
trainer's place, and has only the attributes that a method reads. A method of a later TRL that reads
another one raises AttributeError: a reason to look, and not a difference in the numbers.

All numbers are float64. Where TRL does something else than the paper, or than we do, the test is
called test_deviation_..., and its docstring works out both numbers.
"""

from collections import defaultdict
from types import SimpleNamespace

import torch

from minirl.equations.advantages import group_advantages

NO_TRL = ("TRL is not installed: "
          "python -m pip install -c constraints.txt -e '.[test,parity]'")
NAN = float("nan")
LENGTHS = [6, 3, 1, 5, 4, 6, 2, 3]                                      # two groups of four
MASK = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()        # (B, T)
REWARDS = torch.tensor([[1.0, 0.0, 0.5, 0.0], [2.0, 1.0, -1.0, 0.25]]).double()     # (P, G)
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    sync_gradients=True,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
    unwrap_model=lambda model: model,
)


def stand_in(**attributes):
    """Return what a trainer's method gets as `self`. An attribute that is not here raises."""
    return SimpleNamespace(**{
        "accelerator": ACCELERATOR,
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "ref_model": None,
        "aux_loss_enabled": False,
        "_tp_size": 1,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        **attributes,
    })


def normal(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def columns(seed=0):
    """Return logp (a leaf), old_logp, ref_logp and adv, (B, T) each.

    The ratios are from about 0.3 to 3, so that every clip bites on both sides.
    """
    old = -1 - normal(8, 6, seed=seed).abs()
    logp = (old + normal(8, 6, seed=seed + 1, scale=0.5)).requires_grad_()
    ref = old + normal(8, 6, seed=seed + 2, scale=0.5)
    adv = group_advantages(REWARDS).flatten()[:, None].expand(8, 6)
    return logp, old, ref, adv


def assert_close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_same_loss(theirs, objective, leaf, *, atol=1e-10):
    """TRL's loss is minus our objective, in value and in gradient, and the gradient is not 0.

    An atol of 1e-7 is for losses in which one of the two rounds a constant to float32.
    """
    their_gradient, = torch.autograd.grad(theirs, leaf, retain_graph=True)
    our_gradient, = torch.autograd.grad(-objective, leaf)
    assert_close(-objective, theirs, atol)
    assert_close(our_gradient, their_gradient, atol)
    assert their_gradient.abs().max() > 1e-4
