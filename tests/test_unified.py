"""The unified view, through the pages: what autograd says of the loss that a page computes is what
equations/coefficients.py says, for SFT, RFT, online RFT, DPO, PPO and GRPO.

DeepSeekMath, arXiv:2402.03300, eq. 5 and appendix A.1. Each page asks token_logprobs for log π, and
here the gradient of that tensor is kept: times the page's normaliser, -d loss / d log π_t is GC of
token t. tests/equations/test_coefficients.py does the same for the equations alone.
"""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

import minirl.train.dpo
import minirl.train.grpo
import minirl.train.ppo
import minirl.train.sft
from minirl.equations.coefficients import (
    dpo_coefficient,
    grpo_coefficient,
    online_rft_coefficient,
    ppo_coefficient,
    rft_coefficient,
    sft_coefficient,
)
from minirl.equations.objectives import clipped_surrogate, policy_gradient
from minirl.lm.logprobs import token_logprobs
from minirl.lm.rollouts import completion_batch
from minirl.tasks.preferences import Ranking
from minirl.train.credit import outcome_credit, process_credit
from minirl.train.dpo import DPOConfig, train_dpo
from minirl.train.encoding import encode_pairs
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import TOKENIZER, Digits, flat, record_gradients, tiny

ANSWERS = [("7=", "7"), ("7=", "71"), ("12+3=", "157"), ("12+3=", "2"), ("2=", "72")]
GRPO = GRPOConfig(steps=2, prompts_per_step=3, group_size=4, max_new_tokens=5, lr=1e-2,
                  warmup_steps=0, kl_coef=0.5)
PPO = PPOConfig(steps=2, episodes=12, minibatch_size=12, max_new_tokens=5, lr=1e-2, warmup_steps=0)
close = torch.testing.assert_close


class Batch(NamedTuple):
    """What a page computes a loss of: (b, T) each. `gradients` gets every d / d log π; the last of
    them is the loss's, as a metric may ask for its own before."""

    tokens: torch.Tensor
    mask: torch.Tensor
    logp: torch.Tensor
    gradients: list

    @property
    def slope(self):
        """-d loss / d log π of each token."""
        return -self.gradients[-1]

    def completions(self):
        rows = zip(self.tokens, self.mask, strict=True)
        return [TOKENIZER.decode_completion(tokens[mask].tolist()) for tokens, mask in rows]

    def logp_of(self, model):
        return token_logprobs(model, self.tokens, mask=self.mask).detach()


def record_batches(monkeypatch, page):
    """Return a list that gets every batch of log-probs through which a gradient flows."""
    function, batches = page.token_logprobs, []

    def wrapper(model, tokens, *, mask, **options):
        result = function(model, tokens, mask=mask, **options)
        logp = result[0] if options.get("return_entropy") else result
        if logp.requires_grad:
            batches.append(Batch(tokens, mask, logp.detach(), []))
            logp.register_hook(batches[-1].gradients.append)
        return result

    monkeypatch.setattr(page, "token_logprobs", wrapper)
    return batches


def recorded(objective):
    """Return an objective for a page, and a list that gets the advantages of each batch."""
    advantages = []

    def wrapper(logp, old_logp, adv, mask):
        advantages.append(adv)
        return objective(logp, old_logp, adv)

    return wrapper, advantages


def starts_with_7(completion):
    return float(completion.startswith("7"))


def odd(completion):
    return float(len(completion) % 2)


def odd_tokens(answers):
    """Every token is a step, with reward 1 where its id is odd."""
    ids = answers.rollouts.completion_ids()
    ends = [list(range(1, len(row) + 1)) for row in ids]
    return ends, [[float(i % 2) for i in row] for row in ids]


def of_rows(batch):
    """The normaliser of the mean over rows of the mean over tokens."""
    return len(batch.mask) * batch.mask.sum(1, keepdim=True)


def check(coefficient, batch, normaliser):
    slope = (batch.slope * normaliser)[batch.mask]
    close(slope, coefficient[batch.mask], atol=1e-5, rtol=1e-5)


def test_sft(monkeypatch):
    batches = record_batches(monkeypatch, minirl.train.sft)
    train_sft(tiny(), TOKENIZER, ANSWERS, SFTConfig(batch_size=5))
    batch, = batches
    check(sft_coefficient(batch.logp), batch, batch.mask.sum())


def test_rft(monkeypatch):
    """SFT on the right ones of some answers has the gradient of all of them, each times its GC."""
    gradients = record_gradients(monkeypatch)
    right = [pair for pair in ANSWERS if starts_with_7(pair[1])]
    assert len(right) == 3
    train_sft(tiny(), TOKENIZER, right, SFTConfig(batch_size=3))

    model = tiny()
    ids = encode_pairs(TOKENIZER, ANSWERS, model.config.max_seq_len)
    tokens, mask = completion_batch(*ids, TOKENIZER.pad_id, "cpu")
    logp = token_logprobs(model, tokens, mask=mask)
    correct = torch.tensor([starts_with_7(completion) for _, completion in ANSWERS])
    coefficient = rft_coefficient(correct, logp.detach())
    (-(coefficient * logp).sum() / (coefficient * mask).sum()).backward()
    close(flat(gradients[0]), flat(p.grad for p in model.parameters()), atol=1e-6, rtol=1e-4)


def test_online_rft(monkeypatch):
    """GRPO's page without its advantages, its clip and its KL: a right answer counts 1, a wrong one
    nothing."""
    batches = record_batches(monkeypatch, minirl.train.grpo)
    objective, _ = recorded(lambda logp, old_logp, adv: policy_gradient(logp, adv))
    config = replace(GRPO, steps=1, kl_coef=0.0)
    train_grpo(tiny(), TOKENIZER, Digits(odd), config, objective=objective,
               advantages=lambda rewards: rewards)
    batch, = batches
    correct = torch.tensor([odd(completion) for completion in batch.completions()])
    assert 0 < correct.sum() < len(correct)
    check(online_rft_coefficient(correct, batch.logp), batch, of_rows(batch))


def test_dpo(monkeypatch):
    """In the second step, as in the first one every pair has GC 1/2. DPO's β stands in front."""
    batches = record_batches(monkeypatch, minirl.train.dpo)
    rankings = [Ranking("7=", ("7", "123")), Ranking("12+3=", ("15", "153")),
                Ranking("2=", ("2", "22"))]
    config = DPOConfig(epochs=2, batch_size=3, lr=1e-2, warmup_steps=0, beta=0.7)
    train_dpo(tiny(), TOKENIZER, rankings, config)
    first, second = batches
    for batch in (first, second):
        logp, ref_logp = batch.logp.sum(1), batch.logp_of(tiny()).sum(1)
        pair = dpo_coefficient(logp[::2], logp[1::2], ref_logp[::2], ref_logp[1::2], beta=0.7)
        signed = torch.stack([pair, -pair], 1).flatten()[:, None]
        check(signed.expand_as(batch.logp), batch, len(pair) / config.beta)
    assert pair.min() < 0.49


def test_ppo(monkeypatch):
    batches = record_batches(monkeypatch, minirl.train.ppo)
    objective, advantages = recorded(clipped_surrogate)
    train_ppo(tiny(), TOKENIZER, Digits(odd), PPO, objective=objective)
    assert len(batches) == 2
    for batch, adv in zip(batches, advantages, strict=True):
        assert adv[batch.mask].std() > 0.1
        check(ppo_coefficient(adv), batch, batch.mask.sum())


@pytest.mark.parametrize("minibatch_size, same", [(12, True), (6, False)])
def test_ppo_has_its_coefficient_in_the_first_minibatch_alone(monkeypatch, minibatch_size, same):
    """From the second on π is not π_old: the coefficient is ρ A, or 0 where it is clipped."""
    batches = record_batches(monkeypatch, minirl.train.ppo)
    objective, advantages = recorded(clipped_surrogate)
    config = replace(PPO, steps=1, minibatch_size=minibatch_size)
    train_ppo(tiny(), TOKENIZER, Digits(odd), config, objective=objective)
    last = batches[-1]
    difference = last.slope * last.mask.sum() - ppo_coefficient(advantages[-1])
    assert (difference[last.mask].abs().max() < 1e-5) == same


@pytest.mark.parametrize("credit", [outcome_credit, process_credit(odd_tokens)])
def test_grpo(monkeypatch, credit):
    """With an advantage per completion, and with one per step. In the second step, too: in the
    first one the policy is its reference, and the KL does not pull."""
    batches = record_batches(monkeypatch, minirl.train.grpo)
    objective, advantages = recorded(clipped_surrogate)
    train_grpo(tiny(), TOKENIZER, Digits(odd), GRPO, objective=objective, credit=credit)
    assert len(batches) == 2
    for batch, adv in zip(batches, advantages, strict=True):
        by_row = [set(row[mask].tolist()) for row, mask in zip(adv, batch.mask, strict=True)]
        assert all(len(row) == 1 for row in by_row) == (credit is outcome_credit)
        coefficient = grpo_coefficient(adv, batch.logp, batch.logp_of(tiny()), kl_coef=0.5)
        check(coefficient, batch, of_rows(batch))
    assert (coefficient - adv)[batch.mask].abs().max() > 0.01


def test_a_wrong_coefficient_is_noticed(monkeypatch):
    batches = record_batches(monkeypatch, minirl.train.grpo)
    objective, advantages = recorded(clipped_surrogate)
    train_grpo(tiny(), TOKENIZER, Digits(odd), GRPO, objective=objective)
    with pytest.raises(AssertionError):
        check(ppo_coefficient(advantages[1]), batches[1], of_rows(batches[1]))
