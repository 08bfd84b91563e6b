"""Answers to the exercises of tutorials/10_deepseek_r1.py."""

from __future__ import annotations

import math


def exercise_1(words, is_korean):
    """The share of words that count, and 0 where there is no word: silence does not pay."""
    return sum(map(is_korean, words)) / len(words) if words else 0.0


def exercise_2():
    """A completion that is right and in English gets 1; one that is wrong and in Korean gets the
    weight. With a weight of 1 they are equal, and nothing teaches the policy to add."""
    return 1.0


def exercise_3(p):
    """Count up from 2. For small p it is about ln 2 / p: a group must be so large that a right
    completion is in it more often than not. The formula is the same for p and 1 - p: a problem
    that is nearly always solved teaches as little as one that is nearly never solved."""
    size = 2
    while 1 - p**size - (1 - p)**size < 0.5:
        size += 1
    return size


def exercise_bug(function):
    """A lazy .*? takes as little as it can, but as much as it must: it runs across further tags
    until the whole text matches. So two answers, or two chains of thought, are "in the format"
    (huggingface/open-r1#359). If a reward for accuracy is as generous, listing guesses pays
    (Liuziyu77/Visual-RFT#79). `format_reward` counts the tags, too."""
    think, answer = "<think>3 + 4</think>", "<answer>7</answer>"
    cases = {think + answer: 1.0, think + "\n" + answer: 1.0, think: 0.0, answer + think: 0.0,
             think + answer + "<answer>8</answer>": 0.0, think + think + answer: 0.0}
    for text, expected in cases.items():
        assert function([""], [text]) == [expected], text


# What the checks must refuse.

def _divides_by_zero_words_as_one(words, is_korean):
    return sum(map(is_korean, words)) / len(words) if words else 1.0


def _counts_kinds_of_words(words, is_korean):
    return sum(map(is_korean, set(words))) / len(set(words)) if words else 0.0


def _tests_missing_tags_alone(function):
    for text in ("<think>3 + 4</think>", "<answer>7</answer>", "7"):
        assert function([""], [text]) == [0.0]


def _tests_the_order_alone(function):
    assert function([""], ["<answer>7</answer><think>3 + 4</think>"]) == [0.0]
    assert function([""], ["<think>3 + 4</think><answer>7</answer>"]) == [1.0]


def _forbids_a_line_break(function):
    assert function([""], ["<think>3 + 4</think>\n<answer>7</answer>"]) == [0.0]


WRONG = {
    "exercise_1": [_divides_by_zero_words_as_one, _counts_kinds_of_words],
    "exercise_2": [lambda: 0.5, lambda: 2.0],
    "exercise_3": [lambda p: math.ceil(1 / p), lambda p: math.ceil(math.log(0.5) / math.log(1 - p)),
                   lambda p: 8],
    "exercise_bug": [_tests_missing_tags_alone, _tests_the_order_alone, _forbids_a_line_break],
}
