"""minirl/lm/divergence.py"""

import pytest
import torch

import minirl.lm.divergence as module
from minirl.equations.kl import exact_kl
from minirl.lm.divergence import token_divergence
from minirl.lm.model import ModelConfig, Transformer

V = 11


def policy(seed, vocab=V, width=16):
    torch.manual_seed(seed)
    return Transformer(ModelConfig(vocab, hidden_size=width, num_layers=1, num_heads=2,
                                   initializer_range=0.5)).double()


MODEL, TEACHER = policy(1), policy(2, width=32)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0], [2, 6, 8, 9, 7, 0]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0]]).bool()


def kl_by_hand(model, teacher, temperature=1.0):
    """KL(π || π_T) from whole rows of logits, shifted by one."""
    p, q = ((m(TOKENS)[:, :-1] / temperature).log_softmax(-1) for m in (model, teacher))
    kl = torch.zeros(TOKENS.shape, dtype=p.dtype)
    kl[:, 1:] = (p.exp() * (p - q)).sum(-1)
    return kl * MASK


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_is_the_divergence_of_whole_rows_of_logits(temperature):
    """The models may have different widths, and a mask may have gaps (what a tool answered)."""
    got = token_divergence(MODEL, TEACHER, TOKENS, MASK, exact_kl, temperature=temperature)
    torch.testing.assert_close(got, kl_by_hand(MODEL, TEACHER, temperature).detach(),
                               atol=1e-12, rtol=0)
    assert got.dtype == torch.float64 and (got[MASK] > 0).all()


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_chunks_change_neither_value_nor_gradient(monkeypatch, rows):
    monkeypatch.setattr(module, "chunk_rows", lambda *_: rows)
    model = policy(1)
    token_divergence(model, TEACHER, TOKENS, MASK, exact_kl).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model = policy(1)
    kl_by_hand(model, TEACHER).sum().backward()
    for gradient, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, atol=1e-10, rtol=0)


def test_no_gradient_goes_to_the_teacher_and_none_is_needed():
    teacher = policy(2)
    token_divergence(policy(1), teacher, TOKENS, MASK, exact_kl).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    with torch.no_grad():
        assert not token_divergence(MODEL, teacher, TOKENS, MASK, exact_kl).requires_grad


def test_a_policy_does_not_diverge_from_itself():
    assert token_divergence(MODEL, MODEL, TOKENS, MASK, exact_kl).abs().max() < 1e-12


def test_the_teacher_may_read_the_same_completions_behind_other_prompts():
    """Row 0 of the teacher is 7 7 7 1 | 4 1 5 9: its states before 4, 1, 5 and 9 are compared with
    the policy's behind 3 1."""
    tokens, mask = TOKENS[:1], MASK[:1]
    longer = torch.tensor([[7, 7, 7, 1, 4, 1, 5, 9]])
    longer_mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]).bool()
    got = token_divergence(MODEL, TEACHER, tokens, mask, exact_kl, teacher_tokens=longer,
                           teacher_mask=longer_mask)
    p = MODEL(tokens)[0, 1:5].log_softmax(-1)
    q = TEACHER(longer)[0, 3:7].log_softmax(-1)
    torch.testing.assert_close(got[0, 2:], (p.exp() * (p - q)).sum(-1), atol=1e-12, rtol=0)


@pytest.mark.slow
def test_memory_is_that_of_a_chunk(monkeypatch):
    """Of 4,096 tokens and a vocabulary of 4,096 the logits of both policies take 134 MB in float32.
    In chunks of 64 rows no tensor has more than 64 rows of them."""
    sizes = []
    monkeypatch.setattr(module, "chunk_rows", lambda *_: 64)
    models = [policy(seed, vocab=4096).float() for seed in (1, 2)]
    tokens = torch.randint(4096, (32, 129))
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    mask[:, 0] = False

    def watched(z, teacher_z):
        sizes.append(z.numel())
        return exact_kl(z, teacher_z)

    token_divergence(*models, tokens, mask, watched).sum().backward()
    assert max(sizes) == 64 * 4096 and len(sizes) == 2 * 64    # once forwards, once backwards


@pytest.mark.parametrize("broken", ["vocabulary", "mask", "first slot", "temperature"])
def test_what_does_not_fit_is_refused(broken):
    teacher, mask, options = TEACHER, MASK, {}
    if broken == "vocabulary":
        teacher = policy(2, vocab=V + 1)
    if broken == "mask":
        options = {"teacher_tokens": TOKENS, "teacher_mask": MASK.roll(1, 0)}
    if broken == "first slot":
        mask = torch.ones_like(MASK)
    if broken == "temperature":
        options = {"temperature": 0.0}
    with pytest.raises(ValueError, match={"vocabulary": "vocabulary of 11 tokens and the teacher "
                                          "one of 12", "mask": "as many tokens in each row",
                                          "first slot": "slot 0", "temperature": "temperature is 0"
                                          }[broken]):
        token_divergence(MODEL, teacher, TOKENS, mask, exact_kl, **options)
