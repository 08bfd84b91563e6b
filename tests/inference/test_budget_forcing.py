"""minirl/inference/budget_forcing.py"""

import pytest
import torch

from minirl.inference.budget_forcing import budget_forcing
from minirl.inference.candidates import Spent
from minirl.inference.voting import majority_voting
from tests.inference.policies import END, TOKENIZER, chain, ids, text

# a, b, c, the end of thinking, x, EOS; after w. it thinks from b on
WAY = {"=": "a", "a": "b", "b": "c", "c": "</think>", "</think>": "x", "x": END, ".": "b",
       "<answer>": "y", "y": END}


def force(chances=WAY, prompts=("=",), **options):
    return budget_forcing(chain(chances), TOKENIZER, ids(*prompts),
                          **{"most": 20, "max_new_tokens": 30, "wait": "w.", "temperature": 0,
                             **options})


def test_thinking_of_the_right_length_is_left_alone():
    result = force()
    assert text(result.best[0]) == "abc</think>x"
    assert result.spent == [Spent(prefill=1, decode=6)] and result.ended == [[True]]


@pytest.mark.parametrize("most, whole, spent", [
    (1, "a</think>x", Spent(1 + 1, 1 + 2)),
    (2, "ab</think>x", Spent(1 + 1, 2 + 2)),
    (3, "abc</think>x", Spent(1 + 1, 3 + 2)),       # what it would have written is written for it
    (4, "abc</think>x", Spent(1, 6)),
])
def test_thinking_is_cut(most, whole, spent):
    """The end is put in, one token; then the policy answers, two tokens."""
    result = force(most=most)
    assert text(result.best[0]) == whole and result.spent == [spent]


def test_the_answer_is_begun_where_thinking_was_cut():
    assert text(force(most=2, then="<answer>").best[0]) == "ab</think><answer>y"
    assert text(force(most=9, then="<answer>").best[0]) == "abc</think>x"


@pytest.mark.parametrize("extensions, whole, spent", [
    (1, "abcw.bc</think>x", Spent(1 + 2, 4 + 3 + 2)),
    (2, "abcw.bcw.bc</think>x", Spent(1 + 4, 4 + 3 + 3 + 2)),
])
def test_thinking_is_extended(extensions, whole, spent):
    """Each refused end was drawn, and is paid for; "w." is two tokens that were not drawn."""
    result = force(extensions=extensions)
    assert text(result.best[0]) == whole and result.spent == [spent]
    assert result.ended == [[True]]


def test_thinking_of_enough_tokens_is_not_extended():
    """abc is 3 tokens, abcw.bc is 7."""
    wholes = [text(force(extensions=5, least=least).best[0]) for least in (3, 4, 7, 8)]
    once = "abcw.bc</think>x"
    assert wholes == ["abc</think>x", once, once, "abcw.bcw.bc</think>x"]


def test_extended_thinking_is_cut_in_the_end():
    """At most 6: abc, w. and one more token. At most 5 leaves no room behind w., so that the end
    stands."""
    assert text(force(extensions=9, most=6).best[0]) == "abcw.b</think>x"
    assert text(force(extensions=9, most=5).best[0]) == "abc</think>x"


def test_an_end_of_all_in_the_thinking_is_taken_back():
    """The policy stops before it has answered: it must answer, or think on."""
    chances = WAY | {"c": END}
    assert text(force(chances).best[0]) == "abc</think>x"
    assert force(chances).spent == [Spent(1 + 1, 4 + 2)]
    assert text(force(chances, extensions=1).best[0]) == "abcw.bc</think>x"


def test_another_end_of_thinking_in_the_answer_is_text():
    chances = WAY | {"x": "d", "d": "</think>", "</think>": {"x": 3, "e": 2}, "e": END}
    result = force(chances, max_new_tokens=12, most=5)
    assert text(result.best[0]) == "abc</think>xd</think>xd</think>xd"
    assert result.ended == [[False]] and len(result.best[0]) == 12


def test_no_completion_is_longer_than_allowed():
    """An answer without an end, after thinking of every length."""
    chances = {"=": "a", "a": {"a": 3, "</think>": 1}, "</think>": "x", "x": "x", ".": "a"}
    result = force(chances, n=40, most=7, max_new_tokens=10, extensions=2, temperature=1.0,
                   generator=torch.Generator().manual_seed(0))
    assert {len(row) for row in result.completions[0]} == {10}
    assert not any(result.ended[0])
    for row in result.completions[0]:
        assert text(row).partition("</think>")[0].count("w.") <= 2
        assert text(row).count("</think>") == 1


def test_rows_at_every_stage_share_a_batch():
    """Three problems: one is cut, one ends by itself, one is extended twice."""
    chances = WAY | {"1": "k", "k": "k", "2": "</think>"}
    result = force(chances, ("1", "=", "2"), most=8, extensions=2, least=3)
    assert [text(row) for row in result.best] == [
        "kkkkkkkk</think>x", "abc</think>x", "w.bc</think>x"]
    assert result.spent == [Spent(2, 10), Spent(1, 6), Spent(1 + 2, 1 + 3 + 2)]


def test_nothing_is_read_twice(monkeypatch):
    """Of abcw.bcw.bc</think>x and EOS after a prompt of one token, the model reads all but EOS; the
    two ends that were refused it never reads."""
    made, model = [], chain(WAY)
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, **options: (
        made.extend(tokens.flatten().tolist()), hidden(tokens, **options))[1])
    result = budget_forcing(model, TOKENIZER, ids("="), most=20, max_new_tokens=30, wait="w.",
                            temperature=0, extensions=2)
    assert made == [*ids("=")[0], *result.best[0][:-1]]


def test_without_forcing_it_is_sampling():
    """Nothing to cut and nothing to extend. By hand: a completion has 3 tokens with chance
    1/3 * 1/2, and 2/3 * 3/2 (a) + 1 + 2 (x) + 1 = 5 tokens in the mean; the sampler has the
    same."""
    chances = {"=": {"a": 2, "</think>": 1}, "a": {"a": 1, "</think>": 2}, "</think>": "x",
               "x": {"x": 1, END: 1}}
    options = {"n": 400, "max_new_tokens": 40, "temperature": 1.0}
    free = majority_voting(chain(chances), TOKENIZER, ids("="), **options,
                           generator=torch.Generator().manual_seed(0))
    forced = force(chances, most=30, **options, generator=torch.Generator().manual_seed(1))
    for result in (free, forced):
        lengths = [len(row) for row in result.completions[0]]
        assert lengths.count(3) / 400 == pytest.approx(1 / 6, abs=0.06)
        assert sum(lengths) / 400 == pytest.approx(5, abs=0.4)
        assert result.total.decode == sum(lengths) and result.total.prefill == 1


def test_the_commonest_answer_is_chosen():
    chances = {"=": "</think>", "</think>": "<answer>", "<answer>": {"1": 1, "2": 3},
               "1": "</answer>", "2": "</answer>", "</answer>": END}
    result = force(chances, n=25, temperature=1.0, generator=torch.Generator().manual_seed(0))
    answers = result.answers(TOKENIZER)[0]
    assert answers[result.chosen[0]] == "2" and {"1", "2"} == set(answers)
    assert text(force(chances).best[0]) == "</think><answer>2</answer>"      # n = 1


def test_a_budget_decides_how_many_are_drawn():
    """A candidate may cost 30 tokens, and one that is taken back: 1 + 31 n."""
    for budget, n in ((32, 1), (62, 1), (63, 2), (1000, 8)):
        result = force(n=8, budget=budget)
        assert len(result.completions[0]) == n and result.total.total <= budget
    with pytest.raises(ValueError, match="at least 34"):
        force(budget=33, extensions=2)


@pytest.mark.parametrize("options, message", [
    ({"most": 0}, "1 to 28"), ({"most": 29}, "1 to 28"), ({"extensions": -1}, "-1 extensions"),
    ({"end": "stop"}, "4 tokens"), ({"wait": ""}, "wait is empty"), ({"n": 0}, "n is 0"),
    ({"prompts": ("",)}, "empty"), ({"max_new_tokens": 64}, "context"),
    ({"then": "<answer>" * 20}, "1 to 8")])
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        force(**options)
