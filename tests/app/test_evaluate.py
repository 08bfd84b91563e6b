"""minirl/app/evaluate.py"""

import pytest

from minirl.app.evaluate import Evaluation, evaluate
from minirl.lm.checkpoint import load_pretrained
from minirl.tasks.arithmetic import Arithmetic


def test_accuracy_and_pass_at_k_from_counts():
    result = Evaluation(problems=[], completions=[], correct=[5, 0, 2], samples=5, rewards={}, mean_length=0.0, truncated=0.0)
    assert result.accuracy == pytest.approx(7 / 15)
    assert result.pass_at(1) == pytest.approx(7 / 15) and result.pass_at(2) == pytest.approx((1 + 0 + 0.7) / 3)      # pass@2 of 2 in 5: 1 - 3/10


def test_batches_change_nothing_but_memory_and_problems_are_held_out(base):
    model, tokenizer = load_pretrained(base)
    task = Arithmetic("addition", 1)
    whole = evaluate(model, tokenizer, task, n=9, samples=2, max_new_tokens=6, temperature=0)
    split = evaluate(model, tokenizer, task, n=9, samples=2, max_new_tokens=6, temperature=0, batch=4)
    assert whole == split and len(whole.completions) == 9 and all(len(row) == 2 for row in whole.completions)
    for problem in whole.problems:
        a, b = map(int, problem.prompt.rstrip("=").split("+"))
        assert task.split_of(a, b) == "test"
