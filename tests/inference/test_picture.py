"""minirl/inference/picture.py: how a picture shows what a policy was unsure of."""

import math
import re

import pytest
import torch

from minirl.inference import picture as pictures
from minirl.inference.picture import completion_cells, logprob_lines, picture, show_samples
from minirl.lm.rollouts import Rollouts
from minirl.lm.text import columns_of
from minirl.lm.tokenizer import build_tokenizer

SAMPLING = dict(n=2, max_new_tokens=12, seed=0)


@pytest.fixture
def says(base, monkeypatch):
    """show_samples of a policy that says a text, with a probability for each of its bytes."""
    def show(text, probabilities=None, prompt="3+4=", **how):
        model, tokenizer = base
        ids = tokenizer.encode(text)
        logp = [math.log(p) for p in probabilities or [1.0] * len(ids)]
        rollouts = Rollouts(
            torch.tensor([[0, *ids]]), torch.tensor([[False] + [True] * len(ids)]),
            torch.tensor([1]), torch.tensor([[0.0, *logp]], dtype=torch.float64),
            torch.tensor([False]))
        monkeypatch.setattr(pictures, "sample", lambda *args, **kw: rollouts)
        return show_samples(model, tokenizer, [prompt], **SAMPLING | {"n": 1}, **how)

    return show


ATTACK = "\x1b[31mred\x1b]0;title\x07\u202e\x9b2J `a` \r\n## step 99\n  2. forged\x7f"


@pytest.mark.parametrize("how", [{}, {"numbers": True}, {"colour": True},
                                 {"colour": True, "numbers": True}])
def test_a_model_cannot_steer_the_terminal_nor_forge_a_line(how, says):
    """A policy trained to emit escapes wrote in red, set the window's title, and could have made up
    a further sample."""
    out = says(ATTACK, [0.3] * len(ATTACK.encode()), prompt="a\x1b[2Jb", **how)
    ours = re.sub("\x1b" + r"\[(33|4;31|0)m", "", out) if how.get("colour") else out
    assert all(line.isprintable() for line in ours.split("\n"))
    assert not re.search(r"(?m)^(## |  2\. )", ours) and ours.startswith(r"a\x1b[2Jb")


def test_a_newline_is_one_and_stays_inside(says):
    lines = says("a\nb").splitlines()
    assert lines[:4] == ["3+4=", "  1. a", "     b", "     log-prob 0.000, 3 tokens"]


def test_marks_stand_below_what_was_unsure(says):
    """p below 0.5 is ^, below 0.9 is ~: the eyes go there, and not to forty numbers."""
    lines = says("12345", [0.95, 0.89, 0.91, 0.49, 0.51]).splitlines()
    assert lines[1:3] == ["  1. 12345", "      ~ ^~"]
    assert lines[3] == '     log-prob -1.649, 5 tokens; 1 unsure: "4" 0.49'
    assert lines[-1].startswith("~: ") and "^: below 0.5" in lines[-1]
    assert "~" not in says("12345") and "unsure" not in says("12345")


def test_wide_characters_are_marked_over_their_whole_width(says):
    lines = says("가a나", [1, 1, 0.3, 0.8, 0.6, 1, 1]).splitlines()
    assert lines[1:3] == ["  1. 가a나", "     ^^~~~"]


def test_marks_are_colours_on_request(says):
    out = says("12345", [0.95, 0.89, 0.6, 0.4, 1.0], colour=True)
    assert "1\x1b[33m23\x1b[0m\x1b[4;31m4\x1b[0m5" in out and "^" not in out


def test_a_character_of_several_tokens_is_as_unsure_as_the_worst_of_them():
    """Byte-level: Hangul is three tokens a syllable; the last syllable here was cut off."""
    tokenizer = build_tokenizer()
    ids = tokenizer.encode("한a글")[:-1]
    cells = completion_cells(tokenizer, ids, [math.log(p) for p in (0.9, 0.2, 0.8, 0.7, 0.6, 0.3)])
    assert [cell.text for cell in cells] == ["한", "a", "\ufffd"]
    assert [cell.probability for cell in cells] == pytest.approx([0.2, 0.7, 0.3])


def test_the_stop_token_has_no_character_and_is_listed():
    tokenizer = build_tokenizer()
    ids = [*tokenizer.encode("7"), tokenizer.eos_id]
    logp = [0.0, math.log(0.25)]
    assert [cell.text for cell in completion_cells(tokenizer, ids, logp)] == ["7"]
    lines = logprob_lines(tokenizer, ids, logp, cut=False, numbers=False)
    assert lines == ['     log-prob -1.386, 2 tokens; 1 unsure: "<eos>" 0.25']


def test_every_token_with_its_logprob_on_request(base):
    """The old form of a line, in 80 columns: the numbers add up to the sum before them."""
    text = show_samples(*base, ["3+4=", "1+1="], numbers=True, **SAMPLING)
    parts = re.findall(r"log-prob (-?[\d.]+), (\d+) tokens[^:]*:((?:.|\n {7})*)", text)
    assert len(parts) == 4
    for total, count, rest in parts:
        numbers = [float(x) for x in re.findall(r":(-?\d+\.\d\d)(?=\s|$)", rest)]
        assert len(numbers) == int(count)
        assert sum(numbers) == pytest.approx(float(total), abs=0.01 * len(numbers))


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize(
    "text", ["1" * 300, "가" * 100, "a few words " * 30, "\x1b" * 100, "\n" * 5],
    ids=["digits", "Hangul", "words", "escapes", "newlines"])
def test_nothing_is_wider_than_a_terminal(text, numbers, says):
    lines = says(text, [0.3] * len(text.encode()), numbers=numbers).splitlines()
    assert max(map(columns_of, lines)) <= 80
    end = next(i for i, line in enumerate(lines) if "log-prob" in line)
    words = [line[5:] for line in lines[1:end] if set(line) - set(" ^")]
    if text[0] in "1가":
        assert "".join(words) == text
        assert {columns_of(line) for line in words[:-1]} <= {74, 75}
    if text[0] == "a":
        assert " ".join(words) == text.strip(), "broken between words"


def test_picture_is_the_text_where_all_is_sure():
    tokenizer = build_tokenizer()
    ids = tokenizer.encode("abc")
    cells = completion_cells(tokenizer, ids, [0.0] * 3)
    for colour in (False, True):
        assert picture(cells, colour=colour, width=80) == ["abc"]


def test_the_same_seed_shows_the_same(base):
    first, second = (show_samples(*base, ["3+4="], **SAMPLING) for _ in range(2))
    assert first == second


def test_a_repetition_penalty_reaches_the_sampler(base):
    """This policy repeats one byte for ever, where it takes the likeliest."""
    model, tokenizer = base
    options = {"temperature": 0, **SAMPLING, "n": 1}
    plain, penalised = (
        re.search(r"1\. (.*)", show_samples(model, tokenizer, ["3+4="], repetition_penalty=penalty,
                                            **options))[1] for penalty in (1.0, 100.0))
    assert len(set(plain)) == 1 and len(set(penalised)) > 10
