"""minirl/tasks/bilingual.py"""

import random

import pytest

from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.bilingual import DIGITS, PLACES, WORDS, Bilingual, added, answered, brief, demonstrations, spoken, told, worked
from minirl.tasks.problem import columns
from minirl.tasks.rewards import language_consistency


def in_language(*languages):
    source = iter(languages)
    return lambda: next(source)


@pytest.mark.parametrize("a, b, languages, text", [
    ("34", "28", ("en", "en"), "ones: four plus eight is one two, tens: three plus two plus one is six"),
    ("34", "28", ("ko", "ko"), "일의 자리: 사 더하기 팔 은 일 이, 십의 자리: 삼 더하기 이 더하기 일 은 육"),
    ("34", "28", ("en", "ko"), "ones: four plus eight is one two, 십의 자리: 삼 더하기 이 더하기 일 은 육"),
    ("99", "1", ("en", "en"), "ones: nine plus one is one zero, tens: nine plus zero plus one is one zero"),
    ("100", "200", ("ko", "en", "ko"), "일의 자리: 영 더하기 영 은 영, tens: zero plus zero is zero, 백의 자리: 일 더하기 이 은 삼")])
def test_sums_are_worked_out_column_by_column(a, b, languages, text):
    assert worked(a, b, in_language(*languages)) == text


def numbers_in(prompt):
    """The two numbers that a prompt tells, read back from its words: place words are passed over, any other word parts them."""
    figures, parts = {word: str(d) for words in DIGITS.values() for d, word in enumerate(words)}, [[]]
    places = {place.strip() for words in PLACES.values() for place in words}
    for word in prompt.replace(".", " ").replace(",", " , ").split():
        if word in figures:
            parts[-1].append(figures[word])
        elif parts[-1] and word not in places:
            parts.append([])
    return tuple("".join(part) for part in parts if part)


def test_numbers_are_told_by_their_places():
    assert spoken("304", "en") == " three hundreds zero tens four" and spoken("304", "ko") == " 삼 백 영 십 사" and spoken("7", "en") == " seven"
    assert spoken("12345", "ko") == " 일 만 이 천 삼 백 사 십 오" and told("304", "en") == " three zero four"


def test_problems_are_right_and_told_in_their_language():
    kinds = set()
    for problem in Bilingual((1, 2, 3)).sample(600, random.Random(0)):
        a, b = numbers_in(problem.prompt)
        assert (a, b) == problem.numbers and int(problem.answer) == int(a) + int(b) and len(a) == len(b)
        assert spoken(a, problem.language) in problem.prompt and problem.prompt.isascii() == (problem.language == "en")
        kinds.add((len(a), problem.language, problem.prompt.endswith(" =")))
        said = f"<think>{problem.worked}</think><answer>{problem.answer}</answer>"
        for reward in Bilingual().rewards.values():
            assert reward([problem.prompt], [said], **columns([problem])) == [1.0]
    assert len(kinds) == 12, "every length, in both languages, as a sum and as a story"
    assert all(p.prompt.endswith(" =") for p in Bilingual(stories=0.0).sample(50, random.Random(0)))
    assert not any(p.prompt.endswith(" =") for p in Bilingual(stories=1.0).sample(50, random.Random(0)))


def test_the_splits_share_no_sum_however_it_is_told():
    """A sum that is told in English while training must not be held out as a story in Korean."""
    def sums(split):
        return {frozenset(numbers_in(p.prompt)) for p in Bilingual((2,)).sample(2000, random.Random(1), split=split)}

    train, test = sums("train"), sums("test")
    assert not train & test
    task = Arithmetic("addition", 2)
    assert all(task.split_of(*map(int, (list(ops) * 2)[:2])) == "test" for ops in test)


def test_reasoning_may_be_wanted_in_one_language_whatever_the_prompts():
    problems = Bilingual(reason_in="ko").sample(100, random.Random(0))
    assert {p.language for p in problems} == {"ko"} and any(p.prompt.isascii() for p in problems) and not any(p.worked.isascii() for p in problems)


def test_words_are_one_token_each_and_everything_round_trips():
    tokenizer = build_tokenizer(special_tokens=(*TAGS, *WORDS))
    for problem in Bilingual((3,)).sample(100, random.Random(0)):
        for text in (problem.prompt, problem.worked):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("계산: 삼 십 사 더하기 이 십 팔 =")) == len(tokenizer.encode("add three tens four plus two tens eight =")) == 9
    assert len(tokenizer.encode("ones: four plus eight is one two, tens: six")) == 9


@pytest.mark.parametrize("a, b, text, answer", [("34", "28", "ones: one two, tens: six", "62"), ("99", "1", "ones: one zero, tens: one zero", "100"),
                                                 ("10", "20", "ones: zero, tens: three", "30")])
def test_brief_reasoning_tells_the_totals_of_columns(a, b, text, answer):
    totals = [column[-1] for column in added(a, b)]
    assert brief(totals, lambda: "en") == text and answered(totals) == answer
    assert brief(totals, in_language("ko", "en")).isascii() is False


def test_demonstrations_are_of_the_shares_that_are_asked_for():
    rng, task, table = random.Random(0), Bilingual((2,)), {p.prompt: p for p in Bilingual((2,)).sample(60_000, random.Random(1))}
    pairs = [(prompt, c) for prompt, c in demonstrations(task, 1500, rng, worked_share=0.5, brief_share=0.3, mixed_share=0.4, slip_share=0.5) if prompt in table]
    total = len(pairs)
    assert total > 1000
    none = [pair for pair in pairs if pair[1].startswith("<think></think>")]
    long = [pair for pair in pairs if any(word in pair[1] for word in ("plus", "더하기"))]
    short = [pair for pair in pairs if pair not in none and pair not in long]
    assert [len(part) / total for part in (long, short, none)] == pytest.approx([0.5, 0.3, 0.2], abs=0.06)

    def right(part):
        return sum(task.rewards["accuracy"]([p], [c], [table[p].answer])[0] for p, c in part) / len(part)

    assert right(long) == 1.0 and right(short) == pytest.approx(0.5, abs=0.1) and right(none) == pytest.approx(0.5, abs=0.1)      # half of the hasty ones slip
    mixed = [c for _, c in long if 0 < language_consistency([""], [c], ["ko"])[0] < 1]
    assert len(mixed) / len(long) == pytest.approx(0.4 / 2, abs=0.07)                  # two columns: half of the mixed ones are in one language by chance
    bare = [c for _, c in demonstrations(task, 400, rng, bare_share=0.25) if "<" not in c]
    assert len(bare) / 400 == pytest.approx(0.25, abs=0.07) and all(c.split()[-1].isdigit() for c in bare)
    clean = demonstrations(Bilingual((2,), reason_in="ko"), 50, rng)
    assert {language_consistency([""], [c], ["ko"])[0] for _, c in clean} == {1.0}


@pytest.mark.parametrize("shares, message", [(dict(mixed_share=2), "mixed_share is 2"), (dict(slip_share=-0.1), "slip_share is -0.1"),
                                             (dict(worked_share=0.8, brief_share=0.4), r"worked_share \+ brief_share is 1.2")])
def test_shares_are_shares(shares, message):
    with pytest.raises(ValueError, match=message):
        demonstrations(Bilingual(), 1, random.Random(0), **shares)


@pytest.mark.parametrize("work, message", [
    (lambda: Bilingual(languages=("en", "fr")), "languages has fr"), (lambda: Bilingual(languages=()), "languages is empty"), (lambda: Bilingual(reason_in="fr"), "reason_in has fr"),
    (lambda: Bilingual((0,)), "digits is 0"), (lambda: Bilingual(2), "digits is 2: a tuple"), (lambda: Bilingual(stories=2.0), "stories is 2.0"),
    (lambda: Bilingual().sample(-1, random.Random(0)), "n is -1"), (lambda: Bilingual().sample(1, random.Random(0), split="dev"), "split is 'dev'")])
def test_bad_arguments(work, message):
    with pytest.raises(ValueError, match=message):
        work()
