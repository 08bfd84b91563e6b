"""minirl/train/grpo.py and minirl/train/ppo.py, where completions call a calculator."""

import copy
import random

import pytest
import torch

from minirl.equations.objectives import policy_gradient
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.environment import STOPS, with_tools
from minirl.tasks.products import Products, product_demonstrations
from minirl.tasks.tools import TOOL_WORDS, calculate
from minirl.train import ppo as ppo_page
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.step_trace import traced

TASK = Products(1)
CONFIG = GRPOConfig(steps=2, prompts_per_step=4, group_size=4, max_new_tokens=40)


@pytest.fixture(scope="module")
def caller():
    """(model, tokenizer): it calls nearly always, though not always with what was asked."""
    model, tokenizer = make_base(TinySizes(hidden_size=32, num_layers=1, num_heads=2,
                                           intermediate_size=64), seed=0, device="cpu",
                                 words=TOOL_WORDS)
    pairs = product_demonstrations(TASK, 1200, random.Random(0), tool_share=1.0)
    return train_sft(model, tokenizer, pairs, SFTConfig(batch_size=8), seed=0), tokenizer


def test_grpo_learns_what_was_sampled_and_not_what_a_tool_said(caller):
    model, tokenizer = copy.deepcopy(caller[0]), caller[1]
    batches, log = [], []

    def objective(logp, old, adv, mask):
        logp.register_hook(lambda grad: batches.append((grad, adv, mask, logp.detach())))
        return policy_gradient(logp, adv)

    train_grpo(model, tokenizer, TASK, CONFIG, objective=objective, tools=[calculate],
               log=lambda step, metrics: log.append(metrics))
    grad, adv, mask, logp = batches[0]
    inside = mask.cumsum(1).bool() & mask.flip(1).cumsum(1).flip(1).bool()  # first to last sampled
    given = inside & ~mask
    assert int(given.sum()) > 20, "hardly any call was answered"
    assert not grad[given].any() and not adv[given].any() and not logp[given].any()
    assert grad[mask].any()
    assert 0.5 < log[0]["tools/call_frequency"] <= 8
    assert sum(log[0][f"stops/{stop}"] for stop in STOPS) == pytest.approx(1.0)
    assert log[0]["sampling/sampling_logp_difference/mean"] < 1e-5, "a reply is attended to"


def test_a_trace_has_no_numbers_for_what_a_tool_said(caller):
    with traced(train_grpo) as tracer:
        train_grpo(copy.deepcopy(caller[0]), caller[1], TASK, CONFIG, tools=[calculate])
    trace = tracer.trace
    given = 0
    for row, numbers in trace.updates[0].rows.items():
        start, end = (int(x[row]) for x in (trace.answers.rollouts.prompt_lengths,
                                            trace.answers.rollouts.lengths))
        mask = trace.answers.rollouts.mask[row, start:end].tolist()
        assert [x is not None for x in numbers["gradient_share"]] == mask
        given += mask.count(False)
    assert given > 20


def test_without_tools_there_is_no_metric_of_them(caller):
    log = []
    train_grpo(copy.deepcopy(caller[0]), caller[1], TASK, CONFIG,
               log=lambda step, metrics: log.append(metrics))
    assert not [name for name in log[0] if name.startswith(("tools/", "stops/"))]


def test_ppo_steps_over_what_a_tool_said(caller, monkeypatch):
    """GAE of each row is that of its sampled tokens alone, side by side."""
    seen = []

    def recording(rewards, values, mask, **options):
        result = gae(rewards, values, mask, **options)
        seen.append((rewards, values, mask, options, result))
        return result

    gae = ppo_page.gae
    monkeypatch.setattr(ppo_page, "gae", recording)
    config = PPOConfig(steps=1, episodes=8, minibatch_size=8, max_new_tokens=40, lam=0.7)
    train_ppo(copy.deepcopy(caller[0]), caller[1], with_tools(TASK, [calculate]), config)
    rewards, values, mask, options, (adv, _) = seen[0]
    gaps = 0
    for i, row in enumerate(mask):
        own = row.nonzero().flatten()
        gaps += int(own[-1] - own[0] + 1 > len(own))
        plain, _ = gae(rewards[i:i + 1, own], values[i:i + 1, own],
                       torch.ones(1, len(own), dtype=torch.bool),
                       **{name: x[i:i + 1] if isinstance(x, torch.Tensor) else x
                          for name, x in options.items()})
        torch.testing.assert_close(adv[i:i + 1, own], plain)
    assert gaps > 3 and not adv[~mask].any()
