"""minirl/tasks/length_rewards.py: rewards for length and repetition, in TRL's signature."""

import pytest

from minirl.tasks.length_rewards import cosine_length, repetition_penalty, soft_overlong_punishment
from minirl.tasks.rewards import format_reward, judge

RIGHT, WRONG = "<think></think><answer>2</answer>", "<think></think><answer>3</answer>"


def ids(*lengths):
    return [list(range(length)) for length in lengths]


def asked(reward, completions, **columns):
    prompts = ["1+1="] * len(completions)
    return judge({"r": reward}, ["r"], prompts, completions, **columns)["r"]


# cos 0°, 60°, 90°: shares 1, 3/4, 1/2 of the way from the longest to the shortest
@pytest.mark.parametrize("length, if_right, if_wrong", [
    (0, 2.0, -10.0), (4, 1.75, -7.5), (6, 1.5, -5.0), (12, -10.0, -10.0), (13, -10.0, -10.0)])
@pytest.mark.parametrize("form", [str, lambda text: [{"role": "assistant", "content": text}]],
                         ids=["text", "conversation"])
def test_cosine_length(length, if_right, if_wrong, form):
    verdicts = asked(cosine_length(12), [form(RIGHT), form(WRONG)], answer=["2", "2"],
                     completion_ids=ids(length, length))
    assert verdicts == [if_right, if_wrong]


def test_cosine_length_has_no_verdict_where_there_is_no_right_answer():
    verdicts = asked(cosine_length(12), [RIGHT, RIGHT], answer=[None, "2"],
                     completion_ids=ids(12, 6))
    assert verdicts == [None, 1.5]


def test_cosine_length_with_numbers_and_a_verdict_of_ones_own():
    reward = cosine_length(10, right=(1.0, 0.5), wrong=(-1.0, -0.5), too_long=-2.0,
                           verdict=format_reward)
    verdicts = asked(reward, [WRONG, "3", "3"], completion_ids=ids(5, 5, 10), other=[1, 2, 3])
    assert verdicts == [0.75, -0.75, -2.0]


def test_half_right_is_not_right():
    half = cosine_length(12, verdict=lambda **_: [0.5, 1.0])
    assert asked(half, ["", ""], completion_ids=ids(6, 6)) == [-5.0, 1.5]


def test_no_completions_are_no_verdicts():
    columns = {"completion_ids": [], "answer": []}
    for reward in (cosine_length(9), repetition_penalty(), soft_overlong_punishment(9, 3)):
        assert asked(reward, [], **columns) == []


@pytest.mark.parametrize("make, name", [
    (lambda: cosine_length(9), "cosine_length"), (repetition_penalty, "repetition_penalty"),
    (lambda: soft_overlong_punishment(9, 3), "soft_overlong_punishment")])
def test_metrics_get_a_name(make, name):
    assert make().__name__ == name


@pytest.mark.parametrize("make, message", [
    (lambda: cosine_length(0), "max_length is 0"), (lambda: repetition_penalty(0), "n is 0"),
    (lambda: repetition_penalty(max_penalty=1.0), "max_penalty 1.0"),
    (lambda: soft_overlong_punishment(9, 10), "cache 10"),
    (lambda: soft_overlong_punishment(9, 0), "cache 0")])
def test_numbers_are_checked_before_the_first_call(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_inputs_stay():
    completions, columns = [RIGHT], {"answer": ["2"], "completion_ids": [[5, 5, 5, 5]]}
    for reward in (cosine_length(9), repetition_penalty(), soft_overlong_punishment(9, 3)):
        asked(reward, completions, **columns)
    assert completions == [RIGHT] and columns == {"answer": ["2"], "completion_ids": [[5] * 4]}


# parity with TRL, where it is installed

LENGTHS = [0, 1, 79, 80, 81, 85, 90, 99, 100, 101, 500]


def test_soft_overlong_punishment_is_trls():
    trl = pytest.importorskip("trl.rewards")
    theirs = trl.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    ours = soft_overlong_punishment(100, 20)
    assert asked(ours, [""] * len(LENGTHS), completion_ids=ids(*LENGTHS)) == pytest.approx(
        theirs(ids(*LENGTHS)), abs=1e-6)


@pytest.mark.parametrize("n, max_penalty", [(1, -1.0), (2, -0.5), (3, -1.0), (5, 0.0)])
def test_repetition_penalty_is_trls(n, max_penalty):
    trl = pytest.importorskip("trl.rewards")
    theirs = trl.get_repetition_penalty_reward(ngram_size=n, max_penalty=max_penalty)
    rows = [[], [1], [1, 1], [1, 2, 1, 2, 1, 2], [7] * 50, [*range(30)], [1, 2, 3] * 9 + [4]]
    ours = asked(repetition_penalty(n, max_penalty=max_penalty), [""] * 7, completion_ids=rows)
    assert ours == pytest.approx(theirs(rows))
