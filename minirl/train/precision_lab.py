"""What lower precision does to reinforcement learning, on one policy: where sampler and learner
differ, which updates are lost, and which gradients float16 loses without a scale on the loss.

    Paper      FP16 against the mismatch, arXiv:2510.26788; Mixed Precision Training,
               arXiv:1710.03740, section 3: master weights and loss scaling

Nothing is trained but a copy of the policy, on what the policy itself wrote.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minirl.equations.reduce import aggregate
from minirl.inference.collect import Counter, collect
from minirl.inference.mismatch import Mismatch, measure_mismatch, mismatch_of_logits, short
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.precision import DTYPES, FORMATS, LossScaler, compute_in, round_to
from minirl.lm.rollouts import Rollouts
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem, Task
from minirl.train.adamw import AdamW

SMALLEST = 2.0 ** -24          # of float16's numbers; half of it and less is rounded to 0
UPDATES, UPDATE = 100, 1e-3    # so many steps of this size, from a weight of 1
INTERVAL = 10                  # steps without an overflow until the scale doubles (pages: 2000)
LENGTH = 256                   # tokens of a sequence of random products
PROBLEMS = 32                  # of which the copy learns a completion each, at most
MOST = 2 ** 20                 # gradients that are kept


@dataclass(frozen=True)
class ScaledStep:
    """One step of training in float16: the scale of the loss, and whether the step was skipped."""

    scale: float
    skipped: bool


@dataclass(frozen=True)
class PrecisionLab:
    """What a lab measured.

    mismatches   a pair of sampler and learner each, in every combination of the three dtypes
    products     of one matrix product, in a lower precision and in float32
    weights      dtype -> a weight of 1 after 0, 1, ... updates of -0.001 in that dtype
    gradients    |gradient| of weights in float32, without zeros, (n,): of all, or of every k-th
    steps        of training in float16
    """

    mismatches: list[Mismatch]
    products: list[Mismatch]
    weights: dict[str, list[float]]
    gradients: Tensor
    steps: list[ScaledStep]

    def lost(self, scale: float = 1.0) -> float:
        """Return the share of gradients that float16 rounds to 0, where the loss has this scale."""
        return float((round_to(self.gradients * scale, "float16") == 0).double().mean())


def run_precision_lab(
        model: Transformer, tokenizer: Tokenizer, task: Task, problems: Sequence[Problem], *,
        group: int = 8, max_new_tokens: int = 80, temperature: float = 1.0, steps: int = 150,
        seed: int = 0, progress: Counter | None = None) -> PrecisionLab:
    """Measure all of it. `progress` counts completions, three times group * problems, and steps.

    Raises     ValueError for what cannot be sampled.
    """
    mismatches = [pair for sampler in DTYPES for pair in measure_mismatch(
        model, tokenizer, task, problems, sampler=sampler, learners=list(DTYPES), group=group,
        max_new_tokens=max_new_tokens, temperature=temperature, progress=progress,
        seed=derive_seed(seed, "precision", "sample"))]
    with compute_in("float32", model.device):
        rollouts = collect(model, tokenizer, task, problems[:PROBLEMS], temperature=temperature,
                           max_new_tokens=max_new_tokens, generator=torch.Generator(
                               model.device).manual_seed(seed)).rollouts
    learner = copy.deepcopy(model).eval().requires_grad_(True)
    return PrecisionLab(mismatches, product_mismatches(seed), lost_updates(),
                        gradient_sizes(learner, rollouts),
                        scaled_steps(learner, rollouts, steps, progress=progress))


def lab_report(lab: PrecisionLab) -> str:
    """Return what `minirl precision` prints below its table of mismatches."""
    means = {pair.sampler: float(pair.differences.mean()) for pair in lab.mismatches
             if pair.sampler == pair.learner}
    times = means["bfloat16"] / max(means["float16"], 1e-12)
    same = f"bfloat16 is {times:.1f} times as far off as float16" if any(means.values()) else (
        "sampler and learner agree to the bit")
    products = ", ".join(f"{x.sampler} {short(float(x.differences.mean()))} and "
                         f"{short(float(x.sequence_log_ratios.std()))}" for x in lab.products)
    ends = ", ".join(f"{weights[-1]:.4g} in {dtype}" for dtype, weights in lab.weights.items())
    first, last = lab.steps[0].scale, lab.steps[-1].scale
    skipped = sum(step.skipped for step in lab.steps)
    return (f"The same dtype on both sides: {same}.\n"
            f"One random product, a token and {LENGTH} of them: {products}.\n"
            f"{UPDATES} updates of -{UPDATE} leave of a weight of 1: {ends}.\n"
            f"Of the gradients, float16 makes {lab.lost():.2%} zero, and {lab.lost(first):.2%} "
            f"where the loss is scaled by {first:,.0f}.\n"
            f"In {len(lab.steps)} steps the scale went from {first:,.0f} to {last:,.0f}; {skipped} "
            "of them overflowed and were skipped.")


def product_mismatches(seed: int, completions: int = 64, length: int = LENGTH) -> list[Mismatch]:
    """Return what rounding does to the last product alone: width 64, vocabulary 512, logits of
    standard deviation 2, and no token that the model is sure of."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(completions * length, 64, generator=g), torch.randn(
        512, 64, generator=g) / 4
    ids = torch.multinomial((hidden @ weight.T).softmax(-1), 1, generator=g).squeeze(1)
    return [mismatch_of_logits(hidden, weight, ids, length, sampler=dtype, learner="float32")
            for dtype in FORMATS]


def lost_updates() -> dict[str, list[float]]:
    """Return a weight after each update, where the weight itself is kept in each dtype.

    1 - 0.001 is nearer to 1 than to bfloat16's next number, 1 - 2^-8 = 0.9961. So the weight stays
    where it is, however often it is updated. Master weights in float32 are the remedy.

    >>> {dtype: round(weights[-1], 4) for dtype, weights in lost_updates().items()}
    {'float32': 0.9, 'bfloat16': 1.0, 'float16': 0.9023}
    """
    out = {}
    for dtype in DTYPES:
        weights = [torch.ones(())]
        for _ in range(UPDATES):
            weight = weights[-1] - UPDATE
            weights.append(round_to(weight, dtype) if dtype in FORMATS else weight)
        out[dtype] = [float(weight) for weight in weights]
    return out


def loss_on(model: Transformer, rollouts: Rollouts) -> Tensor:
    """Return minus the mean log-prob of the sampled tokens: supervised fine-tuning on them."""
    logp = token_logprobs(model, rollouts.tokens, mask=rollouts.mask)  # (B, T)
    return -aggregate(logp, rollouts.mask, "token_mean")


def gradient_sizes(model: Transformer, rollouts: Rollouts) -> Tensor:
    """Return how large the gradients are, one number for each weight that has one, or for every
    k-th of them: (n,), at most MOST."""
    model.zero_grad()
    with compute_in("float32", model.device):
        loss_on(model, rollouts).backward()
    sizes = torch.cat([p.grad.abs().flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    sizes = sizes[sizes > 0]
    return sizes[::-(-len(sizes) // MOST) or 1].cpu()


def scaled_steps(model: Transformer, rollouts: Rollouts, steps: int, *, lr: float = 1e-4,
                 init_scale: float = 2.0 ** 16, progress: Counter | None = None
                 ) -> list[ScaledStep]:
    """Train in float16, on the same completions again and again -> the scale in each step.

    The scale doubles after INTERVAL steps, so that a short run shows how it comes to its bound: the
    scale beyond which a gradient overflows.
    """
    scaler, seen = LossScaler(init_scale, growth_interval=INTERVAL), []
    optimizer = AdamW([{"params": model.parameters()}], lr=lr, betas=(0.9, 0.95))
    with compute_in("float16", model.device):
        for _ in range(steps):
            scaler.scale(loss_on(model, rollouts)).backward()
            stepped = scaler.step(optimizer)
            seen.append(ScaledStep(scaler.value, not stepped))
            scaler.update()
            optimizer.zero_grad()
            if progress is not None:
                progress.update(1)
    return seen
