"""A picture of completions: their text, with marks where the policy was unsure of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from minirl.inference.tool_use import begin_sessions, call_stops, encode_prompts, replies_of
from minirl.lm.model import Transformer
from minirl.lm.rollouts import Rollouts
from minirl.lm.sampling import sample
from minirl.lm.text import WIDTH, columns_of, visible
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.environment import Session, ToolTask
from minirl.tasks.problem import Problem

INDENT = 5                       # columns before a completion
UNSURE, RATHER_SURE = 0.5, 0.9   # probabilities of a token below which it is marked
MOST_UNSURE = 6                  # tokens that are listed with their probability
STYLES, PLAIN = {"~": "\x1b[33m", "^": "\x1b[4;31m"}, "\x1b[0m"      # yellow; red, underlined


def show_samples(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], *, n: int,
                 max_new_tokens: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
                 min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int = 0,
                 numbers: bool = False, colour: bool = False,
                 task: ToolTask | None = None) -> str:
    """Sample n completions of each prompt -> their picture: see show_rollouts. Their calls are
    answered by the tools of `task`."""
    sessions: list[Session] = []
    stops, reply = tokenizer.stop_ids, None
    if task is not None:
        sessions, _ = begin_sessions(task, tokenizer, [Problem(p, "") for p in prompts], n)
        stops, reply = call_stops(tokenizer), replies_of(sessions, tokenizer)
    ids = encode_prompts(tokenizer, prompts, sessions)
    generator = torch.Generator(model.device).manual_seed(seed)
    rollouts = sample(model, ids, group=n, max_new_tokens=max_new_tokens, temperature=temperature,
                      top_k=top_k, top_p=top_p, min_p=min_p,
                      repetition_penalty=repetition_penalty, eos_id=stops,
                      pad_id=tokenizer.pad_id, generator=generator, reply=reply)
    return show_rollouts(tokenizer, prompts, rollouts, numbers=numbers, colour=colour)


def show_rollouts(tokenizer: Tokenizer, prompts: Sequence[str], rollouts: Rollouts, *,
                  numbers: bool = False, colour: bool = False) -> str:
    """Return the completions of each prompt, with marks where the policy was unsure.

    numbers   with the log-prob of every token
    colour    marks are a terminal's colours; else they stand below the text
    """
    n = len(rollouts.tokens) // len(prompts)
    lines: list[str] = []
    any_mark = False
    for row, completion in enumerate(rollouts.completion_ids()):
        if row % n == 0:
            lines += [""] * bool(lines)
            lines += picture(cells_of(prompts[row // n]), colour=colour, width=WIDTH)
        begin = int(rollouts.prompt_lengths[row])
        logp = rollouts.behavior_logp[row, begin:begin + len(completion)].tolist()
        cells = completion_cells(tokenizer, completion, logp)
        any_mark = any_mark or any(cell.mark for cell in cells)
        first, *rest = picture(cells, colour=colour, width=WIDTH - INDENT)
        lines.append(f"{row % n + 1:3}. {first}".rstrip())
        lines += [f"{'':{INDENT}}{line}".rstrip() for line in rest]
        lines += logprob_lines(tokenizer, completion, logp, cut=bool(rollouts.truncated[row]),
                               numbers=numbers)
    if any_mark:
        low, lowest = (f"{STYLES[mark]}marked{PLAIN}" if colour else mark for mark in "~^")
        lines += ["", f"{low}: the token's probability was below {RATHER_SURE}; "
                      f"{lowest}: below {UNSURE}"]
    return "\n".join(lines)


class Cell(NamedTuple):
    """A character as it is printed, and the probability of the token that it comes from."""

    text: str
    probability: float = 1.0

    @property
    def mark(self) -> str:
        return "^" if self.probability < UNSURE else "~" if self.probability < RATHER_SURE else ""


def cells_of(text: str, probabilities: Sequence[float] | None = None) -> list[Cell]:
    characters = [c if c == "\n" else visible(c) for c in text]
    return list(map(Cell, characters, probabilities or [1.0] * len(text)))


def completion_cells(tokenizer: Tokenizer, ids: Sequence[int], logp: Sequence[float]) -> list[Cell]:
    """Return a completion's characters. One of several tokens is as unsure as the worst of them."""
    text = tokenizer.decode_completion(ids)
    stops = len(ids) > 0 and ids[-1] in tokenizer.stop_ids
    whole: list[float] = []              # probabilities of the characters that are complete
    pending = 1.0                        # and of one that has begun
    for k, p in enumerate(map(math.exp, logp[:len(ids) - stops])):
        so_far, before = tokenizer.decode(ids[:k + 1]), len(whole)
        while text[len(whole):len(whole) + 1] == so_far[len(whole):len(whole) + 1] != "":
            whole.append(p)
        if len(whole) == before:
            pending = min(pending, p)
            if before and before == len(text):       # the last character was cut off
                whole[-1] = min(whole[-1], p)
        else:
            whole[before] = min(pending, p)
            pending = p if len(so_far) > len(whole) else 1.0
    return cells_of(text, whole + [pending] * (len(text) - len(whole)))


def picture(cells: Sequence[Cell], *, colour: bool, width: int) -> list[str]:
    """Return the text in lines; without colours, a line of marks below each that has any."""
    lines = []
    for line in wrapped_cells(cells, width):
        if colour:
            lines.append(coloured(line))
            continue
        lines.append("".join(cell.text for cell in line))
        marks = "".join((cell.mark or " ") * columns_of(cell.text) for cell in line).rstrip()
        lines += [marks] * bool(marks)
    return lines


def coloured(line: Sequence[Cell]) -> str:
    text, style = "", ""
    for cell in [*line, Cell("")]:
        if cell.mark != style:
            text += PLAIN * bool(style) + STYLES.get(cell.mark, "")
            style = cell.mark
        text += cell.text
    return text


def wrapped_cells(cells: Sequence[Cell], width: int) -> list[list[Cell]]:
    """Return lines of at most `width` columns, broken at newlines, and at spaces where possible."""
    lines: list[list[Cell]] = [[]]
    for cell in cells:
        if cell.text == "\n":
            lines.append([])
            continue
        line = lines[-1]
        if sum(columns_of(c.text) for c in [*line, cell]) > width:
            space = max((i for i, c in enumerate(line) if c.text == " "), default=-1)
            end = space + 1 if space > len(line) // 2 else len(line)
            lines[-1:] = [line[:end], line[end:]]
        lines[-1].append(cell)
    return lines


def logprob_lines(tokenizer: Tokenizer, ids: Sequence[int], logp: Sequence[float], *, cut: bool,
                  numbers: bool) -> list[str]:
    """Return the sum of the log-probs, then each token's, or the least sure ones' probabilities."""
    head = f"log-prob {sum(logp):.3f}, {len(ids)} tokens{', cut off' if cut else ''}"
    tokens = [visible(tokenizer.token(i)) for i in ids]
    if numbers:
        return filled([f"{head}:", *(f"{t}:{x:.2f}" for t, x in zip(tokens, logp, strict=True))])
    unsure = [i for i, x in enumerate(logp) if x < math.log(UNSURE)]
    if not unsure:
        return filled([head])
    least_sure = sorted(sorted(unsure, key=lambda i: logp[i])[:MOST_UNSURE])
    words = [f"{head}; {len(unsure)} unsure:"]
    words += [f'"{tokens[i]}" {math.exp(logp[i]):.2g},' for i in least_sure]
    words[-1] = words[-1] + " ..." if len(unsure) > len(least_sure) else words[-1].removesuffix(",")
    return filled(words)


def filled(words: Sequence[str]) -> list[str]:
    """Return words in lines, indented, and two columns more from the second line on."""
    lines = [f"{'':{INDENT}}{words[0]}"]
    for word in words[1:]:
        if columns_of(lines[-1]) + 1 + columns_of(word) > WIDTH:
            lines.append(f"{'':{INDENT + 2}}{word}")
        else:
            lines[-1] += f" {word}"
    return lines
