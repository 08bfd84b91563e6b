"""minirl/inference/voting.py"""

import math

import pytest
import torch

from minirl.equations.inference_time import pass_at_k
from minirl.inference import voting as module
from minirl.inference.candidates import Spent, solution_verifier
from minirl.inference.voting import (
    best_of_n_sampling,
    majority_voting,
    weighted_best_of_n,
    weighted_choice,
)
from minirl.lm.rollouts import Rollouts, completion_batch
from tests.inference.policies import END, TOKENIZER, chain, ids, text

NAN = math.nan


@pytest.fixture
def policy(monkeypatch):
    """policy(texts, ...): the samples of each problem. "|" cuts a sample off before its EOS."""
    def sample(model, prompts, *, group, max_new_tokens, eos_id, pad_id, **_):
        rows = [text for texts in answers for text in texts[:group]]
        sampled = [TOKENIZER.encode(row[:-1]) if row.endswith("|") else
                   [*TOKENIZER.encode(row), TOKENIZER.eos_id] for row in rows]
        asked = [prompt for prompt in prompts for _ in range(group)]
        tokens, mask = completion_batch(asked, sampled, pad_id, "cpu")
        cut = torch.tensor([row.endswith("|") for row in rows])
        return Rollouts(tokens, mask, torch.tensor([len(p) for p in asked]),
                        torch.zeros(tokens.shape), cut)

    answers = []
    monkeypatch.setattr(module, "sample", sample)
    return lambda *texts: answers.__setitem__(slice(None), texts)


def tagged(*answers):
    return [f"<answer>{answer}</answer>" for answer in answers]


def scores_of(table):
    """A verifier that knows the score of each text."""
    return lambda prompts, completions: [table[text(c)] for c in completions]


def vote(n, prompts=("2+3=",), **options):
    return majority_voting(None, TOKENIZER, ids(*prompts), n=n, max_new_tokens=20, **options)


@pytest.mark.parametrize("samples, chosen", [
    (tagged(4, 5, "05", 4, "5.0"), 1),              # equal answers are joined
    (tagged(4, 5, 5, 4), 0),                        # a tie: the answer that came first
    ([*tagged(4), "5", "5", *tagged(6, 6)], 3),     # no answer is no vote
    (["5", "4", "4"], 0),                           # nobody answers
    (["5", "4", *tagged(6)], 2),
    (tagged(4, 4, 7, 4), 0),                        # all wrong: the commonest error is chosen
    (tagged(5), 0),                                 # n = 1
])
def test_majority_voting(policy, samples, chosen):
    policy(samples)
    result = vote(len(samples))
    assert result.chosen == [chosen]
    assert text(result.best[0]) == samples[chosen]
    assert all(map(math.isnan, result.scores[0]))


def test_problems_are_batched_and_counted_apart(policy):
    """A tag is one token: <answer>4</answer> and EOS are four."""
    policy(tagged(4, 5, 5), ["123", *tagged(12), "12|"])
    result = vote(3, ["2+3=", "10+2="])
    assert result.chosen == [1, 1] and result.ended == [[True] * 3, [True, True, False]]
    assert result.spent == [Spent(prefill=4, decode=12), Spent(prefill=5, decode=4 + 5 + 2)]
    assert result.kept == result.total.decode == 23


def test_another_notion_of_an_answer(policy):
    policy(["a b", "x b", "y c"])
    assert vote(3, answer=lambda completion: completion.split()[-1]).chosen == [0]


def best(verifier, n, **options):
    return best_of_n_sampling(None, TOKENIZER, ids("2+3="), verifier, n=n, max_new_tokens=20,
                              **options)


@pytest.mark.parametrize("scores, chosen", [
    ([0.1, 0.9, 0.5], 1), ([0.5, 0.5, 0.1], 0), ([NAN, None, -2.0], 2), ([NAN, NAN, NAN], 0)])
def test_best_of_n(policy, scores, chosen):
    policy(["4", "5", "66"])
    result = best(scores_of(dict(zip(["4", "5", "66"], scores, strict=True))), 3)
    assert result.chosen == [chosen]
    assert result.scores[0] == pytest.approx([NAN if x is None else x for x in scores],
                                             nan_ok=True)
    # the verifier reads prompt and completion: (4 + 2) + (4 + 2) + (4 + 3)
    assert result.spent == [Spent(prefill=4, decode=7, verifier=19)]


def test_best_of_one_is_a_sample_whatever_the_verifier_says(policy):
    policy(["4"])
    assert best(lambda p, c: [NAN], 1).chosen == [0]


@pytest.mark.parametrize("how, chosen", [("last", 1), ("min", 0), ("product", 2)])
def test_best_of_n_with_scores_of_steps(policy, how, chosen):
    """Three solutions, each the best by one of the three scores: last .8 .99 .9, lowest .7 .1 .6,
    product .4116, .099, .54."""
    steps = {"a": [0.7, 0.84, 0.7, 0.8], "b": [1.0, 0.1, 0.99], "c": [0.6, 1.0, 0.9]}
    policy(list(steps))
    result = best(solution_verifier(scores_of(steps), how), 3)
    assert result.chosen == [chosen]


def test_a_completion_that_is_sampled_twice_is_verified_once(policy):
    policy(["4", "4", "5"])
    assert best(scores_of({"4": 0.1, "5": 0.2}), 3).spent == [Spent(4, 6, verifier=6 + 6)]


@pytest.mark.parametrize("answers, scores, chosen", [
    (["4", "5", "4"], [0.3, 0.5, 0.4], 2),          # 0.7 against 0.5, and of the two the better
    (["4", "5", "4"], [0.2, 0.5, 0.2], 1),
    (["4", "5"], [0.5, 0.5], 0),                    # a tie: the answer that came first
    ([None, "5", "4"], [0.9, 0.1, 0.05], 1),        # no answer is no vote, whatever its score
    (["4", "4", "5"], [NAN, NAN, 0.1], 2),          # no verdict is no vote
    (["4", "5", "5"], [NAN, NAN, NAN], 1),          # no verdict at all: a plain vote
    ([None, "4", "5", "5"], [0.9, NAN, NAN, NAN], 2),
    ([None, None], [0.1, 0.2], 1),                  # nobody answers: the best score
    ([None, None], [NAN, NAN], 0),
    (["4", "5"], [0.0, 0.0], 0),
    (["4"], [NAN], 0),
])
def test_weighted_choice(answers, scores, chosen):
    assert weighted_choice(answers, scores) == chosen


@pytest.mark.parametrize("score", [-0.1, math.inf])
def test_a_weight_is_a_finite_number_from_0_on(score):
    with pytest.raises(ValueError, match="sigmoid"):
        weighted_choice(["4", "5"], [0.5, score])


def test_weighted_best_of_n(policy):
    """The best single sample is 5, with .5; 4 and 04 are one answer, with .3 + .4."""
    samples = tagged(4, 5, "04")
    policy(samples)
    verifier = scores_of(dict(zip(samples, [0.3, 0.5, 0.4], strict=True)))
    options = {"n": 3, "max_new_tokens": 20}
    result = weighted_best_of_n(None, TOKENIZER, ids("2+2="), verifier, **options)
    assert result.chosen == [2]
    assert best(verifier, 3).chosen == [1]
    assert result.spent == [Spent(prefill=4, decode=13, verifier=4 * 3 + 13)]


def test_a_budget_is_never_exceeded(policy):
    """A problem of 4 tokens and samples of up to 20: 4 + 20 n, or 4 + 20 n + 24 n verified."""
    policy(tagged(*range(9)))
    for budget in (24, 63, 64, 100):
        result = vote(9, budget=budget)
        assert len(result.completions[0]) == (budget - 4) // 20
        assert result.total.total <= budget
        if budget >= 48:
            assert best(lambda p, c: [0.5] * len(c), 9, budget=budget).total.total <= budget
    with pytest.raises(ValueError, match="at least 24"):
        vote(9, budget=23)
    with pytest.raises(ValueError, match="at least 48"):
        best(lambda p, c: [], 9, budget=47)


def test_all_wrong_is_never_solved(policy):
    """No choice among wrong answers is right, and pass@k knows it."""
    policy(tagged(1, 2, 2, 3))
    result = vote(4)
    right = [answer == "5" for answer in result.answers(TOKENIZER)[0]]
    assert not right[result.chosen[0]]
    assert [pass_at_k(4, sum(right), k) for k in (1, 4)] == [0.0, 0.0]


class Counting:
    """Count what a model reads: (rows, tokens) of each call."""

    def __init__(self, model, monkeypatch):
        self.calls, hidden = [], model.hidden

        def counting(tokens, **options):
            self.calls.append(tuple(tokens.shape))
            return hidden(tokens, **options)

        monkeypatch.setattr(model, "hidden", counting)


def test_a_vote_of_64_costs_one_prefill_and_a_batch_that_shrinks(monkeypatch):
    """Half of the rows end after each character: the model reads the prompt once, then about as
    many tokens as are kept. A row may stay in the batch for a while after its end."""
    model = chain({"=": "a", "a": {"a": 1, END: 1}})
    count = Counting(model, monkeypatch)
    result = majority_voting(model, TOKENIZER, ids("123=", "7="), n=64, max_new_tokens=50,
                             generator=torch.Generator().manual_seed(0))
    prefill, *steps = count.calls
    assert prefill == (2, 4)                                    # both prompts, each once
    rows = [rows for rows, _ in steps]
    assert rows[0] == 128 and rows[-1] < 8 and rows == sorted(rows, reverse=True)
    assert result.total.prefill == 6
    drawn = result.total.decode
    assert drawn == result.kept and drawn - 128 <= sum(rows) <= 1.1 * (drawn - 128)
    assert sum(rows) < 0.2 * 128 * 50
