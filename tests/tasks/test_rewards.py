"""minirl/tasks/rewards.py"""

import unicodedata
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from minirl.equations.inference_time import majority_vote
from minirl.tasks.rewards import (
    accuracy,
    answer_of,
    combine,
    format_reward,
    judge,
    normalise_answer,
    text,
    weighted_sum,
)


def tagged(content):
    return f"<think></think><answer>{content}</answer>"


@pytest.mark.parametrize("completion, gold, expected", [
    (tagged("1234"), "1234", 1.0),
    (tagged("1,234"), "1234", 1.0),
    (tagged("1234.00"), "1,234", 1.0),
    (tagged(" 1234\n"), " 1234 ", 1.0),
    (tagged("1,234,567.50"), "1234567.5", 1.0),
    (tagged("007"), "7", 1.0),
    (tagged("+5"), "5", 1.0),
    (tagged("-0"), "0", 1.0),
    (tagged("-12"), "-12", 1.0),
    (tagged("12"), "-12", 0.0),
    (tagged("1235"), "1234", 0.0),
    (tagged("0.1"), "0.10", 1.0),
    (tagged("0.1"), "0.11", 0.0),
    (tagged("12,34"), "1234", 0.0),
    (tagged("1 234"), "1234", 0.0),
    (tagged("1234 apples"), "1234", 0.0),
    (tagged("=1234"), "1234", 0.0),
    (tagged("1e3"), "1000", 0.0),
    (tagged("inf"), "1000", 0.0),
    (tagged("nan"), "nan", 1.0),
    (tagged(""), "1234", 0.0),
    (tagged("Paris"), "Paris", 1.0),
    (tagged("paris"), "Paris", 0.0),
    (tagged("x = 2\ny = 3"), "x = 2\ny = 3", 1.0),
    (tagged("9007199254740993"), "9007199254740992", 0.0),  # equal as floats
    (tagged("1234"), 1234, 1.0),
    (tagged("1.5"), 1.5, 1.0),  # a data set may hold numbers
    ("1234", "1234", 0.0),
    ("", "1234", 0.0),
    ("<answer>1234", "1234", 0.0),
    ("1234</answer>", "1234", 0.0),
    ("<think>1234</think>", "1234", 0.0),
    ("<ANSWER>1234</ANSWER>", "1234", 0.0),
    ("<answer>1234</answer> and more", "1234", 1.0),  # form is format_reward's business
    ("<answer>1</answer><answer>1234</answer>", "1234", 0.0),
    ("<answer>1234</answer><answer>1234</answer>", "1234", 0.0),
    ("<answer><answer>1234</answer></answer>", "1234", 0.0),
    (tagged("1234"), None, None),
    ("", None, None),
    (tagged(".5"), "0.5", 1.0),
    (tagged("5."), "5", 1.0),
    (tagged("-.50"), "-0.5", 1.0),
    (tagged("1,234."), "1234", 1.0),
    (tagged("."), "0", 0.0),
    (tagged("-"), "0", 0.0),
    (tagged("1..5"), "1.5", 0.0),
    (tagged("1.5.0"), "1.5", 0.0),
    (tagged("\u22125"), "-5", 1.0),  # the minus that is no hyphen
    (tagged("５"), "5", 1.0),
    (tagged("１，２３４"), "1234", 1.0),  # full-width
    (tagged("1e16"), 1e16, 0.0),
    (tagged("1" + "0" * 16), 1e16, 1.0),
    (tagged("0.0000001"), 1e-7, 1.0),
    (tagged("2.50"), Decimal("2.5"), 1.0),
    (tagged("5"), numpy.float64(5), 1.0),
    (tagged("5"), numpy.int64(5), 1.0),
    (tagged("！～"), "!~", 1.0),  # the first and the last full-width character
    (tagged("a\u3000b"), "a b", 1.0),  # the full-width space
    (tagged("\uff5f"), "\x7f", 0.0),  # the next character is none
    (tagged("x2"), "x²", 0.0),
    (tagged("½"), "1/2", 0.0),  # what NFKC would make equal
])
def test_accuracy(completion, gold, expected):
    """Several answers are wrong even if each is right: otherwise the policy learns to list
    guesses."""
    assert accuracy(["q"], [completion], answer=[gold]) == [expected]


def test_accuracy_of_a_very_long_number():
    """int() refuses more than 4300 digits with a ValueError: one babbling completion stopped the
    run."""
    nines = "9" * 10_000
    answers, golds = [nines, nines[1:] + "8", "0" + nines, nines], [nines, nines, nines, "9"]
    assert accuracy(["q"] * 4, [tagged(a) for a in answers], answer=golds) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("gold", ["", "  ", "\u3000", None, float("nan"), Decimal("NaN"),
                                  numpy.float64("nan")])
def test_without_a_right_answer_there_is_no_verdict(gold):
    """A data set's empty cell was an answer like any other, and whoever answered nothing was right.
    A data frame writes NaN there, and then the text "nan" was right."""
    completions = [tagged(""), tagged("nan"), tagged("5")]
    assert accuracy(["q"] * 3, completions, answer=[gold] * 3) == [None] * 3


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_one_text_in_two_unicode_forms_is_one_answer(form):
    """A tokenizer that decomposes Hangul printed 사과 as four code points, which never equal the
    two of the data set though they look the same."""
    for word in ("사과", "naïve", "Ångström"):
        other = unicodedata.normalize(form, word)
        completions = [tagged(other), tagged(word)]
        assert accuracy(["q"] * 2, completions, answer=[word, other]) == [1.0, 1.0]


def test_equal_answers_are_equal_votes():
    """62, 062 and 62.0 were three answers with one vote each, and 63 won with two."""
    completions = [tagged(answer) for answer in ("62", "63", "62.0", "63", "062", " ")]
    completions += ["62", tagged("62") + tagged("62")]
    answers = [answer_of(completion) for completion in completions]
    assert answers == ["62", "63", "62", "63", "62", None, None, None]
    assert majority_vote(answers) == normalise_answer("+62.00") == "62"
    assert answer_of([{"role": "assistant", "content": tagged("사과")}]) == "사과"


def test_normalised_answers_stay():
    """Otherwise a vote's winner, spelt once, would not be equal to the answer, spelt twice."""
    for answer in ("-0.0", "1,234.50", "+.5", "\u22127", " a\u3000b ", "１．０", "A\u030a", "12,34",
                   "-", "", "0" * 50, "9" * 5000 + ".10"):
        once = normalise_answer(answer)
        assert normalise_answer(once) == once


def test_accuracy_takes_each_completion_with_its_own_answer():
    completions = [tagged("1"), tagged("2"), tagged("3")]
    verdicts = accuracy(["q"] * 3, completions, answer=["1", "3", None], worked=[""] * 3,
                        extra=[0] * 3)
    assert verdicts == [1.0, 0.0, None]
    assert accuracy([], [], answer=[]) == []
    for answers in ([], ["1"], ["1"] * 3):
        with pytest.raises(ValueError, match="answer"):
            accuracy(["q"] * 2, [tagged("1")] * 2, answer=answers)


GOOD = "<think>1+1=2</think><answer>2</answer>"


@pytest.mark.parametrize("completion, expected", [
    (GOOD, 1.0),
    (tagged(""), 1.0),
    (f"\n {GOOD}\n", 1.0),
    ("<think>a\nb</think>\n\n<answer>2\n</answer>", 1.0),
    ("<think>1 < 2 > 0</think><answer><b></answer>", 1.0),
    ("", 0.0),
    ("2", 0.0),
    ("<answer>2</answer>", 0.0),
    ("<think>1+1=2</think>", 0.0),
    ("<answer>2</answer><think>1+1=2</think>", 0.0),  # order
    (f"So: {GOOD}", 0.0),
    (f"{GOOD}.", 0.0),
    ("<think>a</think>so<answer>2</answer>", 0.0),  # text before, after, between
    (GOOD + GOOD, 0.0),
    (GOOD + "<answer>3</answer>", 0.0),
    (GOOD + "</answer>", 0.0),
    ("<think>" + GOOD, 0.0),
    (GOOD + "<think>", 0.0),
    ("<think>a<think>b</think></think><answer>2</answer>", 0.0),
    ("<think>a</think><answer><think>b</think>2</answer>", 0.0),
    ("<think>a<answer>2</answer></think>", 0.0),
    ("<think>a<answer></think>2</answer>", 0.0),
    ("<answer><think>a</think>2</answer>", 0.0),
    ("<think>a</think><answer>2", 0.0),
    ("<think>a<answer>2</answer>", 0.0),
    ("<think>a</think><answer>2</answer", 0.0),
    ("<Think>a</Think><answer>2</answer>", 0.0),
])
def test_format_reward(completion, expected):
    """Each tag once: a second pair was a loophole, since the non-greedy pattern is content with the
    first."""
    assert format_reward(["q"], [completion], answer=["2"]) == [expected]


@pytest.mark.parametrize("reward", [accuracy, format_reward])
def test_conversations(reward):
    """TRL hands over a list of messages for a conversational data set: the last one's content
    counts."""
    chats = [[message("hm"), message(GOOD)], [message("2")]]
    assert reward([[message("1+1=", "user")]] * 2, chats, answer=["2", "2"]) == [1.0, 0.0]


def message(content, role="assistant"):
    return {"role": role, "content": content}


def part(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize("completion, expected", [
    ([message([part(GOOD)])], GOOD),
    ([message([part("a"), {"type": "image", "image": "x.png"}, part("b")])], "ab"),
    ([message("5+6="), message("11", "tool"), message(GOOD), message("12", "tool")], GOOD),
    ([message(GOOD, "tool")], ""),
    ([message(GOOD, "user")], ""),
    ([], ""),
    ([message("a"), message(None) | {"tool_calls": [{}]}], ""),
    ([{"content": GOOD}], GOOD),
    ([{"role": "assistant"}], ""),
    ([message([])], ""),
    (GOOD, GOOD),
])
def test_a_completion_is_what_the_assistant_said_last(completion, expected):
    """The content of the last message was taken, whosever it was: a tool's result earned the
    policy's reward. And a list of parts, as chat templates for images have it, was no text: right
    answers got 0 for their form and for their content."""
    assert text(completion) == expected


def fixed(*verdicts):
    return lambda prompts, completions, **_: list(verdicts)


@pytest.mark.parametrize("verdicts, weights, expected", [
    (((1.0, 0.0, 1.0), (1.0, 1.0, 0.0)), (1.0, 0.5), [1.5, 0.5, 1.0]),
    # None: no verdict; from all: still none
    (((1.0, None, None), (None, 1.0, None)), (1.0, 0.5), [1.0, 0.5, None]),
    (((0.0, 2.0),), (-3.0,), [0.0, -6.0]),
    (((1.0, None), (1.0, 1.0)), (0.0, 0.0), [0.0, 0.0]),
    (((None, None), (None, None), (None, None)), (1, 1, 1), [None, None]),
])
def test_combine(verdicts, weights, expected):
    combined = combine([fixed(*v) for v in verdicts], weights)
    assert combined(["q"] * len(expected), [""] * len(expected)) == expected


def test_combine_hands_the_columns_on():
    both = combine([accuracy, format_reward], [1.0, 0.5])
    completions, answers = [GOOD, tagged("3"), "<answer>2</answer>", GOOD], ["2", "2", "2", None]
    verdicts = both(["q"] * 4, completions, answer=answers, worked=[""] * 4)
    assert verdicts == [1.5, 0.5, 1.0, 0.5]


def test_combine_of_mismatched_lengths_raises():
    both = [accuracy, format_reward]
    for rewards, weights in (([accuracy], []), ([accuracy], [1.0, 1.0]), ([], []), (both, [1.0])):
        with pytest.raises(ValueError, match="weights"):
            combine(rewards, weights)
    # a reward that loses a completion must not shift the others
    with pytest.raises(ValueError, match="gave 1 of them"):
        combine([fixed(1.0, 1.0), fixed(1.0)], [1.0, 1.0])(["q"] * 2, ["", ""])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("nothing", [None, NAN, Decimal("NaN"), numpy.float32("nan"),
                                     torch.tensor(NAN)])
def test_none_and_nan_are_both_no_verdict(nothing):
    """Beside other verdicts a None counted as 0, and a NaN made NaN of the sum: one silent judge,
    and the completion was thrown away."""
    assert weighted_sum([[nothing, nothing], [1.0, nothing]], [1, 1]) == [1.0, None]
    both = combine([fixed(nothing, nothing), fixed(1.0, nothing)], [1.0, 1.0])
    assert both(["q"] * 2, ["", ""]) == [1.0, None]
    assert judge({"a": fixed(nothing, 0.0)}, ["a"], ["q"] * 2, ["", ""]) == {"a": [None, 0.0]}


@pytest.mark.parametrize("one", [1, True, Decimal(1), Fraction(1), numpy.float64(1),
                                 numpy.bool_(True), torch.tensor(1.0), torch.tensor([1]),
                                 torch.tensor(True)])
def test_whatever_is_a_number_is_a_verdict(one):
    """A Decimal was let in, and then float times Decimal was a TypeError in the weighted sum."""
    verdicts = judge({"a": fixed(one, None)}, ["a"], ["q"] * 2, ["", ""])["a"]
    assert verdicts == [1.0, None] and type(verdicts[0]) is float
    assert weighted_sum([[one], [0.25]], [0.5, 2.0]) == [1.0]


@pytest.mark.parametrize("verdicts", [torch.tensor([1.0, NAN]), numpy.array([1.0, NAN]),
                                      torch.tensor([[1.0], [NAN]]), (1.0, None), iter([1.0, None])])
def test_whatever_is_a_row_of_numbers_is_a_list_of_verdicts(verdicts):
    assert judge({"a": lambda **_: verdicts}, ["a"], ["q"] * 2, ["", ""]) == {"a": [1.0, None]}


@pytest.mark.parametrize("verdict", [INF, -INF, Decimal("Infinity"), torch.tensor(INF),
                                     numpy.float32("-inf")])
def test_an_infinite_verdict_is_refused_by_name(verdict):
    """It reached the advantages, whose error knew no reward's name."""
    with pytest.raises(ValueError, match="the reward 'a' gave .*, which is not finite: a list"):
        judge({"a": fixed(0.0, verdict)}, ["a"], ["q"] * 2, ["", ""])


def test_a_reward_of_weight_zero_is_only_watched():
    """A true reward that is plotted beside the learnt one once turned "no verdict" into a reward of
    0, and its own NaN into everybody's."""
    verdicts = [[None, 3.0, 1.0], [5.0, 5.0, float("nan")]]
    assert weighted_sum(verdicts, [1.0, 0.0]) == [None, 3.0, 1.0]


@pytest.mark.parametrize("verdicts, came", [
    ([1.0], "1 of them"),
    ([1.0, 0.0, 1.0], "3 of them"),
    (None, "None"),
    (1.0, "1.0"),
    ([1.0, "yes"], "'yes'"),
])
def test_a_reward_that_does_not_judge_each_completion_is_named(verdicts, came):
    """PPO trained on without a word where a function gave one number for eight completions: the
    others were left out as if without a verdict."""
    def hasty(prompts, completions, **_):
        return verdicts

    for ask in (
        lambda: judge({"hasty": hasty}, ["hasty"], ["p", "p"], ["a", "b"]),
        lambda: combine([hasty], [1.0])(["p", "p"], ["a", "b"]),
    ):
        message = f"'hasty' gave {came}: a list of one number .* the 2 completions"
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize("names", [["a"], ("a",), {"a": 1.0}, iter(["a"]), (n for n in "a")])
def test_any_iterable_of_names_will_do(names):
    """An iterator was used up by the check of the names, and nothing was judged."""
    assert judge({"a": fixed(1.0), "b": fixed(0.0)}, names, ["p"], ["x"]) == {"a": [1.0]}


def test_the_named_rewards_alone_judge():
    def none(completions, **_):
        return [None for _ in completions]

    def length(completions, **_):
        return [float(len(completion)) for completion in completions]

    rewards = {"long": length, "none": none}
    verdicts = judge(rewards, ["none", "long"], ["p", "p"], ["a", "bcd"])
    assert verdicts == {"none": [None, None], "long": [1.0, 3.0]} and list(verdicts)[0] == "none"
    with pytest.raises(ValueError, match="no reward 'short': one of long, none is wanted"):
        judge(rewards, ["short"], ["p"], ["a"])
