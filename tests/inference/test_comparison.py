"""minirl/inference/comparison.py"""

import json
import math

import pytest
import torch

from minirl.inference import comparison as module
from minirl.inference.comparison import (
    Comparison,
    choices,
    compare,
    number_of_candidates,
    remembered,
)
from minirl.inference.steps import step_ends
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem
from tests.inference.comparisons import comparison, samples
from tests.inference.policies import END, TOKENIZER, chain

# a step of one letter, then an answer: "x,<answer>4</answer>", right where the letter is a
POLICY = {"=": {"a": 1, "b": 1}, "a": ",", "b": ",", ",": "<answer>", "<answer>": {"4": 3, "5": 1},
          "4": "</answer>", "5": "</answer>", "</answer>": END}
A, FOUR = TOKENIZER.encode("a")[0], TOKENIZER.encode("4")[0]


def right(prompts, completions, answer, **_):
    return [float(f"<answer>{a}<" in c) for c, a in zip(completions, answer, strict=True)]


def outcome(prompts, completions):
    return [0.9 if FOUR in ids else 0.1 for ids in completions]


def steps(prompts, completions):
    """The first step is good with an a; the answer with a 4."""
    rows = []
    for ids in completions:
        ends = step_ends(TOKENIZER, ids)
        row = [0.8 if ids[0] == A else 0.3]
        rows.append(row + [0.9 if FOUR in ids else 0.1] * (len(ends) - 1))
    return rows


def compared(listed, problems=None, **options):
    problems = problems or [Problem("2+2=", "4"), Problem("1+3=", "4"), Problem("2+3=", "5")]
    task = listed(problems, {"accuracy": right})
    return compare(chain(POLICY), TOKENIZER, task, problems,
                   **{"outcome": outcome, "steps": steps, "largest": 8, "max_new_tokens": 8,
                      **options})


def test_every_method_has_a_point_for_every_n(listed):
    result = compared(listed)
    assert (result.task, result.problems) == ("listed problems", 3)
    assert list(result.methods) == [
        "majority vote", "best of n, ORM", "best of n, PRM last", "best of n, PRM min",
        "best of n, PRM product", "weighted vote, ORM", "weighted vote, PRM min",
        "any of n is right", "beam search", "DVTS"]
    for method, points in result.methods.items():
        assert [point.n for point in points] == [1, 2, 4, 8], method
        assert all(len(point.right) == 3 for point in points)
        has_theory = "weighted" not in method and method not in ("beam search", "DVTS")
        assert all((point.predicted is not None) == has_theory for point in points)
    assert [n for n, _, _ in result.pleased["ORM"]] == [1, 2, 4, 8, 16]


def test_what_a_good_verifier_is_worth(listed):
    """4 comes three times of four. For the first two problems it is right, and the verifier likes
    it; for the third the verifier likes what is wrong."""
    result = compared(listed, largest=64)
    best = result.methods["best of n, ORM"][-1]
    assert best.right == [1.0, 1.0, 0.0] and best.predicted == pytest.approx([1, 1, 0], abs=1e-6)
    vote = result.methods["majority vote"]
    assert vote[0].right == pytest.approx([0.75, 0.75, 0.25], abs=0.15)
    assert vote[-1].right == [1.0, 1.0, 0.0]
    assert vote[-1].predicted == pytest.approx([1, 1, 0], abs=1e-3)
    assert result.methods["any of n is right"][-1].right == [1.0] * 3
    assert result.methods["beam search"][-1].right == [1.0, 1.0, 0.0]
    scores = [score for _, score, _ in result.pleased["ORM"]]
    assert scores == sorted(scores) and scores[-1] == pytest.approx(0.9)


def test_tokens_by_hand(listed):
    """Every completion has six tokens (a letter, a comma, a tag, a digit, a tag, EOS), a prompt
    with its BOS five. With two candidates, beam search has one beam that is expanded twice: its two
    steps draw 2 * 2 and 2 * 4 tokens, of which the verifier reads each distinct one."""
    result = compared(listed)
    for point in result.methods["majority vote"] + result.methods["any of n is right"]:
        assert (point.prefill, point.decode, point.verifier) == (5, 6 * point.n, 0)
    one, two, *_ = result.methods["beam search"]
    assert (one.prefill, one.decode, one.verifier) == (5, 6, (5 + 2) + (5 + 6))
    assert (two.prefill, two.decode) == (5, 12)
    assert 18 <= two.verifier <= 2 * 18
    alone = result.methods["best of n, PRM min"][0]
    assert (alone.prefill, alone.decode, alone.verifier) == (5, 6, 5 + 6)


def test_one_tree_is_one_beam(listed):
    """Up to `expansions` candidates DVTS is beam search, and is not drawn anew."""
    result = compared(listed, expansions=4)
    beams, trees = result.methods["beam search"], result.methods["DVTS"]
    assert [p.right for p in beams[:3]] == [p.right for p in trees[:3]]
    assert [p.tokens for p in beams[:3]] == [p.tokens for p in trees[:3]]
    assert beams[3].verifier != trees[3].verifier


@pytest.mark.parametrize("searches, options", [(True, {}), (False, {"steps": None})])
def test_progress_counts_what_is_drawn(listed, searches, options):
    class Counted:
        total = 0

        def update(self, n=1, note=""):
            self.total += n

    progress = Counted()
    compared(listed, progress=progress, **options)
    assert progress.total == number_of_candidates(3, 8, 4, searches=searches)
    # 16 samples, beams of 1, 2, 4 and 8, trees of 8
    assert progress.total == 3 * (16 + (15 + 8 if searches else 0))


def test_without_verifiers_there_is_a_vote(listed):
    result = compared(listed, outcome=None, steps=None)
    assert list(result.methods) == ["majority vote", "any of n is right"] and not result.pleased
    assert list(compared(listed, steps=None).methods) == [
        "majority vote", "best of n, ORM", "weighted vote, ORM", "any of n is right"]


def test_the_seed_decides(listed):
    assert compared(listed) == compared(listed) != compared(listed, seed=1)


def test_theory_reads_other_samples():
    """Measured on samples that are all right, predicted from some that are all wrong."""
    points = choices(samples(["rr"]), samples(["ww"]))
    assert {tuple(p.right) for p in points} == {(1.0,)}
    assert {tuple(p.predicted) for p in points} == {(0.0,)}


def test_measured_is_predicted_on_average():
    """Policies by hand, 400 problems of one distribution, 8 + 8 samples each: for every method that
    has a theory the mean difference is within four standard errors of 0."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.4, 0.35, 0.15, 0.1])
    draws = torch.multinomial(chances, 400 * 16, replacement=True, generator=generator)
    rows = ["".join("rwv."[i] for i in draws[k:k + 16]) for k in range(0, 6400, 16)]
    scores = [torch.rand(16, generator=generator).tolist() for _ in rows]
    made = samples(rows, scores={"ORM": scores})
    for point in choices(made.part(slice(8)), made.part(slice(8, None))):
        if point.predicted is not None:
            errors = torch.tensor(point.errors)
            bias = 0.03 if point.method == "majority vote" else 0.0   # of plugging in 8 samples
            assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(400) + bias, point.method


def test_a_step_verifier_is_asked_once():
    calls = []

    def verifier(prompts, completions):
        calls.append(len(completions))
        return [[float(len(ids))] for ids in completions]

    memory = remembered(verifier)
    assert memory([[1], [1], [2]], [[5], [5], [5, 6]]) == [[1.0], [1.0], [2.0]]
    assert memory([[2], [3]], [[5, 6], [5]]) == [[2.0], [1.0]]
    assert memory([], []) == []
    assert calls == [2, 1]
    with pytest.raises(ValueError):
        remembered(lambda prompts, completions: [[0.5]])([[1], [2]], [[5], [6]])


def test_a_verifier_that_gives_too_few_scores_or_nan(listed):
    with pytest.raises(ValueError, match="scores for"):
        compared(listed, outcome=lambda p, c: [0.5] * (len(c) - 1))
    result = compared(listed, outcome=lambda p, c: [math.nan] * len(c))
    assert not result.pleased["ORM"]
    first = result.methods["best of n, ORM"][-1]
    assert first.score is None and len(first.right) == 3


@pytest.mark.parametrize("change, message", [
    ({"problems": []}, "0 problems"), ({"largest": 0}, "largest = 0"),
    ({"expansions": 0}, "expansions = 0"), ({"expansions": 3}, "expansions is 3: a power of two")])
def test_what_cannot_be_compared(change, message):
    task = Arithmetic("addition", 1)
    options = {"problems": [Problem("1+1=", "2")], "max_new_tokens": 4, **change}
    problems = options.pop("problems")
    with pytest.raises(ValueError, match=message):
        compare(chain(POLICY), TOKENIZER, task, problems, **options)


def test_a_task_without_accuracy(listed):
    with pytest.raises(ValueError, match="reward named accuracy"):
        compare(chain(POLICY), TOKENIZER, listed(1, {"other": right}), [Problem("1+1=", "2")],
                max_new_tokens=4)


def test_a_comparison_survives_json():
    made = comparison()
    assert Comparison.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    assert module.STEPS == {"PRM last": "last", "PRM min": "min", "PRM product": "product"}
