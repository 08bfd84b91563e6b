"""What a training page reports, and the checks that stop a broken run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minirl.equations.kl import k1, k3
from minirl.equations.reduce import masked_mean
from minirl.inference.collect import Collected, verdict_tensor
from minirl.inference.mismatch import far, sample_share
from minirl.lm import world
from minirl.lm.rollouts import Rollouts
from minirl.tasks.environment import STOPS, Session


class NonFiniteError(ValueError):
    """A loss, gradient or weight is NaN or infinite. The run stops, and nothing broken is saved."""


class Sums:
    """Metrics as sums and counts: the mean over micro-batches of different sizes is the batch's."""

    def __init__(self) -> None:
        self._ends: dict[str, Tensor] = {}  # the least or the largest of what was added
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}
        self._log_weights: dict[str, list[Tensor]] = {}

    def add(self, name: str, values: Tensor | float, mask: Tensor | None = None, *,
            count: float | None = None) -> None:
        """Add all values, or those under the mask.

        `count` is for parts of one number, such as the losses of micro-batches, which add up to
        their batch's: the share of the number that this part is.
        """
        values = torch.as_tensor(values).detach()
        if mask is not None:
            values = values[mask.bool()]
        self._sums[name] = self._sums.get(name, 0.0) + values.double().sum()
        count = values.numel() if count is None else count
        self._counts[name] = self._counts.get(name, 0) + count

    def add_range(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add the values under the mask to name/mean, name/min and name/max."""
        values = values.detach()[mask]
        self.add(f"{name}/mean", values)
        if values.numel():
            low, high = values.aminmax()
            self._ends[f"{name}/min"] = low.minimum(self._ends.get(f"{name}/min", low))
            self._ends[f"{name}/max"] = high.maximum(self._ends.get(f"{name}/max", high))

    def add_weights(self, weights: Tensor, mask: Tensor) -> None:
        """Add what is left of a micro-batch by the weights of its tokens, (b, T)."""
        zero = weights == 0
        self.add_range("weights", weights, mask)
        self.add("weights/zero_tokens", zero, mask)
        self.add("weights/zero_completions", (zero | ~mask).all(1), mask.any(1))

    def add_distance(self, name: str, logp: Tensor, behavior_logp: Tensor, mask: Tensor) -> None:
        """Add how far a policy is from the sampler μ on a micro-batch, (b, T) each.

        name/k1 and name/k3 estimate KL(μ || π) per token. name/frac_far is the share of tokens
        whose ratio is outside [0.9, 1.1]: a mean that is small may hide them. name/sample_share is
        the effective sample size of the completions by their ratios Π_t π_t/μ_t, as a share of
        their number: 1 where all weigh the same.
        """
        logp = logp.detach()
        self.add(f"{name}/k1", k1(behavior_logp, logp), mask)
        self.add(f"{name}/k3", k3(behavior_logp, logp), mask)
        difference = torch.where(mask, logp - behavior_logp, 0)
        self.add(f"{name}/frac_far", far(difference), mask)
        rows = difference.double().sum(1)[mask.any(1)]  # of those with a sampled token
        self._log_weights.setdefault(f"{name}/sample_share", []).append(rows)

    def means(self) -> dict[str, float]:
        """Return the metrics of what all processes added."""
        parts = world.gather((self._sums, self._counts, self._ends, self._log_weights))
        sums, counts, ends, log_weights = (merged([part[i] for part in parts]) for i in range(4))
        return {**{name: float(sum(s)) / max(1, sum(counts[name])) for name, s in sums.items()},
                **{name: float((min if name.endswith("/min") else max)(end))
                   for name, end in ends.items()},
                **{name: sample_share(torch.cat(sum(rows, [])))
                   for name, rows in log_weights.items()}}


def watch(sums: Sums, surrogate: Tensor, logp: Tensor, old_logp: Tensor, batch: Rollouts,
          adv: Tensor, entropy: Tensor) -> None:
    """Add the per-token metrics of one micro-batch, in TRL's names. All tensors are (b, T).

    A token is clipped where the objective has no gradient although its advantage is not 0.
    sampling/... compares π_old with the sampler μ: other kernels, or an older policy. drift/...
    compares π itself with μ, at each update. sampling/ratio is π_old/μ of a token, before any
    bound; where top_k, top_p or min_p cut the sampler's distribution, that is the probability of
    what they keep. entropy/quarter_1 is the entropy in the first quarters of completions: where a
    policy settles first shows there.
    """
    slope, = torch.autograd.grad(surrogate.sum(), logp, retain_graph=True)
    mu = batch.behavior_logp
    sums.add("clip_ratio/low_mean", (slope == 0) & (adv < 0), batch.mask)
    sums.add("clip_ratio/high_mean", (slope == 0) & (adv > 0), batch.mask)
    sums.add("entropy", entropy, batch.mask)
    quarters = 4 * (batch.mask.cumsum(1) - 1) // batch.mask.sum(1, keepdim=True).clamp(min=1)
    for i in range(4):
        sums.add(f"entropy/quarter_{i + 1}", entropy, batch.mask & (quarters == i))
    sums.add_range("sampling/sampling_logp_difference", (old_logp - mu).abs(), batch.mask)
    sums.add_range("sampling/ratio", (old_logp - mu).exp(), batch.mask)
    sums.add_distance("sampling", old_logp, mu, batch.mask)
    sums.add_range("drift/logp_difference", (logp - mu).abs(), batch.mask)
    sums.add_distance("drift", logp, mu, batch.mask)


def describe(answers: Collected) -> dict[str, float]:
    """Metrics of one batch of completions, that of all processes, in TRL's names.

    `reward` and `reward_std` are over the completions with a verdict; a reward function that gave
    none has no rewards/<name>/mean. A completion is unique if no other one of the same prompt is
    the same text: a policy that has collapsed writes few.
    """
    rewards, rollouts = world.together(answers.rewards), answers.rollouts
    judged = ~rewards.isnan()
    verdicts = {name: world.together(verdict_tensor(column))
                for name, column in answers.verdicts.items()}
    lengths = world.together(rollouts.completion_lengths.float())
    return {
        "reward": mean_judged(rewards),
        "reward_std": float(rewards[judged].std()) if judged.sum() > 1 else 0.0,
        "frac_reward_none": float((~judged).float().mean()),
        **{f"rewards/{name}/mean": mean_judged(column) for name, column in verdicts.items()
           if not column.isnan().all()},
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(world.together(rollouts.truncated.float()).mean()),
        **describe_variety(answers),
        **describe_calls(answers.sessions)}


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return what several dicts have under each of their names."""
    return {name: [part[name] for part in parts if name in part]
            for name in dict.fromkeys(name for part in parts for name in part)}


def describe_variety(answers: Collected) -> dict[str, float]:
    """Return the share of different prompts, and of different completions of a prompt."""
    prompts = world.flat([str(problem.prompt) for problem in answers.problems])
    completions = world.flat(answers.completions)
    group = len(completions) // max(1, len(prompts))
    rows = [prompt for prompt in prompts for _ in range(group)]
    pairs = set(zip(rows, completions, strict=True))
    return {"frac_unique_prompts": len(set(prompts)) / max(1, len(prompts)),
            "frac_unique_completions": len(pairs) / max(1, len(rows))}


def describe_calls(sessions: Sequence[Session]) -> dict[str, float]:
    """Metrics of tool use, in TRL's names: calls per completion, the share of calls that failed,
    and why completions stopped. None without tools."""
    seen = world.flat([(session.calls, session.failures, session.stop) for session in sessions])
    if not seen:
        return {}
    calls, failures, stops = zip(*seen, strict=True)
    return {"tools/call_frequency": sum(calls) / len(seen),
            "tools/failure_frequency": sum(failures) / max(1, sum(calls)),
            **{f"stops/{stop}": stops.count(stop) / len(seen) for stop in STOPS}}


def mean_judged(rewards: Tensor) -> float:
    return float(masked_mean(rewards, ~rewards.isnan()))


def check_judged(rewards: Tensor) -> Tensor:
    """Return the rewards. Raise ValueError if all of them are NaN, in every process: there is
    nothing to learn."""
    if not world.anywhere(not rewards.isnan().all()):
        raise ValueError(f"none of the {rewards.numel()} completions got a reward: every verdict "
                         "was None or NaN; check the reward functions and the problems' answers")
    return rewards


def check_finite(loss: Tensor, step: int, rows: Tensor | Sequence[int],
                 texts: Sequence[object]) -> None:
    """Raise NonFiniteError, showing the first text, if the loss on these rows is not finite."""
    if not torch.isfinite(loss):
        raise NonFiniteError(f"step {step}: the loss is {loss.item()} on these rows. "
                             + where(rows, texts))


def check_gradients(models: Sequence[nn.Module], step: int, rows: Tensor | Sequence[int],
                    texts: Sequence[object], *, scaled: bool = False) -> None:
    """Raise NonFiniteError, showing the first text, if the gradient on these rows is not finite;
    `scaled`: although the loss is scaled as little as it may be."""
    grads = [p.grad for model in models for p in model.parameters() if p.grad is not None]
    if world.finite_here(grads):           # others may be at another micro-batch
        return
    why = ("overflows in float16, and the scale of the loss cannot fall further: use --dtype "
           "bfloat16 or float32" if scaled else
           "is not finite, although the loss is: look for a log-ratio that exploded, or lower lr")
    raise NonFiniteError(f"step {step}: the gradient on these rows {why}. {where(rows, texts)}")


def where(rows: Tensor | Sequence[int], texts: Sequence[object]) -> str:
    numbers = [int(row) for row in rows]
    return (f"The weights are still those before this minibatch. Rows {numbers[:8]}; the first is "
            f"{texts[numbers[0]]!r}")
