"""What benchmarks/test_time_report.py computes of samples, and the chains of thought that
benchmarks/test_time.py lets models read."""

import math
import random

import pytest

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.rewards import accuracy as right_answers
from tests.benchmark_modules import imported


@pytest.fixture(scope="module")
def modules():
    with imported("test_time", "test_time_report") as modules:
        yield tuple(modules.values())


@pytest.fixture(scope="module")
def study(modules):
    return modules[0]


@pytest.fixture(scope="module")
def report(modules):
    return modules[1]


def problem(*answers, right="1"):
    return {"right": right, "answers": list(answers), "tokens": [len(answers)] * len(answers)}


# ---- votes

def test_majorities_of_disjoint_groups_by_hand(report):
    asked = [problem("1", "2", "2", "1"), problem("1", None, "3", "3")]
    # n = 1: 1 0 0 1 and 1 0 0 0; n = 2: a tie goes to the first, 1 then 2, and 1 then 3
    assert report.majority_at(asked, 1) == 3 / 8
    assert report.majority_at(asked, 2) == 2 / 4
    # n = 4: two 1 and two 2, 1 came first; two 3
    assert report.majority_at(asked, 4) == 1 / 2


def test_the_second_set_of_samples_has_no_vote(report):
    asked = [problem(*["1"] * 64, *["2"] * 64)]
    assert report.majority_at(asked, 64) == 1.0
    assert report.predicted_majority(asked, 64) == 0.0


def test_a_prediction_by_hand(report):
    # 1 with probability 1/2, 2 with 1/4, no answer with 1/4. Two samples: 1 1, 1 and none, 1 then
    # 2: 1/4 + 2/8 + 1/8
    asked = [problem(*["2"] * 64, *["1", "1", "2", None] * 16)]
    assert report.predicted_majority(asked, 2) == pytest.approx(0.625)
    assert report.predicted_majority(asked, 1) == pytest.approx(0.5)


def test_a_tie_is_no_lead(report):
    assert report.right_leads([problem("1", "2", "1"), problem("1", "2"), problem("2", "3"),
                               problem(None, None, "1"), problem(None)]) == 2 / 5


def test_what_is_right_and_whether_any_is(report):
    asked = [problem("1", "2", "3", "1"), problem("2", "2", "2", "2")]
    assert report.accuracy(asked) == 2 / 8
    assert report.any_right(asked, 2) == pytest.approx((1 - 1 / 6) / 2)   # C(2, 2) / C(4, 2) = 1/6
    assert report.mean_of([problem("1"), problem("1", "1", "1")], "tokens") == 10 / 4


def test_right_answers_where_the_work_is_right(report):
    asked = [{"right": "yes", "answers": ["yes", "no", "yes"], "work": [1.0, 1.0, 0.0]},
             {"right": "no", "answers": ["no"], "work": [1.0]}]
    assert report.right_where_worked(asked) == pytest.approx(2 / 3)


def test_cuts_that_leave_whole_columns(report):
    runs = [{report.CUT[1]: [{"most": most, "right": most / 100 + seed} for most in (6, 10, 31)]}
            for seed in (0, 1)]
    assert report.columns(runs, "right") == [[0.1, 1.1], [0.31, 1.31]]


# ---- luck and the advantage

def test_luck_is_a_share_of_what_is_rewarded(report):
    assert report.luck([1, 1, 1, 0], [1, 0, 0, 0]) == pytest.approx(2 / 3)
    assert math.isnan(report.luck([0, 0], [1, 0]))


def test_signal_to_noise_by_hand(report):
    # Rewards 1 1 0 0: advantages a a -a -a. Right work has the rewards 1 1 0: mean a/3, the rest
    # -a. Deviations 2/3 2/3 -4/3 0 (times a): variance (4 + 4 + 16) / 9 / 4 = 2/3
    expected = (1 / 3 + 1) / math.sqrt(2 / 3)
    assert report.signal_to_noise([1, 1, 0, 0], [1, 1, 1, 0], 4) == pytest.approx(expected)
    # two such groups are as one
    assert report.signal_to_noise([1, 1, 0, 0] * 2, [1, 1, 1, 0] * 2, 4) == pytest.approx(expected)


def test_an_advantage_that_knows_nothing_of_the_work_has_no_signal(report):
    assert report.signal_to_noise([1, 0, 1, 0], [1, 1, 0, 0], 4) == pytest.approx(0.0)
    assert math.isnan(report.signal_to_noise([1, 0], [1, 1], 2))          # nothing to compare


def test_windows_hold_several_steps(report):
    steps = [{"right": [1, 0], "work": [1, 0]}] * 7 + [{"right": [1, 1], "work": [0, 0]}] * 2
    curves = report.training_curves([{name: row * 4 for name, row in step.items()}
                                     for step in steps])
    assert report.WINDOW == 8
    assert curves["right"] == [9 / 16, 1.0]               # 7 of 14 and 2 of 2; then 2 of 2
    assert curves["luck"] == [pytest.approx(2 / 9), 1.0]


# ---- what the models read

@pytest.mark.parametrize("columns, work", [
    (0, ""), (1, "7+5+0=12,"), (2, "7+5+0=12,4+8+1=132,"),
    (3, "7+5+0=12,4+8+1=132,_+_+1=0132,"),
    (4, "7+5+0=12,4+8+1=132,_+_+1=0132,_+_+0=00132,"),
])
def test_chains_of_any_length_by_hand(study, columns, work):
    problem = Arithmetic("addition", 2).problem(47, 85)
    assert study.chain(problem, columns) == f"<think>{work}</think><answer>132</answer>"


def test_every_column_that_is_added_spells_the_same_number(study):
    rng = random.Random(0)
    for digits, task in study.SUMS.items():
        for problem in task.sample(50, rng):
            *steps, rest = study.chain(problem, 4).removeprefix("<think>").split(",")
            assert len(steps) == 4 and rest.startswith("</think>")
            for step in steps[digits - 1:]:
                assert int(step.partition("=")[2]) == int(problem.answer)


def test_only_right_answers_pay_for_their_tokens(study):
    texts = ["<answer>5</answer>", "<answer>6</answer>", "5"]
    ids = [[1, 2, 3], [1, 2], [1]]
    prices = study.price(["2+3="] * 3, texts, answer=["5"] * 3, completion_ids=ids)
    assert prices == [3.0, 0.0, 0.0]
    assert right_answers(["2+3="] * 3, texts, ["5"] * 3) == [1.0, 0.0, 0.0]


def test_what_is_kept_is_not_made_again(study, tmp_path):
    file = tmp_path / "seed-0" / "x.json"
    study.kept(file, lambda: {"x": 1})
    study.kept(file, lambda: pytest.fail("it was made again"))
    assert file.read_text() == '{"x": 1}'


def test_a_run_that_fails_leaves_nothing_that_looks_finished(study, tmp_path):
    with pytest.raises(KeyError):
        study.kept(tmp_path / "x.json", lambda: {}["missing"])
    assert not (tmp_path / "x.json").exists()
