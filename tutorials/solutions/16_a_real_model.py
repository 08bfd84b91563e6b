"""Answers to the exercises of tutorials/16_a_real_model.py."""

from __future__ import annotations

import math


def exercise_1(P, memory):
    """16 bytes for each parameter: 70B needs 1,120 GB, and 18 GPUs have 64 GB each for it."""
    return math.ceil(16 * P / (0.8 * memory))


def exercise_2(p, G):
    """One minus the chance that all are right, and minus the chance that all are wrong."""
    return 1 - p**G - (1 - p)**G


def exercise_3(messages):
    """Each turn is closed, but for the assistant's last one, which the policy writes."""
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
             for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def exercise_bug(function):
    """A number that is inside another one, and a number that stands in a list of guesses: `in`
    finds both. What a text claims is its last number (right_number), or what it marks
    (minirl/tasks/answers.py). Of two marked answers that differ, neither counts there."""
    def reward(text, right):
        return function(completions=[[{"role": "assistant", "content": text}]], answer=[right])[0]

    assert reward("7", "7") == 1.0 and reward("3+4=7", "7") == 0.5
    assert reward("17", "7") == 0.0, "7 is not 17"
    assert reward("7, or 8, or 9", "7") == 0.0, "guesses do not pay"


# What the checks must refuse.

def _weights_alone(P, memory):
    return math.ceil(4 * P / (0.8 * memory))


def _leaves_nothing_free(P, memory):
    return math.ceil(16 * P / memory)


def _knows_right_answers_alone(function):
    message = [{"role": "assistant", "content": "7"}]
    assert function(completions=[message], answer=["7"]) == [1.0]


def _forbids_longer_texts(function):
    message = [{"role": "assistant", "content": "3+4=7"}]
    assert function(completions=[message], answer=["7"]) == [0.0]


def _does_not_begin_the_turn(messages):
    return exercise_3(messages).removesuffix("<|im_start|>assistant\n")


def _forgets_a_line_break(messages):
    return exercise_3(messages).replace("<|im_end|>\n", "<|im_end|>")


WRONG = {
    "exercise_1": [_weights_alone, _leaves_nothing_free],
    "exercise_2": [lambda p, G: 1 - (1 - p)**G, lambda p, G: 1 - p**G],
    "exercise_3": [_does_not_begin_the_turn, _forgets_a_line_break],
    "exercise_bug": [_knows_right_answers_alone, _forbids_longer_texts],
}
