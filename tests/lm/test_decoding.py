"""How rows grow: leaving, recording and compiling change no token."""

import warnings

import pytest
import torch
import torch._dynamo.testing

from minirl.lm import decoding, sampling
from minirl.lm import model as model_module
from minirl.lm.decoding import Decoder
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample
from minirl.lm.tokenizer import build_tokenizer

OPTIONS = {"group": 3, "max_new_tokens": 14, "eos_id": [0, 1, 2], "pad_id": 5, "temperature": 1.3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask) and torch.equal(a.truncated, b.truncated)
    torch.testing.assert_close(a.behavior_logp, b.behavior_logp, atol=1e-5, rtol=1e-5)


@pytest.fixture
def recorded(monkeypatch):
    """Sampling as it is on CUDA, where a step may not depend on a number that the host knows; without the recording itself, which needs a GPU."""
    made = []

    def decoder_for(model, *sizes, padded):
        made.append(Decoder(model, *sizes, padded=padded, recording=True))
        return made[-1]
    monkeypatch.setattr(sampling, "decoder_for", decoder_for)
    return made


@pytest.mark.parametrize("share", [0.0, 1 / 16, 0.5, 2.0])
@pytest.mark.parametrize("ask", [1, 3])
def test_tokens_do_not_depend_on_when_ended_rows_leave(model, ragged, monkeypatch, share, ask):
    """At each end, when half have ended, or never (2.0): a row's draws are its own, and so is its past."""
    want = sample(model, ragged, **OPTIONS, generator=generator(3))
    assert len(set(want.completion_lengths.tolist())) > 3                  # rows end at several steps
    monkeypatch.setattr(decoding, "WORTH_LEAVING", share)
    monkeypatch.setitem(decoding.ASK, "cpu", ask)
    same(sample(model, ragged, **OPTIONS, generator=generator(3)), want)


def test_ended_rows_do_leave(make_model, ragged, monkeypatch):
    sizes = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, model, n, filled: (sizes.append(n), step(self, model, n, filled))[1])
    sample(make_model(), ragged, **OPTIONS, generator=generator(3))
    assert sizes[0] >= 10 and sizes[-1] <= 6 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("ask", [1, 3])
@pytest.mark.parametrize("reach", [4, 128])
def test_steps_that_read_positions_from_the_device_draw_the_same_tokens(model, ragged, monkeypatch, recorded, ask, reach):
    monkeypatch.setattr(decoding, "REACH", reach)
    monkeypatch.setitem(decoding.ASK, "cpu", ask)
    got = sample(model, ragged, **OPTIONS, generator=generator(3))
    one_length = sample(model, [[3, 1], [2, 2]], **OPTIONS, generator=generator(4))
    monkeypatch.undo()
    same(got, sample(model, ragged, **OPTIONS, generator=generator(3)))
    same(one_length, sample(model, [[3, 1], [2, 2]], **OPTIONS, generator=generator(4)))
    assert len(recorded) == 2 and recorded[0].starts is not None and recorded[1].starts is None


def test_recorded_rows_leave_by_halves(make_model, recorded, monkeypatch):
    """A recording is for one number of rows, so that few numbers should occur: 24, 12, 6, 3. Never 1, which would be compiled for itself."""
    sizes = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, model, n, filled: (sizes.append(n), step(self, model, n, filled))[1])
    sample(make_model(), [[3, 1], [2, 2]], **{**OPTIONS, "group": 12}, generator=generator(3))
    assert set(sizes) <= {24, 12, 6, 3} and len(set(sizes)) > 2


def test_a_decoder_can_be_used_twice(make_model, monkeypatch, recorded):
    model = make_model()
    want = sample(model, [[3, 1], [2, 2]], **OPTIONS, generator=generator(4))
    monkeypatch.setattr(sampling, "decoder_for", lambda *_, **__: recorded[0])
    for _ in range(2):
        same(sample(model, [[3, 1], [2, 2]], **OPTIONS, generator=generator(4)), want)


def test_weights_are_joined_and_cast_once_for_all_steps(make_model, monkeypatch, ragged):
    model, calls = make_model(), []
    block = type(model.layers[0])
    weights = block.weights
    monkeypatch.setattr(block, "weights", lambda self, dtype=None: (calls.append(dtype), weights(self, dtype))[1])
    with compute_in("bfloat16", model.device):
        sample(model, ragged, **OPTIONS, generator=generator())
    assert calls == [torch.bfloat16] * len(model.layers)


@torch.no_grad()
def test_the_compiled_model_samples_and_scores_as_the_plain_one_does(make_model, ragged, monkeypatch):
    """The same tokens, and log-probs to 1e-5, forwards and backwards. Slow the first time, as a compiler runs."""
    monkeypatch.setattr(model_module, "MANY", 1)
    sizes = {"vocab_size": build_tokenizer().vocab_size, "hidden_size": 16, "num_heads": 2, "head_dim": 8, "intermediate_size": 64, "max_seq_len": 128}
    plain, fast = (make_model("qwen3", **sizes) for _ in range(2))       # those of test_grpo_optimisations.py: a compiler runs once for the blocks of both
    fast.compiled = True
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)                     # a fall-back to uncompiled code would compare it with itself
        want, got = (sample(m, ragged, **OPTIONS, generator=generator(3)) for m in (plain, fast))
    same(got, want)
    score = {"mask": want.mask, "temperature": OPTIONS["temperature"]}
    grads = []
    with torch.enable_grad():
        for m in (plain, fast):
            logp, entropy = token_logprobs(m, want.tokens, return_entropy=True, **score)
            torch.testing.assert_close(logp.detach(), token_logprobs(plain, want.tokens, **score).detach(), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(logp.detach() * want.mask, want.behavior_logp, atol=1e-5, rtol=1e-5)
            grads.append(torch.autograd.grad(logp.sum() + entropy.sum(), list(m.parameters())))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_step_is_compiled_once_for_any_rows_and_lengths(make_model):
    """Whether all rows of the cache are in use or some have left, however many they are, and however long a row may become."""
    plain, fast = (make_model(max_seq_len=256) for _ in range(2))
    fast.compiled = True
    count = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    with torch.compiler.set_stance("default", force_backend=count):
        for prompts, group, tokens, stops in (([[7, 8, 9]], 8, 14, None), ([[7, 8, 9], [6]], 16, 14, [0, 1, 2]), ([[7] * 20], 4, 150, [0])):
            options = {**OPTIONS, "group": group, "max_new_tokens": tokens, "eos_id": stops}
            want, got = (sample(m, prompts, **options, generator=generator(1)) for m in (plain, fast))
            same(got, want)
            assert (got.completion_lengths.unique().numel() > 1) == (stops is not None)          # rows have left
    assert count.frame_count == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_on_a_gpu(model, ragged, dtype):
    """Three times with one decoder, the weights changed in between: what was recorded reads the new ones."""
    model.cuda()
    for _ in range(3):
        with compute_in(dtype, model.device):
            r = sample(model, ragged, **OPTIONS, generator=torch.Generator("cuda").manual_seed(3))
            logp = token_logprobs(model, r.tokens, mask=r.mask, temperature=OPTIONS["temperature"])
        assert decoding._kept[model][1].graphs
        assert (logp - r.behavior_logp).abs().max() < (1e-3 if dtype == "float32" else 0.5)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)
