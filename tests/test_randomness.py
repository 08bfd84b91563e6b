"""A training page draws from its own seed, and leaves torch's global generator as it was."""

import random

import pytest
import torch

from minirl.lm.heads import ScalarModel
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.reward_model import RewardModelConfig, train_reward_model
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import PAIRS, RANKINGS, TOKENIZER, Digits, length, tiny

PAGES = {
    "sft": lambda model: train_sft(model, TOKENIZER, PAIRS, SFTConfig(dropout=0.2)),
    "rm": lambda model: train_reward_model(model, TOKENIZER, RANKINGS, RewardModelConfig()),
    "dpo": lambda model: train_dpo(model, TOKENIZER, RANKINGS, DPOConfig()),
    "ppo": lambda model: train_ppo(model, TOKENIZER, Digits(length),
                                   PPOConfig(steps=1, episodes=4, max_new_tokens=4)),
    "grpo": lambda model: train_grpo(model, TOKENIZER, Digits(length),
                                     GRPOConfig(steps=1, prompts_per_step=2, max_new_tokens=4)),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_leaves_the_callers_randomness_alone(page):
    """A page that seeds torch's global generator makes all that a script draws afterwards the
    same in every run, whatever seed the script has set itself."""
    model = tiny()
    torch.manual_seed(123)
    states = torch.get_rng_state(), random.getstate()
    PAGES[page](model)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


def test_what_a_page_draws_does_not_depend_on_the_callers_randomness():
    heads = []
    for callers in (1, 2):
        model = tiny()
        torch.manual_seed(callers)
        trained = train_reward_model(model, TOKENIZER, RANKINGS, RewardModelConfig())
        assert isinstance(trained, ScalarModel)
        heads.append(trained.head.linear.weight.detach().clone())
    assert torch.equal(*heads)
