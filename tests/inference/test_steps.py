"""minirl/inference/steps.py"""

import math
import random

import pytest
import tokenizers
import torch

from minirl.inference import steps as module
from minirl.inference.collect import collect
from minirl.inference.steps import (
    label_solutions,
    padded_steps,
    step_ends,
    step_values,
    true_steps,
)
from minirl.lm.rollouts import Rollouts, completion_batch
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem

TASK = Arithmetic("addition", 2)
PROBLEM = TASK.problem(47, 85)                                  # 7+5+0=12,4+8+1=132
RIGHT = "<think>7+5+0=12,4+8+1=132</think><answer>132</answer>"
WRONG = "<think>7+5+0=13,4+8+1=133</think><answer>133</answer>"
CUT_OFF = "<think>7+5+0=12,4+8"


def cut(tokenizer, ids, ends):
    """Return the text of each step."""
    return [tokenizer.decode_completion(ids[start:end])
            for start, end in zip([0, *ends], ends, strict=False)]


def test_steps_in_tokens_are_the_steps_of_the_text(base):
    _, tokenizer = base
    ids = [*tokenizer.encode(RIGHT), tokenizer.eos_id]
    ends = step_ends(tokenizer, ids)
    assert cut(tokenizer, ids, ends) == ["<think>7+5+0=12,", "4+8+1=132</think>",
                                         "<answer>132</answer>"]
    assert ends[-1] == len(ids)                                 # EOS is part of the answer
    assert step_ends(tokenizer, ids[:-1])[-1] == len(ids) - 1   # cut off before it


def tokenizer_of(text):
    """Return a tokenizer with a token for each word of a text."""
    words = text.split()
    vocab = {word: i for i, word in enumerate(["<eos>", *dict.fromkeys(
        [words[0], *(f"\u0120{word}" for word in words[1:])])])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<eos>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("\u0120", "merged_with_next")
    backend.normalizer = tokenizers.normalizers.Replace(" ", "\u0120")
    backend.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace("\u0120", " "), tokenizers.decoders.Fuse()])
    return Tokenizer(backend, pad=None, bos=None, eos="<eos>")


def test_a_token_that_holds_the_end_of_a_step_belongs_to_it():
    """With tokens of several characters: "so,no" is one token, and begins no step."""
    tokenizer = tokenizer_of("one so,no two yes,yes three")
    ids = tokenizer.encode("one so,no two yes,yes three")
    assert cut(tokenizer, ids, step_ends(tokenizer, ids)) == ["one so,no", " two yes,yes", " three"]


def test_two_steps_may_end_in_one_token():
    tokenizer = tokenizer_of("one a,b,c two")
    ids = tokenizer.encode("one a,b,c two")
    assert step_ends(tokenizer, ids) == [2, 2, len(ids)]


@pytest.mark.parametrize("text", ["", "한글, 두 걸음,셋", "🙂,🙂</think>🙂", "\ud7ff,"])
def test_any_text_has_as_many_ends_as_steps(base, text):
    _, tokenizer = base
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    ends = step_ends(tokenizer, ids)
    assert len(ends) == len(module.split_steps(text)) and ends[-1] == len(ids)


def test_a_table_of_steps():
    table = padded_steps([[1.0, None, 0.0], [], [0.5]])
    assert table.shape == (3, 3)
    assert table[0, 0] == 1 and table[2, 0] == 0.5 and int(table.isnan().sum()) == 6
    assert padded_steps([[1], [1, 2]], fill=math.inf).tolist() == [[1, math.inf], [1, 2]]
    assert padded_steps([]).shape == (0, 1)


# values

@pytest.fixture
def script(monkeypatch, base):
    """script(completion by prefix): what the policy goes on with, all N times in turn."""
    model, tokenizer = base
    calls = []

    def answer(text, i):
        endings = next(endings for start, endings in scripts if text == start)
        return endings[i % len(endings)]

    def sample(model, prompts, *, group=1, max_new_tokens, **options):
        calls.append((len(prompts), group, max_new_tokens))
        asked = [list(prompt) for prompt in prompts for _ in range(group)]
        new = []
        for i, prompt in enumerate(asked):
            ids = [*tokenizer.encode(answer(tokenizer.decode(prompt), i % group)),
                   tokenizer.eos_id]
            new.append(ids[:max_new_tokens])
        tokens, mask = completion_batch(asked, new, tokenizer.pad_id, "cpu")
        return Rollouts(tokens, mask, torch.tensor([len(prompt) for prompt in asked]),
                        torch.zeros(tokens.shape),
                        torch.tensor([row[-1] != tokenizer.eos_id for row in new]))

    scripts = []
    monkeypatch.setattr(module, "sample", sample)
    monkeypatch.setattr("minirl.inference.sampler.sample", sample)

    def play(**texts):
        bos = tokenizer.decode([tokenizer.bos_id]) if tokenizer.bos_id is not None else ""
        scripts.extend((bos + PROBLEM.prompt + start, endings)
                       for start, endings in texts["endings"].items())
        return calls

    return play


FIRST = {"": [RIGHT, WRONG, CUT_OFF]}
GOOD, BAD = "4+8+1=132</think><answer>132</answer>", "4+8+1=122</think><answer>122</answer>"
ENDINGS = {**FIRST,
           "<think>7+5+0=12,": [GOOD, BAD, GOOD, GOOD],                  # 3 of 4
           "<think>7+5+0=12,4+8+1=132</think>": ["<answer>132</answer>"],
           "<think>7+5+0=13,": ["4+8+1=132</think><answer>132</answer>", BAD, BAD, BAD],
           "<think>7+5+0=13,4+8+1=133</think>": ["<answer>133</answer>"]}


def ask(base, problems=(PROBLEM,), group=3, **options):
    return collect(*base, TASK, list(problems), group=group, max_new_tokens=80, **options)


def test_a_step_is_worth_the_share_of_its_completions_that_are_right(base, script):
    """Three completions of one problem. The first two have three steps; the third is cut off in
    its second step, and shares the first step with the first completion."""
    calls = script(endings=ENDINGS)
    values = step_values(*base, TASK, ask(base), samples=4, max_new_tokens=80)
    assert values == [[0.75, 1.0, 1.0], [0.25, 0.0, 0.0], [0.75, 0.0]]
    asked = sum(prefixes for prefixes, group, _ in calls if group == 4)
    assert asked == 4                                            # equal prefixes once


def test_no_completion_is_longer_than_the_policys_own(base, script):
    calls = script(endings=ENDINGS)
    answers = ask(base)
    step_values(*base, TASK, answers, samples=4, max_new_tokens=80)
    shortest = len(base[1].encode("<think>7+5+0=12,"))
    assert calls[-1][2] == 80 - shortest


def test_prefixes_are_tokens_that_were_sampled(base, monkeypatch):
    """A policy without training writes bytes that are no text. What it goes on from are its own
    tokens, and the prompt's before them."""
    model, tokenizer = base
    prompts = []
    plain = module.sample
    monkeypatch.setattr(module, "sample", lambda m, rows, **options: (
        prompts.extend(map(tuple, rows)) or plain(m, rows, **options)))
    generator = torch.Generator().manual_seed(0)
    answers = collect(model, tokenizer, TASK, TASK.sample(6, random.Random(0)),
                      group=8, max_new_tokens=80, generator=generator)
    step_values(model, tokenizer, TASK, answers, samples=2, max_new_tokens=80, generator=generator)
    rollouts = answers.rollouts
    rows = [tuple(row[:n]) for row, n in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(),
                                             strict=True)]
    assert prompts
    for prompt in prompts:
        assert any(row[:len(prompt)] == prompt for row in rows)


def test_it_is_the_same_for_the_same_generator(base):
    def once(seed):
        generator = torch.Generator().manual_seed(seed)
        return label_solutions(*base, TASK, [PROBLEM] * 3, group=2, samples=2, max_new_tokens=30,
                               generator=generator)

    assert once(0) == once(0) != once(1)


def test_labelled_solutions_hold_text_tokens_and_values(base, script):
    script(endings=ENDINGS)
    first, second, third = label_solutions(*base, TASK, [PROBLEM], group=3, samples=4,
                                           max_new_tokens=80)
    assert first.prompt == "47+85=" and "".join(first.steps) == RIGHT
    assert first.labels == (0.75, 1.0, 1.0) and second.labels == (0.25, 0.0, 0.0)
    assert base[1].decode_completion(first.ids) == RIGHT and first.ends[-1] == len(first.ids)
    assert third.steps == ("<think>7+5+0=12,", "4+8")


def test_what_nobody_can_judge_has_no_value(base):
    """An answer that is not known: None for every step, and nothing fails."""
    problem = Problem("47+85=", "")
    generator = torch.Generator().manual_seed(0)
    answers = collect(*base, TASK, [problem], max_new_tokens=9, generator=generator)
    values, = step_values(*base, TASK, answers, samples=2, max_new_tokens=9, generator=generator)
    assert set(values) == {None}


def test_a_task_must_say_what_is_right(base, listed):
    task = listed(1, {"length": lambda completions, **_: [1.0] * len(completions)})
    answers = collect(*base, TASK, [PROBLEM], max_new_tokens=3)
    with pytest.raises(ValueError, match="no reward named accuracy"):
        step_values(*base, task, answers, max_new_tokens=3)


def test_the_truth_as_a_reward(base, script):
    script(endings=ENDINGS)
    answers = ask(base)
    ends, rewards = true_steps(base[1])(answers)
    assert rewards == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0]]
    assert [row[-1] for row in ends] == [len(ids) for ids in answers.rollouts.completion_ids()]
