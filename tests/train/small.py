"""What the tests of training pages share: a model of 16 features, pairs and rankings, a task with a rule for its reward, and how weights and states are
compared."""

import random

import torch

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.arithmetic import Arithmetic, demonstrations
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import Problem

TOKENIZER = build_tokenizer()
PAIRS = demonstrations(Arithmetic("addition", 2), 24, random.Random(0), worked_share=0.5)
RANKINGS = [Ranking("7=", ("7", "77", "777", "7777")), Ranking("12+3=", ("15", "153")), Ranking("2=", ("2", "22", "222")), Ranking("7=", ("1", "1234567"))]


class Digits:
    """Reward for each completion by a rule given at construction; prompts of two lengths, so that batches are ragged."""

    def __init__(self, rule):
        self.rewards = {"rule": lambda prompts, completions, answer, **_: [rule(c) for c in completions]}

    def sample(self, n, rng, *, split="train"):
        return [Problem(prompt=rng.choice(["7=", "12+3="]), answer="7") for _ in range(n)]


def length(completion):
    return float(len(completion))


def tiny(**changes):
    torch.manual_seed(0)
    return Transformer(ModelConfig(TOKENIZER.vocab_size, hidden_size=16, num_layers=1, num_heads=2, initializer_range=0.1, **changes))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def copied(tree):
    """A state_dict as it is now, whatever becomes of its tensors."""
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree
