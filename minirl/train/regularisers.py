"""What a page adds to its surrogate: a KL penalty by one of several estimators, and a bonus for
entropy, whose coefficient may adapt."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from minirl.equations.entropy import adaptive_entropy_coef
from minirl.equations.kl import corrected_k3, k2, k3
from minirl.equations.reduce import aggregate, normaliser
from minirl.lm import world
from minirl.train.metrics import Sums
from minirl.train.options import GRPOOptions

KLControl = Callable[[float, float, int], float]  # kl_coef, KL per completion, completions -> next
Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]  # logp, old_logp, ref_logp -> (b, T)

# Those that are a penalty as a loss: k1 is none, as its gradient is 0 on average (equations/kl.py).
# With one update for a batch, where ρ = 1, corrected_k3 and k2 have the same gradient.
KL_ESTIMATORS: dict[str, Estimator] = {
    "k3": lambda logp, old_logp, ref_logp: k3(logp, ref_logp),
    "corrected_k3": corrected_k3,
    "k2": lambda logp, old_logp, ref_logp: k2(logp, ref_logp),
}


class EntropyBonus:
    """The mean entropy of the tokens that count, times a coefficient that may adapt.

    Paper      PPO, arXiv:1707.06347, eq. 9. Adaptive, Skywork-OR1, arXiv:2505.22312: each update
               raises the coefficient by δ while the entropy is at most its target, or lowers it,
               and the next one has a bonus only in the first case.

    The mean is over tokens whatever the mean of the surrogate is, so that a coefficient means the
    same with every preset. `numbers` are those of the training state, from which a run resumes.
    """

    def __init__(self, config: GRPOOptions, numbers: dict[str, float]) -> None:
        self.config, self.numbers, self.mean = config, numbers, 0.0
        self.adapts = config.entropy_target > 0
        if self.adapts:
            numbers.update(entropy_coef=config.entropy_coef, entropy_bonus=0.0)

    def begin(self, counted: Tensor) -> None:
        """Begin a minibatch, of which these tokens count, (B', T) bool."""
        self.total = world.total(normaliser(counted, "token_mean"))

    def of(self, entropy: Tensor, counted: Tensor) -> Tensor | float:
        """Return the part of the bonus that these tokens, (b, T), add to their minibatch's."""
        coef = self.numbers["entropy_bonus"] if self.adapts else self.config.entropy_coef
        if not (coef or self.adapts):
            return 0.0
        mean = aggregate(entropy, counted, "token_mean", total=self.total)
        self.mean += mean.item()
        return coef * mean

    def adapt(self, sums: Sums) -> None:
        """Choose the coefficient of the next update by the entropy of this one."""
        mean, self.mean = world.total(self.mean), 0.0
        if not self.adapts:
            return
        config = self.config
        coef = adaptive_entropy_coef(
            self.numbers["entropy_coef"], mean, config.entropy_target,
            delta=config.entropy_coef_delta, low=config.entropy_coef_min,
            high=config.entropy_coef_max)
        active = coef if mean <= config.entropy_target else 0.0
        self.numbers.update(entropy_coef=coef, entropy_bonus=active)
        sums.add("entropy_coef", coef)
