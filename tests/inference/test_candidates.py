"""minirl/inference/candidates.py"""

import math

import pytest

from minirl.inference.candidates import (
    Candidates,
    Spent,
    affordable,
    ask_verifier,
    best_index,
    joined,
    solution_verifier,
)
from tests.inference.policies import TOKENIZER, ids

NAN = math.nan


@pytest.mark.parametrize("scores, ended, best", [
    ([0.3], None, 0),
    ([0.5, 0.5, 0.1], None, 0),                         # a tie goes to the first
    ([NAN, -3.0, NAN], None, 1),                        # no verdict is below any verdict
    ([NAN, NAN], None, 0),
    ([-math.inf, NAN, -5.0], None, 2),
    ([0.9, 0.2, 0.4], [False, True, True], 2),          # one that was cut off has no answer
    ([0.9, NAN], [False, True], 1),
    ([0.2, 0.9], [False, False], 1),
])
def test_best_index(scores, ended, best):
    assert best_index(scores, ended) == best


def test_equal_completions_are_asked_once():
    """Two problems have a completion in common: prompts differ, so both are asked."""
    asked = []

    def verifier(prompts, completions):
        asked.extend(zip(prompts, completions, strict=True))
        return [0.5, None, 0.25]

    scores, spent = ask_verifier(verifier, [[1, 2, 3], [4]], [0, 0, 0, 1, 1],
                                 [[7, 8], [9], [7, 8], [7, 8], [7, 8]])
    assert asked == [([1, 2, 3], [7, 8]), ([1, 2, 3], [9]), ([4], [7, 8])]
    assert scores[0] == scores[2] == 0.5 and scores[3] == scores[4] == 0.25
    assert math.isnan(scores[1])
    assert spent == [Spent(verifier=3 + 2 + 3 + 1), Spent(verifier=1 + 2)]


@pytest.mark.parametrize("answer", [[], [0.5, 0.5]])
def test_a_verifier_gives_one_score_each(answer):
    for verifier in (lambda p, c: answer, solution_verifier(lambda p, c: [answer] * len(answer))):
        with pytest.raises(ValueError, match="scores for 1 completions"):
            ask_verifier(verifier, [[1]], [0], [[2]])


@pytest.mark.parametrize("how, scores", [
    ("last", [0.8, 0.6]), ("min", [0.5, 0.6]), ("product", [0.36, 0.6])])
def test_scores_of_steps_become_scores_of_solutions(how, scores):
    verifier = solution_verifier(lambda p, c: [[0.9, 0.5, 0.8], [0.6]], how)
    assert verifier([[1]] * 2, [[2]] * 2) == pytest.approx(scores)


@pytest.mark.parametrize("steps", [[], [None], [0.9, NAN], [NAN, 0.9]])
def test_a_solution_with_a_step_without_a_verdict_has_none(steps):
    a, b = solution_verifier(lambda p, c: [steps, [0.5]])([[1]] * 2, [[2]] * 2)
    assert math.isnan(a) and b == 0.5
    assert all(map(math.isnan, solution_verifier(lambda p, c: [steps])([[1]], [[2]])))


def test_errors_of_solution_verifier():
    with pytest.raises(ValueError, match="last, min, product"):
        solution_verifier(lambda p, c: [], "mean")
    with pytest.raises(ValueError, match="sigmoid"):
        solution_verifier(lambda p, c: [[1.5]])([[1]], [[2]])


def test_affordable_by_hand():
    """A prompt of 5, candidates of 10. Alone: 5 + 10 n. Verified: 5 + 10 n + 15 n."""
    prompts = [[1] * 5, [1] * 2]
    assert affordable(8, prompts, 10, None, verified=True) == 8
    assert [affordable(8, prompts, 10, b, verified=False) for b in (15, 24, 25, 85, 900)] == [
        1, 1, 2, 8, 8]
    assert [affordable(8, prompts, 10, b, verified=True) for b in (30, 54, 55)] == [1, 1, 2]
    with pytest.raises(ValueError, match="at least 15"):
        affordable(8, prompts, 10, 14, verified=False)
    with pytest.raises(ValueError, match="at least 30"):
        affordable(8, prompts, 10, 29, verified=True)
    with pytest.raises(ValueError, match="n is 0"):
        affordable(0, prompts, 10, None, verified=False)


def test_parts_are_joined_and_counted():
    part = Candidates([ids("ab", "c")], [[True, False]], [[0.1, 0.2]], [1], [Spent(3, 4, 5)])
    whole = joined([part, part])
    assert whole.best == [ids("c")[0]] * 2 and whole.kept == 6
    assert whole.total == Spent(6, 8, 10) and whole.total.total == 24
    assert part.kept == 3 and len(part.spent) == 1       # joining leaves its parts alone
    assert joined([]).total == Spent()


def test_answers():
    row = ids("<answer>07</answer>", "<answer>7.0</answer>", "7", "<answer>7</answer><answer>")
    candidates = Candidates([row], [[True] * 4], [[NAN] * 4], [0], [Spent()])
    assert candidates.answers(TOKENIZER) == [["7", "7", None, None]]
    assert candidates.answers(TOKENIZER, str.upper)[0][2] == "7"
