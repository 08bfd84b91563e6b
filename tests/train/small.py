"""What the tests of training pages share: a tiny model, texts and a task for it, and ways to keep
what a page reports, computes and saves."""

import random
from itertools import cycle
from typing import Any, NamedTuple

import torch

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import Problem

TOKENIZER = build_tokenizer()
PAIRS = demonstrations(Arithmetic("addition", 2), 24, random.Random(0), worked_share=0.5)
STANDSTILL = 1e-30     # a learning rate that changes no weight
RANKINGS = [
    Ranking("7=", ("7", "77", "777", "7777")),
    Ranking("12+3=", ("15", "153")),
    Ranking("2=", ("2", "22", "222")),
    Ranking("7=", ("1", "1234567")),
]


class Digits:
    """Prompts of two lengths, so that batches are ragged, and one reward: rule(completion)."""

    def __init__(self, rule):
        def reward(prompts, completions, answer, **_):
            return [rule(completion) for completion in completions]

        self.rewards = {"rule": reward}

    def sample(self, n, rng, *, split="train"):
        return [Problem(prompt=rng.choice(["7=", "12+3="]), answer="7") for _ in range(n)]


class Log(list):
    """The metrics of each step, where it is passed to a page as `log`."""

    def __call__(self, step, metrics):
        self.append(metrics)


def length(completion):
    return float(len(completion))


def in_turn(*verdicts):
    """Return a rule that gives these verdicts one after another, and then from the start."""
    endless = cycle(verdicts)
    return lambda completion: next(endless)


def tiny(**changes):
    """Return a model of 16 features and one layer, the same at each call."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "initializer_range": 0.1}
    return Transformer(ModelConfig(TOKENIZER.vocab_size, **sizes, **changes))


def break_weights(model):
    """Put NaN into the last norm, so that every logit is NaN."""
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))


def flat(tensors):
    """Return all numbers of these tensors as one vector."""
    return torch.cat([x.flatten() for x in tensors])


def weights(model):
    return flat(p.detach() for p in model.parameters())


def copy_of(tree):
    """Return a copy of a state_dict, whose tensors a later step does not change."""
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: copy_of(value) for key, value in tree.items()}
    return [copy_of(value) for value in tree] if isinstance(tree, list) else tree


def save_step(step):
    """Return a `save` for a page, and the dictionary into which it puts the state after a step."""
    kept = {}

    def save(state):
        if state.step == step:
            kept.update(copy_of(state.state_dict()))

    return save, kept


class Call(NamedTuple):
    """One call of a function: its arguments by position and by name, and what it returned."""

    args: tuple
    options: dict
    result: Any


def record_calls(monkeypatch, module, name):
    """Return a list that gets every call of a module's function."""
    function, calls = getattr(module, name), []

    def wrapper(*args, **options):
        result = function(*args, **options)
        calls.append(Call(args, options, result))
        return result

    monkeypatch.setattr(module, name, wrapper)
    return calls


def record_gradients(monkeypatch):
    """Return a list that gets the gradients of each model that a page is about to clip.

    An entry is a list with a tensor for each weight, or None for a weight without a gradient.
    Nothing is clipped, and the norm is 0.
    """
    models = []

    def record(model, max_norm, *, step):
        gradients = [p.grad for p in model.parameters()]
        models.append([None if gradient is None else gradient.clone() for gradient in gradients])
        return 0.0

    monkeypatch.setattr("minirl.train.state.clip_gradient", record)
    return models
