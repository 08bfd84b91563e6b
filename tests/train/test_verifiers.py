"""minirl/train/verifiers.py"""

import math

import pytest
import torch

from minirl.inference.candidates import ask_verifier, solution_verifier
from minirl.inference.voting import weighted_choice
from minirl.lm.heads import ScalarModel
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.steps import Solution
from minirl.train.process_reward import solution_chances
from minirl.train.verifiers import outcome_verifier, outcomes_alone, step_verifier
from tests.train.small import TOKENIZER

PROMPTS = [TOKENIZER.encode_prompt(text) for text in ("7=", "12+3=", "7=", "a")]
COMPLETIONS = [[*TOKENIZER.encode(text), TOKENIZER.eos_id]
               for text in ("1,22,3", "15", "77,7", "b")]


def model_of(vocab_size=TOKENIZER.vocab_size):
    torch.manual_seed(1)
    return ScalarModel(Transformer(ModelConfig(vocab_size, hidden_size=16, num_layers=1,
                                               num_heads=2, initializer_range=0.1))).eval()


def plain(model, ids):
    """The score behind the last id, from a pass over this row alone."""
    return float(model.head(model.backbone.hidden(torch.tensor([ids])))[0, -1].detach())


def sigma(score):
    return 1 / (1 + math.exp(-score))


def test_an_outcome_is_read_behind_the_last_token():
    """In a batch, with padding, as from each row alone; in micro-batches of one row, too."""
    model = model_of()
    wanted = [sigma(plain(model, [*p, *c])) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    for options in ({}, {"token_budget": 1}):
        scores = outcome_verifier(model, TOKENIZER, **options)(PROMPTS, COMPLETIONS)
        assert scores == pytest.approx(wanted, abs=1e-5)


def test_an_unfinished_completion_has_the_score_of_its_state():
    model = model_of()
    cut = [ids[:-2] for ids in COMPLETIONS]
    wanted = [sigma(plain(model, [*p, *c])) for p, c in zip(PROMPTS, cut, strict=True) if c]
    scores = outcome_verifier(model, TOKENIZER)(PROMPTS, cut)
    assert [x for x, c in zip(scores, cut, strict=True) if c] == pytest.approx(wanted, abs=1e-5)
    assert math.isnan(scores[3]) and not cut[3]                  # "b" and EOS, both cut off


def test_steps_are_read_as_solution_chances_reads_them():
    """The same numbers as from solutions that keep the ids; EOS belongs to the last step."""
    model = model_of()
    solutions = [
        Solution("7=", ("1,", "22,", "3"), (None,) * 3, tuple(COMPLETIONS[0]), (2, 5, 7)),
        Solution("12+3=", ("15",), (None,), tuple(COMPLETIONS[1]), (3,)),
        Solution("7=", ("77,", "7"), (None,) * 2, tuple(COMPLETIONS[2]), (3, 5)),
        Solution("a", ("b",), (None,), tuple(COMPLETIONS[3]), (2,))]
    wanted = solution_chances(model, TOKENIZER, solutions)
    for options in ({}, {"token_budget": 1}):
        rows = step_verifier(model, TOKENIZER, **options)(PROMPTS, COMPLETIONS)
        assert list(map(len, rows)) == [3, 1, 2, 1]
        for row, expected in zip(rows, wanted, strict=True):
            assert row == pytest.approx(expected, abs=1e-6)
    alone = [sigma(plain(model, [*PROMPTS[0], *COMPLETIONS[0][:end]])) for end in (2, 5, 7)]
    assert wanted[0] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("text, ends", [("1,22,", [2, 5]), ("1,22", [2, 4]), ("1", [1])])
def test_a_search_asks_about_steps_that_are_over_and_one_that_is_not(text, ends):
    model, ids = model_of(), TOKENIZER.encode(text)
    row, = step_verifier(model, TOKENIZER)(PROMPTS[:1], [ids])
    assert row == pytest.approx([sigma(plain(model, [*PROMPTS[0], *ids[:end]])) for end in ends],
                                abs=1e-5)


def test_nothing_is_asked_for_nothing():
    model = model_of()
    assert step_verifier(model, TOKENIZER)([], []) == []
    assert outcome_verifier(model, TOKENIZER)([], []) == []
    assert step_verifier(model, TOKENIZER)(PROMPTS[:1], [[]]) == [[]]
    score, = solution_verifier(step_verifier(model, TOKENIZER))(PROMPTS[:1], [[]])
    assert math.isnan(score)


def test_ids_are_not_decoded_and_encoded_again():
    """<think> as one id and as seven: a text, and two rows of ids with scores of their own."""
    tokenizer = build_tokenizer(special_tokens=TAGS)
    model = model_of(tokenizer.vocab_size)
    one = tokenizer.encode("<think>")
    seven = [id for c in "<think>" for id in tokenizer.encode(c)]
    assert (len(one), len(seven)) == (1, 7)
    prompts = [tokenizer.encode_prompt("7=")] * 2
    a, b = outcome_verifier(model, tokenizer)(prompts, [one, seven])
    assert a == pytest.approx(sigma(plain(model, prompts[0] + one)), abs=1e-5)
    assert b == pytest.approx(sigma(plain(model, prompts[0] + seven)), abs=1e-5) and a != b


def test_large_scores_stay_apart():
    """In float32 σ(20) and σ(30) are both 1, and the first of them would be the best."""
    model = model_of()
    with torch.no_grad():
        model.head.linear.weight.mul_(3)
        model.head.linear.bias.fill_(25.0)
    scores = outcome_verifier(model, TOKENIZER)(PROMPTS, COMPLETIONS)
    rows = step_verifier(model, TOKENIZER)(PROMPTS, COMPLETIONS)
    assert len(set(scores)) == 4 and max(scores) <= 1
    assert len({x for row in rows for x in row}) == 7
    solutions = solution_verifier(lambda p, c: rows, "last")(PROMPTS, COMPLETIONS)
    assert len(set(solutions)) == 4
    weighted_choice(["1", "15", "7", None], scores)             # weights that may vote


def test_searches_ask_through_ask_verifier():
    """Equal completions once, and what a verifier reads is counted."""
    scores, spent = ask_verifier(outcome_verifier(model_of(), TOKENIZER), PROMPTS[:1], [0, 0, 0],
                                 [COMPLETIONS[0], COMPLETIONS[0], COMPLETIONS[1]])
    assert scores[0] == scores[1] != scores[2]
    assert spent[0].verifier == 2 * len(PROMPTS[0]) + 7 + 3


def test_outcomes_alone_keeps_the_last_label_whatever_it_is():
    solutions = [Solution("7=", ("1,", "2"), (0.5, None)), Solution("7=", ("3",), (0.0,))]
    assert [s.labels for s in outcomes_alone(solutions)] == [(None, None), (0.0,)]
    assert [s.labels for s in solutions] == [(0.5, None), (0.0,)]
