"""The sanity test of "FP16 against the training-inference mismatch" (arXiv:2510.26788, section 4)
in miniature: does GRPO solve every problem of a perfectible set, or does it collapse, where sampler
and learner compute in different precision?

    python benchmarks/sanity.py --out FILE [--seeds 3]          train what FILE does not hold yet
    python benchmarks/sanity.py --out FILE --device cuda --size large --minutes 10       on a GPU
    python benchmarks/sanity.py --out FILE --only float16       the runs of one precision
    python benchmarks/sanity.py --out FILE --draw               tables and figures of what it holds

A base model that copies numbers with slips is asked 40 times each; numbers that it copies in 20 %
to 80 % of them are the training set. A method passes where the training accuracy reaches 95 %.

Sampler and learner compute in one dtype with other kernels, as in the paper. As this differs little
in a tiny model, a sampler can also round to a few bits, while the learner has float32. The knobs
are the bits, the learning rate, the length and the width. Where float32 fails, too, it is not
the mismatch that is at fault.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import sanity_report as report
from common import commit, heading
from minirl.inference.collect import collect_in_parts
from minirl.inference.perfectible import PerfectibleSet, perfectible_set
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Task
from minirl.tasks.user_rollouts import with_rollouts
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.metrics import NonFiniteError
from minirl.train.objectives import Objective, score_function, sequence_ratio
from sanity_toy import Copies, base_model, coarse_sampler
from study import FIGURES, add_record, records

# the paper's: 4 updates for a batch of rollouts, no KL, a constant learning rate, Dr. GRPO's means,
# clip-higher, C = 3
GRPO = GRPOConfig(group_size=8, minibatches=4, warmup_steps=5, min_lr_ratio=1.0, kl_coef=0.0,
                  clip_high=0.28, aggregate="constant", scale="none")
# what is kept of the metrics of every step
KEPT = {"reward": "accuracy", "sampling/sampling_logp_difference/mean": "mismatch",
        "sampling/ratio/max": "largest ratio", "entropy": "entropy", "grad_norm": "gradient norm",
        "weights/zero_completions": "dropped"}
ASKED_AT_THE_END = 256             # completions, in the sampler's arithmetic and the learner's


@dataclass(frozen=True)
class Repair:
    """What is done about the mismatch: fields of GRPO's configuration, or another objective."""

    name: str
    what: str                      # for the table; ρ = π_old/μ
    numbers: dict[str, Any] = field(default_factory=dict)
    objective: Objective | None = None
    batch_invariant: bool = False


REPAIRS = (
    Repair("none", "GRPO, π_old of the learner"),
    Repair("token truncation", "min(ρ_t, 3), TIS", dict(importance="token_truncate")),
    Repair("token masking", "ρ_t, 0 outside 0.5 to 5, IcePop",
           dict(importance="token_mask", importance_min=0.5, importance_max=5.0)),
    Repair("sequence truncation", "min(Π ρ_t, 3)", dict(importance="sequence_truncate")),
    Repair("sequence masking", "Π ρ_t, 0 above 3, MIS", dict(importance="sequence_mask")),
    Repair("geometric rejection", "0 where (Π ρ_t)^(1/T) is outside 0.8 to 1.25",
           dict(geometric_min=0.8, geometric_max=1.25)),
    Repair("policy gradient", "Π ρ_t A, no clip",
           dict(importance="sequence_truncate", importance_max=0.0), score_function()),
    Repair("GSPO", "(Π π_t/π_old)^(1/T), ε of 0.0003", objective=sequence_ratio(3e-4, 4e-4)),
    Repair("π_old of the sampler", "clip(ρ_t)", dict(old_logp="sampler")),
    Repair("batch-invariant", "one kernel for both", batch_invariant=True),
)
BY_NAME = {repair.name: repair for repair in REPAIRS}


@dataclass(frozen=True)
class Size:
    """A toy and its training. lrs, lengths and widths are other values of the knobs."""

    length: int
    width: int
    layers: int
    read: int                      # copies that the base model reads
    asked: int                     # problems that it is asked for the perfectible set
    steps: int
    prompts: int                   # in a step
    lr: float
    lrs: tuple[float, ...]
    lengths: tuple[int, ...]
    widths: tuple[int, ...]


SIZES = {
    "toy": Size(16, 32, 2, 6_000, 256, 80, 8, 2e-3, (1e-3, 4e-3), (8, 32), (64,)),
    "large": Size(32, 64, 2, 12_000, 512, 200, 32, 2e-3, (1e-3, 4e-3), (8, 16), (32,)),
}


@dataclass(frozen=True)
class Run:
    """A run, by what it differs in. `precision`: a dtype of both, or the bits of the sampler."""

    precision: str | int
    repair: str
    lr: float
    length: int
    width: int

    def label(self) -> str:
        precision = f"{self.precision} bits" if isinstance(self.precision, int) else self.precision
        return (f"{precision}, {self.repair}, lr {self.lr:g}, {self.length} digits, "
                f"width {self.width}")


def plan(size: Size) -> list[Run]:
    """Return all runs of a seed, the most telling first: dtypes, repairs, then the other knobs."""
    usual = Run("float32", "none", size.lr, size.length, size.width)
    first = [replace(usual, precision=precision)
             for precision in ("float32", "bfloat16", "float16", 2, 3, 4)]
    repairs = [replace(usual, precision=precision, repair=repair.name)
               for precision in (2, "bfloat16", "float16") for repair in REPAIRS[1:]
               if not (repair.batch_invariant and precision == 2)]
    others = [replace(usual, lr=lr) for lr in size.lrs] + [
        replace(usual, length=length) for length in size.lengths] + [
        replace(usual, width=width) for width in size.widths]
    return first + repairs + [replace(run, precision=precision) for run in others
                              for precision in ("float32", 2, 3)]


# running them

@dataclass(frozen=True)
class Base:
    """A base model and its perfectible set, made when a run first needs them."""

    size: Size
    length: int
    width: int
    seed: int
    device: torch.device

    @cached_property
    def made(self) -> tuple[Transformer, Tokenizer, PerfectibleSet]:
        task = Copies(self.length)
        model, tokenizer = base_model(task, self.width, self.size.layers, self.size.read,
                                      seed=self.seed, device=self.device)
        kept = perfectible_set(model, tokenizer, task, n=self.size.asked, seed=self.seed,
                               max_new_tokens=task.tokens)
        print(f"seed {self.seed}, {self.length} digits, width {self.width}: {len(kept.problems)} "
              f"of {kept.asked} problems kept", flush=True)
        return model, tokenizer, kept


def train(run: Run, base: Base) -> dict[str, Any]:
    """Train a copy of the base model -> its record. A run whose numbers become infinite ends."""
    model, tokenizer, kept = base.made
    model, size, repair = copy.deepcopy(model), base.size, BY_NAME[run.repair]
    config = replace(GRPO, steps=size.steps, prompts_per_step=size.prompts, lr=run.lr,
                     max_new_tokens=Copies(run.length).tokens, **repair.numbers)
    steps: dict[str, list[float]] = {}
    began, ended = time.process_time(), ""
    dtype = run.precision if isinstance(run.precision, str) else "float32"
    with compute_in(dtype, base.device, batch_invariant=repair.batch_invariant):
        task = sampled(run, kept)
        try:
            train_grpo(model, tokenizer, task, config, objective=repair.objective, seed=base.seed,
                       log=partial(keep, steps))
        except NonFiniteError as error:
            ended = str(error)
        asked = {} if ended else {"sampler": task, "learner": kept}
        after = {who: accuracy(copy.deepcopy(model), tokenizer, its_task, config, base.seed)
                 for who, its_task in asked.items()}
    return {**asdict(run), "seed": base.seed, "kept": len(kept.problems), "asked": kept.asked,
            "before": statistics.mean(kept.accuracies), "steps": steps, "after": after,
            "ended": ended, "seconds": time.process_time() - began}


def sampled(run: Run, task: Task) -> Task:
    """Return the task whose completions a coarse sampler makes, where the run has one. The learner
    beside it computes in float32."""
    if isinstance(run.precision, str):
        return task
    return with_rollouts(task, coarse_sampler(run.precision))


def keep(steps: dict[str, list[float]], step: int, metrics: dict[str, float]) -> None:
    for name, short in KEPT.items():
        if name in metrics:
            steps.setdefault(short, []).append(float(f"{metrics[name]:.4g}"))


def accuracy(model: Transformer, tokenizer: Tokenizer, task: Task, config: GRPOConfig,
             seed: int) -> float:
    """Return the share of right completions to problems of the set."""
    problems = task.sample(ASKED_AT_THE_END, random.Random(seed))
    generator = torch.Generator(model.device).manual_seed(seed)
    verdicts = [verdict for part in collect_in_parts(
        model, tokenizer, task, problems, generator=generator,
        max_new_tokens=config.max_new_tokens) for verdict in part.verdicts["accuracy"]]
    return sum(verdict == 1.0 for verdict in verdicts) / len(verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON per finished run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, default="toy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"),
                        help="begin no run after that many")
    parser.add_argument("--only", nargs="+", choices=tuple(map(str, report.PRECISIONS)),
                        help="train these dtypes, or samplers of so many bits, alone")
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    if not args.draw:
        print(f"{heading(args.device)}, commit {commit()}\n", flush=True)
        for seed in range(args.seeds):
            one_seed(seed, args.out, SIZES[args.size], torch.device(args.device),
                     in_time=lambda: time.monotonic() < end, only=args.only)
    report.show(records(args.out), SIZES[args.size], REPAIRS, args.figures)


def one_seed(seed: int, out: Path, size: Size, device: torch.device,
             in_time: Callable[[], bool], only: Collection[str] | None = None) -> None:
    """Train what the file does not have, and add a line for each run. `only`: these precisions."""
    finished = {report.run_of(record) for record in records(out) if record["seed"] == seed}
    bases: dict[tuple[int, int], Base] = {}
    for run in plan(size):
        if only and str(run.precision) not in only:
            continue
        if report.run_of(asdict(run)) in finished or not in_time():
            continue
        key = run.length, run.width
        base = bases.setdefault(key, Base(size, *key, seed, device))
        record = train(run, base)
        add_record(out, record)
        print(f"seed {seed}, {run.label()}: {report.outcome(record)}, {record['seconds']:.1f} s",
              flush=True)


if __name__ == "__main__":
    main()
