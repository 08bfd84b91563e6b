"""minirl/train/distill.py"""

from dataclasses import replace

import pytest
import torch

import minirl.train.distill as page
from minirl.equations.kl import exact_kl, generalised_jsd
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import ModelConfig, Transformer
from minirl.train.distill import DistillConfig, train_distill
from minirl.train.metrics import NonFiniteError
from tests.train.small import (
    TOKENIZER,
    Digits,
    Log,
    break_weights,
    flat,
    length,
    record_calls,
    record_gradients,
    save_step,
    tiny,
    weights,
)

CONFIG = DistillConfig(steps=3, prompts_per_step=12, lr=1e-2, warmup_steps=0, min_lr_ratio=1.0,
                       max_new_tokens=6)
TASK = Digits(length)


def other(seed=1, **changes):
    """Return another policy, with logits that differ from token to token."""
    model = tiny(**changes)
    torch.manual_seed(seed)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.5)
    return model


def half_and_half(logits, teacher_logits):
    return generalised_jsd(logits, teacher_logits, 0.5)


def distilled(seed=0, teacher=None, model=None, log=None, save=None, resume=None,
              teacher_prompt=None, divergence=None, **changes):
    return train_distill(model or tiny(), TOKENIZER, TASK, replace(CONFIG, **changes),
                         teacher=teacher or (None if teacher_prompt else other()),
                         teacher_prompt=teacher_prompt, divergence=divergence, seed=seed, log=log,
                         save=save, resume=resume)


FORMS = pytest.mark.parametrize("divergence", [None, exact_kl, half_and_half],
                                ids=["sampled", "exact", "jsd"])


@FORMS
def test_three_steps_twice_are_the_same_bit_for_bit(divergence):
    first, second, third = (weights(distilled(seed, divergence=divergence)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, third)


@FORMS
def test_a_micro_batch_split_changes_no_gradient(monkeypatch, divergence):
    gradients = record_gradients(monkeypatch)
    for token_budget in (10_000, 30):
        distilled(divergence=divergence, steps=1, token_budget=token_budget)
    whole, split = map(flat, gradients)
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=1e-4)
    assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resume_continues_bit_for_bit(at, decay):
    options = dict(divergence=exact_kl, on_policy_share=0.5, teacher_decay=decay, minibatches=2,
                   steps=4)
    save, state = save_step(at)
    whole = distilled(save=save, **options)
    model = tiny()
    model.load_state_dict(state["model"])
    distilled(model=model, resume=state, **options)
    assert torch.equal(weights(model), weights(whole))


@FORMS
def test_the_first_gradient_is_that_of_the_equation(monkeypatch, divergence):
    """Sampled: the mean of (log π_T - log π) ∇log π over the tokens. Exact: minus the gradient of
    the mean divergence. Both on the very tokens that the page sampled."""
    gradients = record_gradients(monkeypatch)
    calls = record_calls(monkeypatch, page, "collect")
    distilled(divergence=divergence, steps=1, temperature=0.8)
    rollouts = calls[0].result.rollouts
    tokens, mask = rollouts.tokens, rollouts.mask
    model, teacher = tiny(), other()
    logp, teacher_logp = (token_logprobs(m, tokens, mask=mask, temperature=0.8)
                          for m in (model, teacher))
    loss = -((teacher_logp - logp).detach() * logp)[mask].mean()
    if divergence is not None:
        z, teacher_z = (m(tokens)[:, :-1][mask[:, 1:]] / 0.8 for m in (model, teacher))
        loss = divergence(z, teacher_z.detach()).mean()
    loss.backward()
    expected = flat(p.grad for p in model.parameters())
    torch.testing.assert_close(flat(gradients[0]), expected, atol=1e-6, rtol=1e-4)


@FORMS
def test_the_student_comes_nearer_to_its_teacher(divergence):
    log = Log()
    teacher = other(intermediate_size=24)    # wider than the student
    distilled(divergence=divergence, teacher=teacher, log=log, steps=40, prompts_per_step=256,
              max_new_tokens=1)
    assert log[-1]["teacher_kl"] < 0.4 * log[0]["teacher_kl"]
    assert log[0]["teacher_kl"] > 0.5


def test_the_teacher_does_not_change_and_its_follower_does():
    teacher = other()
    before = weights(teacher)
    save, state = save_step(1)
    distilled(teacher=teacher, teacher_decay=0.9, save=save, model=other(), lr=0.1)
    assert torch.equal(weights(teacher), before)
    assert all(p.requires_grad for p in teacher.parameters())
    learned, follower = state["model"]["norm.weight"], state["parts"]["teacher"]["norm.weight"]
    torch.testing.assert_close(follower, 0.9 * teacher.norm.weight.detach() + 0.1 * learned)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_batches_is_sampled_from_the_student(monkeypatch, share):
    model = tiny()
    calls, log = record_calls(monkeypatch, page, "collect"), Log()
    distilled(model=model, divergence=exact_kl, on_policy_share=share, steps=40, lr=1e-9,
              prompts_per_step=1, max_new_tokens=1, log=log)
    own = [call.args[0] is model for call in calls]
    low, high = {0.0: (0, 0), 0.5: (12, 28), 1.0: (40, 40)}[share]
    assert low <= sum(own) <= high
    assert ["teacher_kl" in metrics for metrics in log] == own


def test_a_teacher_that_reads_the_same_prompt_and_is_the_policy_teaches_nothing(monkeypatch):
    gradients = record_gradients(monkeypatch)
    for divergence in (None, exact_kl):
        distilled(teacher_prompt=lambda problem: problem.prompt, divergence=divergence, steps=1)
        assert flat(gradients[-1]).abs().max() < 1e-6


@pytest.mark.parametrize("divergence", [None, exact_kl], ids=["sampled", "exact"])
def test_self_distillation_learns_what_the_policy_does_with_help(divergence):
    """With the prompt "99+" + x the policy answers otherwise than with x. Afterwards it answers x
    as it did "99+" + x."""
    model, log = other(seed=3), Log()
    distilled(model=model, teacher_prompt=lambda problem: "99+" + problem.prompt, log=log,
              divergence=divergence, steps=60, prompts_per_step=256, max_new_tokens=1)
    assert log[0]["teacher_kl"] > 0.1
    assert log[-1]["teacher_kl"] < 0.4 * log[0]["teacher_kl"]


def test_a_token_of_the_teacher_is_compared_with_the_same_token_of_the_student(monkeypatch):
    """The teacher's prompts are longer, so its log-probs stand in other slots."""
    calls = record_calls(monkeypatch, page, "collect")
    moved = record_calls(monkeypatch, page, "fill_slots")
    model = other()
    distilled(model=model, teacher_prompt=lambda p: "8" + p.prompt, steps=1, lr=1e-9)
    rollouts, values = calls[0].result.rollouts, moved[0].result
    problems = calls[0].args[3]
    for i, ids in enumerate(rollouts.completion_ids()):
        prompt = TOKENIZER.encode_prompt("8" + problems[i].prompt)
        tokens = torch.tensor([prompt + ids])
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[0, len(prompt):] = True
        wanted = token_logprobs(other(), tokens, mask=mask)[mask]
        torch.testing.assert_close(values[i][rollouts.mask[i]], wanted.detach(), atol=1e-5, rtol=0)


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="neither a teacher nor a teacher_prompt"):
        train_distill(tiny(), TOKENIZER, TASK, CONFIG)
    with pytest.raises(ValueError, match="on_policy_share is 0.5, but the sampled form"):
        distilled(on_policy_share=0.5)
    with pytest.raises(ValueError, match="on_policy_share is 0.5, but a teacher with a prompt"):
        distilled(on_policy_share=0.5, divergence=exact_kl, teacher_prompt=lambda p: p.prompt)
    with pytest.raises(ValueError, match="teacher_decay is 1.5: at most 1 is wanted"):
        DistillConfig(teacher_decay=1.5)
    with pytest.raises(ValueError, match="the teacher one of 7: models with the same tokenizer"):
        distilled(teacher=Transformer(ModelConfig(7)))
    with pytest.raises(ValueError, match="teacher_decay is 0.9, but the teacher has other weights"):
        distilled(teacher=other(intermediate_size=24), teacher_decay=0.9)


@FORMS
def test_a_loss_that_is_not_finite_ends_the_run_before_an_update(divergence):
    teacher, model = other(), tiny()
    break_weights(teacher)
    before = weights(model)
    with pytest.raises(NonFiniteError, match="step 1"):
        distilled(teacher=teacher, model=model, divergence=divergence)
    assert torch.equal(weights(model), before)
