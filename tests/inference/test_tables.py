"""minirl/inference/tables.py: evaluations as text, and what a model wrote in it."""

import re
from dataclasses import replace

import pytest

from minirl.inference.evaluate import evaluate
from minirl.inference.intervals import wilson_interval
from minirl.inference.tables import (
    before_and_after,
    comparison,
    evaluation_table,
    markdown,
    verdict,
)
from minirl.lm.text import columns_of
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import Problem
from tests.inference.evaluations import instructed, summed

ATTACK = "\x1b[31mred\x1b]0;title\x07\u202e `a` ``` \n\n## step 99: forged\n\n- `x`\x9b2J"


# one evaluation

def table(result, asked, samples=2):
    return evaluation_table(result, [1, 2], asked=asked, samples=samples, temperature=1.0)


def test_eval_says_how_many_problems_there_were(base):
    result = evaluate(*base, Arithmetic("addition", 1), n=64, samples=2, max_new_tokens=4)
    out = table(result, asked=64)
    lines = out.splitlines()
    assert re.fullmatch(r"\d distinct held-out problems, 2 samples each, temperature 1", lines[0])
    assert "64 were asked for" in lines[1]
    assert max(map(len, lines)) <= 80
    assert re.search(r"(?m)^pass@2 +[\d.]+ +[\d.]+ to [\d.]+$", out)
    interval = re.search(r"(?m)^accuracy +[\d.]+ +([\d.]+) to ([\d.]+)$", out)
    low, high = map(float, interval.groups())
    assert high - low > 0.25, "of nine problems, whatever was asked for"
    result = evaluate(*base, Arithmetic("addition", 2), n=8, samples=2, max_new_tokens=4)
    assert "asked for" not in table(result, asked=8)


def test_eval_says_how_many_problems_have_a_verdict(base):
    class Half:
        name, weights = "half", {}
        rewards = {
            "accuracy": lambda prompts, completions, answer, **_: [
                None if a == "1" else 1.0 for a in answer],
            "taste": lambda prompts, completions, **_: [None] * len(completions)}

        def sample(self, n, rng, *, split="train"):
            return [Problem("a", "1"), Problem("b", "2")][:n]

    out = table(evaluate(*base, Half(), n=2, samples=2, max_new_tokens=4), asked=2)
    assert re.search(r"(?m)^accuracy +1\.000 ", out)
    assert re.search(r"(?m)^problems with a verdict +1$", out)
    assert re.search(r"(?m)^taste, mean +no verdict$", out)


def test_the_interval_of_pass_at_k_counts_the_problems_with_k_verdicts():
    """Of two problems one has both verdicts: pass@2 is of that one alone, and its interval too."""
    result = replace(summed("x"), problems=summed("x").problems[:2],
                     completions=[["x", "x"]] * 2, verdicts={"accuracy": [[1.0, 1.0], [1.0, None]]})
    out = table(result, asked=2)
    for name, n in (("pass@1", 2), ("pass@2", 1)):
        low, high = wilson_interval(1.0, n)
        assert re.search(rf"(?m)^{name} +1\.000 +{low:.3f} to {high:.3f}$", out)


# policies side by side

@pytest.mark.parametrize("text", [ATTACK, "한글" * 50], ids=["attack", "Hangul"])
def test_before_and_after_steers_no_terminal_and_fits_it(text):
    lines = before_and_after(summed(text), summed(text)).split("\n")
    assert lines[0] == "4 distinct held-out problems, temperature 1"
    assert all(line.isprintable() for line in lines) and max(map(columns_of, lines)) <= 80
    assert not any(line.strip().startswith(("## ", "- ")) for line in lines)


def test_intervals_count_the_problems_with_a_verdict():
    """Wilson's interval of 2 right in 4 is 0.15 to 0.85. Of 2 in 3 with a verdict it is another."""
    whole, some, none = (summed("x", accuracy) for accuracy in (
        (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, None, 1.0), (None,) * 4))
    assert "0.500 (0.150 to 0.850)" in before_and_after(whole, whole)
    table = before_and_after(whole, some)
    assert "0.667 (0.208 to 0.939)" in table
    assert re.search(r"(?m)^problems with a verdict +4 +3$", table)
    assert "no verdict" in before_and_after(whole, none)


@pytest.mark.parametrize("text", [ATTACK, "한글" * 50], ids=["attack", "Hangul"])
def test_a_comparison_steers_no_terminal_and_fits_it(text):
    """A policy that emits escapes steered the terminal at the end of its run."""
    result = instructed(text)
    lines = comparison({"SFT": result, "best of 1024": replace(result, kl=0.5),
                        "PPO": replace(result, kl=None)}).split("\n")
    assert lines[0] == "4 distinct held-out instructions"
    assert all(line.isprintable() for line in lines) and max(map(columns_of, lines)) <= 80
    assert not any(line.strip().startswith(("## ", "- ")) for line in lines)


def test_a_kl_of_next_to_nothing_is_not_negative():
    row = comparison({"SFT": instructed("x"), "PPO": replace(instructed("x"), kl=-1e-4)})
    assert re.search(r"(?m)^PPO +1\.250 \+- \S+ +0\.500 +123\.457 +0\.00 +4\.0$", row), row


def test_the_kl_of_best_of_n_is_its_bound():
    best = replace(instructed("x"), kl=None, kl_bound=1.84)
    row = comparison({"SFT": instructed("x"), "best of 16": best})
    assert re.search(r"(?m)^best of 16 +1\.250 \+- \S+ +0\.500 +123\.457 +1\.84 +4\.0$", row), row


# samples in Markdown

@pytest.mark.parametrize("evaluation, rewards", [
    (instructed(ATTACK), ("true_reward", "reward_model")), (summed(ATTACK), ())],
    ids=["instructions", "sums"])
def test_samples_in_markdown_forge_no_heading_and_end_no_code(evaluation, rewards):
    """Backticks and newlines broke out: "## step 99" became a section, where --resume cuts."""
    lines = markdown(evaluation, 3, rewards).splitlines()
    assert len(lines) == 6 and all(line.isprintable() for line in lines)
    assert all(line.startswith(("- ````", "  - ")[i % 2]) for i, line in enumerate(lines))
    for line in lines:           # runs of four backticks are ours: two to a piece of code
        assert len(re.findall("`{4,}", line)) == (4 if line.startswith("- ") else 2)
        assert not re.search("`{5,}", line)


def test_what_stands_beside_a_completion():
    lines = markdown(instructed("x"), 2, ("true_reward", "reward_model")).splitlines()
    assert lines == ["- `sort x0:` (right: `abcx`)",
                     "  - right, true reward 1.00, reward model 123.46: `x`",
                     "- `sort x1:` (right: `abcx`)",
                     "  - wrong, true reward 2.00, reward model 123.46: `x`"]


def test_verdicts():
    evaluation = summed("x", [1.0, 0.0, None, 0.5])
    assert [verdict(evaluation, i) for i in range(4)] == ["right", "wrong", "no verdict", "wrong"]
