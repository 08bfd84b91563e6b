"""minirl/tasks/mixture.py"""

import random

import pytest

from minirl.tasks.bilingual import Bilingual
from minirl.tasks.instructions import Instructions
from minirl.tasks.mixture import Mixture
from minirl.tasks.problem import columns
from minirl.tasks.rewards import judge, weighted_sum


def liked(prompts, completions, answer, completion_ids, **_):
    """A preference that tells which rows it was asked about: 10 x the id that belongs to the row."""
    assert len(prompts) == len(completions) == len(answer) == len(completion_ids)
    return [10.0 * ids[0] for ids in completion_ids]


def test_each_prompt_is_judged_in_its_own_way():
    mixture = Mixture(Bilingual(), Instructions(), liked, general_share=0.5)
    problems = mixture.sample(8, random.Random(3))
    assert {p.general for p in problems} == {True, False} and all((p.language is None) == p.general for p in problems)
    completions = [p.answer if p.general else f"<think>{p.worked}</think><answer>{p.answer}</answer>" for p in problems]
    prompts, known = [p.prompt for p in problems], {**columns(problems), "completion_ids": [[i] for i in range(8)]}
    verdicts = {name: reward(prompts, completions, **known) for name, reward in mixture.rewards.items()}
    assert set(verdicts) == {"accuracy", "format_reward", "language_consistency", "preference", "general/accuracy", "general/true_reward"}
    for i, problem in enumerate(problems):
        rules = [verdicts[name][i] for name in ("accuracy", "format_reward", "language_consistency")]
        assert rules == ([None] * 3 if problem.general else [1.0] * 3)
        assert verdicts["preference"][i] == (10.0 * i if problem.general else None)
        assert (verdicts["general/true_reward"][i] is None) == (not problem.general)
    total = weighted_sum([verdicts["accuracy"], verdicts["preference"]], [2.0, 1.0])
    assert total == [10.0 * i if p.general else 2.0 for i, p in enumerate(problems)]


def test_rewards_are_named_and_called_by_keyword():
    """The rows a reward is asked about went to it by position, and one that answers for other rows
    than it was asked about was a "zip() argument 2" error without a name."""
    def shortest(completions, prompts, **_):
        return [-float(len(completion)) for completion in completions]

    mixture = Mixture(Bilingual(), Instructions(), shortest, general_share=1.0)
    problems = mixture.sample(2, random.Random(0))
    known = dict(prompts=[p.prompt for p in problems], **columns(problems))
    asked = judge(mixture.rewards, ["preference"], known.pop("prompts"), ["abc", "d"], **known)
    assert asked == {"preference": [-3.0, -1.0]}
    hasty = Mixture(Bilingual(), Instructions(), lambda **_: [1.0], general_share=1.0)
    with pytest.raises(ValueError, match="the reward 'preference' gave 1 of them"):
        hasty.rewards["preference"](prompts=["p", "p"], completions=["abc", "d"], **known)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_reward_that_is_asked_about_nothing_is_not_called(share):
    def never(*args, **columns):
        raise AssertionError("called")

    mixture = Mixture(Bilingual(), Instructions(), never if share == 0 else liked, general_share=share)
    problems = mixture.sample(5, random.Random(0))
    verdict = mixture.rewards["preference"]([p.prompt for p in problems], ["x"] * 5, **columns(problems), completion_ids=[[1]] * 5)
    assert verdict == ([None] * 5 if share == 0 else [10.0] * 5)


def test_shares_and_splits():
    mixture = Mixture(Bilingual((2,)), Instructions(), liked, general_share=0.25)
    problems = mixture.sample(2000, random.Random(0), split="test")
    assert sum(p.general for p in problems) / 2000 == pytest.approx(0.25, abs=0.03)
    trained = {p.prompt for p in mixture.sample(2000, random.Random(1))}
    assert not trained & {p.prompt for p in problems}
    with pytest.raises(ValueError, match="general_share is 1.5"):
        Mixture(Bilingual(), Instructions(), liked, general_share=1.5)
