"""minirl/inference/points.py"""

import math

import pytest
import torch

from minirl.equations.inference_time import pass_at_k
from minirl.inference import voting
from minirl.inference.candidates import Candidates, Spent, best_index
from minirl.inference.points import (
    Point,
    Samples,
    draw_samples,
    mean,
    measure_any,
    measure_best,
    measure_search,
    measure_vote,
    measure_weighted,
    over_optimisation,
    predict_any,
    predict_best,
    predict_vote,
    sizes,
)
from minirl.lm.rollouts import Rollouts, completion_batch
from minirl.tasks.problem import Problem
from minirl.tasks.rewards import answer_of
from tests.inference.comparisons import samples
from tests.inference.policies import END, TOKENIZER, chain

NAN = math.nan


@pytest.mark.parametrize("largest, numbers", [(1, [1]), (2, [1, 2]), (63, [1, 2, 4, 8, 16, 32]),
                                              (64, [1, 2, 4, 8, 16, 32, 64])])
def test_sizes(largest, numbers):
    assert sizes(largest) == numbers


@pytest.mark.parametrize("answers, n, right", [
    ("rrww", 1, 0.5), ("rrww", 2, 0.5), ("rrww", 4, 1.0),   # a tie of 2 : 2, and r came first
    ("wwrr", 4, 0.0),                                       # and here w did
    ("rw", 2, 1.0), ("wr", 2, 0.0),
    ("..r.", 4, 1.0),                                       # silence has no vote
    ("....", 2, 0.0), ("wwww", 4, 0.0),                     # nobody answers; all are wrong
    ("rwwrr", 2, 0.5),                                      # rw, wr; the fifth is in no group
    ("r", 1, 1.0)])
def test_a_vote_in_groups(answers, n, right):
    assert measure_vote(samples([answers]), n).right == [right]


def test_the_best_in_groups_and_what_its_verifier_says():
    """Groups of two: 0.9 (wrong) beats 0.1, then 0.7 (right) beats no verdict; then all four."""
    made = samples(["rwrw"], scores={"ORM": [[0.1, 0.9, 0.7, NAN]]})
    assert [measure_best(made, n, "ORM").right for n in (1, 2, 4)] == [[0.5], [0.5], [0.0]]
    assert measure_best(made, 2, "ORM").score == pytest.approx(0.8)
    assert measure_best(made, 1, "ORM").score == pytest.approx((0.1 + 0.9 + 0.7) / 3)


def test_a_verifier_without_any_verdict_takes_the_first():
    point = measure_best(samples(["rw"], scores={"ORM": [[NAN, NAN]]}), 2, "ORM")
    assert (point.right, point.score) == ([1.0], None)


def test_a_tie_of_scores_goes_to_the_first():
    made = samples(["rw", "wr"], scores={"ORM": [[0.5, 0.5], [0.5, 0.5]]})
    assert measure_best(made, 2, "ORM").right == [1.0, 0.0]


def test_a_weighted_vote_in_groups():
    """0.3 + 0.4 for w against 0.5 for r; in pairs r wins both."""
    made = samples(["rwrw"], scores={"ORM": [[0.4, 0.3, 0.1, 0.4]]})
    assert measure_weighted(made, 4, "ORM").right == [0.0]
    assert measure_weighted(made, 2, "ORM").right == [0.5]
    with pytest.raises(ValueError, match="no weight of a vote"):
        measure_weighted(samples(["rw"], scores={"ORM": [[-1.0, 0.5]]}), 2, "ORM")


def test_any_is_right():
    assert [measure_any(samples(["wrww"]), n).right for n in (1, 2, 4)] == [[0.25], [0.5], [1.0]]


def test_tokens_by_hand():
    """A prompt of 3 and one of 2. Groups of two: the policy reads each prompt once, and draws what
    all completions of a group have; a verifier reads each distinct completion with its prompt."""
    ids = [[[7, 0], [7, 0], [8, 8, 0], [7, 0]], [[5, 0]] * 4]
    made = samples(["rrww", "wwww"], ids=ids, prompts=[[1, 2, 3], [1, 2]],
                   scores={"ORM": [[0.5] * 4] * 2})
    vote, best = measure_vote(made, 2), measure_best(made, 2, "ORM")
    # decode: (2 + 2), (3 + 2); (2 + 2), (2 + 2)      verifier: 5, 6 + 5; 4, 4
    assert (vote.prefill, vote.decode, vote.verifier) == (2.5, 17 / 4, 0)
    assert (best.prefill, best.decode, best.verifier) == (2.5, 17 / 4, 24 / 4)
    assert best.tokens == 2.5 + 17 / 4 + 6
    one = measure_best(made, 1, "ORM")
    assert (one.decode, one.verifier) == (17 / 8, (5 + 5 + 6 + 5 + 4 * 4) / 8)


def test_a_part_of_the_samples():
    made = samples(["rrww"], scores={"ORM": [[0.1, 0.2, 0.3, 0.4]]})
    half = made.part(slice(2, None))
    assert half.right == [[0.0, 0.0]] and half.scores == {"ORM": [[0.3, 0.4]]}
    assert half.answers == [["w", "w"]] and half.completions == [made.completions[0][2:]]
    assert made.part(slice(4)) == made


def test_a_vote_is_predicted_from_how_often_answers_come():
    """r half of the time, w and v a quarter each: of two samples r is the vote in 1/4 and half of
    1/2. Silence: r 1/4, so that two samples have it in 1 - 9/16."""
    assert predict_vote(samples(["rrwv", "r...", "wwvv", "...."]), 2) == pytest.approx(
        [0.5, 7 / 16, 0.0, 0.0])


def test_two_spellings_of_the_right_answer_are_right():
    assert predict_vote(samples(["rs"], right="rs"), 1) == pytest.approx([1.0])


def test_the_best_is_predicted_over_all_subsets():
    """Of three pairs the wrong one with 0.9 is in two; without a verdict a sample is the last."""
    made = samples(["rwr", "rwr"], scores={"ORM": [[0.1, 0.9, 0.2], [NAN, NAN, 0.5]]})
    assert predict_best(made, 2, "ORM") == pytest.approx([1 / 3, 2 / 3 + 1 / 6])
    assert predict_any(made, 2) == [pass_at_k(3, 2, 2)] * 2 == [1.0, 1.0]


def test_over_optimisation_by_hand():
    """The highest score is a wrong one's: with more samples the score rises, and all is lost."""
    made = samples(["rwrr", "rrrr"], scores={"ORM": [[0.2, 0.9, 0.3, 0.1], [NAN, 0.5, 0.5, 0.5]]})
    rows = over_optimisation(made, "ORM")                      # of the first problem alone
    assert [n for n, _, _ in rows] == [1, 2, 4]
    assert [score for _, score, _ in rows] == pytest.approx(
        [1.5 / 4, (3 * 0.9 + 2 * 0.3 + 0.2) / 6, 0.9])
    assert [right for _, _, right in rows] == pytest.approx([0.75, 0.5, 0.0])
    assert over_optimisation(samples(["r"], scores={"ORM": [[NAN]]}), "ORM") == []


def test_an_interval_has_as_many_numbers_as_problems():
    point = Point("majority vote", 4, [0.5] * 10, 1.0, 2.0, 3.0, predicted=[0.25] * 10)
    low, high = point.interval
    assert low < 0.3 and high > 0.7 and point.accuracy == 0.5
    assert point.errors == [0.25] * 10 and mean(point.errors) == 0.25


TEXTS = [["4", "<answer>4</answer>", "<answer>5</answer>", "<answer>4</answer>"],
         ["6|", "<answer>7</answer>", "<answer>7</answer>", "<answer>6</answer>"]]
SCORES = {"4": NAN, "<answer>4</answer>": 0.3, "<answer>5</answer>": 0.5, "6": 0.9,
          "<answer>7</answer>": 0.2, "<answer>6</answer>": 0.6}


def test_choice_and_cost_are_those_of_a_search_by_itself(monkeypatch):
    """On the samples of voting.py's own functions."""
    ids = [[TOKENIZER.encode(text.rstrip("|")) + [TOKENIZER.eos_id] * (not text.endswith("|"))
            for text in row] for row in TEXTS]
    prompts = [TOKENIZER.encode(text) for text in ("2+2=", "13-7=")]
    flat = [row for rows in ids for row in rows]

    def sample(model, asked, *, group, **_):
        tokens, mask = completion_batch([p for p in asked for _ in range(group)], flat, 0, "cpu")
        return Rollouts(tokens, mask, torch.tensor([len(p) for p in asked for _ in range(group)]),
                        torch.zeros(tokens.shape), torch.tensor([len(row) < 2 for row in flat]))

    def verifier(prompts, completions):
        return [SCORES[TOKENIZER.decode_completion(c)] for c in completions]

    monkeypatch.setattr(voting, "sample", sample)
    answers = [[answer_of(TOKENIZER.decode_completion(c)) for c in row] for row in ids]
    right = [[float(a == w) for a in row] for row, w in zip(answers, "46", strict=True)]
    scores = [verifier(prompts, row) for row in ids]
    made = Samples(prompts, ids, answers, right, {"ORM": scores})
    options = {"n": 4, "max_new_tokens": 8}
    for result, point in (
            (voting.majority_voting(None, TOKENIZER, prompts, **options), measure_vote(made, 4)),
            (voting.best_of_n_sampling(None, TOKENIZER, prompts, verifier, **options),
             measure_best(made, 4, "ORM")),
            (voting.weighted_best_of_n(None, TOKENIZER, prompts, verifier, **options),
             measure_weighted(made, 4, "ORM"))):
        chosen = [row[i] for row, i in zip(right, result.chosen, strict=True)]
        assert point.right == chosen, point.method
        assert (2 * point.prefill, 2 * point.decode, 2 * point.verifier) == (
            result.total.prefill, result.total.decode, result.total.verifier)


# on a policy

ANSWERS = {"=": "<answer>", "<answer>": {"4": 1, "5": 1}, "4": "</answer>", "5": "</answer>",
           "</answer>": END}


def test_samples_of_a_policy(listed):
    """<answer>4</answer> and EOS are four tokens; half of them are right."""
    def right(prompts, completions, answer, **_):
        return [None if "5" in c else float(a in c) for c, a in zip(completions, answer,
                                                                    strict=True)]

    asked = []

    def verifier(prompts, completions):
        asked.extend(map(tuple, completions))
        return [float(TOKENIZER.encode("4")[0] in ids) for ids in completions]

    problems = [Problem("2+2=", "4"), Problem("1+3=", "4")]
    made = draw_samples(chain(ANSWERS), TOKENIZER, listed(problems, {"accuracy": right}), problems,
                        {"ORM": verifier}, n=32, max_new_tokens=6,
                        generator=torch.Generator().manual_seed(0))
    assert made.prompts == [TOKENIZER.encode_prompt(p.prompt) for p in problems]
    for row in range(2):
        assert all(len(ids) == 4 and ids[-1] == TOKENIZER.eos_id for ids in made.completions[row])
        assert set(made.answers[row]) == {"4", "5"}
        assert made.right[row] == [float(answer == "4") for answer in made.answers[row]]
        assert made.scores["ORM"][row] == made.right[row]        # 5 has no verdict, and is wrong
    assert len(asked) == 4, "each prompt has two distinct completions"
    assert made.spent(0, slice(8), verified=True) == Spent(
        len(made.prompts[0]), 32, 2 * (len(made.prompts[0]) + 4))


def test_a_search_is_judged_by_its_choice_and_cut_into_parts(listed, monkeypatch):
    """3 problems, at most 8 rows at a time, 4 for each: two calls."""
    monkeypatch.setattr("minirl.inference.points.ROWS", 8)
    texts = [["<answer>4</answer>", "<answer>5</answer>"]] * 3
    calls = []

    def search(prompts, n, generator):
        calls.append((len(prompts), n))
        ids = [[TOKENIZER.encode(text) for text in row] for row in texts[:len(prompts)]]
        scores = [[0.2, 0.9] if len(calls) == 1 else [0.8, NAN] for _ in prompts]
        return Candidates(ids, [[True] * 2 for _ in prompts], scores,
                          [best_index(row) for row in scores], [Spent(2, 10, 30)] * len(prompts))

    class Counted:
        total = 0

        def update(self, n=1, note=""):
            self.total += n

    def right(prompts, completions, answer, **_):
        return [float(a in c) for c, a in zip(completions, answer, strict=True)]

    problems, progress = [Problem(f"{i}+2=", "4") for i in range(3)], Counted()
    point = measure_search("beam search", search, TOKENIZER, listed(problems, {"accuracy": right}),
                           problems, 4, generator=torch.Generator(), progress=progress)
    assert calls == [(2, 4), (1, 4)] and progress.total == 12
    assert point.right == [0.0, 0.0, 1.0] and point.n == 4
    assert (point.prefill, point.decode, point.verifier) == (2, 10, 30)
    assert point.score == pytest.approx((0.9 + 0.9 + 0.8) / 3) and point.predicted is None
