"""minirl/app/measure.py, and what the other commands say of policies."""

import re

import pytest

from minirl.app.evaluate import Evaluation
from minirl.app.measure import Measured, comparison, completed, epochs_table, markdown
from minirl.app.r1 import R1RunConfig, stages_table
from minirl.app.text import columns_of
from minirl.app.training import before_and_after, verdict
from minirl.app.training import markdown as sums_markdown
from minirl.lm.checkpoint import load_pretrained
from minirl.tasks.problem import Problem

ATTACK = "\x1b[31mred\x1b]0;title\x07\u202e `a` ``` \n\n## step 99: forged\n\n- `x`\x9b2J"
PROBLEMS = [Problem(f"sort {ATTACK}{i}:", f"abc{ATTACK}") for i in range(4)]


def measured(text=ATTACK, kl=0.5):
    return Measured(
        PROBLEMS,
        [text] * 4,
        [1.0, 2.0, 0.5, 1.5],
        [1.0, 0.0, 0.0, 1.0],
        [4] * 4,
        [123.4567] * 4,
        kl,
    )


def evaluation(text=ATTACK, **changes):
    return Evaluation(
        PROBLEMS,
        [[text]] * 4,
        [1, 0, 0, 1],
        1,
        {"accuracy": 0.5, "format_reward": 0.25},
        12.5,
        0.0,
        **changes,
    )


def stage(name, text=ATTACK, n=128):
    return {
        "stage": name,
        **dict.fromkeys(
            ("easy", "hard", "majority", "pass", "format", "language", "win_rate"), 0.9876
        ),
        "length": 12345.6,
        "seconds": 123456.0,
        "problems": {"easy": 54, "hard": n, "general": n},
        "problem": f"1+1={text}",
        "example": text,
    }


R1 = R1RunConfig(samples=16)


@pytest.mark.parametrize(
    "show",
    [
        lambda text: comparison(
            {"SFT": measured(text), "best of 1024": measured(text), "PPO": measured(text, kl=None)}
        ),
        lambda text: before_and_after(evaluation(text), evaluation(text)),
        lambda text: stages_table([stage("cold-start", text), stage("small-base", text)], R1),
    ],
    ids=["comparison", "before and after", "stages"],
)
@pytest.mark.parametrize("text", [ATTACK, "한글" * 50], ids=["attack", "Hangul"])
def test_what_models_say_steers_no_terminal_and_tables_fit_it(show, text):
    """A policy that emits escapes steered the terminal at the end of its run; the table of stages
    took 130 columns."""
    lines = show(text).split("\n")
    assert all(line.isprintable() for line in lines) and max(map(columns_of, lines)) <= 80
    assert not any(line.strip().startswith(("## ", "- ")) for line in lines)


@pytest.mark.parametrize(
    "body",
    [lambda: markdown(measured()), lambda: sums_markdown(evaluation())],
    ids=["instructions", "sums"],
)
def test_samples_in_markdown_forge_no_heading_and_end_no_code(body):
    """Backticks and newlines broke out: "## step 99" became a section, where --resume cuts."""
    lines = body().splitlines()
    assert len(lines) in (6, 8) and all(line.isprintable() for line in lines)
    assert all(line.startswith(("- ````", "  - ")[i % 2]) for i, line in enumerate(lines))
    for line in lines:  # runs of four backticks are ours: two to a piece of code
        assert len(re.findall("`{4,}", line)) == (
            4 if line.startswith("- ") else 2
        ) and not re.search("`{5,}", line)


def test_titles_say_that_problems_are_distinct():
    assert comparison({"SFT": measured(), "PPO": measured()}).startswith(
        "4 distinct held-out instructions\n"
    )
    assert before_and_after(evaluation(), evaluation()).startswith(
        "4 distinct held-out problems, temperature 1\n"
    )
    assert stages_table([stage("base")], R1).startswith(
        "distinct held-out problems: 54 easy, 128 hard, 128 general\n"
    )


def test_intervals_count_the_distinct_problems():
    """Wilson's interval of 2 right in 4 is 0.15 to 0.85. Of 2 in 3 with a verdict it is another."""
    assert "0.500 (0.150 to 0.850)" in before_and_after(evaluation(), evaluation())
    some = before_and_after(evaluation(), evaluation(judged=[1, 1, 0, 1]))
    assert "0.667 (0.208 to 0.939)" in some and re.search(
        r"(?m)^problems with a verdict +4 +3$", some
    )
    assert "no verdict" in before_and_after(evaluation(), evaluation(judged=[0] * 4))
    few, many = (
        re.search(r"(?m)^base .* (\S+) to (\S+) ", stages_table([stage("base", n=n)], R1)).groups()
        for n in (9, 900)
    )
    assert float(few[0]) < 0.75 < 0.97 < float(many[0])


def test_verdicts():
    assert [verdict(f"<answer>{said}</answer>", "7") for said in (7, 8)] == ["right", "wrong"]


def test_the_epochs_fit_a_terminal():
    epochs = [
        {
            "epoch": i,
            "validation_loss": 12345.678,
            "score": -12345.678,
            "true_reward": 12345.678,
            "chosen": i == 3,
        }
        for i in range(1, 17)
    ]
    assert max(map(len, epochs_table(epochs).splitlines())) <= 80 and "chosen" in epochs_table(
        epochs
    )


def test_held_out_instructions_are_distinct_and_those_to_learn_from_are_drawn_anew(base):
    """A quarter of what is drawn are polite sums, of which some thirty are held out: each came
    twice or more."""
    model, tokenizer = load_pretrained(base)

    class Told(list):
        update = list.append

    told = Told()
    held_out, train = (
        [
            p.prompt
            for problems, _ in completed(
                model,
                tokenizer,
                300,
                seed=0,
                split=split,
                max_new_tokens=1,
                rows=128,
                progress=told,
            )
            for p in problems
        ]
        for split in ("test", "train")
    )
    assert len(set(held_out)) == len(held_out) == len(train) == 300 > len(set(train))
    assert told == [128, 128, 44] * 2
