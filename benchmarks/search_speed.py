"""Voting and search: what a drawn token costs, beside transformers' `generate` and beside the plain
sampler, and what it saves that rows share what they have in common.

    python benchmarks/search_speed.py                 the tables of RESULTS.md
    python benchmarks/search_speed.py --table search

Needs the extra `parity`. All weights are random, so that lengths and answers are, and none of the
numbers depends on what a model has learnt. Both sides have the same weights and prompts, in
float32, and run in turn.

voting    majority_voting with 64 samples, against `generate(num_return_sequences=64)`. Both sides
          decode the samples, take an answer from each (its first word) and vote. Ours runs as it
          is, and compiled. Where lengths are fixed, nothing ends a completion; in the lines with
          "ends", one id in 32 does. Tokens are counted up to and with the one that ends. "Read" is
          what the model is handed to read the prompts.
overhead  the same samples by lm.sampling.sample alone, by majority_voting, and by Branches.grow,
          as one long step of a search.
search    beam search and DVTS, whose beams go on from one cache; and the same searches, the same
          draws, where each step reads the whole of each beam anew, once for all its expansions. The
          verifier is a number made of the ids, so that it costs nothing.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from common import (
    MODELS,
    commit,
    heading,
    in_turn,
    make_model,
    ratio,
    row,
    spread,
    table_head,
    word_tokenizer,
)
from minirl.equations.inference_time import majority_vote
from minirl.inference import tree_search
from minirl.inference.candidates import Candidates
from minirl.inference.tree_search import beam_search, diverse_tree_search
from minirl.inference.voting import majority_voting
from minirl.lm.branches import Branches
from minirl.lm.checkpoint import save_pretrained
from minirl.lm.choice import Choice
from minirl.lm.model import Transformer
from minirl.lm.sampling import sample
from minirl.lm.tokenizer import Tokenizer

N = 64                      # samples of each problem
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# model, problems, tokens of a prompt, of a completion, whether completions end; and compiled
VOTING = [("0.86M", 1, 16, 64, False), ("0.86M", 1, 16, 64, True), ("0.86M", 8, 16, 32, False),
          ("0.86M", 8, 16, 64, True), ("0.86M", 1, 256, 32, True), ("10M", 1, 16, 32, False),
          ("10M", 1, 16, 32, True), ("10M", 8, 16, 16, False), ("10M", 8, 16, 32, True)]
OVERHEAD = [("0.86M", 1, 16, 64, False, False), ("0.86M", 1, 16, 64, True, False),
            ("0.86M", 8, 16, 32, True, False), ("10M", 1, 16, 32, False, False),
            ("10M", 1, 16, 32, True, False), ("0.86M", 1, 16, 64, False, True),
            ("0.86M", 1, 16, 64, True, True)]
# model, problems, tokens of a prompt, of a completion
SEARCH = [("0.86M", 1, 16, 64), ("0.86M", 8, 16, 64), ("0.86M", 4, 192, 64)]
SEPARATOR = "7"             # a step ends with a word that has a 7 in it: 6 of 64 words


def problems(name: str, number: int, length: int) -> list[list[int]]:
    rng, vocab = random.Random(0), MODELS[name]["vocab_size"]
    return [[rng.randrange(2, vocab) for _ in range(length)] for _ in range(number)]


def tokenizer_for(name: str, ends: bool) -> Tokenizer:
    """Return a tokenizer of words, in which one id in 32 ends a completion, or none does."""
    vocab = MODELS[name]["vocab_size"]
    tokenizer = word_tokenizer(vocab)
    tokenizer.stop_ids = list(range(1, 1 + vocab // 32)) if ends else []
    return tokenizer


def first_word(text: str) -> str | None:
    return next(iter(text.split()), None)


def generate_and_vote(model: Any, tokenizer: Any, prompts: Sequence[list[int]], completion: int,
                      stops: Sequence[int]) -> list[list[int]]:
    """Vote by transformers' means -> the completions up to their end; the votes are dropped."""
    ids = torch.tensor(prompts)
    nothing = [model.config.vocab_size]        # an id that does not exist ends no completion
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=completion,
                         num_return_sequences=N, do_sample=True, temperature=1.0, top_k=0,
                         top_p=1.0, eos_token_id=list(stops) or nothing, pad_token_id=0)
    completions = out[:, ids.shape[1]:].tolist()
    answers = [first_word(text) for text in tokenizer.batch_decode(completions)]
    for i in range(0, len(answers), N):
        majority_vote(answers[i:i + N])
    return completions


def drawn(completions: Sequence[Sequence[int]], stops: Sequence[int]) -> int:
    """Return the number of tokens up to each row's first stop."""
    ends = (next((i + 1 for i, id in enumerate(ids) if id in stops), len(ids))
            for ids in completions)
    return sum(ends)


def prompt_tokens(model: nn.Module, work: Callable[[], object]) -> int:
    """Return how many tokens the model reads, several of a row at a time, while `work` runs."""
    count = 0

    def note(_: nn.Module, args: tuple, options: dict[str, Any]) -> None:
        nonlocal count
        tokens = args[0] if args else options["input_ids"]
        count += tokens.numel() if tokens.shape[1] > 1 else 0

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    work()
    hook.remove()
    return count


def voting_line(name: str, number: int, prompt: int, completion: int, ends: bool,
                options: argparse.Namespace) -> str:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    prompts = problems(name, number, prompt)
    tokenizer = tokenizer_for(name, ends)
    models = [our_model(name, prompt + completion, compiled) for compiled in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(models[0], word_tokenizer(MODELS[name]["vocab_size"]), Path(folder))
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        their_tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    counts: dict[str, list[int]] = {"generate": [], "ours": [], "compiled": []}

    def generate() -> None:
        completions = generate_and_vote(theirs, their_tokenizer, prompts, completion,
                                        tokenizer.stop_ids)
        counts["generate"].append(drawn(completions, tokenizer.stop_ids))

    def ours(side: str, model: Transformer) -> None:
        result = majority_voting(model, tokenizer, prompts, n=N, max_new_tokens=completion,
                                 answer=first_word)
        counts[side].append(result.total.decode)

    ways = {"generate": generate, "ours": partial(ours, "ours", models[0]),
            "compiled": partial(ours, "compiled", models[1])}
    read = prompt_tokens(theirs, generate), prompt_tokens(models[0], ways["ours"])
    ways["compiled"]()          # without a hook, which would be compiled, too
    times = in_turn(ways, repeats=options.repeats, warmup=0, clock=CLOCKS[options.clock])
    each = [statistics.median(t / count for t, count in zip(
        times[side], counts[side][1:], strict=True)) for side in ways]
    return row(name, number, prompt, length_cell(completion, ends),
               *(spread(times[side]) for side in ways),
               ratio(times["generate"], times["ours"]), ratio(times["generate"], times["compiled"]),
               " / ".join(f"{1e6 * x:.0f}" for x in each), f"{read[0]:,} / {read[1]:,}")


def overhead_line(name: str, number: int, prompt: int, completion: int, ends: bool, compiled: bool,
                  options: argparse.Namespace) -> str:
    prompts, tokenizer = problems(name, number, prompt), tokenizer_for(name, ends)
    model = our_model(name, prompt + completion, compiled)
    results: dict[str, list[list[int]]] = {}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    def plain() -> None:
        results["sample"] = sample(model, prompts, group=N, max_new_tokens=completion,
                                   eos_id=tokenizer.stop_ids, pad_id=0, generator=generator()
                                   ).completion_ids()

    def voting() -> None:
        result = majority_voting(model, tokenizer, prompts, n=N, max_new_tokens=completion,
                                 answer=first_word, generator=generator())
        results["voting"] = [ids for problem in result.completions for ids in problem]

    def grow() -> None:
        branches = Branches(model, prompts)
        branches.select([i for i in range(number) for _ in range(N)])
        results["grow"] = branches.grow([completion] * number * N, stops=tokenizer.stop_ids,
                                        choice=Choice(1.0, 0, 1.0), generator=generator())

    times = in_turn({"sample": plain, "voting": voting, "grow": grow},
                    repeats=2 * options.repeats + 1, clock=CLOCKS[options.clock])
    equal = sum(a == b for a, b in zip(results["sample"], results["grow"], strict=True))
    assert results["voting"] == results["sample"]
    label = f"{name}, compiled" if compiled else name
    return row(label, number, prompt, length_cell(completion, ends), spread(times["sample"], 3),
               spread(times["voting"], 3), spread(times["grow"], 3),
               ratio(times["voting"], times["sample"]), ratio(times["grow"], times["sample"]),
               f"{equal} of {number * N}")


class Anew(Branches):
    """Branches that keep nothing: a step reads the whole of each beam, once for all its rows."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.computed = model, 0
        self.tokens = [list(prompt) for prompt in prompts]

    def select(self, rows: Sequence[int]) -> None:
        self.tokens = [list(self.tokens[i]) for i in rows]

    def grow(self, limits: Sequence[int], **options: Any) -> list[list[int]]:
        beams = list(dict.fromkeys(map(tuple, self.tokens)))
        branches = Branches(self.model, beams)
        branches.select([beams.index(tuple(ids)) for ids in self.tokens])
        result = branches.grow(limits, **options)
        self.tokens, self.computed = branches.tokens, self.computed + branches.computed
        return result


def some_number(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
                ) -> list[list[float]]:
    """Scores that depend on nothing but the ids, and cost nothing."""
    return [[sum(i * id for i, id in enumerate(ids, 1)) * 7919 % 997 / 997] for ids in completions]


def search_lines(name: str, number: int, prompt: int, completion: int,
                 options: argparse.Namespace) -> list[str]:
    prompts, tokenizer = problems(name, number, prompt), tokenizer_for(name, ends=True)
    model = our_model(name, prompt + completion, compiled=False)
    searches: dict[str, Callable[..., Candidates]] = {
        "beam search, 4 beams x 4": partial(beam_search, beams=4, expansions=4),
        "DVTS, 4 trees x 4": partial(diverse_tree_search, trees=4, expansions=4)}
    lines = []
    for label, search in searches.items():
        results: dict[str, Candidates] = {}
        computed: dict[str, int] = {}

        def run(kind: type[Branches], search: Callable[..., Candidates] = search,
                results: dict[str, Candidates] = results, computed: dict[str, int] = computed
                ) -> None:
            made: list[Branches] = []
            with patch.object(tree_search, "Branches",
                              lambda *args: made.append(kind(*args)) or made[-1]):
                results[kind.__name__] = search(
                    model, tokenizer, prompts, some_number, separator=SEPARATOR, temperature=1.0,
                    max_new_tokens=completion, generator=torch.Generator().manual_seed(0))
            computed[kind.__name__] = made[0].computed

        times = in_turn({kind.__name__: partial(run, kind) for kind in (Branches, Anew)},
                        repeats=options.repeats, clock=CLOCKS[options.clock])
        ours, anew = results["Branches"], results["Anew"]
        same = "the same" if ours == anew else "others"
        lines.append(row(label, number, prompt, f"{ours.total.decode:,}", f"{ours.kept:,}",
                         f"{computed['Branches']:,}", f"{computed['Anew']:,}",
                         spread(times["Branches"]), spread(times["Anew"]),
                         ratio(times["Anew"], times["Branches"]), same))
    return lines


def our_model(name: str, context: int, compiled: bool) -> Transformer:
    torch.compiler.reset()     # code is compiled for the sizes of one model, as in a run of it
    model = make_model(name, context=context)
    model.compiled = compiled
    return model


def length_cell(completion: int, ends: bool) -> str:
    return f"{completion}{', ends' if ends else ''}"


TABLES = {
    "voting": (("model", "problems", "prompt", "completion", "generate, s", "ours, s",
                "compiled, s", "ratio", "ratio, compiled",
                "us a drawn token, generate / ours / compiled", "read, generate / ours"),
               lambda options: (voting_line(*sizes, options) for sizes in VOTING)),
    "overhead": (("model", "problems", "prompt", "completion", "sample, s", "voting, s", "grow, s",
                  "voting / sample", "grow / sample", "rows with the same draws"),
                 lambda options: (overhead_line(*sizes, options) for sizes in OVERHEAD)),
    "search": (("search", "problems", "prompt", "drawn", "kept", "computed", "computed, anew",
                "s", "s, anew", "ratio", "results"),
               lambda options: (line for sizes in SEARCH for line in search_lines(*sizes, options)
                                )),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default=None, choices=tuple(TABLES), help="one table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS),
                        help="cpu: the processor time of this process, where other work runs too")
    options = parser.parse_args()

    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{heading()}, commit {commit()}; {N} samples a problem, {options.clock} clock")
    for name, (head, lines) in TABLES.items():
        if options.table in (None, name):
            print(f"\n{name}\n\n{table_head(*head)}")
            for line in lines(options):
                print(line, flush=True)


if __name__ == "__main__":
    main()
