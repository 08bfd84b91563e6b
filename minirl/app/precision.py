"""minirl precision: what lower precision does to sampler, learner and updates, on one policy."""

from __future__ import annotations

import argparse
import random
import sys

from minirl.app.commands import (
    check_looking,
    check_out,
    check_task,
    open_checkpoint,
    trained_on,
)
from minirl.inference.evaluate import distinct_problems
from minirl.inference.mismatch import mismatch_table
from minirl.lm.logprobs import check_temperature
from minirl.lm.precision import DTYPES, compute_in
from minirl.lm.progress import Progress
from minirl.train.precision_figure import plot_precision
from minirl.train.precision_lab import lab_report, run_precision_lab


def command_precision(args: argparse.Namespace) -> None:
    check_looking(args, problems=args.problems, samples=args.samples, steps=args.steps)
    check_temperature(args.temperature)
    check_out(args.out)
    check_task(args)
    path, model, tokenizer = open_checkpoint(args)
    model.float()    # a checkpoint in bfloat16 would compute in it in every row of the table
    task = trained_on(path, args)
    problems = distinct_problems(task, args.problems, random.Random(args.seed), split="test")
    work = len(DTYPES) * len(problems) * args.samples + args.steps
    with (Progress("measuring", work, unit="sample or step") as progress,
          compute_in("float32", model.device, batch_invariant=args.batch_invariant)):
        lab = run_precision_lab(
            model, tokenizer, task, problems, group=args.samples, steps=args.steps,
            max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed,
            progress=progress)
    plot_precision(lab, args.out)
    print(f"checkpoint: {path}", file=sys.stderr)
    print(f"{task.name}, {len(problems)} problems, {args.samples} samples each\n"
          f"{mismatch_table(lab.mismatches)}\n\n{lab_report(lab)}\n{args.out} shows them")
