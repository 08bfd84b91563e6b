"""minirl/tasks/mixture.py"""

import random

import pytest

from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.bilingual import Bilingual, BilingualProblem
from minirl.tasks.instructions import Instructions
from minirl.tasks.mixture import Mixture
from minirl.tasks.problem import JudgedTask, columns, weights_of
from minirl.tasks.rewards import judge, weighted_sum

RULES = ("accuracy", "format_reward", "language_consistency")


def liked(prompts, completions, answer, completion_ids, **_):
    """A preference that shows which rows it was asked about: 10 x the id of the row."""
    assert len(prompts) == len(completions) == len(answer) == len(completion_ids)
    return [10.0 * ids[0] for ids in completion_ids]


def verdicts_of(mixture, problems, completions):
    """The verdicts of all rewards; row i has the sampled id i."""
    prompts = [p.prompt for p in problems]
    ids = [[i] for i in range(len(problems))]
    return judge(mixture.rewards, mixture.rewards, prompts, completions, **columns(problems),
                 completion_ids=ids)


def test_each_prompt_is_judged_in_its_own_way():
    mixture = Mixture(Bilingual(), Instructions(), liked, general_share=0.5)
    problems = mixture.sample(8, random.Random(3))
    assert {p.general for p in problems} == {True, False}
    assert all(isinstance(p.source, BilingualProblem) != p.general for p in problems)
    completions = [p.answer if p.general
                   else f"<think>{p.source.worked}</think><answer>{p.answer}</answer>"
                   for p in problems]
    verdicts = verdicts_of(mixture, problems, completions)
    assert set(verdicts) == {*RULES, "preference", "general/accuracy", "general/true_reward"}
    for i, problem in enumerate(problems):
        rules = [verdicts[name][i] for name in RULES]
        assert rules == ([None] * 3 if problem.general else [1.0] * 3)
        assert verdicts["preference"][i] == (10.0 * i if problem.general else None)
        assert (verdicts["general/true_reward"][i] is None) == (not problem.general)
    total = weighted_sum([verdicts["accuracy"], verdicts["preference"]], [2.0, 1.0])
    assert total == [10.0 * i if p.general else 2.0 for i, p in enumerate(problems)]


def test_the_problems_are_the_tasks_own():
    mixture = Mixture(Bilingual(), Instructions(), liked)
    for problem in mixture.sample(50, random.Random(0)):
        assert (problem.prompt, problem.answer) == (problem.source.prompt, problem.source.answer)


def test_any_two_tasks_can_be_mixed_and_get_their_own_columns():
    """A mixture once took bilingual problems and instructions only, and gave both all columns."""
    columns_seen = []

    def spy(prompts, completions, **by_name):
        columns_seen.append(set(by_name))
        return [1.0] * len(prompts)

    general = JudgedTask(Instructions(), {"spy": spy}, {"spy": 1.0})
    reasoning = JudgedTask(Bilingual(), {"accuracy": spy}, {"accuracy": 1.0})
    for tasks in ((reasoning, general), (general, reasoning)):
        mixture = Mixture(*tasks, preference=liked)
        problems = mixture.sample(20, random.Random(0))
        verdicts_of(mixture, problems, ["x"] * 20)
    plain = {"answer", "worked", "written", "completion_ids"}
    bilingual = plain | {"language", "numbers"}
    assert all(names in (plain, bilingual) for names in columns_seen)
    assert plain in columns_seen and bilingual in columns_seen
    sums = Mixture(Arithmetic("addition", 2), Arithmetic("subtraction", 2), liked)
    assert sums.name == "2-digit addition and 2-digit subtraction"


def test_weights_are_the_reasoning_tasks_and_1_for_the_preference():
    """What is only reported has weight 0, the general task's true reward among it."""
    general = dict.fromkeys(("general/accuracy", "general/true_reward"), 0.0)
    plain = Mixture(Bilingual(), Instructions(), liked)
    assert weights_of(plain) == {**dict.fromkeys(RULES, 1.0), "preference": 1.0, **general}
    weights = {"accuracy": 1.0, "language_consistency": 0.25}
    weighted = Mixture(JudgedTask(Bilingual(), Bilingual().rewards, weights), Instructions(), liked)
    assert weights_of(weighted) == {**weights, "format_reward": 0.0, "preference": 1.0, **general}
    assert list(weights_of(weighted)) == list(weighted.rewards)


def test_rewards_are_named_and_called_by_keyword():
    """The rows a reward is asked about went to it by position, and one that answers for other rows
    than it was asked about was a "zip() argument 2" error without a name."""
    def shortest(completions, prompts, **_):
        return [-float(len(completion)) for completion in completions]

    mixture = Mixture(Bilingual(), Instructions(), shortest, general_share=1.0)
    problems = mixture.sample(2, random.Random(0))
    prompts = [p.prompt for p in problems]
    asked = judge(mixture.rewards, ["preference"], prompts, ["abc", "d"], **columns(problems))
    assert asked == {"preference": [-3.0, -1.0]}
    hasty = Mixture(Bilingual(), Instructions(), lambda **_: [1.0], general_share=1.0)
    with pytest.raises(ValueError, match="the reward 'preference' gave 1 of them"):
        hasty.rewards["preference"](prompts=["p", "p"], completions=["abc", "d"],
                                    **columns(problems))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_reward_that_is_asked_about_nothing_is_not_called(share):
    def never(*args, **columns):
        raise AssertionError("called")

    mixture = Mixture(Bilingual(), Instructions(), never if share == 0 else liked, share)
    problems = mixture.sample(5, random.Random(0))
    verdict = mixture.rewards["preference"]([p.prompt for p in problems], ["x"] * 5,
                                            **columns(problems), completion_ids=[[1]] * 5)
    assert verdict == ([None] * 5 if share == 0 else [10.0] * 5)


def test_shares_and_splits():
    mixture = Mixture(Bilingual((2,)), Instructions(), liked, general_share=0.25)
    problems = mixture.sample(2000, random.Random(0), split="test")
    assert sum(p.general for p in problems) / 2000 == pytest.approx(0.25, abs=0.03)
    trained = {p.prompt for p in mixture.sample(2000, random.Random(1))}
    assert not trained & {p.prompt for p in problems}
    with pytest.raises(ValueError, match="general_share is 1.5"):
        Mixture(Bilingual(), Instructions(), liked, general_share=1.5)
