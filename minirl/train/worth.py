"""What the policies of R1's pipeline are worth on held-out problems: easy and hard ones, judged by
the rules, and general prompts, judged by what people want; and all of them in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minirl.inference.collect import Counter
from minirl.inference.evaluate import evaluate
from minirl.inference.intervals import wilson_interval
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.text import columns_of, hanging, padded, table
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Task

SIDE = ("too-long", "small-base", "small-rl", "distilled")     # not on the way to the final model


def worth(model: Transformer, tokenizer: Tokenizer, *, easy: Task, hard: Task, general: Task,
          n: int, samples: int, max_new_tokens: int, seed: int,
          progress: Counter | None = None) -> dict[str, Any]:
    """Measure a policy on n problems of each kind: `samples` completions of easy and hard ones, one
    of general ones."""
    kinds = {"easy": (easy, samples), "hard": (hard, samples), "general": (general, 1)}
    results = {kind: evaluate(model, tokenizer, task, n=n, samples=count,
                              max_new_tokens=max_new_tokens,
                              seed=derive_seed(seed, "r1", "evaluate", kind), progress=progress)
               for kind, (task, count) in kinds.items()}
    on_hard = results["hard"]
    return {"easy": results["easy"].accuracy, "hard": on_hard.accuracy,
            "majority": on_hard.majority, "pass": on_hard.pass_at(samples),
            "format": on_hard.rewards["format_reward"],
            "language": on_hard.rewards["language_consistency"], "length": on_hard.mean_length,
            "general": results["general"].numbers("true_reward"),
            "problems": {kind: len(result.problems) for kind, result in results.items()},
            "problem": on_hard.problems[0].prompt, "example": on_hard.completions[0][0]}


def with_win_rates(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add how often a policy's completion of a general prompt has a greater true reward than that
    of the sft stage. Equal ones count half."""
    others = next(entry for entry in entries if entry["stage"] == "sft")["general"]

    def win_rate(rewards: Sequence[float]) -> float:
        wins = [(a > b) + 0.5 * (a == b) for a, b in zip(rewards, others, strict=True)]
        return sum(wins) / len(wins)

    return [{**entry, "win_rate": win_rate(entry["general"])} for entry in entries]


def stages_table(entries: Sequence[Mapping[str, Any]], samples: int) -> str:
    """Return a row per policy, and what each says to one problem."""
    counts = entries[0]["problems"]
    right = [("right answers", "easy", "hard", "95 %", f"maj@{samples}", f"pass@{samples}")]
    rest = [("how they are said", "format", "language", "tokens", "win rate", "seconds")]
    for entry in sorted(entries, key=lambda entry: entry["stage"] in SIDE):
        low, high = wilson_interval(entry["hard"], counts["hard"])
        right.append((entry["stage"], f"{entry['easy']:.3f}", f"{entry['hard']:.3f}",
                      f"{low:.2f} to {high:.2f}", f"{entry['majority']:.3f}",
                      f"{entry['pass']:.3f}"))
        rest.append((entry["stage"], f"{entry['format']:.3f}", f"{entry['language']:.3f}",
                     f"{entry['length']:.1f}", f"{entry['win_rate']:.3f}",
                     f"{entry['seconds']:.0f}"))
    problems = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    lines = [f"distinct held-out problems: {problems}", "", table(right), "", table(rest), ""]
    lines += hanging("", entries[0]["problem"])
    width = max(columns_of(entry["stage"]) for entry in entries)
    for entry in entries:
        lines += hanging(f"  {padded(entry['stage'], width)}  ", entry["example"])
    return "\n".join(lines)
