"""minirl/tasks/preferences.py"""

import json
import math
import random

import pytest

from minirl.tasks.preferences import (
    Demonstration,
    Ranking,
    draw_ranking,
    load_demonstrations,
    load_rankings,
    pairs,
    save_rankings,
    split_rankings,
)


def test_pairs_are_all_comparisons_best_first():
    assert pairs([Ranking("q", ("a", "b", "c")), Ranking("p", ("x", "y"))]) == [
        ("q", "a", "b"),
        ("q", "a", "c"),
        ("q", "b", "c"),
        ("p", "x", "y"),
    ]


@pytest.mark.parametrize(
    "completions, message",
    [
        ((), "0 completions"),
        (("a",), "1 completions"),
        (("a", ""), "an empty completion"),
        (("a", "b", "a"), "two equal"),
    ],
)
def test_rankings_that_teach_nothing_are_refused(completions, message):
    """A pair of equal completions has the loss log 2 whatever is learnt: a floor that nobody sees
    in the curve."""
    with pytest.raises(ValueError, match=f"here, line 3: .*{message}|here, line 3: {message}"):
        Ranking("q", completions, "here, line 3")


def test_every_tenth_prompt_is_held_out_with_all_its_rankings():
    """Half of a prompt's comparisons to learn from and half to judge by would measure memory."""
    twice = [Ranking(f"q{n}", pair) for pair in (("a", "b"), ("c", "d")) for n in range(20)]
    learnt, held_out = split_rankings(twice)
    assert [ranking.prompt for ranking in held_out] == ["q0", "q10", "q0", "q10"]
    assert len(learnt) == 36 and not {r.prompt for r in learnt} & {"q0", "q10"}
    with pytest.raises(ValueError, match="rankings of 1 prompt: at least two are wanted"):
        split_rankings(twice[::20])


# the labeller

def test_the_labeller_follows_bradley_terry():
    """Two completions, rewards 1 and 0, noise 1/2: the better one comes first with probability
    sigmoid(2) = 0.8808."""
    rng, n = random.Random(0), 4000
    rankings = [draw_ranking("q", ["good", "bad"], [1.0, 0.0], rng, noise=0.5) for _ in range(n)]
    first = sum(ranking.completions[0] == "good" for ranking in rankings) / n
    assert first == pytest.approx(1 / (1 + math.exp(-2.0)), abs=3.5 * math.sqrt(0.105 / n))


def test_more_than_two_are_ranked_by_plackett_and_luce():
    """Weights e^r = 3, 2, 1: the first is drawn with 3/6, 2/6, 1/6, the second from the rest; and
    each pair alone is Bradley-Terry (3 : 2 for a, b)."""
    rng, n = random.Random(1), 6000
    rewards = [math.log(3), math.log(2), 0.0]
    orders = ["".join(draw_ranking("q", ["a", "b", "c"], rewards, rng, noise=1.0).completions)
              for _ in range(n)]
    wanted = {"abc": 3 / 6 * 2 / 3, "cab": 1 / 6 * 3 / 5, "bca": 2 / 6 * 1 / 4}
    for order, probability in wanted.items():
        assert orders.count(order) / n == pytest.approx(probability, abs=0.022)
    a_first = sum(order.index("a") < order.index("b") for order in orders)
    assert a_first / n == pytest.approx(3 / 5, abs=0.022)


def test_equal_and_empty_completions_are_not_compared():
    rng = random.Random(0)
    ranking = draw_ranking("q", ["a", "a", "", "b"], [1.0, 1.0, 2.0, 0.0], rng, noise=1.0)
    assert sorted(ranking.completions) == ["a", "b"]
    assert draw_ranking("q", ["a", "a", ""], [1.0, 1.0, 0.0], rng, noise=1.0) is None
    rewards = [float("nan"), None, 0.0, True]  # True is 1
    ranking = draw_ranking("q", ["a", "b", "c", "d"], rewards, rng, noise=1e-9)
    assert ranking.completions == ("d", "c"), "no verdict, no rank: NaN has no place in an order"
    with pytest.raises(ValueError, match="noise is 0"):
        draw_ranking("q", ["a", "b"], [1.0, 0.0], rng, noise=0.0)


# files

def jsonl(tmp_path, *lines):
    """A file of these lines: text, or an object that becomes JSON."""
    file = tmp_path / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def test_trls_preference_format(tmp_path):
    message = [{"role": "assistant", "content": "good"}]
    file = jsonl(tmp_path, {"prompt": "q", "chosen": "good", "rejected": "bad", "extra": 1}, "",
                 {"prompt": "", "chosen": message, "rejected": "bad\u2028가"})
    assert load_rankings(file) == [
        Ranking("q", ("good", "bad"), f"{file}, line 1"),
        Ranking("", ("good", "bad\u2028가"), f"{file}, line 3"),
    ]


def test_whole_rankings_come_back_as_they_were_saved(tmp_path):
    rankings = [Ranking("q", ("a", "b", "c")), Ranking("프롬프트", ("가", "나"))]
    save_rankings(rankings, tmp_path / "r.jsonl")
    loaded = load_rankings(tmp_path / "r.jsonl")
    assert [Ranking(r.prompt, r.completions) for r in loaded] == rankings


def test_trls_prompt_completion_format(tmp_path):
    conversation = {"prompt": [{"role": "user", "content": "p"}],
                    "completion": [{"role": "assistant", "content": "b"}]}
    file = jsonl(tmp_path, {"prompt": "q", "completion": "a"}, conversation)
    assert load_demonstrations(file) == [Demonstration("q", "a", f"{file}, line 1"),
                                         Demonstration("p", "b", f"{file}, line 2")]


TWO_MESSAGES = [{"content": "a"}, {"content": "b"}]


@pytest.mark.parametrize(
    "line, message",
    [
        ({"prompt": "q", "chosen": "a"}, "'rejected' is missing: text is wanted"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "two equal completions"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "'chosen' is empty: leave the line out"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "'chosen' is a int"),
        ('{"prompt": "q", "cho', "is no JSON"),
        ("[1, 2]", "is a list"),
        ({"prompt": "q", "chosen": TWO_MESSAGES, "rejected": "c"}, "a conversation of 2 messages"),
        ({"prompt": "q", "completions": ["a", "b", "a"]}, "two equal completions"),
        ({"prompt": "q", "completions": ["a", ""]}, "'completions' is empty at index 1: leave"),
        ({"prompt": "q", "completions": ["a", "b", None]}, "'completions' is null at index 2"),
        ({"prompt": "q", "completions": ["a", 3]}, "'completions' is a int at index 1"),
        ({"prompt": "q", "completions": None}, "'completions' is missing: text is wanted"),
        ({"prompt": "q", "completions": "a"}, "1 completions"),
    ],
)
def test_bad_lines_are_named(line, message, tmp_path):
    file = jsonl(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, line)
    with pytest.raises(ValueError, match="data.jsonl, line 2") as error:
        load_rankings(file)
    assert message in str(error.value)


@pytest.mark.parametrize("line, message", [
    (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2 is no JSON that can be read"),
    (b'{"prompt": ' + b"9" * 5_000 + b"}", "line 2 is no JSON that can be read"),
    (b'{"prompt": "\x00"}', "line 2 is no JSON that can be read"),
    (b'{"prompt": "\xff\xfe"}', "is not UTF-8 (line 2: "),
    (b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "half of a surrogate pair")])
@pytest.mark.parametrize("load", [load_rankings, load_demonstrations])
def test_lines_that_no_parser_reads_are_named(load, line, message, tmp_path):
    """Lists 100,000 deep were a RecursionError, a number of 5,000 digits a ValueError about
    integers: tracebacks that named neither file nor line."""
    good = {"prompt": "q", "chosen": "a", "rejected": "b", "completion": "a"}
    file = tmp_path / "data.jsonl"
    file.write_bytes(json.dumps(good).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(file) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\n\r\n"])
def test_files_from_another_system(mark, end, tmp_path):
    """A byte order mark, as some editors put it in front, made the first line no JSON."""
    file = tmp_path / "data.jsonl"
    entries = [{"prompt": "가", "completion": "a"}, {"prompt": "q", "completion": "\ufeffb"}]
    lines = [json.dumps(entry, ensure_ascii=False).encode() for entry in entries]
    file.write_bytes(mark + b"".join(line + end for line in lines))
    assert [d[:2] for d in load_demonstrations(file)] == [("가", "a"), ("q", "\ufeffb")]


def test_a_messages_content_may_be_a_list_of_parts(tmp_path):
    """Chat templates for images write it so. A part that is no text must not vanish: what is said
    about a picture would be learnt without it."""
    def message(*parts):
        return [{"role": "assistant", "content": list(parts)}]

    a, b = {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
    pair = {"chosen": message(a, b), "rejected": message(b)}
    file = jsonl(tmp_path, {"prompt": message(a), **pair})
    assert [(r.prompt, r.completions) for r in load_rankings(file)] == [("a", ("ab", "b"))]
    file = jsonl(tmp_path, {"prompt": message(a), "completion": message(b, a)})
    assert load_demonstrations(file) == [Demonstration("a", "ba", f"{file}, line 1")]
    for part, kind in (({"type": "image", "image": "x.png"}, "image"), ({"type": "text"}, "text"),
                       (3, "int")):
        file = jsonl(tmp_path, {"prompt": message(part), "completion": "b"})
        with pytest.raises(ValueError, match=f"line 1: 'prompt' has a part of type {kind}"):
            load_demonstrations(file)
    with pytest.raises(ValueError, match="line 1: 'completion' is empty"):
        load_demonstrations(jsonl(tmp_path, {"prompt": "q", "completion": message()}))


def test_missing_and_empty_files(tmp_path):
    for load in (load_rankings, load_demonstrations):
        with pytest.raises(ValueError, match="there is no file .*nowhere.jsonl"):
            load(tmp_path / "nowhere.jsonl")
        with pytest.raises(ValueError, match="has no lines"):
            load(jsonl(tmp_path, "", "  "))


USER, CHOSEN, REJECTED = ({"role": role, "content": text} for role, text in (
    ("user", "q"), ("assistant", "good"), ("assistant", "bad")))


@pytest.mark.parametrize("entry", [
    {"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]},
    {"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
    {"prompt": "q", "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
    {"prompt": [USER], "completions": [[USER, CHOSEN], [REJECTED]]}])
def test_preferences_with_the_prompt_in_front(entry, tmp_path):
    """TRL's implicit prompts, and data sets that write the prompt in all three columns."""
    ranking, = load_rankings(jsonl(tmp_path, entry))
    assert (ranking.prompt, ranking.completions) == ("q", ("good", "bad"))
    assert getattr(ranking.prompt, "messages", (USER,)) == (USER,)
    with pytest.raises(ValueError, match="line 1: 'rejected' is a conversation of 2 messages"):
        load_rankings(jsonl(tmp_path, {"chosen": [USER, CHOSEN], "rejected": [CHOSEN, REJECTED]}))


def test_demonstrations_of_other_formats(tmp_path):
    """A whole conversation, of which the last message is learnt; and GSM8K's columns."""
    system = {"role": "system", "content": "s"}
    file = jsonl(tmp_path, {"messages": [system, USER, CHOSEN]},
                 {"question": "q", "answer": "work\n#### 5"}, {"problem": "q", "solution": 5})
    demonstrations = load_demonstrations(file)
    assert [d[:2] for d in demonstrations] == [("s\n\nq", "good"), ("q", "work\n#### 5"),
                                               ("q", "5")]
    assert demonstrations[0].prompt.messages == (system, USER)
    (tmp_path / "a.csv").write_text("prompt,completion\nq,a\n")
    assert load_demonstrations(tmp_path / "a.csv")[0][:2] == ("q", "a")
    for messages, says in (([CHOSEN], "'prompt' has no messages"), ([], "'prompt' is missing"),
                           ([CHOSEN, USER], "'messages' does not end with a message of the ass")):
        with pytest.raises(ValueError, match=says):
            load_demonstrations(jsonl(tmp_path, {"messages": messages}))
    with pytest.raises(ValueError, match="line 1: 'answer' is empty"):
        load_demonstrations(jsonl(tmp_path, {"question": "q", "answer": ""}))
