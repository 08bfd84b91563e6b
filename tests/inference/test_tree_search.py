"""minirl/inference/tree_search.py"""

import math

import pytest
import torch

from minirl.inference import tree_search as module
from minirl.inference.candidates import Spent
from minirl.inference.steps import step_ends
from minirl.inference.tree_search import beam_search, diverse_tree_search, step_stops
from minirl.lm.heads import ScalarModel
from minirl.lm.sampling import sample
from minirl.lm.seeds import seeded
from minirl.train.process_reward import step_probabilities
from tests.inference.policies import END, TOKENIZER, chain, ids, text

NAN = math.nan
# Two steps, each one of two letters: a,c  a,d  b,c  b,d
TWO_STEPS = {"=": {"a": 1, "b": 1}, "a": ",", "b": ",", ",": {"c": 1, "d": 1}}


def steps_of(score):
    """A verifier that gives each step the score of its text, completions so far joined."""
    def verifier(prompts, completions):
        rows = []
        for completion in completions:
            ends = step_ends(TOKENIZER, completion)
            rows.append([score(text(completion[:end])) for end in ends])
        return rows

    return verifier


def letters(**scores):
    """A verifier that gives a step the score of its last letter."""
    return steps_of(lambda so_far: scores[so_far.strip(",")[-1]])


def search(verifier, *, chances=TWO_STEPS, prompts=("=",), seed=0, by=beam_search, **options):
    return by(chain(chances), TOKENIZER, ids(*prompts), verifier,
              **{"max_new_tokens": 8, "temperature": 1.0,
                 "generator": torch.Generator().manual_seed(seed), **options})


def texts(result, problem=0):
    return [text(row) for row in result.completions[problem]]


def test_the_best_way_by_hand():
    """One beam, 16 expansions. Step 1: 16 rows of 2 tokens, of which two differ; the verifier reads
    2 * (1 + 2). Step 2: 16 rows of a letter and EOS, of which two differ: 2 * (1 + 4)."""
    result = search(letters(a=0.2, b=0.9, c=0.3, d=0.8), beams=1, expansions=16)
    assert texts(result) == ["b,d"] and result.ended == [[True]]
    assert result.scores == [[pytest.approx(0.8)]]
    assert result.spent == [Spent(prefill=1, decode=64, verifier=16)]
    assert result.kept == 4


def test_a_second_beam_finds_what_one_misses():
    """a looks better at first, and b,d is better in the end."""
    score = {"a,": 0.6, "b,": 0.5, "a,c": 0.1, "a,d": 0.2, "b,c": 0.3, "b,d": 0.9}.__getitem__
    one = search(steps_of(score), beams=1, expansions=16)
    two = search(steps_of(score), beams=2, expansions=16)
    assert texts(one) == ["a,d"]
    assert texts(two) == ["b,d", "b,c"]     # both beams descend from one
    assert two.chosen == [0]


@pytest.mark.parametrize("how, best", [("last", "a,c"), ("min", "b,d"), ("product", "b,c")])
def test_the_score_of_a_beam(how, best):
    """last .9, lowest .6, product .56 = .7 * .8 (a,c .18, b,d .42)."""
    table = {"a,": 0.2, "b,": 0.7, "a,c": 0.9, "a,d": 0.1, "b,c": 0.8, "b,d": 0.6}
    if how == "min":        # .6 is the lowest of b,d; then b,c must be below
        table |= {"b,c": 0.5}
    result = search(steps_of(table.__getitem__), beams=4, expansions=8, how=how)
    assert texts(result)[result.chosen[0]] == best and len(texts(result)) == 4


def test_equal_expansions_are_one_candidate():
    """The policy has one way. Of 6 rows one is left, which has all 6 expansions of step 2."""
    result = search(letters(a=0.5, c=0.5), chances={"=": "a", "a": ",", ",": "c"}, beams=3,
                    expansions=2)
    assert texts(result) == ["a,c"]
    assert result.spent == [Spent(prefill=1, decode=6 * 2 + 6 * 2, verifier=3 + 5)]


def test_expansions_that_cannot_be_shared_out_evenly():
    """Three beams, one expansion each, two ways: the better of the two has two expansions."""
    verifier = letters(a=0.9, b=0.5, c=0.5, d=0.5)
    decodes = {}
    for seed in range(8):
        result = search(verifier, beams=3, expansions=1, seed=seed)
        starts = {completion[0] for completion in texts(result)}
        decodes.setdefault(len(starts), set()).add(result.total.decode)
    assert decodes[2] == {3 * 2 + 3 * 2}


def test_no_beam_is_kept_twice():
    """b is seen once in 20, and nevertheless the second beam: a copy of a is no second beam."""
    result = search(letters(a=0.9, b=0.1), chances={"=": {"a": 19, "b": 1}, "a": END, "b": END},
                    beams=2, expansions=64)
    assert texts(result) == ["a", "b"]


def test_an_ended_beam_keeps_its_place():
    """x is over after one step. With one beam the search is over, too; with two, the other beam
    goes on with half of the rows: 16 rows of 2 tokens, then 8 rows of d and EOS."""
    chances = {"=": {"x": 1, "a": 1}, "x": END, "a": ",", ",": "d"}
    verifier = letters(x=0.9, a=0.5, d=0.7)
    one = search(verifier, chances=chances, beams=1, expansions=8)
    assert texts(one) == ["x"] and one.total.decode == 16
    two = search(verifier, chances=chances, beams=2, expansions=8)
    assert texts(two) == ["x", "a,d"] and two.chosen == [0]
    assert two.total.decode == 16 * 2 + 8 * 2


def test_an_ended_beam_can_be_overtaken():
    chances = {"=": {"x": 1, "a": 1}, "x": END, "a": ",", ",": {"c": 1, "d": 1}}
    result = search(letters(x=0.4, a=0.5, c=0.6, d=0.7), chances=chances, beams=2, expansions=8)
    assert texts(result) == ["a,d", "a,c"]


def test_ties_go_to_the_first(monkeypatch):
    """All scores are equal: the beam is the row that was drawn first, in every step."""
    first, grow = [], module.Branches.grow

    def watched(*args, **options):
        drawn = grow(*args, **options)
        first.append(text(drawn[0]))
        return drawn

    monkeypatch.setattr(module.Branches, "grow", watched)
    seen = set()
    for seed in range(8):
        first.clear()
        result = search(letters(a=0.5, b=0.5, c=0.5, d=0.5), beams=1, expansions=4, seed=seed)
        assert texts(result) == ["".join(first)] and result.chosen == [0]
        seen |= set(texts(result))
    assert len(seen) > 2


def test_a_verifier_without_verdicts():
    """NaN is below every number; where all are NaN, the search goes on with the first beams."""
    some = search(letters(a=NAN, b=0.1, c=NAN, d=0.2), beams=1, expansions=16)
    assert texts(some) == ["b,d"]
    none = search(letters(a=NAN, b=NAN, c=NAN, d=NAN), beams=2, expansions=4)
    assert len(texts(none)) == 2 and all(map(math.isnan, none.scores[0])) and none.chosen == [0]
    with pytest.raises(ValueError, match="scores for"):
        search(lambda prompts, completions: [[0.5]], beams=2, expansions=8)


def test_one_beam_with_one_expansion_is_sampling(base):
    """n = m = 1 at temperature 0: step by step what the sampler writes at once, for each of several
    prompts, cut off or ended."""
    model, tokenizer = base
    prompts = [tokenizer.encode_prompt(x) for x in ("1+1=", "25+17=", "3=")]
    result = beam_search(model, tokenizer, prompts, lambda p, c: [[0.5]] * len(c), beams=1,
                         expansions=1, max_new_tokens=30, temperature=0)
    rollouts = sample(model, prompts, max_new_tokens=30, temperature=0, pad_id=tokenizer.pad_id,
                      eos_id=tokenizer.stop_ids)
    assert result.best == rollouts.completion_ids()
    assert [row[0] for row in result.ended] == (~rollouts.truncated).tolist()


def test_beams_that_run_out_of_tokens():
    """a goes on without an end. A beam that has ended is chosen before a better one that has not;
    one that is full keeps its place."""
    chances = {"=": {"a": 1, "x": 1}, "a": "a", "x": END}
    result = search(letters(a=0.9, x=0.1), chances=chances, beams=2, expansions=8,
                    max_new_tokens=5)
    assert texts(result) == ["aaaaa", "x"] and result.ended == [[False, True]]
    assert result.chosen == [1]
    alone = search(letters(a=0.9), chances={"=": "a", "a": "a"}, max_new_tokens=5)
    assert texts(alone) == ["aaaaa"] and alone.chosen == [0]


def test_a_full_beam_stays_while_others_grow():
    """Of five tokens aaaaa takes all in one step; b,b,b takes three steps."""
    chances = {"=": {"a": 1, "b": 1}, "a": "a", "b": ",", ",": "b"}
    result = search(letters(a=0.9, b=0.5), chances=chances, beams=2, expansions=8,
                    max_new_tokens=5)
    assert texts(result) == ["aaaaa", "b,b,b"]
    assert result.ended == [[False, False]] and result.chosen == [0]


@pytest.fixture
def computed(monkeypatch):
    """The branches that a search makes."""
    made = []

    class Watched(module.Branches):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(module, "Branches", Watched)
    return made


@pytest.mark.parametrize("how, options", [
    (beam_search, {"beams": 3, "expansions": 4}), (diverse_tree_search, {"trees": 3})])
def test_what_beams_share_is_read_once(computed, base, how, options):
    """The model reads each prompt once and each drawn token once: nothing again, though rows are
    copied after every step. Reading each row anew in each step would cost several times as much."""
    model, tokenizer = base
    commas = [i for i in step_stops(tokenizer) if i not in tokenizer.stop_ids]
    prompts = [tokenizer.encode_prompt(x) for x in ("1+1=", "25+17+33=")]
    asked = []

    def verifier(prompts, completions):
        asked.extend(map(len, completions))
        return [[len(set(c)) / len(c)] for c in completions]

    with torch.no_grad():
        weight = model.lm_head.weight
        before = weight[commas].clone()
        weight[commas] = weight[commas[:1]] + 0.2       # so that steps end
    result = how(model, tokenizer, prompts, verifier, max_new_tokens=40, temperature=1.0,
                 generator=torch.Generator().manual_seed(0), **options)
    with torch.no_grad():
        weight[commas] = before
    branches, = computed
    assert branches.computed == sum(len(p) - 1 for p in prompts) + result.total.decode
    assert len(asked) > 24      # more than one step
    assert result.kept <= result.total.decode


@pytest.mark.parametrize("how, options", [
    (beam_search, {"beams": 2, "expansions": 3}), (diverse_tree_search, {"trees": 2,
                                                                         "expansions": 3})])
@pytest.mark.parametrize("budget", [26, 40, 80, 200])
def test_a_budget_is_never_exceeded(how, options, budget):
    """Steps of many lengths: a problem may spend what it has, and no more."""
    chances = {"=": "a", "a": {"a": 2, ",": 1}, ",": "a"}
    result = search(lambda p, c: [[0.5]] * len(c), chances=chances, prompts=("=", "1="), by=how,
                    max_new_tokens=30, budget=budget, **options)
    assert all(cost.total <= budget for cost in result.spent)
    if budget == 200:       # it is used: what is left is not enough for another step
        assert min(cost.total for cost in result.spent) > 120
    assert not any(any(row) for row in result.ended)


@pytest.mark.parametrize("budget, drawn", [(22, 1), (23, 1), (24, 2), (40, 10), (41, 10)])
def test_a_budget_is_used_to_the_last_token(budget, drawn):
    """One row, one long step: d tokens cost 10 for the prompt, d, and 10 + d for the verifier."""
    result = search(letters(a=0.5), chances={"=": "a", "a": "a"}, prompts=("123456789=",), beams=1,
                    expansions=1, budget=budget, max_new_tokens=30)
    assert result.spent == [Spent(prefill=10, decode=drawn, verifier=10 + drawn)]


def test_a_budget_that_reaches_is_no_limit():
    options = {"beams": 2, "expansions": 4, "seed": 3}
    verifier = letters(a=0.2, b=0.9, c=0.3, d=0.8)
    free = search(verifier, **options)
    assert search(verifier, budget=free.total.total + 200, **options) == free


def test_trees_know_nothing_of_each_other():
    """Beam search keeps the two best of all, which both begin with b. Two trees with one expansion
    are two samples, and with 16 each finds the same best."""
    score = {"a,": 0.1, "b,": 0.9, "a,c": 0.1, "a,d": 0.2, "b,c": 0.3, "b,d": 0.9}.__getitem__
    beams = search(steps_of(score), beams=2, expansions=16)
    assert texts(beams) == ["b,d", "b,c"]
    same = search(steps_of(score), by=diverse_tree_search, trees=2, expansions=16)
    assert texts(same) == ["b,d", "b,d"]
    starts = set()
    for seed in range(8):
        result = search(steps_of(score), by=diverse_tree_search, trees=4, expansions=1, seed=seed)
        assert len(texts(result)) == 4
        assert result.scores[0][result.chosen[0]] == max(result.scores[0])
        starts |= {completion[0] for completion in texts(result)}
    assert starts == {"a", "b"}


def test_several_problems_at_once():
    """Each has its own beams, of its own length, and its own costs."""
    chances = TWO_STEPS | {"#": "x", "x": END}
    result = search(letters(a=0.2, b=0.9, c=0.3, d=0.8, x=0.5), chances=chances,
                    prompts=("=", "1#", "12="), beams=1, expansions=16)
    assert [text(row) for row in result.best] == ["b,d", "x", "b,d"]
    assert result.spent == [Spent(1, 64, 16), Spent(2, 32, 2 + 2), Spent(3, 64, 5 * 2 + 7 * 2)]


def test_a_process_reward_model_is_a_verifier(base):
    """It reads prefixes as they were sampled: a kept beam has the score of the whole."""
    model, tokenizer = base
    with seeded(0, torch.device("cpu")):
        scorer = ScalarModel(model).eval()
        torch.nn.init.normal_(scorer.head.linear.weight)

    def verifier(prompts, completions):
        ends = [step_ends(tokenizer, completion, "1") for completion in completions]
        return step_probabilities(scorer, prompts, completions, ends, tokenizer.pad_id)

    prompts = [tokenizer.encode_prompt(x) for x in ("1+1=", "25+17+33=")]
    result = beam_search(model, tokenizer, prompts, verifier, beams=2, expansions=3, how="product",
                         separator="1", max_new_tokens=30, temperature=1.0)
    for prompt, rows, scores in zip(prompts, result.completions, result.scores, strict=True):
        wanted = [math.prod(verifier([prompt], [row])[0]) for row in rows]
        assert scores == pytest.approx(wanted, rel=1e-3)
        assert scores == sorted(scores, reverse=True)


def test_stops_of_steps():
    stops = step_stops(TOKENIZER)
    assert {TOKENIZER.encode(",")[0], TOKENIZER.encode("</think>")[0], TOKENIZER.eos_id} == set(
        stops)
    assert TOKENIZER.encode("a")[0] in step_stops(TOKENIZER, "a")


@pytest.mark.parametrize("options, message", [
    ({"beams": 0}, "0 beams"),
    ({"expansions": 0}, "0 expansions"),
    ({"how": "mean"}, "last, min, product"),
    ({"budget": 40}, "at least 49"),             # 1 + 16 (1 + 2)
    ({"prompts": ("",)}, "empty"),
    ({"max_new_tokens": 80}, "context"),
    ({"temperature": -1}, "temperature"),
])
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        search(letters(), **options)


def test_no_trees():
    with pytest.raises(ValueError, match="0 trees"):
        search(letters(), by=diverse_tree_search, trees=0)
