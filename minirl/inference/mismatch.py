"""What a sampler and a learner make of the same tokens, where they compute in different precision.

    Paper      FP16 against the mismatch, arXiv:2510.26788, section 3 and figure 2

Both have the same weights, and still the sampler's μ is not the learner's π: it rounds otherwise,
and it computes a token at a time with other kernels. Reinforcement learning corrects for it
(equations/mismatch.py) or makes it small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minirl.equations.kl import k1, k3
from minirl.equations.mismatch import effective_sample_size
from minirl.equations.reduce import masked_mean
from minirl.inference.collect import Counter, collect_in_parts
from minirl.lm.logprobs import rollout_logprobs
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.rollouts import span_mask
from minirl.lm.text import table
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem, Task

FAR = 0.1          # a ratio further than this from 1 is far: half of PPO's clip range


@dataclass(frozen=True)
class Mismatch:
    """Log-probs of the tokens that a sampler drew, its own and a learner's, (B, T) each.

    sampler, learner   their dtypes
    mask               (B, T) bool, of sampled tokens
    """

    sampler: str
    learner: str
    logp: Tensor
    behavior_logp: Tensor
    mask: Tensor

    @property
    def differences(self) -> Tensor:
        """|log π - log μ| of each sampled token, (n,)."""
        return (self.logp - self.behavior_logp).abs()[self.mask]

    @property
    def probability_difference(self) -> float:
        """The mean of |π - μ| over tokens."""
        return float((self.logp.exp() - self.behavior_logp.exp()).abs()[self.mask].mean())

    @property
    def share_far(self) -> float:
        """The share of tokens whose ratio π / μ is outside [0.9, 1.1]."""
        return float(far(self.logp - self.behavior_logp)[self.mask].double().mean())

    @property
    def sequence_log_ratios(self) -> Tensor:
        """Σ_t log(π_t / μ_t) of each completion, (B,)."""
        return torch.where(self.mask, self.logp - self.behavior_logp, 0).double().sum(1)

    @property
    def sample_share(self) -> float:
        """The effective sample size of the sequence weights, as a share of the completions."""
        return sample_share(self.sequence_log_ratios)

    @property
    def k1(self) -> float:
        """The mean over tokens of log(μ / π): an estimate of KL(μ || π), which may be negative."""
        return float(masked_mean(k1(self.behavior_logp.double(), self.logp.double()), self.mask))

    @property
    def k3(self) -> float:
        """Another estimate of KL(μ || π), which is never negative and varies less."""
        return float(masked_mean(k3(self.behavior_logp.double(), self.logp.double()), self.mask))

    def spreads(self, least: int = 32) -> list[float]:
        """Return the standard deviation, over completions, of the log-ratio of their first n
        tokens, for n = 1, 2, ... as long as at least `least` of them are so long."""
        ratios = torch.where(self.mask, self.logp - self.behavior_logp, 0).double()
        number = self.mask.cumsum(1)  # (B, T): how many tokens so far
        ratios, out = ratios.cumsum(1), []
        for n in range(1, int(number.max()) + 1):
            at = self.mask & (number == n)  # (B, T), one token of each that is so long
            if int(at.sum()) < max(2, least):
                break
            out.append(float(ratios[at].std()))
        return out


def far(log_ratios: Tensor) -> Tensor:
    """Return which ratios are outside [0.9, 1.1], given by their logarithms: bool, the same shape.
    """
    return (log_ratios.exp() - 1).abs() > FAR


def sample_share(log_weights: Tensor) -> float:
    """Return the effective sample size of weights, given by their logarithms, over their number.

    >>> sample_share(torch.tensor([0.0, 0.0])), sample_share(torch.tensor([1000.0, 0.0]))
    (1.0, 0.5)
    """
    weights = (log_weights - log_weights.max()).exp() if len(log_weights) else log_weights
    return float(effective_sample_size(weights)) / max(1, len(weights))


def measure_mismatch(
        model: Transformer, tokenizer: Tokenizer, task: Task, problems: Sequence[Problem], *,
        sampler: str, learners: Sequence[str], group: int = 1, max_new_tokens: int = 80,
        temperature: float = 1.0, seed: int = 0, progress: Counter | None = None,
) -> list[Mismatch]:
    """Sample completions in the dtype `sampler`, and score the same tokens in each of `learners`.

    Raises     ValueError for a dtype that is none, and for what cannot be sampled.
    See        lm.precision.compute_in, which sets both for a training run.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {learner: [] for learner in learners}
    with compute_in(sampler, model.device):
        collected = list(collect_in_parts(
            model, tokenizer, task, problems, group=group, max_new_tokens=max_new_tokens,
            temperature=temperature, generator=generator, progress=progress))
    for learner, rows in parts.items():
        with compute_in(learner, model.device):
            for part in collected:
                logp = rollout_logprobs(model, part.rollouts, temperature=temperature)  # (b, T)
                rows.append((logp.cpu(), part.rollouts.behavior_logp.cpu(),
                             part.rollouts.mask.cpu()))
    return [Mismatch(sampler, learner, *joined(rows)) for learner, rows in parts.items()]


def joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Put parts (b, T) of any widths under one another; the mask is the last of each."""
    width = max(part[0].shape[1] for part in parts)
    logp, behavior_logp, mask = (torch.cat(
        [torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in column])
        for column in zip(*parts, strict=True))
    return logp, behavior_logp, mask


def mismatch_of_logits(hidden: Tensor, weight: Tensor, ids: Tensor, length: int, *, sampler: str,
                       learner: str) -> Mismatch:
    """Return the mismatch of one product alone, hidden weightᵀ, as if these were `length` tokens to
    a completion: hidden (B * length, d), weight (V, d), ids (B * length,)."""
    def logp(dtype: str) -> Tensor:
        with compute_in(dtype, hidden.device):
            logits = torch.nn.functional.linear(hidden, weight).float()
        return logits.log_softmax(-1).gather(1, ids[:, None]).view(-1, length)

    B = len(ids) // length
    mask = span_mask(torch.zeros(B, dtype=torch.long), torch.full((B,), length), length)
    return Mismatch(sampler, learner, logp(learner), logp(sampler), mask)


def mismatch_table(mismatches: Sequence[Mismatch]) -> str:
    """Return the table that `minirl precision` prints: a row for each pair, with the mean and the
    largest |Δ log p| of a token, the share of ratios outside [0.9, 1.1], the standard deviation of
    Σ log π/μ over completions, and the share of completions that their weights leave."""
    rows: list[tuple[str, ...]] = [
        ("sampler", "learner", "|Δ log p|", "largest", "far", "std Σ", "ESS", "k1", "k3")]
    for x in mismatches:
        differences = x.differences
        rows.append((x.sampler, x.learner, short(float(differences.mean())),
                     short(float(differences.max())), f"{x.share_far:.1%}",
                     short(float(x.sequence_log_ratios.std())), f"{x.sample_share:.1%}",
                     short(x.k1), short(x.k3)))
    return table(rows)


def short(x: float) -> str:
    """Return a number in two digits.

    >>> short(0.00152), short(-2.5e-12)
    ('1.5e-3', '-2.5e-12')
    """
    return f"{x:.1e}".replace("e-0", "e-").replace("e+00", "")
