"""minirl/tasks/language.py, as the reward language_consistency asks it."""

import math
import unicodedata

import pytest

from minirl.tasks.rewards import language_consistency


@pytest.mark.parametrize("reasoning, ko, en", [
    ("삼 더하기 사는 칠", 1.0, 0.0),
    ("three plus four is seven", 0.0, 1.0),
    ("삼 plus 사는 seven", 0.5, 0.5),
    ("삼 더하기 four", 2 / 3, 1 / 3),
    ("3 더하기 4 = 7", 1.0, 0.0),  # numbers and signs are in no language
    # 더하기 and 는 are Korean, x and y names: in English two letters of four words
    ("x 더하기 y는 7", 1.0, 1 / 2),
    ("a sum: I add", 0.0, 1.0),  # and in English "a" and "I" are words
    ("don't", 0.0, 1.0),
    ("3더하기four", 0.5, 0.5),
    ("三 プラス 삼", 1 / 3, 0.0),
    ("naïve", 0.0, 1.0),
    ("7+5=12", 0.0, 0.0),
    ("", 0.0, 0.0),
    ("\u1109\u1161\u11b7", 1.0, 0.0),  # 삼, decomposed
])
def test_language_consistency_by_hand(reasoning, ko, en):
    """DeepSeek-R1 v2, eq. 7: words of the target language over words. What stands outside the
    reasoning does not count."""
    completion = f"<think>{reasoning}</think><answer>seven 칠</answer>"
    shares = language_consistency(["q"] * 2, [completion] * 2, ["ko", "en"])
    assert shares == pytest.approx([ko, en])


@pytest.mark.parametrize("completion, en", [
    ("<think><pad></think><answer>5</answer>", 0.0),
    ("<think><pad><eos>", 0.0),
    ("<think><|im_end|><bos></s>[PAD]</think>", 0.0),
    ("<think>사 <pad><pad><pad></think>", 0.0),
    ("<think>three plus <|im_end|> 사</think>", 2 / 3),
    ("<think>a <b>bold</b> sum</think>", 1.0),
    ("<think>사<answer>seven is the answer</answer>", 0.0),  # not closed
    ("<think>사<think>seven is the answer</think>", 0.0),
    ("<think>사</answer>seven", 0.0),
    ("<think>four</thi", 1.0),  # cut off
    ("<think>사 <|im_e", 0.0),
    ("<think>사 [INST] [SUM]</think>", 0.5),  # [SUM] is no markup
    ("<think>is 3 < 4 and 5 > 4 so</think>", 1.0),
    ("<think>사 <seven and 사 > nine</think>", 0.6),
])
def test_markup_is_not_language(completion, en):
    """"<pad>" was an English word, and a policy that samples pad tokens spoke perfect English; so
    did one that left its reasoning open, with the words of its answer."""
    assert language_consistency(["q"], [completion], ["en"]) == [pytest.approx(en)]


@pytest.mark.parametrize("reasoning, ko, en", [
    ("x² plus y² is four", 0.0, 1.0),
    ("½ plus ① is Ⅷ", 0.0, 1.0),
    ("삼² 더하기 ½ 은 ⅷ", 1.0, 0.0),
    ("2ⁿ plus 1º", 0.0, 1.0),
    ("① ² Ⅷ", 0.0, 0.0),
    ("𝑥 plus ｓｉｘ", 0.0, 1.0),
    (unicodedata.normalize("NFD", "naïve sum"), 0.0, 1.0),
    (unicodedata.normalize("NFD", "삼 plus"), 0.5, 0.5),
    ("हिन्दी plus", 0.0, 0.5),
])
def test_numerals_are_no_words(reasoning, ko, en):
    """For Python ², ½, ① and Ⅷ are word characters and no digits: x² was a word of two scripts, and
    "x² plus y² is four" 0.714 English. Other forms of the same letters are the same letters, and a
    vowel sign does not end a word."""
    completion = f"<think>{reasoning}</think>"
    shares = language_consistency(["q"] * 2, [completion] * 2, ["ko", "en"])
    assert shares == pytest.approx([ko, en])


def test_reasoning_that_is_missing_or_not_whole():
    completions = ["칠", "<think>삼 더하기", "<answer>칠</answer>",
                   "<think></think><answer>7</answer>",
                   [{"role": "assistant", "content": "<think>삼</think>"}]]
    assert language_consistency(["q"] * 5, completions, ["ko"] * 5) == [0.0, 1.0, 0.0, 0.0, 1.0]


def test_without_a_language_there_is_no_verdict():
    missing = [None, math.nan]
    assert language_consistency(["q"] * 2, ["<think>삼</think>"] * 2, missing) == [None, None]


def test_languages_that_nobody_knows_are_refused():
    with pytest.raises(ValueError, match="language is 'fr': one of ko, en"):
        language_consistency(["q"], ["<think>un</think>"], ["fr"])
    with pytest.raises(ValueError, match="1 completions and 2 entries"):
        language_consistency(["q"], ["x"], ["ko", "ko"])
