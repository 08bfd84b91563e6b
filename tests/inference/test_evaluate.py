"""minirl/inference/evaluate.py"""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from minirl.equations.inference_time import best_of_n_kl
from minirl.inference.collect import collect
from minirl.inference.evaluate import (
    Evaluation,
    best_of,
    distinct_problems,
    evaluate,
    text_loss,
    vote,
)
from minirl.lm.logprobs import token_logprobs
from minirl.lm.seeds import derive_seed
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import JudgedTask, Problem
from minirl.tasks.rewards import accuracy


def evaluation(accuracies, completions=None, **changes):
    """An evaluation with these verdicts of accuracy, a row per problem."""
    return Evaluation(
        problems=[Problem(f"{i}=", str(i)) for i in range(len(accuracies))],
        completions=completions or [["x"] * len(row) for row in accuracies],
        completion_ids=[[[3]] * len(row) for row in accuracies],
        verdicts={"accuracy": accuracies},
        lengths=[[1] * len(row) for row in accuracies],
        cut_off=[[False] * len(row) for row in accuracies],
        **changes,
    )


# what an evaluation says


def test_accuracy_and_pass_at_k_from_counts():
    """5, 0 and 2 of 5 samples are right. pass@2 of 2 in 5: 1 - 3/10."""
    result = evaluation([[1.0] * 5, [0.0] * 5, [1.0, 0.0, 0.0, 1.0, 0.0]])
    assert result.accuracy == pytest.approx(7 / 15) == result.mean("accuracy")
    assert result.pass_at(1) == pytest.approx(7 / 15)
    assert result.pass_at(2) == pytest.approx((1 + 0 + 0.7) / 3)
    assert result.numbers("accuracy") == pytest.approx([1.0, 0.0, 0.4])


def test_some_completions_of_a_problem_without_a_verdict():
    """Of 4 samples two are judged and one is right: pass@1 1/2 there. pass@2 needs two verdicts."""
    result = evaluation([[1.0, None, 0.0, None], [None, None, None, 1.0]])
    assert result.accuracy == pytest.approx(2 / 3) and result.numbers("accuracy") == [0.5, 1.0]
    assert result.pass_at(1) == pytest.approx(3 / 4) and result.pass_at(2) == 1.0
    assert math.isnan(result.pass_at(3))


def test_nothing_was_judged():
    result = evaluation([[None, None], [None, None]])
    assert math.isnan(result.accuracy) and math.isnan(result.rewards["accuracy"])
    assert result.judged_problems == 0 and all(map(math.isnan, result.numbers("accuracy")))
    assert math.isnan(result.pass_at(1)) and math.isnan(result.majority)


def test_only_a_verdict_of_1_is_right():
    """A reward with partial credit is reported as it is, and half right is not right."""
    result = evaluation([[0.5, 1.0]])
    assert result.accuracy == 0.5 and result.mean("accuracy") == 0.75 and result.pass_at(2) == 1.0


def answers(*texts):
    return ["no answer" if text is None else f"<answer>{text}</answer>" for text in texts]


@pytest.mark.parametrize(
    "texts, gold, right",
    [
        (("7", "8", "8"), "8", 1.0),
        (("7", "8", "8"), "7", 0.0),
        (("7", "07", "8"), "7", 1.0),  # two spellings of one answer
        (("7", "8", "8", "7"), "7", 1.0),  # a tie goes to the answer that came first
        (("7", "8", "8", "7"), "8", 0.0),
        ((None, None, "8"), "8", 1.0),  # no answer is no vote
        ((None, None), "None", 0.0),  # and no answer is not the answer "None"
        (("None",), "None", 1.0),
    ],
)
def test_majority_voting(texts, gold, right):
    completions = answers(*texts)
    verdicts = accuracy([], completions, [gold] * len(texts))
    assert evaluation([verdicts], [completions]).majority == right


def test_majority_is_a_mean_over_the_problems_with_a_verdict():
    """A problem without an answer to compare with once ended the evaluation with a TypeError."""
    rows = [answers("1", "1"), answers("1", "2"), answers("3", "3")]
    verdicts = [[1.0, 1.0], [0.0, 1.0], [None, None]]
    assert evaluation(verdicts, rows).majority == 0.5


def test_right_completions_without_an_answer_win_no_vote():
    """A task may accept what does not stand in <answer>; nobody can count such answers."""
    assert evaluation([[1.0, 1.0]], [["7", "7"]]).majority == 0.0


# choosing one sample


def test_best_of_takes_the_greatest_verdict_of_its_reward():
    verdicts = {"score": [0.1, 0.9, 0.9], "other": [3.0, 2.0, 1.0]}
    assert best_of("score")(["x"] * 3, verdicts) == 1
    assert best_of("other")(["x"] * 3, verdicts) == 0
    assert best_of("score")(["x"] * 3, {"score": [None, -5.0, None]}) == 1
    assert best_of("score")(["x"] * 3, {"score": [None] * 3}) == 0
    with pytest.raises(ValueError, match="no reward 'scor'; the task has score, other"):
        best_of("scor")(["x"] * 3, verdicts)


def test_vote_takes_the_first_sample_with_the_majority_answer():
    assert vote(answers("7", "8", None, "8"), {}) == 1
    assert vote(answers(None, "8"), {}) == 1 and vote(answers(None, None), {}) == 0


SCORES = {"0=": (0.2, 0.5, 0.3), "1=": (0.9, 0.1, 0.3)}


@pytest.fixture
def scored(say, listed):
    """A task with an accuracy and a score, and three completions of each of its two problems."""
    say({"0=": ["1", "0", "22"], "1=": ["000", "1", "1"]})

    def score(prompts, completions, **_):
        seen = {}
        places = [seen.setdefault(p, itertools.count()) for p in prompts]
        return [SCORES[p][next(place)] for p, place in zip(prompts, places, strict=True)]

    task = listed(2)
    task.rewards["score"] = score
    return task


def test_best_of_n_holds_the_best_sample_alone(base, scored):
    result = evaluate(*base, scored, n=2, samples=3, max_new_tokens=3, choose=best_of("score"))
    rows = {p.prompt: i for i, p in enumerate(result.problems)}
    first, second = rows["0="], rows["1="]
    assert result.completions[first] == ["0"] and result.completions[second] == ["000"]
    assert result.numbers("score")[first] == 0.5 and result.mean("score") == pytest.approx(0.7)
    assert result.accuracy == 0.5 == result.pass_at(1) and math.isnan(result.pass_at(2))
    # "0" and an EOS are two tokens; "000" fills all three and is cut off
    assert result.lengths[first] == [2] and result.lengths[second] == [3]
    assert result.mean_length == 2.5 and result.truncated == 0.5
    assert [len(row[0]) for row in result.completion_ids] == [row[0] for row in result.lengths]
    assert result.kl_bound == best_of_n_kl(3) and result.kl is None


def test_without_choosing_all_samples_count(base, scored):
    result = evaluate(*base, scored, n=2, samples=3, max_new_tokens=3)
    assert result.accuracy == 0.5 and result.pass_at(3) == 1.0
    assert result.kl is None and result.kl_bound is None
    assert result.mean_length == pytest.approx((2 + 2 + 3 + 3 + 2 + 2) / 6)
    assert result.truncated == pytest.approx(1 / 6)
    assert result.mean("score") == pytest.approx(2.3 / 6)


def test_voting_on_held_out_problems(base, say, listed):
    """The accuracy of what was voted for is the majority's."""
    task = listed(2, {"accuracy": accuracy})
    say({"0=": answers("5", "0", "0"), "1=": answers("2", "2", "1")})
    options = {"n": 2, "samples": 3, "max_new_tokens": 40}
    everything = evaluate(*base, task, **options)
    voted = evaluate(*base, task, choose=vote, **options)
    assert voted.accuracy == everything.majority == 0.5 == everything.accuracy
    assert sorted(voted.completions) == [answers("0"), answers("2")]
    assert voted.kl_bound == best_of_n_kl(3) and voted.kl is None


def test_no_choice_of_one_of_n_samples_is_further_away_than_best_of_n():
    """By enumeration: any rule that picks one of n independent samples, however odd, leaves the
    policy by at most log n - (n - 1) / n nats; best-of-n by a score reaches almost all of it."""
    rng, n, distances = random.Random(0), 3, []
    policy = [0.02] * 10 + [0.08] * 10
    draws = list(itertools.product(range(20), repeat=n))
    rules = [lambda draw: max(draw)]
    table = {draw: rng.choice(draw) for draw in draws}
    rules += [table.get, lambda draw: draw[0] if draw[1] == draw[2] else draw[1]]
    for rule in rules:
        chosen = [0.0] * 20
        for draw in draws:
            chosen[rule(draw)] += math.prod(policy[x] for x in draw)
        assert sum(chosen) == pytest.approx(1.0)
        pairs = zip(chosen, policy, strict=True)
        distances.append(sum(q * math.log(q / p) for q, p in pairs if q > 0))
    assert max(distances) <= best_of_n_kl(n) and distances[0] > 0.95 * best_of_n_kl(n)


# distance from a reference


def test_the_distance_from_a_reference(base, other):
    """Summed over a completion's tokens, EOS included, at the temperature of the evaluation."""
    model, tokenizer = base
    options = {"n": 5, "max_new_tokens": 6, "temperature": 0.7}
    result = evaluate(model, tokenizer, Arithmetic("addition", 2), reference=other, **options)
    distances = []
    for problem, [ids] in zip(result.problems, result.completion_ids, strict=True):
        prompt = tokenizer.encode_prompt(problem.prompt)
        tokens = torch.tensor([[*prompt, *ids]])
        mask = torch.arange(tokens.shape[1])[None] >= len(prompt)
        logp, ref_logp = (token_logprobs(m, tokens, mask=mask, temperature=0.7)
                          for m in (model, other))
        distances.append(float((logp - ref_logp).sum().detach()))
    assert result.kl == pytest.approx(sum(distances) / 5, abs=1e-4) and abs(result.kl) > 0.1
    itself = evaluate(model, tokenizer, Arithmetic("addition", 2), reference=model, **options)
    assert itself.kl == 0.0 and itself.completions == result.completions


def test_the_distance_of_several_samples_is_their_mean(base, other):
    one = evaluate(*base, Arithmetic("addition", 2), n=4, samples=3, max_new_tokens=4,
                   reference=other)
    parts = evaluate(*base, Arithmetic("addition", 2), n=4, samples=3, max_new_tokens=4,
                     reference=other, rows=12)
    assert one.kl == pytest.approx(parts.kl, abs=1e-5)


def test_one_sample_is_no_choice(base, other):
    """With one sample per problem, best-of-n is the policy: its distance is measured."""
    options = {"n": 3, "max_new_tokens": 4, "choose": best_of("accuracy")}
    task = Arithmetic("addition", 2)
    chosen = evaluate(*base, task, reference=other, **options)
    plain = evaluate(*base, task, reference=other, **{**options, "choose": None})
    assert chosen == replace(plain, kl_bound=0.0)
    assert evaluate(*base, task, **options).kl is None


def test_the_distance_of_a_choice_is_not_measured(base, other):
    """The bound is one on the distance from the sampled policy, not from another reference."""
    options = {"n": 3, "samples": 4, "max_new_tokens": 4, "choose": best_of("accuracy")}
    for reference in (base[0], other):
        best = evaluate(*base, Arithmetic("addition", 2), reference=reference, **options)
        assert best.kl is None and best.kl_bound == best_of_n_kl(4)


def test_there_is_no_distance_at_temperature_0(base):
    with pytest.raises(ValueError, match="temperature is 0"):
        evaluate(None, None, Arithmetic("addition", 2), n=1, temperature=0, reference=base[0])
    greedy = evaluate(*base, Arithmetic("addition", 2), n=1, temperature=0, max_new_tokens=2)
    assert greedy.kl is None


# problems and samples


def test_parts_change_nothing_but_memory_and_problems_are_held_out(base):
    task = Arithmetic("addition", 2)
    options = {"n": 9, "samples": 2, "max_new_tokens": 6, "temperature": 0}
    whole = evaluate(*base, task, **options)
    split = evaluate(*base, task, rows=4, **options)
    assert whole == split and len(whole.completions) == 9
    assert all(len(row) == 2 for row in whole.completions)
    for problem in whole.problems:
        a, b = map(int, problem.prompt.rstrip("=").split("+"))
        assert task.split_of(a, b) == "test"


def test_the_seed_decides_problems_and_samples(base):
    task, options = Arithmetic("addition", 2), {"n": 5, "max_new_tokens": 5}
    first, again, another = (evaluate(*base, task, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again and first.problems != another.problems
    hotter = evaluate(*base, task, seed=1, temperature=1.3, **options)
    assert hotter.problems == first.problems and hotter.completions != first.completions


def test_seeds_are_derived_from_these_names(base):
    """So that an evaluation of today can be compared with one of last year."""
    task = Arithmetic("addition", 2)
    result = evaluate(*base, task, n=4, samples=2, max_new_tokens=5, seed=7)
    rng = random.Random(derive_seed(7, "evaluate", "problems"))
    problems = distinct_problems(task, 4, rng)
    generator = torch.Generator().manual_seed(derive_seed(7, "evaluate", "sample"))
    samples = collect(*base, task, problems, group=2, max_new_tokens=5, generator=generator)
    assert result.problems == problems
    assert sum(result.completions, []) == samples.completions


def test_held_out_problems_are_distinct(base):
    """What was called 512 held-out problems of 1-digit sums were nine, each drawn some sixty times,
    and the interval took n = 512."""
    task = Arithmetic("addition", 1)
    held_out = {f"{a}+{b}=" for a in range(10) for b in range(10) if task.split_of(a, b) == "test"}
    result = evaluate(*base, task, n=512, max_new_tokens=2)
    sizes = len(result.problems), len(result.completions), len(result.verdicts["accuracy"])
    assert set(sizes) == {len(held_out)} and len(held_out) < 20
    assert {p.prompt for p in result.problems} == held_out


@pytest.mark.parametrize(
    "n, there, want",
    [(1, 1, 1), (5, 5, 5), (512, 5, 5), (300, 300, 300), (300, 301, 300), (10**12, 40, 40)],
)
def test_as_many_distinct_problems_as_there_are_and_no_endless_search(listed, n, there, want):
    task = listed(there)
    problems = distinct_problems(task, n, random.Random(0))
    assert len({p.prompt for p in problems}) == len(problems) == want
    assert task.draws <= 20 * max(there, 64) + 2 * 4096


def test_the_first_problems_are_the_first_of_more_and_the_seed_decides(listed):
    few, many = (distinct_problems(listed(50), n, random.Random(1)) for n in (3, 40))
    assert few == many[:3] == distinct_problems(listed(50), 3, random.Random(1))
    assert few != distinct_problems(listed(50), 3, random.Random(2))


def test_one_prompt_with_two_answers_is_two_problems(listed):
    """The same number in another spelling, or another field, is the same problem."""
    problems = [
        Problem("a", "1"),
        Problem("a", "2"),
        Problem("b", "1"),
        Problem("a", "1", worked="x"),
    ]
    distinct = distinct_problems(listed(problems), 9, random.Random(0))
    assert sorted((p.prompt, p.answer) for p in distinct) == [("a", "1"), ("a", "2"), ("b", "1")]


def test_a_task_without_held_out_problems_is_named(listed):
    with pytest.raises(ValueError, match="no problem in its split 'train'"):
        distinct_problems(listed(3), 2, random.Random(0), split="train")


def test_a_task_without_accuracy_is_named_before_anything_is_sampled(listed):
    """It was a KeyError, after all the sampling."""
    task = listed(3, {"format": None, "length": None})
    with pytest.raises(ValueError, match="no reward named accuracy.*it has format, length"):
        evaluate(None, None, task, n=1)


@pytest.mark.parametrize("numbers", [{"n": 0}, {"n": 1, "samples": 0}])
def test_at_least_one_problem_and_one_sample(listed, numbers):
    with pytest.raises(ValueError, match="at least one of each"):
        evaluate(None, None, listed(3), **numbers)


def test_no_verdict_counts_neither_as_right_nor_as_wrong(base, listed):
    """Where a task judged half of the completions, all of them right, the accuracy was 0.5, and the
    mean of the reward 1.0 beside it."""
    verdicts = {"0": 1.0, "1": 1.0, "2": 0.0, "3": None, "4": math.nan, "5": None}
    task = listed(6, {"accuracy": lambda answer, **_: [verdicts[a] for a in answer]})
    result = evaluate(*base, task, n=6, samples=2, max_new_tokens=2)
    rows = {p.answer: row for p, row
            in zip(result.problems, result.verdicts["accuracy"], strict=True)}
    assert rows == {"0": [1.0] * 2, "1": [1.0] * 2, "2": [0.0] * 2,
                    "3": [None] * 2, "4": [None] * 2, "5": [None] * 2}
    assert result.accuracy == result.rewards["accuracy"] == pytest.approx(2 / 3)
    assert result.judged_problems == 3 and math.isnan(result.pass_at(3))
    assert result.pass_at(1) == result.pass_at(2) == pytest.approx(2 / 3)
    nothing = replace(result, verdicts={"accuracy": [[None] * 2] * 6})
    assert math.isnan(nothing.accuracy) and nothing.judged_problems == 0


def test_all_rewards_are_asked_whatever_their_weights(base):
    """What training does not look at is still worth knowing."""
    task = Arithmetic("addition", 2)
    weighted = JudgedTask(task, task.rewards, {"format_reward": 0.0})
    result = evaluate(*base, weighted, n=3, max_new_tokens=3)
    assert result == evaluate(*base, task, n=3, max_new_tokens=3)
    assert list(result.rewards) == ["accuracy", "format_reward"]


def test_progress_counts_the_completions_of_every_part(base, listed):
    class Updates(list):
        def update(self, n=1, note=""):
            self.append(n)

    updates = Updates()
    evaluate(*base, listed(5), n=5, samples=3, max_new_tokens=2, rows=6, progress=updates)
    assert updates == [6, 6, 3]


# texts


def test_the_loss_on_texts_is_a_mean_over_the_completions_tokens(base):
    """Tokens of prompts do not count, and each other token counts the same."""
    model, tokenizer = base
    prompts = [[1, 20, 30], [1], [1, 5]]
    completions = [[7, 8, 2], [9, 2], [4, 4, 4, 4, 2]]
    total = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        logp = token_logprobs(model, torch.tensor([[*prompt, *completion]]))
        total -= float(logp[0, len(prompt):].sum().detach())
    loss = text_loss(model, tokenizer, (prompts, completions))
    assert loss == pytest.approx(total / 10, abs=1e-5)


def test_a_vote_reads_every_spelling_of_an_answer():
    """GSM8K's "####" and LaTeX's box had no votes: the majority of right answers was wrong."""
    completions = ["#### 1,234", "\\boxed{1234.0}", "<answer>7</answer>", "no answer"]
    assert vote(completions, {}) == 0
    assert vote(["so 5", "\\boxed{\\frac{1}{2}}", "#### 0.5"], {}) == 1
