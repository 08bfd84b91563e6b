"""minirl/train/worth.py: what R1's policies are worth."""

import re

import pytest

from minirl.inference.evaluate import evaluate
from minirl.lm.seeds import derive_seed
from minirl.lm.text import columns_of
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.bilingual import WORDS, Bilingual
from minirl.tasks.instructions import WORDS as GENERAL_WORDS
from minirl.tasks.instructions import Instructions
from minirl.train.worth import stages_table, with_win_rates, worth
from tests.train.entries import entry

SIZES = TinySizes(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32)


class Count:
    """Progress that adds up."""

    def __init__(self):
        self.done = 0

    def update(self, n=1, note=""):
        self.done += n


def test_each_kind_is_asked_with_a_seed_of_its_own():
    """Two completions of easy and of hard problems, one of general prompts."""
    model, tokenizer = make_base(SIZES, seed=0, device="cpu", words=(*WORDS, *GENERAL_WORDS))
    easy, hard, progress = Bilingual((1,)), Bilingual((2,)), Count()
    numbers = worth(model, tokenizer, easy=easy, hard=hard, general=Instructions(), n=3, samples=2,
                    max_new_tokens=8, seed=5, progress=progress)
    assert progress.done == 3 * 2 + 3 * 2 + 3
    want = evaluate(model, tokenizer, hard, n=3, samples=2, max_new_tokens=8,
                    seed=derive_seed(5, "r1", "evaluate", "hard"))
    assert numbers["example"] == want.completions[0][0] and numbers["length"] == want.mean_length
    assert numbers["problem"] == want.problems[0].prompt
    assert numbers["problems"] == {"easy": 3, "hard": 3, "general": 3}
    assert len(numbers["general"]) == 3


def test_win_rates_by_hand():
    """Against (1, 0): (2, 0) wins one and ties one; (0, -1) loses both."""
    entries = with_win_rates([
        {"stage": "sft", "general": [1.0, 0.0]}, {"stage": "a", "general": [2.0, 0.0]},
        {"stage": "b", "general": [0.0, -1.0]}])
    assert [entry["win_rate"] for entry in entries] == [0.5, 0.75, 0.0]


# the table

ATTACK = "\x1b[31mred\x1b]0;title\x07\u202e `a` ``` \n\n## step 99: forged\n\n- `x`\x9b2J"


@pytest.mark.parametrize("text", [ATTACK, "한글" * 50], ids=["attack", "Hangul"])
def test_what_models_say_steers_no_terminal_and_the_table_fits_it(text):
    """It took 130 columns."""
    entries = [entry("cold-start", text), entry("small-base", text)]
    lines = stages_table(entries, 16).split("\n")
    assert lines[0] == "distinct held-out problems: 54 easy, 128 hard, 128 general"
    assert all(line.isprintable() for line in lines) and max(map(columns_of, lines)) <= 80
    assert not any(line.strip().startswith(("## ", "- ")) for line in lines)


def test_intervals_count_the_distinct_problems():
    few, many = (re.search(r"(?m)^base .* (\S+) to (\S+) ",
                           stages_table([entry("base", n=n)], 16)).groups()
                 for n in (9, 900))
    assert float(few[0]) < 0.75 < 0.97 < float(many[0])
