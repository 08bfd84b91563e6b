"""minirl/lm/replies.py: rows that are given tokens while they grow."""

import pytest
import torch

from minirl.lm import sampling
from minirl.lm.decoding import Decoder
from minirl.lm.logprobs import token_logprobs
from minirl.lm.sampling import sample
from tests.lm.models import Markov

CALL, EOS, PAD = 3, 0, 8


def successor(vocab=9):
    """Token i is followed by i + 1, with all but certainty, and the last one by 0, which is EOS."""
    return Markov([[100.0 if j == (i + 1) % vocab else 0.0 for j in range(vocab)]
                   for i in range(vocab)])


def ask(model, prompts, reply, **options):
    return sample(model, prompts, **{"max_new_tokens": 8, "eos_id": [EOS, CALL], "pad_id": PAD,
                                     "temperature": 0, **options}, reply=reply)


def answers(*ids):
    """Every call is answered by these ids."""
    return lambda row, tokens: ids if tokens[-1] == CALL else []


@pytest.fixture(params=["eager", "as on CUDA"])
def decoder(request, monkeypatch):
    if request.param == "as on CUDA":
        monkeypatch.setattr(sampling, "decoder_for", lambda model, *sizes, **forms: Decoder(
            model, *sizes, **forms, recording=True))


def test_a_row_goes_on_after_the_reply():
    """From 1: samples 2 and the call 3, is given 6, and goes on with 7, 8 and EOS."""
    rollouts = ask(successor(), [[1]], answers(6))
    assert rollouts.tokens.tolist() == [[1, 2, CALL, 6, 7, 8, EOS]]
    assert rollouts.mask.int().tolist() == [[0, 1, 1, 0, 1, 1, 1]]
    assert rollouts.completion_ids() == [[2, CALL, 6, 7, 8, EOS]]
    assert rollouts.completion_lengths.tolist() == [5]
    assert not rollouts.truncated
    assert rollouts.behavior_logp[0, 3] == 0


def test_rows_call_at_different_times_and_share_a_batch():
    """Four rows: one calls at once, one later, one twice, one not at all."""
    def reply(row, tokens):
        if tokens[-1] != CALL:
            return []
        return [1] if row == 1 and tokens.count(CALL) == 1 else [7]

    rollouts = ask(successor(), [[2], [1], [6]], reply, max_new_tokens=9)
    assert rollouts.completion_ids() == [
        [CALL, 7, 8, EOS], [2, CALL, 1, 2, CALL, 7, 8, EOS], [7, 8, EOS]]
    assert rollouts.mask.sum(1).tolist() == [3, 6, 3]


def test_who_is_asked_and_with_what():
    asked = []

    def reply(row, tokens):
        asked.append((row, tokens))
        return [7] if tokens[-1] == CALL else []

    ask(successor(), [[2], [6]], reply, group=1)
    assert sorted(asked) == [(0, [CALL]), (0, [CALL, 7, 8, EOS]), (1, [7, 8, EOS])]


def test_a_given_eos_ends_nothing_and_a_given_call_calls_nothing():
    rollouts = ask(successor(), [[2]], answers(EOS, CALL, 7))
    assert rollouts.completion_ids() == [[CALL, EOS, CALL, 7, 8, EOS]]
    assert rollouts.mask[0, 1:].int().tolist() == [1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("room", "ids", "truncated"), [
    (1, [CALL], True),                       # a call in the last slot: there is no room to answer
    (2, [CALL], True),                       # what is given is no completion without more
    (4, [CALL, 6, 6, 7], True),
    (6, [CALL, 6, 6, 7, 8, EOS], False),     # EOS in the last slot
])
def test_replies_count_in_max_new_tokens(room, ids, truncated):
    rollouts = ask(successor(), [[2]], answers(6, 6), max_new_tokens=room)
    assert rollouts.completion_ids() == [ids]
    assert rollouts.truncated.tolist() == [truncated]
    assert int(rollouts.lengths.max()) <= 1 + room


def test_without_replies_nothing_changes(model, ragged):
    options = {"group": 3, "max_new_tokens": 12, "eos_id": [0, 7], "pad_id": 0}
    plain = sample(model, ragged, **options, generator=torch.Generator().manual_seed(1))
    asked = sample(model, ragged, **options, generator=torch.Generator().manual_seed(1),
                   reply=lambda row, tokens: [])
    for name in ("tokens", "mask", "behavior_logp", "truncated"):
        assert torch.equal(getattr(plain, name), getattr(asked, name)), name


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree_on_what_follows_a_reply(model, ragged, decoder, temperature):
    """The reply is attended to, by the sampler as by the learner."""
    def reply(row, tokens):
        return [1 + row % 3] * (1 + row % 4) if tokens.count(7) <= 2 else []

    rollouts = ask(model, ragged, reply, group=4, max_new_tokens=20, eos_id=[7],
                   temperature=temperature, generator=torch.Generator().manual_seed(3))
    given = [~m[int(p):int(end)] for m, p, end in zip(rollouts.mask, rollouts.prompt_lengths,
                                                     rollouts.lengths, strict=True)]
    assert sum(int(x.sum()) for x in given) > 5, "hardly anybody was given anything"
    logp = token_logprobs(model, rollouts.tokens, mask=rollouts.mask, temperature=temperature)
    assert torch.allclose(logp, rollouts.behavior_logp, atol=1e-5)


@torch.no_grad()
def test_a_row_is_the_same_alone_and_in_a_batch(model, ragged, decoder):
    def reply(row, tokens):
        return [5, 6] if tokens.count(7) == 1 else []

    options = {"max_new_tokens": 16, "eos_id": [0, 7]}
    together = ask(model, ragged, reply, **options).completion_ids()
    alone = [ask(model, [prompt], reply, **options).completion_ids()[0] for prompt in ragged]
    assert together == alone


def test_ids_of_a_reply_must_be_of_the_vocabulary():
    with pytest.raises(ValueError, match=r"the reply to row 0 holds the id 9"):
        ask(successor(), [[2]], answers(9))
