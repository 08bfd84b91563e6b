"""The commands that look: `minirl sample`, `minirl eval`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minirl.app.evaluate import evaluate
from minirl.app.progress import Progress
from minirl.app.text import WIDTH, columns_of, table, visible
from minirl.inference.intervals import wilson_interval
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample

INDENT = 5                       # columns before what a completion says
UNSURE, RATHER_SURE = 0.5, 0.9   # probabilities of a token below which it is marked
MOST_UNSURE = 6                  # tokens that are listed with their probability


def show_samples(model, tokenizer, prompts: list[str], *, n: int, temperature: float, top_k: int,
                 top_p: float, max_new_tokens: int, seed: int, dtype: str, numbers: bool = False,
                 colour: bool | None = None) -> str:
    """n completions of each prompt: their text, with marks where the policy was unsure of it.

    numbers: with the log-prob of every token. colour: the marks are colours, else they stand below
    the text; None: colours on a terminal.
    """
    colour = terminal_has_colours() if colour is None else colour
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    generator = torch.Generator(model.device).manual_seed(seed)
    rows = n * len(ids)
    with compute_in(dtype, model.device), Progress("sampling", rows, unit="completion") as progress:
        rollouts = sample(model, ids, group=n, max_new_tokens=max_new_tokens,
                          temperature=temperature, top_k=top_k, top_p=top_p,
                          eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id, generator=generator)
        progress.update(rows)
    lines, sure = [], True
    for row, completion in enumerate(rollouts.completion_ids()):
        if row % n == 0:
            lines += [""] * bool(lines)
            lines += picture(cells_of(prompts[row // n]), colour=colour, width=WIDTH)
        logp = rollouts.behavior_logp[row][rollouts.mask[row]].tolist()
        cells = completion_cells(tokenizer, completion, logp)
        sure = sure and not any(cell.mark for cell in cells)
        first, *rest = picture(cells, colour=colour, width=WIDTH - INDENT)
        lines.append(f"{row % n + 1:3}. {first}".rstrip())
        lines += [f"{'':{INDENT}}{line}".rstrip() for line in rest]
        lines += logprob_lines(tokenizer, completion, logp, cut=bool(rollouts.truncated[row]),
                               numbers=numbers)
    if not sure:
        marks = [f"{STYLES[mark]}marked{PLAIN}" if colour else mark for mark in "~^"]
        lines += ["", f"{marks[0]}: the token's probability was below {RATHER_SURE}; "
                      f"{marks[1]}: below {UNSURE}"]
    return "\n".join(lines)


# a picture of how sure a policy was of its text

STYLES, PLAIN = {"~": "\x1b[33m", "^": "\x1b[4;31m"}, "\x1b[0m"      # yellow; red, underlined


@dataclass(frozen=True)
class Cell:
    """A character as it is shown, and the probability of the token that it comes from."""

    shown: str
    probability: float = 1.0

    @property
    def mark(self) -> str:
        return "^" if self.probability < UNSURE else "~" if self.probability < RATHER_SURE else ""


def cells_of(text: str, probabilities: Sequence[float] | None = None) -> list[Cell]:
    probabilities = [1.0] * len(text) if probabilities is None else probabilities
    shown = [c if c == "\n" else visible(c) for c in text]
    return [Cell(c, p) for c, p in zip(shown, probabilities, strict=True)]


def completion_cells(tokenizer, ids: Sequence[int], logp: Sequence[float]) -> list[Cell]:
    """A completion's characters. One of several tokens is as unsure as the worst of them."""
    text = tokenizer.decode_completion(ids)
    stops = len(ids) > 0 and ids[-1] in tokenizer.stop_ids
    known, pending = [], 1.0             # of whole characters; of one that has begun
    for k, p in enumerate(map(math.exp, logp[:len(ids) - stops])):
        so_far, before = tokenizer.decode(ids[:k + 1]), len(known)
        while text[len(known):len(known) + 1] == so_far[len(known):len(known) + 1] != "":
            known.append(p)
        if len(known) == before:
            pending = min(pending, p)
            if before and before == len(text):       # of the last one, which was cut off
                known[-1] = min(known[-1], p)
        else:
            known[before] = min(pending, p)
            pending = p if len(so_far) > len(known) else 1.0
    return cells_of(text, known + [pending] * (len(text) - len(known)))


def picture(cells: Sequence[Cell], *, colour: bool, width: int) -> list[str]:
    """The text in lines; without colours, a line of marks below each that has any."""
    lines = []
    for line in wrapped_cells(cells, width):
        if colour:
            lines.append(coloured(line))
            continue
        lines.append("".join(cell.shown for cell in line))
        marks = "".join((cell.mark or " ") * columns_of(cell.shown) for cell in line).rstrip()
        lines += [marks] * bool(marks)
    return lines


def coloured(line: Sequence[Cell]) -> str:
    shown, style = "", ""
    for cell in [*line, Cell("")]:
        if cell.mark != style:
            shown += PLAIN * bool(style) + STYLES.get(cell.mark, "")
            style = cell.mark
        shown += cell.shown
    return shown


def wrapped_cells(cells: Sequence[Cell], width: int) -> list[list[Cell]]:
    """Lines of at most `width` columns, broken at newlines, and at spaces where there are some."""
    lines: list[list[Cell]] = [[]]
    for cell in cells:
        if cell.shown == "\n":
            lines.append([])
            continue
        line = lines[-1]
        if sum(columns_of(c.shown) for c in line) + columns_of(cell.shown) > width:
            space = max((i for i, c in enumerate(line) if c.shown == " "), default=-1)
            kept = space + 1 if space > len(line) // 2 else len(line)
            lines[-1:] = [line[:kept], line[kept:]]
        lines[-1].append(cell)
    return lines


def logprob_lines(tokenizer, ids: Sequence[int], logp: Sequence[float], *, cut: bool,
                  numbers: bool) -> list[str]:
    """The sum of the log-probs, then each token's, or the probabilities of the least sure ones."""
    head = f"log-prob {sum(logp):.3f}, {len(ids)} tokens{', cut off' if cut else ''}"
    tokens = [visible(tokenizer.token(i)) for i in ids]
    if numbers:
        return filled([f"{head}:", *(f"{token}:{x:.2f}" for token, x in zip(tokens, logp))])
    unsure = [i for i, x in enumerate(logp) if x < math.log(UNSURE)]
    listed = sorted(sorted(unsure, key=lambda i: logp[i])[:MOST_UNSURE])
    if not unsure:
        return filled([head])
    words = [f"{head}; {len(unsure)} unsure:"]
    words += [f'"{tokens[i]}" {math.exp(logp[i]):.2g},' for i in listed]
    words[-1] = words[-1] + " ..." if len(unsure) > len(listed) else words[-1].removesuffix(",")
    return filled(words)


def filled(words: Sequence[str]) -> list[str]:
    """Words in lines, indented, and two columns more from the second line on."""
    lines = [f"{'':{INDENT}}{words[0]}"]
    for word in words[1:]:
        if columns_of(lines[-1]) + 1 + columns_of(word) > WIDTH:
            lines.append(f"{'':{INDENT + 2}}{word}")
        else:
            lines[-1] += f" {word}"
    return lines


def terminal_has_colours() -> bool:
    """See https://no-color.org for NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def check_ks(ks: Sequence[int], samples: int) -> None:
    """Raise ValueError for a pass@k that so many samples do not tell."""
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(f"pass@{k} needs at least {k} samples per problem, and k at least 1; "
                             f"--samples is {samples}")


def show_evaluation(model, tokenizer, task, *, problems: int, samples: int, ks: list[int],
                    temperature: float, max_new_tokens: int, seed: int, dtype: str) -> str:
    """Accuracy and unbiased pass@k on held-out problems, each with its 95 % interval."""
    check_ks(ks, samples)
    with compute_in(dtype, model.device), \
            Progress("measuring", problems * samples, unit="completion") as progress:
        result = evaluate(model, tokenizer, task, n=problems, samples=samples, seed=seed,
                          max_new_tokens=max_new_tokens, temperature=temperature, progress=progress)
    n = len(result.problems)
    titles = [f"{n} distinct held-out problems, {samples} samples each, "
              f"temperature {temperature:g}"]
    if n < problems:
        titles.append(f"({problems} were asked for, and the task seems to have no more)")
    rows = [("", "mean", "95 % interval")]
    means = {"accuracy": result.accuracy, **{f"pass@{k}": result.pass_at(k) for k in ks}}
    for name, mean in means.items():
        low, high = wilson_interval(mean, result.judged_problems)
        rows.append((name, number(mean), f"{low:.3f} to {high:.3f}"))
    if result.judged_problems < n:
        rows.append(("problems with a verdict", str(result.judged_problems), ""))
    rows += [(f"{name}, mean", number(mean), "") for name, mean in result.rewards.items()
             if name != "accuracy"]
    rows += [("response length, tokens", f"{result.mean_length:.1f}", ""),
             ("cut off", f"{result.truncated:.3f}", "")]
    return "\n".join([*titles, table(rows)])


def number(mean: float) -> str:
    return "no verdict" if math.isnan(mean) else f"{mean:.3f}"
