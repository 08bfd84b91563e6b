"""minirl/tasks/bilingual.py"""

import random

import pytest

from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.bilingual import DIGITS, WORDS, Bilingual, demonstrations, told, worked
from minirl.tasks.problem import columns
from minirl.tasks.rewards import language_consistency


def in_language(*languages):
    source = iter(languages)
    return lambda: next(source)


@pytest.mark.parametrize("a, b, languages, text", [
    ("34", "28", ("en", "en"), "four plus eight is one two, three plus two plus one is six"),
    ("34", "28", ("ko", "ko"), "사 더하기 팔 은 일 이, 삼 더하기 이 더하기 일 은 육"),
    ("34", "28", ("en", "ko"), "four plus eight is one two, 삼 더하기 이 더하기 일 은 육"),
    ("99", "1", ("en", "en"), "nine plus one is one zero, nine plus zero plus one is one zero"),
    ("10", "20", ("ko", "ko"), "영 더하기 영 은 영, 일 더하기 이 은 삼")])
def test_sums_are_worked_out_column_by_column(a, b, languages, text):
    assert worked(a, b, in_language(*languages)) == text


def test_problems_are_right_and_told_in_their_language():
    for problem in Bilingual(digits=2).sample(300, random.Random(0)):
        words = problem.prompt.removesuffix(" =").split(" plus " if problem.language == "en" else " 더하기 ")
        a, b = (int("".join(str(DIGITS[problem.language].index(w)) for w in part.split())) for part in words)
        assert int(problem.answer) == a + b and told(str(a), problem.language) == words[0]
        last = [problem.worked.split(", ")[-1].split(" is " if problem.language == "en" else " 은 ")[1]]
        assert "".join(str(DIGITS[problem.language].index(w)) for w in last[0].split()) == problem.answer[:len(last[0].split())]
        said = f"<think>{problem.worked}</think><answer>{problem.answer}</answer>"
        assert language_consistency([""], [said], [problem.language]) == [1.0]
        for reward in Bilingual().rewards.values():
            assert reward([problem.prompt], [said], **columns([problem])) == [1.0]


def test_the_splits_share_no_sum_in_any_language():
    """A sum that is told in English while training must not be held out in Korean."""
    def sums(split):
        return {frozenset(operands(p)) for p in Bilingual(digits=2).sample(2000, random.Random(1), split=split)}

    def operands(p):
        parts = p.prompt.removesuffix(" =").split(" plus ") if " plus " in p.prompt else p.prompt.removesuffix(" =").split(" 더하기 ")
        table = {word: str(d) for language in DIGITS.values() for d, word in enumerate(language)}
        return ["".join(table[w] for w in part.split()) for part in parts]

    train, test = sums("train"), sums("test")
    assert not train & test
    task = Arithmetic("addition", 2)
    assert all(task.split_of(*map(int, (list(ops) * 2)[:2])) == "test" for ops in test)


def test_reasoning_may_be_wanted_in_one_language_whatever_the_prompts():
    problems = Bilingual(reason_in="ko").sample(100, random.Random(0))
    assert {p.language for p in problems} == {"ko"} and any(p.prompt.isascii() for p in problems) and not any(p.worked.isascii() for p in problems)


def test_words_are_one_token_each_and_everything_round_trips():
    tokenizer = build_tokenizer(special_tokens=(*TAGS, *WORDS))
    for problem in Bilingual(digits=3).sample(100, random.Random(0)):
        for text in (problem.prompt, problem.worked):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("삼 사 더하기 이 팔")) == 5 and len(tokenizer.encode("three four plus two eight")) == 5


def test_demonstrations_are_of_the_shares_that_are_asked_for():
    rng, task = random.Random(0), Bilingual(2)
    pairs = demonstrations(task, 600, rng, worked_share=0.5, mixed_share=0.4, guessed_share=1.0)
    reasoned = [c for _, c in pairs if not c.startswith("<think></think>")]
    assert len(reasoned) / 600 == pytest.approx(0.5, abs=0.07)
    mixed = [c for c in reasoned if 0 < language_consistency([""], [c], ["ko"])[0] < 1]
    assert len(mixed) / len(reasoned) == pytest.approx(0.4 / 2, abs=0.07)                  # two columns: half of the mixed ones are in one language by chance
    clean = demonstrations(Bilingual(2, reason_in="ko"), 50, rng)
    assert {language_consistency([""], [c], ["ko"])[0] for _, c in clean} == {1.0}
    with pytest.raises(ValueError, match="mixed_share is 2"):
        demonstrations(task, 1, rng, mixed_share=2)


@pytest.mark.parametrize("work, message", [
    (lambda: Bilingual(languages=("en", "fr")), "languages has fr"), (lambda: Bilingual(languages=()), "languages is empty"), (lambda: Bilingual(reason_in="fr"), "reason_in has fr"),
    (lambda: Bilingual(digits=0), "digits is 0"), (lambda: Bilingual().sample(1, random.Random(0), split="dev"), "split is 'dev'")])
def test_bad_arguments(work, message):
    with pytest.raises(ValueError, match=message):
        work()
