"""minirl/tasks/dataset.py"""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirl.tasks import dataset
from minirl.tasks.dataset import Dataset, hold_out, load_dataset
from minirl.tasks.problem import columns, split_of
from minirl.tasks.rewards import judge
from minirl.tasks.user_rewards import with_rewards

CHAT = [{"role": "user", "content": "What is 6*7?"}]


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path, *rows, **options):
    return load_dataset(written(tmp_path / "mine.jsonl", *rows), **options)


def verdicts(task, problem, *texts):
    names = columns([problem], repeat=len(texts))
    return judge(task.rewards, ["accuracy"], [problem.prompt] * len(texts), list(texts),
                 **names)["accuracy"]


# formats

@pytest.mark.parametrize("row, answer, work", [
    ({"prompt": "What is 6*7?", "answer": "42"}, "42", ""),
    ({"prompt": "What is 6*7?", "answer": 42}, "42", ""),
    ({"question": "What is 6*7?", "answer": "6*7 is 42.\n#### 42"}, "42", "6*7 is 42."),
    ({"problem": "What is 6*7?", "solution": r"It is $\boxed{42}$."}, "42", r"It is $\boxed{42}$."),
    ({"prompt": CHAT, "solution": "$42$"}, "$42$", ""),
    ({"prompt": "What is 6*7?", "ground_truth": "<think>6*7</think><answer>42</answer>"}, "42",
     "6*7"),
    ({"prompt": "What is 6*7?", "completion": "work\n#### 42"}, "42", "work"),
    ({"prompt": CHAT, "completion": [{"role": "assistant", "content": r"\boxed{42}"}]}, "42",
     r"\boxed{42}")])
def test_a_record_is_a_problem(row, answer, work, tmp_path):
    problem, = load(tmp_path, row).problems
    assert (problem.prompt, problem.answer, problem.worked) == ("What is 6*7?", answer, work)
    task = load(tmp_path, row)
    assert verdicts(task, problem, "#### 42", r"\boxed{42.0}", "<answer>42</answer>", "42",
                    "#### 41") == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("row", [
    {"prompt": "Write a poem."}, {"prompt": "Write a poem.", "completion": "Roses are red."},
    {"prompt": "Write a poem.", "chosen": "Roses are red.", "rejected": "No."}])
def test_without_an_answer_there_is_no_verdict(row, tmp_path):
    task = load(tmp_path, row)
    assert verdicts(task, task.problems[0], "#### 42", "") == [None, None]


def test_all_columns_are_handed_to_rewards_as_they_are(tmp_path):
    rows = [{"question": "1?", "answer": "a\n#### 1", "level": 3, "tags": ["x"], "a name": None},
            {"question": "2?", "answer": 2, "extra": {"a": 1}}]
    task = load(tmp_path, *rows, split="train")
    assert columns(task.problems, repeat=2) == {
        "answer": ["a\n#### 1"] * 2 + [2] * 2, "level": [3, 3, None, None], "a name": [None] * 4,
        "tags": [["x"]] * 2 + [None] * 2, "extra": [None] * 2 + [{"a": 1}] * 2}
    got = {}

    def mine(prompts, completions, answer, level, **others):
        got.update(prompts=prompts, completions=completions, answer=answer, others=sorted(others))
        return [float(x) for x in level]

    judged = with_rewards(task, {"mine": 1.0}, {"mine": mine})
    assert judge(judged.rewards, ["mine"], ["1?"], ["text"], **columns(task.problems[:1])) == {
        "mine": [3.0]}
    assert got == {"prompts": ["1?"], "completions": ["text"], "answer": ["a\n#### 1"],
                   "others": ["a name", "extra", "tags"]}


def test_rewards_of_conversations_get_messages_as_in_trl(tmp_path):
    """TRL's own read completion[0]["content"]."""
    task = load(tmp_path, {"prompt": CHAT, "solution": "42"}, system_prompt="Be brief.")
    problem, = task.problems
    assert problem.prompt == "Be brief.\n\nWhat is 6*7?"
    assert problem.prompt.messages == ({"role": "system", "content": "Be brief."}, *CHAT)

    def theirs(prompts, completions, solution, **_):
        assert prompts == [list(problem.prompt.messages)]
        return [float(completion[0]["content"] == gold)
                for completion, gold in zip(completions, solution, strict=True)]

    judged = with_rewards(task, {"theirs": 1.0}, {"theirs": theirs})
    assert judge(judged.rewards, ["theirs"], [problem.prompt], ["42"], **columns([problem])) == {
        "theirs": [1.0]}


def test_a_system_prompt_makes_a_conversation_of_text(tmp_path):
    problem, = load(tmp_path, {"prompt": "6*7=", "answer": 42}, system_prompt="Be brief.").problems
    assert problem.prompt.messages == ({"role": "system", "content": "Be brief."},
                                       {"role": "user", "content": "6*7="})


# what is held out

def rows_of(n):
    return [{"prompt": f"What is {i}+0?", "answer": i} for i in range(n)]


def test_a_tenth_is_held_out_and_added_records_move_no_others(tmp_path):
    task = load(tmp_path, *rows_of(500))
    held_out = {p.prompt for p in task.split["test"]}
    assert 25 <= len(held_out) <= 75    # 50 +- 6.7
    for split in ("train", "test"):
        drawn = task.sample(300, random.Random(1), split=split)
        assert {p.prompt in held_out for p in drawn} == {split == "test"}
    assert task.sample(9, random.Random(1)) == task.sample(9, random.Random(1))
    more = load(tmp_path, *reversed(rows_of(1000)), system_prompt="Be brief.")
    kept = {p.prompt.messages[-1]["content"] for p in more.split["test"]}
    assert held_out <= kept and not kept & {p.prompt for p in task.split["train"]}
    assert task.name == (f"mine.jsonl, {500 - len(held_out)} problems and {len(held_out)} held out")


def test_a_small_file_holds_out_one_prompt(tmp_path):
    """Of five records mostly none falls into the tenth; of one, nothing can be held out."""
    rows = [row for row in rows_of(100) if split_of(row["prompt"]) == "train"][:5]
    task = load(tmp_path, *rows, rows[0], rows[1])
    assert len({p.prompt for p in task.split["test"]}) == 1
    assert len({p.prompt for p in task.split["train"]}) == 4
    one = load(tmp_path, rows[0])
    assert len(one.sample(3, random.Random(0))) == 3 and one.sample(0, random.Random(0)) == []
    with pytest.raises(ValueError, match="mine.jsonl: of 1 problems none is in the test split"):
        one.sample(1, random.Random(0), split="test")


@given(st.lists(st.tuples(st.text(max_size=3), st.sampled_from([None, "train", "test"]))))
def test_nothing_that_is_held_out_is_trained_on(records):
    keys, splits = [key for key, _ in records], [split for _, split in records]
    chosen = hold_out(keys, splits)
    train = {key for key, split in zip(keys, chosen, strict=True) if split == "train"}
    test = {key for key, split in zip(keys, chosen, strict=True) if split == "test"}
    assert not train & test and train | test == set(keys)
    assert all(split != "test" or now == "test" for split, now in zip(splits, chosen, strict=True))


def test_a_column_says_what_is_held_out(tmp_path):
    rows = [{**row, "split": split} for row, split in zip(
        rows_of(5), ("train", "test", "validation", "dev", "train"), strict=True)]
    task = load(tmp_path, *rows)
    assert [p.split for p in task.problems] == ["train", "test", "test", "test", "train"]


def test_files_say_what_is_held_out(tmp_path):
    for folder, names in (("a", ("train.jsonl", "test.jsonl", "train.txt", "train-more.jsonl")),
                          ("b", ("train-00000.jsonl", "train-00001.jsonl", "validation.jsonl"))):
        (tmp_path / folder).mkdir()
        for i, name in enumerate(names):
            written(tmp_path / folder / name, rows_of(10)[i], rows_of(10)[9])
    answers = [(p.answer, p.split) for p in load_dataset(tmp_path / "a").problems]
    assert answers == [("0", "train"), ("1", "test"), ("9", "test")], "9 is held out"
    answers = [(p.answer, p.split) for p in load_dataset(tmp_path / "b").problems]
    assert answers == [("0", "train"), ("1", "train"), ("2", "test"), ("9", "test")]

    file, other = written(tmp_path / "x.jsonl", *rows_of(30)), tmp_path / "a" / "test.jsonl"
    task = load_dataset(file, eval_path=other)
    assert {p.answer for p in task.split["test"]} == {"1", "9"} and len(task.split["train"]) == 28
    assert load_dataset(file, eval_path=tmp_path / "a").problems == task.problems
    whole = load_dataset(file, split="test")
    assert len(whole.split["test"]) == 30 and not whole.split["train"]
    with pytest.raises(ValueError, match="split is 'dev'"):
        load_dataset(file, split="dev")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="has no train.jsonl and no test.jsonl"):
        load_dataset(tmp_path / "c")
    with pytest.raises(ValueError, match="split is 'dev': train or test"):
        task.sample(1, random.Random(0), split="dev")
    with pytest.raises(ValueError, match="n is -1"):
        task.sample(-1, random.Random(0))


# what is wrong

@pytest.mark.parametrize("row, says", [
    ({"answer": "1"}, "line 2: 'prompt' is missing"),
    ({"prompt": None, "answer": "1"}, "line 2: 'prompt' is missing"),
    ({"prompt": "", "answer": "1"}, "line 2: 'prompt' is empty: leave the record out"),
    ({"prompt": 5, "answer": "1"}, "line 2: 'prompt' is a number, and text in .*line 1"),
    ({"prompt": CHAT, "answer": "1"}, "line 2: 'prompt' is a list, and text in .*line 1"),
    ({"prompt": "b?"}, "line 2: 'answer' is missing: text or a number is wanted, or no column"),
    ({"prompt": "b?", "answer": None}, "line 2: 'answer' is missing"),
    ({"prompt": "b?", "answer": ""}, "line 2: 'answer' is empty"),
    ({"prompt": "b?", "answer": float("nan")}, "line 2: 'answer' is nan"),
    ({"prompt": "b?", "answer": [1]}, "line 2: 'answer' is a list: text or a number"),
    ({"prompt": "b?", "answer": True}, "line 2: 'answer' is a bool"),
    ({"prompt": "b?", "answer": "\ud800"}, "line 2: 'answer' holds half of a surrogate"),
    ({"prompt": "b?", "answer": "1", "level": "hard"}, "'level' is text, and a number in .*line 1"),
    ({"prompt": "b?", "answer": "1", "completions": "x"}, "a column 'completions', under which"),
    ({"prompt": "b?", "answer": "1", "split": "x"}, "'split' is 'x': train or test or validation")])
def test_a_record_that_is_wrong_is_named(row, says, tmp_path):
    with pytest.raises(ValueError, match=says) as error:
        load(tmp_path, {"prompt": "a?", "answer": "1", "level": 3}, row)
    assert f"{tmp_path}/mine.jsonl, line 2" in str(error.value)


@pytest.mark.parametrize("row, says", [
    ({"query": "a?", "gold": 1}, "line 1 has the columns query, gold: a prompt .*; rename"),
    ({"text": "a"}, "line 1 has the columns text: a prompt"),
    ({"prompt": [{"role": "user"}]}, "line 1: 'content of message 1' is missing"),
    ({"prompt": [*CHAT, {"role": "assistant", "content": "x"}]}, "ends with a message of the ass")])
def test_a_file_of_another_format_is_named(row, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        load(tmp_path, row)


def test_csv_and_parquet(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,level\nWhat is 6*7?,42,1\nAnd 6*8?,48,\n")
    task = load_dataset(tmp_path / "a.csv", split="train")
    assert [(p.prompt, p.answer) for p in task.problems] == [("What is 6*7?", "42"),
                                                             ("And 6*8?", "48")]
    assert columns(task.problems)["level"] == ["1", None]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"prompt": CHAT, "answer": 42}, {"prompt": CHAT, "answer": 43}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    task = load_dataset(tmp_path / "a.parquet", split="train")
    assert [(p.prompt.messages, p.answer) for p in task.problems] == [(tuple(CHAT), "42"),
                                                                      (tuple(CHAT), "43")]


# formulas

def test_math_verify_is_asked_where_it_is_installed(tmp_path, monkeypatch):
    row = {"prompt": "Factor.", "answer": "x^2-1"}
    monkeypatch.setattr(dataset, "is_installed", lambda: False)
    assert load(tmp_path, row).same is None
    monkeypatch.setattr(dataset, "MathVerify", lambda: "asked")
    assert load(tmp_path, row, math_verify=True).same == "asked"
    monkeypatch.setattr(dataset, "is_installed", lambda: True)
    assert load(tmp_path, row).same == "asked"
    assert load(tmp_path, row, math_verify=False).same is None


def test_it_is_a_task_that_can_be_hashed(tmp_path):
    task = load(tmp_path, *rows_of(3), math_verify=False)
    assert task.weights == {"accuracy": 1.0, "format_reward": 1.0}
    assert isinstance(hash(task), int) and len({*task.problems, *task.problems}) == 3
    assert task == Dataset(task.problems, "mine.jsonl")
