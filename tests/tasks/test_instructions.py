"""minirl/tasks/instructions.py"""

import random

import pytest

from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.instructions import (
    FRAMES,
    KINDS,
    WORDS,
    Instructions,
    answer_to,
    answers,
    pretraining_text,
    right_answer,
    true_reward,
    wrong_answer,
)
from minirl.tasks.problem import split_of

EVEN = (1, 1, 1, 1)


def kind_and_content(prompt):
    return prompt.removesuffix(":").split(" ", 1)


@pytest.mark.parametrize(
    "kind, content, answer",
    [
        ("sort", "dbca", "abcd"),
        ("sort", "baab", "aabb"),
        ("copy", "dbca", "dbca"),
        ("count", "dbcaa", "5"),
        ("politely", "3+4 for ann", "7, dear ann"),
        ("politely", "5+5 for tom", "10, dear tom"),
    ],
)
def test_what_an_instruction_asks_for(kind, content, answer):
    assert answer_to(kind, content) == answer


def test_problems_have_the_answers_that_they_ask_for():
    problems = Instructions().sample(400, random.Random(0))
    assert {p.prompt.split()[0] for p in problems} == set(KINDS)
    assert all(p.answer == answer_to(*kind_and_content(p.prompt)) for p in problems)


def test_splits_are_disjoint_and_the_same_seed_gives_the_same():
    train, test = (
        {p.prompt for p in Instructions().sample(500, random.Random(0), split=split)}
        for split in ("train", "test")
    )
    assert not train & test and all(split_of(p) == "test" for p in test)
    task = Instructions()
    assert task.sample(20, random.Random(3)) == task.sample(20, random.Random(3))


@pytest.mark.parametrize(
    "completion, right",
    [
        ("abcd", 1.0),
        ("it is abcd", 1.0),
        ("the answer is abcd", 1.0),
        ("well, the answer is abcd", 1.0),
        ("abdc", 0.0),
        ("abcd abdc", 0.0),
        ("abcd\nabcd", 0.0),
        ("well, abcd", 0.0),
        ("", 0.0),
        ("it is it is abcd", 0.0),
        ("abcd ", 0.0),
    ],
)
def test_right_is_the_answer_and_nothing_else(completion, right):
    """Listing several answers, of which one is right, must not pay."""
    assert right_answer(["sort dbca:"], [completion], ["abcd"]) == [right]
    message = [{"role": "assistant", "content": completion}]
    assert right_answer(["sort dbca:"], [message], ["abcd"]) == [right]


@pytest.mark.parametrize(
    "completion, reward",
    [
        ("abcd", 2 - 4 / 32),
        ("the answer is abcd", 2 - 18 / 32),
        ("abdc", -4 / 32),
        ("", 0.0),
        ("x" * 32, -1.0),
        ("x" * 500, -1.0),
    ],
)
def test_the_true_reward_by_hand(completion, reward):
    """2 for a right answer, 1/32 less for each character, at most 1."""
    assert true_reward(["sort dbca:"], [completion], ["abcd"]) == [pytest.approx(reward)]


def test_any_right_answer_is_better_than_any_wrong_one():
    gold = ["10, dear sue"]
    worst_right = true_reward([""], ["well, the answer is 10, dear sue"], gold)[0]
    assert worst_right > true_reward([""], [""], gold)[0] and worst_right >= 1.0


def test_answers_are_right_as_often_as_asked_and_else_answer_something_else():
    task, rng = Instructions(), random.Random(1)
    for share in (0.0, 0.6, 1.0):
        pairs = answers(task, 600, rng, right_share=share, frame_weights=EVEN)
        golds = [answer_to(*kind_and_content(prompt)) for prompt, _ in pairs]
        right = sum(right_answer(*zip(*pairs, strict=True), golds)) / len(pairs)
        assert right == pytest.approx(share, abs=0.06) and (share == 0.6 or right == share)
    pairs = answers(task, 400, rng, right_share=1.0, frame_weights=(0, 0, 0, 1))
    assert all(completion.startswith("well, the answer is ") for _, completion in pairs)
    assert FRAMES[0] == "{}" and sorted(FRAMES, key=len) == list(FRAMES)


def test_a_wrong_answer_is_never_right_by_chance():
    """To sort "aabb" is also to copy it: then the length is the answer."""
    rng = random.Random(0)
    for problem in Instructions().sample(1000, rng):
        assert wrong_answer(problem, rng) != problem.answer


def test_words_are_one_token_each_and_everything_round_trips():
    tokenizer, rng = build_tokenizer(special_tokens=(*TAGS, *WORDS)), random.Random(0)
    assert all(len(tokenizer.encode(word)) == 1 for word in WORDS)
    pairs = answers(Instructions(), 200, rng, right_share=0.5, frame_weights=EVEN)
    for text in [*pretraining_text(200, rng), *(text for pair in pairs for text in pair)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # "the answer is ", "1", "0", ", dear ", "sue"
    assert len(tokenizer.encode("the answer is 10, dear sue")) == 5


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda rng: Instructions(kinds=("sing",)), "not sing"),
        (lambda rng: Instructions(kinds=()), "kinds are"),
        (lambda rng: Instructions(longest=2), "longest is 2"),
        (lambda rng: Instructions().sample(1, rng, split="dev"), "split is 'dev'"),
        (lambda rng: Instructions().sample(-1, rng), "n is -1"),
        (
            lambda rng: answers(Instructions(), 1, rng, right_share=2.0, frame_weights=EVEN),
            "right_share is 2",
        ),
        (
            lambda rng: answers(Instructions(), 1, rng, right_share=0.5, frame_weights=(1,)),
            "one weight for each of the 4 frames",
        ),
    ],
)
def test_bad_arguments(work, message):
    with pytest.raises(ValueError, match=message):
        work(random.Random(0))
