"""A data set for TRL, and its own rewards: minirl hands them what TRL does. Skipped where TRL or
math-verify is not installed."""

import json
import random

import pytest

from minirl.tasks.dataset import load_dataset
from minirl.tasks.problem import columns
from minirl.tasks.rewards import judge
from minirl.tasks.user_rewards import with_rewards
from tests.parity.trl_stand_ins import NO_TRL

pytest.importorskip("trl", reason=NO_TRL)
pytest.importorskip("math_verify", reason="math-verify is not installed")

# (solution, completion, what TRL's accuracy_reward says, and ours)
JUDGED = [
    (r"\frac{1}{3}", r"so \boxed{\frac{1}{3}}", 1.0, 1.0),
    (r"\frac{1}{3}", r"so \boxed{\frac{2}{6}}", 1.0, 1.0),
    (r"\frac{1}{3}", r"so \boxed{\frac{1}{2}}", 0.0, 0.0),
    ("1234", r"\boxed{1,234}", 1.0, 1.0),
    ("1234", r"\boxed{1234.0}", 1.0, 1.0),
    (r"$\frac{\sqrt{2}}{2}$", r"\boxed{\frac{1}{\sqrt{2}}}", 1.0, 1.0),
    ("$x^2-1$", r"$\boxed{(x-1)(x+1)}$", 1.0, 1.0),
    ("$x^2-1$", r"$\boxed{(x-1)(x+2)}$", 0.0, 0.0),
    (r"\boxed{7}", "no answer", 0.0, 0.0),
    ("632", r"\boxed{347+285}", 1.0, 0.0),     # the question is no answer
    ("42", "#### 42", 0.0, 1.0),                # GSM8K's spelling
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"question {i}"}], "solution": solution}
            for i, (solution, *_) in enumerate(JUDGED)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset(path, split="train")


def judged(task, name):
    problems = list(task.problems if hasattr(task, "problems") else task.task.problems)
    return judge(task.rewards, [name], [p.prompt for p in problems],
                 [completion for _, completion, *_ in JUDGED], **columns(problems))[name]


def test_trls_accuracy_reward_reads_our_conversations(task):
    from trl.rewards import accuracy_reward

    theirs = with_rewards(task, {"theirs": 1.0}, {"theirs": accuracy_reward}, seconds=0)
    assert judged(theirs, "theirs") == [theirs_says for _, _, theirs_says, _ in JUDGED]


def test_our_accuracy_says_the_same_but_for_two_deviations(task):
    assert judged(task, "accuracy") == [ours for *_, ours in JUDGED]


def test_trls_format_reward_reads_our_conversations(task):
    from trl.rewards import think_format_reward

    judged_by = with_rewards(task, {"form": 1.0}, {"form": think_format_reward})
    assert judged(judged_by, "form") == [0.0] * len(JUDGED)
    assert len(judged_by.sample(3, random.Random(0))) == 3
