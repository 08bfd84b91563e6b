"""minirl/lm/decoding.py: leaving, recording and compiling change no token."""

import warnings

import pytest
import torch
import torch._dynamo.testing

from minirl.lm import decoding, sampling
from minirl.lm import model as model_module
from minirl.lm.choice import Choice
from minirl.lm.decoding import Decoder, kept_decoder
from minirl.lm.logprobs import token_logprobs
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample
from minirl.lm.tokenizer import build_tokenizer
from tests.lm.models import Markov, build_model

OPTIONS = {"group": 3, "max_new_tokens": 14, "eos_id": [0, 1, 2], "pad_id": 5, "temperature": 1.3}
TWO_PROMPTS = [[3, 1], [2, 2]]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    for name in ("tokens", "mask", "truncated"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    torch.testing.assert_close(a.behavior_logp, b.behavior_logp, atol=1e-5, rtol=1e-5)


@pytest.fixture
def recorded(monkeypatch):
    """Sampling as on CUDA, where a step may not depend on a number that the host knows, without the
    recording itself, which needs a GPU. -> the decoders that were made"""
    decoders = []

    def decoder_for(model, *sizes, **forms):
        decoders.append(Decoder(model, *sizes, **forms, recording=True))
        return decoders[-1]

    monkeypatch.setattr(sampling, "decoder_for", decoder_for)
    return decoders


@pytest.fixture
def kept(monkeypatch):
    """The same, where a decoder is used again if it fits, as on CUDA."""
    def decoder_for(model, *sizes, **forms):
        return kept_decoder(model, *sizes, **forms, recording=True)

    monkeypatch.setattr(sampling, "decoder_for", decoder_for)


@pytest.fixture
def sizes(monkeypatch):
    """How many rows each step has."""
    numbers, step = [], Decoder.step

    def noting_step(self, model, n, filled):
        numbers.append(n)
        step(self, model, n, filled)

    monkeypatch.setattr(Decoder, "step", noting_step)
    return numbers


@pytest.mark.parametrize("share", [0.0, 1 / 16, 0.5, 2.0])
@pytest.mark.parametrize("ask", [1, 3])
def test_tokens_do_not_depend_on_when_ended_rows_leave(model, ragged, monkeypatch, share, ask):
    """At each end, when half have ended, or never (2.0): a row's draws and its past are its own."""
    expected = sample(model, ragged, **OPTIONS, generator=generator(3))
    assert len(set(expected.completion_lengths.tolist())) > 3    # rows end at several steps
    monkeypatch.setattr(decoding, "WORTH_LEAVING", share)
    monkeypatch.setitem(decoding.ASK, "cpu", ask)
    same(sample(model, ragged, **OPTIONS, generator=generator(3)), expected)


def test_ended_rows_do_leave(make_model, ragged, sizes):
    sample(make_model(), ragged, **OPTIONS, generator=generator(3))
    assert sizes[0] >= 10 and sizes[-1] <= 6 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("ask", [1, 3])
@pytest.mark.parametrize("reach", [4, 128])
def test_steps_that_read_positions_from_the_device_draw_the_same_tokens(
        model, ragged, monkeypatch, recorded, ask, reach):
    monkeypatch.setattr(decoding, "REACH", reach)
    monkeypatch.setitem(decoding.ASK, "cpu", ask)
    of_many_lengths = sample(model, ragged, **OPTIONS, generator=generator(3))
    of_one_length = sample(model, TWO_PROMPTS, **OPTIONS, generator=generator(4))
    monkeypatch.undo()
    same(of_many_lengths, sample(model, ragged, **OPTIONS, generator=generator(3)))
    same(of_one_length, sample(model, TWO_PROMPTS, **OPTIONS, generator=generator(4)))
    assert [decoder.starts is None for decoder in recorded] == [False, True]


def test_recorded_rows_leave_by_halves(make_model, recorded, sizes):
    """A recording is for one number of rows, so that few numbers should occur: 24, 12, 6, 3. Never
    1, which would be compiled for itself."""
    sample(make_model(), TWO_PROMPTS, **{**OPTIONS, "group": 12}, generator=generator(3))
    assert set(sizes) <= {24, 12, 6, 3} and len(set(sizes)) > 2


def test_a_model_that_is_no_transformer_is_sampled_from_as_on_cuda(request, monkeypatch):
    """On another device than a CPU too, which checks for ended rows as CUDA does."""
    table = torch.randn(5, 5, generator=generator()).tolist()
    options = {**OPTIONS, "eos_id": 0, "pad_id": 4}
    plain = sample(Markov(table), TWO_PROMPTS, **options, generator=generator(3))
    request.getfixturevalue("kept")
    monkeypatch.delitem(decoding.ASK, "cpu")
    same(sample(Markov(table), TWO_PROMPTS, **options, generator=generator(3)), plain)


# a decoder that is used again

def test_a_decoder_can_be_used_twice(make_model, kept):
    model = make_model()
    first, second = (sample(model, TWO_PROMPTS, **OPTIONS, generator=generator(4))
                     for _ in range(2))
    same(first, second)


MOVES = {
    "in place": lambda p, new: p.data.copy_(new),
    "param.data": lambda p, new: setattr(p, "data", new.clone()),
}


def take_weights(model, source, move):
    weights = {name: p.detach().clone() for name, p in source.state_dict().items()}
    if move == "assign":
        model.load_state_dict(weights, assign=True)
        return
    for name, p in model.named_parameters():
        MOVES[move](p, weights[name])


def addresses(decoder):
    """Where everything lies that a recorded step reads and that holds weights."""
    tensors = [*decoder.own.parameters(), *decoder.own.buffers(), *decoder.cache._tensors()]
    return [x.data_ptr() for x in tensors]


@pytest.mark.parametrize("move", [*MOVES, "assign"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["qwen3", "biased"])
def test_a_kept_decoder_sees_new_weights_wherever_they_are(make_model, kept, move, dtype, variant):
    """A recording reads memory by its address. A decoder whose steps read the model's own weights
    would go on with the old ones when an optimizer, a checkpoint or a move to another device has
    put the new ones elsewhere."""
    model, later = make_model(variant, seed=0), make_model(variant, seed=1)
    with compute_in(dtype, model.device):
        sample(model, TWO_PROMPTS, **OPTIONS, generator=generator(4))
        decoder = decoding._kept[model][1]
        before = addresses(decoder)
        take_weights(model, later, move)
        got = sample(model, TWO_PROMPTS, **OPTIONS, generator=generator(4))
        assert decoding._kept[model][1] is decoder and addresses(decoder) == before
        same(got, sample(later, TWO_PROMPTS, **OPTIONS, generator=generator(4)))
    others = [x.data_ptr() for x in (*model.parameters(), *model.buffers())]
    assert not set(before) & set(others)


def test_a_decoder_is_kept_as_long_as_it_fits(make_model):
    model, choice = make_model(), Choice(1.0, 0, 1.0)

    def decoder(rows=6, width=2, max_new_tokens=5, choice=choice, stops=(0,), padded=False):
        return kept_decoder(model, rows, width, max_new_tokens, choice, stops, padded=padded,
                            recording=True)

    first = decoder()
    assert decoder() is first
    others = [{"rows": 7}, {"width": 3}, {"max_new_tokens": 4}, {"stops": ()}, {"padded": True},
              {"choice": choice._replace(top_k=1)}]
    for other in others:
        last = decoder(**other)
        assert last is not first and decoder(**other) is last
    last = decoder()
    with compute_in("bfloat16", model.device):
        assert decoder() is not last
    last = decoder()
    model.double()
    assert decoder() is not last


def test_weights_are_joined_and_cast_once_for_all_steps(make_model, monkeypatch, ragged):
    model, dtypes = make_model(), []
    block = type(model.layers[0])
    weights = block.weights

    def noting_weights(self, dtype=None):
        dtypes.append(dtype)
        return weights(self, dtype)

    monkeypatch.setattr(block, "weights", noting_weights)
    with compute_in("bfloat16", model.device):
        sample(model, ragged, **OPTIONS, generator=generator())
    assert dtypes == [torch.bfloat16] * len(model.layers)


# compiled

@torch.no_grad()
def test_the_compiled_model_samples_and_scores_as_the_plain_one_does(ragged, monkeypatch):
    """The same tokens, and log-probs to 1e-5, with their gradients. Slow the first time, as a
    compiler runs."""
    monkeypatch.setattr(model_module, "MANY", 1)
    # the sizes of test_grpo_optimisations.py: a compiler runs once for the blocks of both
    sizes = {"vocab_size": build_tokenizer().vocab_size, "hidden_size": 16, "num_heads": 2,
             "head_dim": 8, "intermediate_size": 64, "max_seq_len": 128}
    plain, fast = (build_model("qwen3", **sizes) for _ in range(2))
    fast.compiled = True
    with warnings.catch_warnings():
        # falling back to uncompiled code would compare it with itself
        warnings.simplefilter("error", RuntimeWarning)
        expected, got = (sample(m, ragged, **OPTIONS, generator=generator(3))
                         for m in (plain, fast))
    same(got, expected)
    score = {"mask": expected.mask, "temperature": OPTIONS["temperature"]}
    frozen = token_logprobs(plain, expected.tokens, **score)
    grads = []
    with torch.enable_grad():
        for m in (plain, fast):
            logp, entropy = token_logprobs(m, expected.tokens, return_entropy=True, **score)
            torch.testing.assert_close(logp.detach(), frozen, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(logp.detach(), expected.behavior_logp, atol=1e-5, rtol=1e-5)
            grads.append(torch.autograd.grad(logp.sum() + entropy.sum(), list(m.parameters())))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_step_is_compiled_once_for_any_rows_and_lengths(make_model):
    """Whether all rows of the cache are in use or some have left, however many they are, however
    long a row may become, and whatever ends it."""
    plain, fast = (make_model(max_seq_len=256) for _ in range(2))
    fast.compiled = True
    count = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    cases = [  # prompts, group, max_new_tokens, stops
        ([[7, 8, 9]], 8, 14, None),
        ([[7, 8, 9], [6]], 16, 14, [0, 1, 2]),
        ([[7] * 20], 4, 150, [0]),
    ]
    with torch.compiler.set_stance("default", force_backend=count):
        for prompts, group, tokens, stops in cases:
            options = {**OPTIONS, "group": group, "max_new_tokens": tokens, "eos_id": stops}
            expected, got = (sample(m, prompts, **options, generator=generator(1))
                             for m in (plain, fast))
            same(got, expected)
            rows_left = got.completion_lengths.unique().numel() > 1
            assert rows_left == (stops is not None)
    assert count.frame_count == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_on_a_gpu(model, ragged, dtype):
    """Three times with one decoder, with other weights each time, in place and elsewhere."""
    model.cuda()
    decoders = set()
    for move in ("in place", "param.data", "in place"):
        with compute_in(dtype, model.device):
            r = sample(model, ragged, **OPTIONS, generator=torch.Generator("cuda").manual_seed(3))
            logp = token_logprobs(model, r.tokens, mask=r.mask, temperature=OPTIONS["temperature"])
        decoders.add(decoding._kept[model][1])
        assert decoding._kept[model][1].graphs
        assert (logp - r.behavior_logp).abs().max() < (1e-3 if dtype == "float32" else 0.5)
        with torch.no_grad():
            for p in model.parameters():
                MOVES[move](p, p * 0.9)
    assert len(decoders) == 1
