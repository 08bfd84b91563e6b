"""minirl/tasks/bilingual.py"""

import random

import pytest

from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.bilingual import (
    DIGITS,
    LANGUAGES,
    PLACES,
    WORDS,
    Bilingual,
    BilingualProblem,
    addition_columns,
    answer_from,
    brief_reasoning,
    demonstrations,
    long_reasoning,
    reasoning_words,
    rewrite,
    words_by_digit,
    words_by_place,
)
from minirl.tasks.problem import columns
from minirl.tasks.rewards import accuracy, language_consistency


def in_language(*languages):
    source = iter(languages)
    return lambda: next(source)


@pytest.mark.parametrize(
    "a, b, languages, text",
    [
        ("34", "28", ("en", "en"),
         "ones: four plus eight is one two, tens: three plus two plus one is six"),
        ("34", "28", ("ko", "ko"),
         "일의 자리: 사 더하기 팔 은 일 이, 십의 자리: 삼 더하기 이 더하기 일 은 육"),
        ("34", "28", ("en", "ko"),
         "ones: four plus eight is one two, 십의 자리: 삼 더하기 이 더하기 일 은 육"),
        ("99", "1", ("en", "en"),
         "ones: nine plus one is one zero, tens: nine plus zero plus one is one zero"),
        ("100", "200", ("ko", "en", "ko"),
         "일의 자리: 영 더하기 영 은 영, tens: zero plus zero is zero, "
         "백의 자리: 일 더하기 이 은 삼"),
    ],
)
def test_sums_are_worked_out_column_by_column(a, b, languages, text):
    assert long_reasoning(a, b, in_language(*languages)) == text


def numbers_in(prompt):
    """The two numbers that a prompt names, read back from its words: place words are passed over,
    any other word parts them."""
    figures = {word: str(d) for words in DIGITS.values() for d, word in enumerate(words)}
    places = {place.strip() for words in PLACES.values() for place in words}
    parts = [[]]
    for word in prompt.replace(".", " ").replace(",", " , ").split():
        if word in figures:
            parts[-1].append(figures[word])
        elif parts[-1] and word not in places:
            parts.append([])
    return tuple("".join(part) for part in parts if part)


def test_numbers_are_named_by_their_places():
    assert words_by_place("304", "en") == " three hundreds zero tens four"
    assert words_by_place("304", "ko") == " 삼 백 영 십 사"
    assert words_by_place("7", "en") == " seven"
    assert words_by_place("12345", "ko") == " 일 만 이 천 삼 백 사 십 오"
    assert words_by_digit("304", "en") == " three zero four"


def test_problems_are_right_and_in_their_language():
    kinds = set()
    for problem in Bilingual((1, 2, 3)).sample(600, random.Random(0)):
        a, b = numbers_in(problem.prompt)
        assert (a, b) == problem.numbers and len(a) == len(b)
        assert int(problem.answer) == int(a) + int(b)
        assert words_by_place(a, problem.language) in problem.prompt
        assert problem.prompt.isascii() == (problem.language == "en")
        kinds.add((len(a), problem.language, problem.prompt.endswith(" =")))
        completion = f"<think>{problem.worked}</think><answer>{problem.answer}</answer>"
        for reward in Bilingual().rewards.values():
            assert reward([problem.prompt], [completion], **columns([problem])) == [1.0]
    assert len(kinds) == 12, "every length, in both languages, as a sum and as a story"
    sums, stories = (Bilingual(stories=share).sample(50, random.Random(0)) for share in (0.0, 1.0))
    assert all(p.prompt.endswith(" =") for p in sums)
    assert not any(p.prompt.endswith(" =") for p in stories)


def test_the_splits_share_no_sum_however_it_is_asked():
    """A sum that is asked in English while training must not be held out as a story in Korean."""
    def sums(split):
        problems = Bilingual((2,)).sample(2000, random.Random(1), split=split)
        return {frozenset(numbers_in(p.prompt)) for p in problems}

    train, test = sums("train"), sums("test")
    assert not train & test
    task = Arithmetic("addition", 2)
    assert all(task.split_of(*map(int, (list(ops) * 2)[:2])) == "test" for ops in test)


def test_reasoning_may_be_wanted_in_one_language_whatever_the_prompts():
    problems = Bilingual(reason_in="ko").sample(100, random.Random(0))
    assert {p.language for p in problems} == {"ko"}
    assert any(p.prompt.isascii() for p in problems)
    assert not any(p.worked.isascii() for p in problems)


def test_words_are_one_token_each_and_everything_round_trips():
    tokenizer = build_tokenizer(special_tokens=(*TAGS, *WORDS))
    for problem in Bilingual((3,)).sample(100, random.Random(0)):
        for text in (problem.prompt, problem.worked):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    for text in ("계산: 삼 십 사 더하기 이 십 팔 =", "add three tens four plus two tens eight =",
                 "ones: four plus eight is one two, tens: six"):
        assert len(tokenizer.encode(text)) == 9


@pytest.mark.parametrize(
    "a, b, text, answer",
    [
        ("34", "28", "ones: one two, tens: six", "62"),
        ("99", "1", "ones: one zero, tens: one zero", "100"),
        ("10", "20", "ones: zero, tens: three", "30"),
        ("4", "5", "ones: nine", "9"),
    ],
)
def test_brief_reasoning_has_the_totals_of_columns(a, b, text, answer):
    totals = [column.total for column in addition_columns(a, b)]
    assert brief_reasoning(totals, lambda: "en") == text and answer_from(totals) == answer
    assert not brief_reasoning(totals, in_language("ko", "en")).isascii()


def test_demonstrations_are_of_the_shares_that_are_asked_for():
    rng, task = random.Random(0), Bilingual((2,))
    table = {p.prompt: p for p in Bilingual((2,)).sample(60_000, random.Random(1))}
    pairs = demonstrations(task, 1500, rng, worked_share=0.5, brief_share=0.3, mixed_share=0.4,
                           slip_share=0.5)
    pairs = [pair for pair in pairs if pair[0] in table]
    total = len(pairs)
    assert total > 1000
    none = [pair for pair in pairs if pair[1].startswith("<think></think>")]
    long = [pair for pair in pairs if any(word in pair[1] for word in ("plus", "더하기"))]
    short = [pair for pair in pairs if pair not in none and pair not in long]
    shares = [len(part) / total for part in (long, short, none)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.06)

    def right(part):
        return sum(accuracy([p], [c], [table[p].answer])[0] for p, c in part) / len(part)

    assert right(long) == 1.0
    assert right(short) == pytest.approx(0.5, abs=0.1)  # half of the hasty ones slip
    assert right(none) == pytest.approx(0.5, abs=0.1)
    # two columns: half of the mixed ones are in one language by chance
    mixed = [c for _, c in long if 0 < language_consistency([""], [c], ["ko"])[0] < 1]
    assert len(mixed) / len(long) == pytest.approx(0.4 / 2, abs=0.07)
    bare = [c for _, c in demonstrations(task, 400, rng, bare_share=0.25) if "<" not in c]
    assert len(bare) / 400 == pytest.approx(0.25, abs=0.07)
    assert all(c.split()[-1].isdigit() for c in bare)
    clean = demonstrations(Bilingual((2,), reason_in="ko"), 50, rng)
    assert {language_consistency([""], [c], ["ko"])[0] for _, c in clean} == {1.0}


# one language instead of two


@pytest.mark.parametrize(
    "completion, language, wanted",
    [
        # long reasoning, a column in each language
        ("<think>ones: four plus eight is one two, 십의 자리: 삼 더하기 이 더하기 일 은 육"
         "</think><answer>62</answer>", "en",
         "<think>ones: four plus eight is one two, tens: three plus two plus one is six"
         "</think><answer>62</answer>"),
        ("<think>ones: four plus eight is one two, 십의 자리: 삼 더하기 이 더하기 일 은 육"
         "</think><answer>62</answer>", "ko",
         "<think>일의 자리: 사 더하기 팔 은 일 이, 십의 자리: 삼 더하기 이 더하기 일 은 육"
         "</think><answer>62</answer>"),
        # both languages inside a column, and every column's name
        ("<think>일의 자리: zero 더하기 영 is 영, hundreds: 구, 천의 자리: 칠, "
         "만의 자리: 오</think><answer>5</answer>", "en",
         "<think>ones: zero plus zero is zero, hundreds: nine, thousands: seven, "
         "ten-thousands: five</think><answer>5</answer>"),
        ("<think>ten-thousands: one, thousands: two, hundreds: three, tens: four, ones: five"
         "</think>", "ko",
         "<think>만의 자리: 일, 천의 자리: 이, 백의 자리: 삼, 십의 자리: 사, 일의 자리: 오"
         "</think>"),
        # a number by its places
        ("<think>삼 백 영 십 사</think>", "en", "<think>three hundreds zero tens four</think>"),
        # all of it in the other language
        ("<think>ones: six</think><answer>6</answer>", "ko",
         "<think>일의 자리: 육</think><answer>6</answer>"),
        # no tags
        ("ones: one two, 십의 자리: 육 62", "en", "ones: one two, tens: six 62"),
    ],
)
def test_the_other_languages_words_are_replaced(completion, language, wanted):
    problem = BilingualProblem("", "62", language=language)
    assert rewrite(problem, completion) == wanted
    assert rewrite(problem, wanted) == wanted


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "62",
        "<think></think><answer>62</answer>",
        "<think>ones: six</think><answer>이</answer>",  # the answer, whatever it is
        "<think>ones: six</think><answer>팔 더하기",
        "<think>사과 구이 은행 일일 4 + 5 = 9</think>",  # longer words that contain one of ours
        "<think>someone 안녕하세요, 감사합니다</think>",
        "<think>x²: Überfluß ½ \n\t\x00</think>",
    ],
)
def test_answers_and_other_text_stay_as_they_are(completion):
    assert rewrite(BilingualProblem("", "62", language="en"), completion) == completion


def test_parts_of_words_are_not_replaced():
    problem = BilingualProblem("", "62", language="ko")
    text = "<think>someone, phone: island, plussed, four5, _six, nines</think>"
    assert rewrite(problem, text) == text


def language_of(prompt, reason_in):
    return reason_in or ("en" if prompt.isascii() else "ko")


@pytest.mark.parametrize("reason_in", [*LANGUAGES, None])
def test_rewritten_reasoning_is_what_one_language_would_have_said(reason_in):
    task, mixed = Bilingual((1, 2, 3, 4, 5), reason_in=reason_in), 0
    for prompt, completion in demonstrations(task, 300, random.Random(2), mixed_share=1):
        language = language_of(prompt, reason_in)
        problem = BilingualProblem(prompt, "", language=language)
        rewritten = rewrite(problem, completion)
        a, b = numbers_in(prompt)
        reasoning = long_reasoning(a, b, in_language(*[language] * len(a)))
        assert rewritten == f"<think>{reasoning}</think><answer>{int(a) + int(b)}</answer>"
        share, = language_consistency([prompt], [completion], [language])
        assert (rewritten == completion) == (share == 1.0)
        mixed += 0 < share < 1
    assert mixed > 100


@pytest.mark.parametrize("reason_in", [*LANGUAGES, None])
def test_any_rewritten_reasoning_is_consistent_and_keeps_its_answer(reason_in):
    shares = {"worked_share": 0.3, "brief_share": 0.7, "slip_share": 0.5, "mixed_share": 1}
    task = Bilingual(reason_in=reason_in)
    for prompt, completion in demonstrations(task, 300, random.Random(3), **shares):
        problem = BilingualProblem(prompt, "", language=language_of(prompt, reason_in))
        rewritten = rewrite(problem, completion)
        assert language_consistency([prompt], [rewritten], [problem.language]) == [1.0]
        assert rewritten.partition("<answer>")[2] == completion.partition("<answer>")[2]
        assert rewrite(problem, rewritten) == rewritten


def test_every_word_has_one_counterpart():
    english, korean = (reasoning_words(language) for language in LANGUAGES)
    assert len(english) == len(korean) == len({*english, *korean}) / 2
    for word, same in zip(english, korean, strict=True):
        texts = {"en": f"<think>{word}", "ko": f"<think>{same}"}
        for language, text in texts.items():
            problem = BilingualProblem("", "", language=language)
            assert rewrite(problem, texts["en"]) == rewrite(problem, texts["ko"]) == text


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"mixed_share": 2}, "mixed_share is 2"),
        ({"slip_share": -0.1}, "slip_share is -0.1"),
        ({"worked_share": 0.8, "brief_share": 0.4}, r"worked_share \+ brief_share is 1.2"),
    ],
)
def test_shares_are_shares(shares, message):
    with pytest.raises(ValueError, match=message):
        demonstrations(Bilingual(), 1, random.Random(0), **shares)


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda: Bilingual(languages=("en", "fr")), "languages has fr"),
        (lambda: Bilingual(languages=()), "languages is empty"),
        (lambda: Bilingual(reason_in="fr"), "reason_in has fr"),
        (lambda: Bilingual((0,)), "digits is 0"),
        (lambda: Bilingual(2), "digits is 2: a tuple"),
        (lambda: Bilingual(stories=2.0), "stories is 2.0"),
        (lambda: Bilingual().sample(-1, random.Random(0)), "n is -1"),
        (lambda: Bilingual().sample(1, random.Random(0), split="dev"), "split is 'dev'"),
    ],
)
def test_bad_arguments(work, message):
    with pytest.raises(ValueError, match=message):
        work()
