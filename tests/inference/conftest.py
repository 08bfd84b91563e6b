"""A tiny model with fresh weights, and a sampler that says what a test wants."""

import pytest
import torch

from minirl.inference import sampler as module
from minirl.lm.rollouts import Rollouts, completion_batch
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.problem import Problem

SIZES = TinySizes(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32)


@pytest.fixture(scope="session")
def base():
    """(model, tokenizer)"""
    return make_base(SIZES, seed=0, device="cpu")


@pytest.fixture(scope="session")
def other():
    """Another model for the same tokenizer."""
    return make_base(SIZES, seed=1, device="cpu")[0]


@pytest.fixture
def say(monkeypatch, base):
    """say({prompt: texts}): a policy gives these completions to a prompt, in this order."""
    _, tokenizer = base

    def sample(model, prompts, *, group=1, max_new_tokens, **_):
        asked = [prompt for prompt in prompts for _ in range(group)]
        texts = [text for prompt in prompts for text in answers[tuple(prompt)][:group]]
        ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        sampled = [row[:max_new_tokens] for row in ids]
        tokens, mask = completion_batch(asked, sampled, tokenizer.pad_id, "cpu")
        lengths = torch.tensor([len(prompt) for prompt in asked])
        cut = torch.tensor([len(row) > max_new_tokens for row in ids])
        return Rollouts(tokens, mask, lengths, torch.zeros(tokens.shape), cut)

    answers = {}
    monkeypatch.setattr(module, "sample", sample)
    return lambda texts: answers.update(
        {tuple(tokenizer.encode_prompt(prompt)): texts[prompt] for prompt in texts})


class Listed:
    """A task of some problems, drawn with replacement, and of some rewards."""

    name = "listed problems"

    def __init__(self, problems, rewards=None, **weights):
        self.problems, self.draws = problems, 0
        self.rewards = {"accuracy": right} if rewards is None else rewards
        if weights:
            self.weights = weights

    def sample(self, n, rng, *, split="train"):
        self.draws += n
        return rng.choices(self.problems, k=n) if split == "test" else []


def right(prompts, completions, answer, **_):
    """Whether a completion is the answer; no verdict where there is none."""
    return [None if a == "" else float(c == a) for c, a in zip(completions, answer, strict=True)]


@pytest.fixture
def listed():
    """listed(problems, rewards, **weights) -> a task; a number stands for so many problems."""
    def task(problems, rewards=None, **weights):
        if isinstance(problems, int):
            problems = [Problem(f"{i}=", str(i)) for i in range(problems)]
        return Listed(problems, rewards, **weights)

    return task
