"""minirl/tasks/gsm8k.py"""

import json
import os
import random
import time

import pytest

from minirl.tasks.gsm8k import (
    GSM8K,
    WordProblem,
    calculations,
    final_accuracy,
    final_answer,
    load_gsm8k,
    without_calculations,
)
from minirl.tasks.problem import columns
from minirl.tasks.rewards import judge

EGGS = {"question": "Ann has 16 eggs, eats 3 and sells the rest for $2 each. How much is it?",
        "answer": "She sells 16-3 = <<16-3=13>>13 eggs.\nShe gets 13*2 = $<<13*2=26>>26.\n#### 26"}
LOSS = {"question": "Ben sells a house for 70,000 that cost 71,000. How much did he win?",
        "answer": "70,000-71,000 = -<<71000-70000=1000>>1,000\n#### -1,000"}


def write(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("text, answer", [
    ("#### 18", "18"), ("a\nb\n#### 1,234", "1234"), ("####1234.00", "1234"), ("#### -10", "-10"),
    ("#### 1,450,000\n", "1450000"), ("#### 2.50", "2.5"), ("####\n18", "18"), ("#### 007", "7"),
    ("<answer>18</answer>", "18"), ("<think>3+4</think><answer> 1,234 </answer>", "1234"),
    ("<answer>\n18\n</answer>", "18"), ("<answer>#### 18</answer>", "18"),
    ("<answer>18</answer>#### 18.0", "18"),
    ("<answer>$5</answer>", "5"), ("<answer>-$5.50</answer>", "-5.5"),
    ("<answer>$-5.50</answer>", "-5.5"), ("<answer>\\$5</answer>", "5"), ("#### 5%", "5"),
    ("#### 18 dollars.", "18"), ("#### 18.", "18"), ("#### **18**", "18"), ("#### +18", "18"),
    ("#### \\boxed{18}", "18"), ("#### \u22123", "-3"), ("#### １８", "18"), ("#### -0", "0"),
    ("so \\boxed{18}", "18"), ("$\\boxed{1{,}234}$.", "1234"), ("\\boxed{3} no, \\boxed{4}", "4"),
    ("<answer>\\boxed{18}</answer>", "18"), ("\\boxed{18 \\text{ eggs}}", "18"),
    ("\\boxed{3} #### 4", "4"), ("\\boxed{18", None), ("<think>\\boxed{18}", None),
    ("\\boxed{\\frac{1}{2}}", None), ("\\boxed", None),
    ("#### 18</answer>", "18"), ("#### 18\n#### 18", "18"), ("18 #### 19\n20", "19"),
    ("#### " + "9" * 5000, "9" * 5000),
    ("", None), ("18", None), ("<think>18</think>", None), ("####", None), ("#### none", None),
    ("### 18", None), ("<answer>18", None), ("18</answer>", None), ("<answer></answer>", None),
    ("<answer>1/2</answer>", None), ("#### 3 or 4", None), ("#### 1e5", None), ("#### 1,23", None),
    ("#### 3\n#### 4", None), ("<answer>3</answer><answer>4</answer>", None),
    ("<answer>3<answer>4</answer>", None), ("<answer>3</answer> #### 4", None),
    ("#### 3\n####", None), ("#### 10-3", None), ("#### 1 234", None), ("#### ١٨", None),
])
def test_final_answers(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize("text", ["<answer>" * 10**5, "####" * 10**5, "#### " + "9" * 10**6,
                                  "#### " + "1,111" * 10**5, "<answer>" + "</answer>" * 10**5])
def test_long_completions_are_read_in_a_moment(text):
    start = time.thread_time()
    final_answer(text)
    assert time.thread_time() - start < 1


def test_calculations_by_hand():
    assert calculations(EGGS["answer"]) == [("16-3", "13"), ("13*2", "26")]
    assert calculations("none") == [] == calculations("<<5>> <<2+3>> 1<2>>1 <<2\n+3=5>>")
    assert calculations("a <<3/4=3/4>>b<<.5*2=1.00>>") == [("3/4", "3/4"), (".5*2", "1.00")]
    assert without_calculations(EGGS["answer"]) == (
        "She sells 16-3 = 13 eggs.\nShe gets 13*2 = $26.\n#### 26")


def test_a_file_is_problems_in_its_order(tmp_path):
    problems = load_gsm8k(write(tmp_path / "some.jsonl", EGGS, LOSS))
    assert len(problems) == 2 and [p.answer for p in problems] == ["26", "-1000"]
    eggs = problems[0]
    assert eggs.prompt == EGGS["question"] and eggs.solution == EGGS["answer"]
    assert eggs.worked == "She sells 16-3 = 13 eggs.\nShe gets 13*2 = $26."
    assert problems[1].worked == "70,000-71,000 = -1,000"
    assert problems[:1] == (eggs,) and list(problems) == list(problems.problems)


def test_a_folder_has_a_file_per_split(tmp_path):
    write(tmp_path / "train-2.jsonl", EGGS, LOSS)
    write(tmp_path / "test.jsonl", {**EGGS, "answer": "#### 5"})
    write(tmp_path / "test_socratic.jsonl", EGGS)    # as in the original repository
    (tmp_path / "LICENSE").write_text("free")
    task = load_gsm8k(tmp_path, template="Q: {question}\nA {0}:")
    assert [p.split for p in task] == ["train", "train", "test"]
    assert task[0].prompt == f"Q: {EGGS['question']}\nA {{0}}:"
    assert {p.answer for p in task.sample(20, random.Random(0))} == {"26", "-1000"}
    assert {p.answer for p in task.sample(5, random.Random(0), split="test")} == {"5"}


def test_a_single_file_is_split_by_its_questions(tmp_path):
    entries = [{"question": f"What is {n}+0?", "answer": f"#### {n}"} for n in range(500)]
    task = load_gsm8k(write(tmp_path / "a.jsonl", *entries))
    held_out = {p.prompt for p in task if p.split == "test"}
    assert 25 <= len(held_out) <= 75    # 50 +- 6.7
    for split in ("train", "test"):
        drawn = task.sample(200, random.Random(1), split=split)
        assert {p.prompt in held_out for p in drawn} == {split == "test"}
    reverse = load_gsm8k(write(tmp_path / "b.jsonl", *reversed(entries)))
    assert {p.prompt for p in reverse if p.split == "test"} == held_out


@pytest.mark.parametrize("line, says", [
    ("nonsense", "line 3 is no JSON"), ("[1]", "line 3 is a list"),
    ('{"question": "a?"}', "line 3: 'answer' is missing"),
    ('{"answer": "#### 1"}', "line 3: 'question' is missing"),
    ('{"question": "", "answer": "#### 1"}', "line 3: 'question' is empty"),
    ('{"question": "a?", "answer": 5}', "line 3: 'answer' is a int"),
    ('{"question": "a?", "answer": "it is 5"}', "line 3: the answer has no final number"),
    ('{"question": "a?", "answer": "#### five"}', "line 3: the answer has no final number")])
def test_a_malformed_line_is_named(tmp_path, line, says):
    path = write(tmp_path / "a.jsonl", EGGS)
    path.write_text(f"{path.read_text()}\n{line}\n")    # line 2 is blank, which is no fault
    with pytest.raises(ValueError, match=f"a.jsonl, {says}"):
        load_gsm8k(path)


def test_other_columns_and_formats(tmp_path):
    """Columns go to the rewards; a number alone is an answer; a prompt may be a conversation."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    task = load_gsm8k(write(tmp_path / "a.jsonl", {"prompt": chat, "answer": "2", "level": 3},
                            {"prompt": chat, "answer": "#### 2"}), split="train")
    assert [p.answer for p in task] == ["2", "2"] and task[0].prompt.messages == tuple(chat)
    assert columns(list(task))["level"] == [3, None] and "others" not in columns(list(task))
    (tmp_path / "a.csv").write_text('question,answer,topic\nHow much?,"1,234",eggs\n')
    eggs, = load_gsm8k(tmp_path / "a.csv", split="train")
    assert eggs.columns == {"answer": "1234", "worked": "", "written": "", "solution": "1,234",
                            "split": "train", "topic": "eggs"}
    with pytest.raises(ValueError, match="line 1 has a column 'prompts', under which"):
        load_gsm8k(write(tmp_path / "a.jsonl", {**EGGS, "prompts": 1}))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no train.jsonl and no test.jsonl"):
        load_gsm8k(tmp_path)
    with pytest.raises(ValueError, match="there is no file"):
        load_gsm8k(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="template is 'Q:': a text with {question}"):
        load_gsm8k(write(tmp_path / "a.jsonl", EGGS), template="Q:")
    only_train = write(tmp_path / "train.jsonl", EGGS).parent
    with pytest.raises(ValueError, match="none is in the test split"):
        load_gsm8k(only_train).sample(1, random.Random(0), split="test")


def test_it_is_a_task(tmp_path):
    task = load_gsm8k(write(tmp_path / "train.jsonl", EGGS, LOSS).parent)
    assert task.name == "GSM8K" and task.weights == {"accuracy": 1.0, "format_reward": 1.0}
    problems = list(task)
    texts = ["<think>16-3=13</think><answer>26</answer>", "I think\n#### -1,000"]
    verdicts = judge(task.rewards, task.weights, [p.prompt for p in problems], texts,
                     **columns(problems))
    assert verdicts == {"accuracy": [1.0, 1.0], "format_reward": [1.0, 0.0]}
    assert isinstance(problems[0], WordProblem) and hash(task) == hash(GSM8K(task.problems))


def test_accuracy_reads_numbers_whole_solutions_and_conversations():
    golds = [26, "1,000", EGGS["answer"], None, float("nan"), ""]
    texts = ["#### 26.0", "<answer>1000</answer>", "<answer>26 dollars</answer>"] + ["#### 5"] * 3
    assert final_accuracy([""] * 6, texts, answer=golds) == [1.0, 1.0, 1.0, None, None, None]
    assert final_accuracy([""] * 3, ["#### 27", "26", ""], answer=["26"] * 3) == [0.0, 0.0, 0.0]
    chat = [{"role": "assistant", "content": "#### 26"}]
    assert final_accuracy([""], [chat], answer=["26"]) == [1.0]


@pytest.mark.skipif("GSM8K" not in os.environ, reason="GSM8K is no folder of GSM8K's .jsonl files")
def test_every_reference_answer_of_gsm8k_is_read():
    task = load_gsm8k(os.environ["GSM8K"])
    assert len(task) > 1000 and all(float(p.answer) == int(p.answer) for p in task)
    solutions = [p.solution for p in task]
    assert final_accuracy(solutions, solutions, [p.answer for p in task]) == [1.0] * len(task)
    assert all(len(calculations(s)) == s.count("<<") for s in solutions)
    assert not any("<<" in p.worked or "####" in p.worked for p in task)
