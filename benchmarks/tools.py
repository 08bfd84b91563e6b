"""Three ways to a product that is too hard to do in the head, and when RL calls the calculator.

    python benchmarks/tools.py --out FILE [--seeds 3]     train what FILE does not hold yet
    python benchmarks/tools.py --out FILE --draw          tables and the figure of what it holds
    python benchmarks/tools.py --speed                    what tools cost a batch that calls none

Formats (DeepSeekMath, arXiv:2402.03300, section 3.1). Four base models read the same number of
demonstrations of products of two digits, each in one format: answers at once, chains of thought,
programs, calls of a calculator. Then they are asked held-out products. A call may slip: one in five
copies a digit wrong.

When to call. A base model reads products of three digits, half of them with a call, and sums of two
digits, a quarter with a call; the rest is answered at once. GRPO trains it with the calculator and,
from the same base model and seed, without: then nobody answers its calls. A third run starts from
a base model that has read as many calls for sums as for products, so that it does not tell them
apart. A call costs 0.1, a right answer is worth 1.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import commit, heading, in_turn, ratio, row, spread, table_head
from minirl.inference.collect import Collected, collect
from minirl.inference.tool_use import call_stops
from minirl.lm.figures import COLOURS, DASHES, entry, legend_below, new_figure, save, tidy
from minirl.lm.model import Transformer
from minirl.lm.sampling import sample
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.environment import with_tools
from minirl.tasks.products import Products, form_of, product_demonstrations
from minirl.tasks.tools import TOOL_WORDS, calculate
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft

FORMATS = {"at once": {"tool_share": 0.0}, "chain": {"tool_share": 0.0, "chain_share": 1.0},
           "program": {"tool_share": 0.0, "program_share": 1.0}, "tool": {"tool_share": 1.0}}
EXAMPLES, SLIPS, ASKED = 12_000, 0.2, 256
MIXED = Products(3, easy_share=0.5)
READ = 24_000
# whether there is a calculator, and how often demonstrations call it for sums: a factor
ARMS = {"with the calculator": (True, 0.5), "without": (False, 0.5),
        "with it, from a base that calls alike": (True, 1.0)}
LENGTH = 80                            # tokens of a completion, at most
LOOKS = (0, 4, 10, 16, 24, 32, 40, 50, 60)
GRPO = GRPOConfig(steps=LOOKS[-1], max_new_tokens=LENGTH)
LINES = ("-", DASHES, ":")
FIGURE = Path(__file__).parent / "figures" / "tools.png"
Line = dict[str, Any]


# runs

def base_model(task: Products, seed: int, n: int, **shares: float) -> tuple[Transformer, Tokenizer]:
    """Return a model that has read n demonstrations."""
    rng = random.Random(derive_seed(seed, "demonstrations"))
    pairs = product_demonstrations(task, n, rng, **shares)
    model, tokenizer = make_base(TinySizes(), seed=seed, device="cpu", words=TOOL_WORDS)
    model.compiled = True
    return train_sft(model, tokenizer, pairs, SFTConfig(), seed=seed), tokenizer


def answers_of(model: Transformer, tokenizer: Tokenizer, task: Products, seed: int, *, tools: bool
               ) -> Collected:
    """Ask held-out problems, with the calculator or without."""
    rng = random.Random(derive_seed(seed, "held out"))
    problems = task.sample(ASKED, rng, split="test")
    return collect(model, tokenizer, with_tools(task, [calculate] if tools else None), problems,
                   max_new_tokens=LENGTH, generator=torch.Generator().manual_seed(seed))


def try_formats(seed: int) -> list[Line]:
    lines = []
    for name, shares in FORMATS.items():
        task = Products(2)
        model, tokenizer = base_model(task, seed, EXAMPLES, slip_share=SLIPS, **shares)
        answers = answers_of(model, tokenizer, task, seed, tools=True)
        tokens = answers.rollouts.lengths - answers.rollouts.prompt_lengths
        lines.append({"format": name, "accuracy": mean(answers.verdicts["accuracy"]),
                      "tokens": float(tokens.float().mean())})
    return lines


def learn_when(seed: int) -> list[Line]:
    return [line for arm in ARMS for line in learn(seed, arm)]


def learn(seed: int, arm: str) -> list[Line]:
    tools, easy_calls = ARMS[arm]
    model, tokenizer = base_model(MIXED, seed, READ, tool_share=0.5, easy_calls=easy_calls)
    lines: list[Line] = []

    def look(step: int, metrics: dict[str, float] | None = None) -> None:
        if step in LOOKS:
            answers = answers_of(model, tokenizer, MIXED, seed, tools=tools)
            lines.extend({"arm": arm, "step": step, **kind} for kind in by_difficulty(answers))

    look(0)
    train_grpo(model, tokenizer, MIXED, GRPO, seed=seed, tools=[calculate] if tools else None,
               log=look)
    return lines


def by_difficulty(answers: Collected) -> list[Line]:
    """Return accuracy and calls per answer, on products and on easy sums."""
    kinds = []
    for easy in (False, True):
        rows = [i for i, problem in enumerate(answers.problems)
                if problem.easy == easy]
        forms = [form_of(answers.completions[i]) for i in rows]
        kinds.append({"easy": easy,
                      "accuracy": mean([answers.verdicts["accuracy"][i] for i in rows]),
                      "calls": mean([answers.completions[i].count("<tool>") for i in rows]),
                      "formless": forms.count(None) / len(rows)})
    return kinds


def mean(numbers: Sequence[float | None]) -> float:
    return statistics.mean(number or 0.0 for number in numbers)


# tables and the figure

def of(lines: Sequence[Line], **wanted: Any) -> list[Line]:
    return [line for line in lines if all(line.get(name) == x for name, x in wanted.items())]


def show(lines: Sequence[Line]) -> None:
    print(table_head("format, all read", "accuracy", "tokens"))
    for name in FORMATS:
        runs = of(lines, format=name)
        print(row(name, spread([run["accuracy"] for run in runs], 3),
                  spread([run["tokens"] for run in runs], 1)))
    print("\n" + table_head("GRPO", "step", "products right", "sums right", "calls per product",
                            "calls per sum"))
    for arm in ARMS:
        for step in (LOOKS[0], LOOKS[-1]):
            looks = of(lines, arm=arm, step=step)
            cells = [spread([run[what] for run in of(looks, easy=easy)])
                     for what in ("accuracy", "calls") for easy in (False, True)]
            print(row(arm, step, *cells))


def draw(lines: Sequence[Line]) -> None:
    figure, axes = new_figure(1, 2, (10.4, 4.0))
    for axis, what, title in ((axes[0], "accuracy", "Right answers"),
                              (axes[1], "calls", "Calls per answer")):
        for easy, colour in ((False, COLOURS[0]), (True, COLOURS[1])):
            for arm, line in zip(ARMS, LINES, strict=True):
                looks = [[run[what] for run in of(lines, arm=arm, step=step, easy=easy)]
                         for step in LOOKS]
                axis.plot(LOOKS, list(map(statistics.mean, looks)), color=colour, linestyle=line,
                          linewidth=2)
                axis.fill_between(LOOKS, list(map(min, looks)), list(map(max, looks)),
                                  color=colour, alpha=0.12, linewidth=0)
        axis.set_ylim(0, 1.05)
        tidy(axis, title, x="GRPO step", y="share" if what == "accuracy" else "calls")
    legend_below(figure, [
        entry(f"{kind}, {arm}", color=colour, linestyle=line, linewidth=2)
        for kind, colour in (("products", COLOURS[0]), ("sums", COLOURS[1]))
        for arm, line in zip(ARMS, LINES, strict=True)])
    save(figure, FIGURE)


# what tools cost those who do not call

def speed() -> None:
    """Sample the same rows twice: with nobody to ask, and with somebody who is asked at every end
    and has nothing to say."""
    model, tokenizer = make_base(TinySizes(), seed=0, device="cpu", words=TOOL_WORDS)
    prompts = [tokenizer.encode_prompt(p.prompt) for p in MIXED.sample(16, random.Random(0))]

    def work(**options: Any) -> object:
        return sample(model, prompts, group=8, max_new_tokens=LENGTH, pad_id=tokenizer.pad_id,
                      generator=torch.Generator().manual_seed(0), **options)

    times = in_turn({"plain": lambda: work(eos_id=tokenizer.stop_ids),
                     "tools": lambda: work(eos_id=call_stops(tokenizer),
                                           reply=lambda row, ids: [])}, repeats=15, warmup=2)
    print(f"128 rows of {LENGTH} tokens: {spread([1000 * t for t in times['plain']], 0)} ms, with "
          f"tools {ratio(times['tools'], times['plain'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="JSON lines, a seed's in each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draw", action="store_true", help="only show what the file holds")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    print(f"{heading()}, commit {commit()}\n")
    if args.speed:
        speed()
        return
    if args.out is None:
        parser.error("--out FILE is needed: runs are added to it")
    runs = [json.loads(text) for text in args.out.read_text().splitlines()] if (
        args.out.exists()) else []
    for seed in range(0 if args.draw else args.seeds):
        for part in (try_formats, learn_when):
            if not of(runs, seed=seed, part=part.__name__):
                runs.append({"seed": seed, "part": part.__name__, "lines": part(seed)})
                with open(args.out, "a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    lines = [line for run in runs for line in run["lines"]]
    show(lines)
    draw(lines)


if __name__ == "__main__":
    main()
