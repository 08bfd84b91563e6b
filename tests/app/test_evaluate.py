"""minirl/app/evaluate.py"""

import pytest

from minirl.app.evaluate import Evaluation, evaluate, table, wilson_interval
from minirl.lm.checkpoint import load_pretrained
from minirl.tasks.arithmetic import Arithmetic


@pytest.mark.parametrize("mean, n, low, high", [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.9, 20, 0.6990, 0.9721)])
def test_wilson_interval_from_published_tables(mean, n, low, high):
    """An interval of mean +- 1.96 standard errors has no width where every answer is right; this one does."""
    assert wilson_interval(mean, n) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))


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


def test_table_lines_up():
    assert table([("name", "x"), ("a", "1.25")]) == "name     x\na     1.25"


def test_an_interval_always_holds_its_mean():
    """At means of 0 and 1 rounding once put the end of the interval 1e-17 beyond the mean, and a figure with error bars of negative length cannot be drawn."""
    for n in range(1, 400):
        for mean in (0.0, 1.0, 0.5):
            low, high = wilson_interval(mean, n)
            assert 0.0 <= low <= mean <= high <= 1.0
