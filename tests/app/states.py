"""Training states of a model so small that saving one takes a moment, and signals to oneself."""

import os

import torch

from minirl.lm.tiny import TinySizes, make_base
from minirl.train.sft import SFTConfig
from minirl.train.state import TrainState, make_optimizer


def tiny_model():
    sizes = TinySizes(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8,
                      max_seq_len=16)
    return make_base(sizes, seed=0, device="cpu")


def state_at(step):
    """A training state whose weights say of which step they are; its reference does not change."""
    model, reference = tiny_model()[0], tiny_model()[0]
    with torch.no_grad():
        model.lm_head.weight.fill_(step)
    optimizer = make_optimizer(model, SFTConfig())
    return TrainState(model, optimizer, {"reference": reference}, step=step)


def step_of(model):
    return model.lm_head.weight[0, 0].item()


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
