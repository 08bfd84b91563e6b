"""minirl/inference/collect.py"""

import copy
import math
import random

import pytest
import torch

from minirl.inference.collect import (
    check_prompts,
    check_rewards,
    collect,
    collect_in_parts,
    verdict_tensor,
)
from minirl.lm.heads import ScalarModel, score_ids
from minirl.lm.sampling import sample
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.bilingual import Bilingual
from minirl.tasks.environment import with_tools
from minirl.tasks.instructions import Instructions
from minirl.tasks.problem import JudgedTask, Problem, columns
from minirl.tasks.rewards import judge, weighted_sum


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def plainly(model, tokenizer, task, problems, weights, *, group, generator, **sampling):
    """What every page once did for itself, line by line: sample, decode, judge, sum."""
    prompts = [tokenizer.encode_prompt(problem.prompt) for problem in problems]
    rollouts = sample(model, prompts, group=group, eos_id=tokenizer.stop_ids,
                      pad_id=tokenizer.pad_id, generator=generator, **sampling)
    completions = [tokenizer.decode_completion(ids) for ids in rollouts.completion_ids()]
    texts = [problem.prompt for problem in problems for _ in range(group)]
    verdicts = judge(task.rewards, weights, texts, completions, **columns(problems, repeat=group),
                     completion_ids=rollouts.completion_ids())
    return rollouts, completions, verdicts, weighted_sum([*verdicts.values()], [*weights.values()])


@pytest.mark.parametrize("task", [Arithmetic("addition", 2), Bilingual(), Instructions()],
                         ids=lambda task: task.name)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}],
                         ids=str)
def test_it_gives_what_sampling_decoding_and_judging_give(base, task, sampling):
    for seed, group in ((0, 1), (1, 3)):
        problems = task.sample(4, random.Random(seed))
        options = {"group": group, "max_new_tokens": 7, **sampling}
        wanted = plainly(*base, task, problems, task.weights, generator=seeded(seed), **options)
        got = collect(*base, task, problems, generator=seeded(seed), **options)
        rollouts, completions, verdicts, sums = wanted
        assert torch.equal(got.rollouts.tokens, rollouts.tokens)
        assert torch.equal(got.rollouts.behavior_logp, rollouts.behavior_logp)
        assert (got.problems, got.completions, got.verdicts) == (problems, completions, verdicts)
        assert got.rewards.tolist() == pytest.approx(sums) and got.rewards.dtype == torch.float32


def test_each_completion_is_judged_with_the_columns_of_its_own_problem(base, say, listed):
    say({"0=": ["0", "1"], "1=": ["1", "0"]})
    task = listed(2)
    got = collect(*base, task, task.problems, group=2, max_new_tokens=4)
    assert got.completions == ["0", "1", "1", "0"]
    assert got.verdicts == {"accuracy": [1.0, 0.0, 1.0, 0.0]}
    assert got.rewards.view(2, 2).tolist() == [[1.0, 0.0], [1.0, 0.0]]


def constant(*verdicts):
    return lambda completions, **_: list(verdicts)


def test_rewards_are_weighted_and_no_verdict_is_nan(base, listed):
    """By hand: 2 x 1 + 0.5 x 4 = 4. None and NaN count as 0 beside a verdict, and two of them make
    the row one without a verdict."""
    rewards = {"a": constant(1.0, None, 3, math.nan), "b": constant(4.0, 2.0, math.nan, None)}
    task = listed(4, rewards, a=2.0, b=0.5)
    got = collect(*base, task, task.problems, max_new_tokens=2)
    assert got.rewards[:3].tolist() == [4.0, 1.0, 6.0] and got.rewards[3].isnan()
    assert got.verdicts == {"a": [1.0, None, 3.0, None], "b": [4.0, 2.0, None, None]}


def test_a_reward_of_weight_0_is_judged_and_not_summed(base, listed):
    rewards = {"watched": constant(7.0, 7.0), "a": constant(1.0, None)}
    task = listed(2, rewards, a=1.0, watched=0.0)
    got = collect(*base, task, task.problems, max_new_tokens=2)
    assert got.verdicts == {"a": [1.0, None], "watched": [7.0, 7.0]}
    assert got.rewards[0] == 1.0 and got.rewards[1].isnan(), "what is only watched is no verdict"


def never(**_):
    raise AssertionError("a reward without a weight was asked")


def test_the_rewards_with_a_weight_are_judged_in_the_order_of_the_weights(base, listed):
    rewards = {"never": never, "a": constant(1.0), "b": constant(2.0)}
    task = listed(1, rewards, b=1.0, a=1.0)
    got = collect(*base, task, task.problems, max_new_tokens=2)
    assert list(got.verdicts) == ["b", "a"] and got.rewards.tolist() == [3.0]
    assert got.weights == {"a": 1.0, "b": 1.0}


def test_a_task_without_weights_counts_each_reward_once(base, listed):
    task = listed(1, {"a": constant(1.0), "b": constant(2.0)})
    assert not hasattr(task, "weights")
    assert collect(*base, task, task.problems, max_new_tokens=2).rewards.tolist() == [3.0]


def test_a_task_without_rewards_gives_no_verdicts(base, listed):
    task = listed(3, {})
    got = collect(*base, task, task.problems, max_new_tokens=2)
    assert got.verdicts == {} and got.rewards.shape == (3,) and got.rewards.isnan().all()


def test_a_weight_of_an_unknown_reward_is_refused_before_anything_is_sampled(listed):
    task = listed(1, {"a": constant(1.0)}, acuracy=1.0)
    with pytest.raises(ValueError, match="no reward 'acuracy'; the task has a"):
        collect(None, None, task, task.problems, max_new_tokens=2)


def test_rewards_get_the_sampled_ids_and_a_cut_off_answer_has_no_eos(base, say, listed):
    """Texts that were decoded and encoded again ended with an EOS, whether the policy had ended
    them or not, and the reward model scored an answer that nobody gave."""
    model, tokenizer = base
    say({"0=": ["ok", "much too long"]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reward_model = ScalarModel(copy.deepcopy(model)).eval()

    def score(prompts, completion_ids, **_):
        before = [tokenizer.encode_prompt(prompt) for prompt in prompts]
        return score_ids(reward_model, before, completion_ids, tokenizer.pad_id).tolist()

    task = listed(1, {"reward_model": score})
    got = collect(model, tokenizer, task, task.problems, group=2, max_new_tokens=4)
    ids = got.rollouts.completion_ids()
    assert ids == [[*tokenizer.encode("ok"), tokenizer.eos_id], tokenizer.encode("much")]
    assert got.rollouts.truncated.tolist() == [False, True] and got.completions == ["ok", "much"]
    prompt = tokenizer.encode_prompt("0=")
    scores = score_ids(reward_model, [prompt] * 2, ids, tokenizer.pad_id).tolist()
    ended = score_ids(reward_model, [prompt], [[*ids[1], tokenizer.eos_id]], tokenizer.pad_id)
    assert got.verdicts["reward_model"] == scores and abs(scores[1] - ended.item()) > 1e-4


def test_other_rewards_for_the_same_problems(base):
    task = Arithmetic("addition", 1)
    judged = JudgedTask(task, {"a": constant(1.0, 2.0)}, {"a": 0.5})
    assert judged.name == "1-digit addition" and JudgedTask(task, {}, {}, "sums").name == "sums"
    problems = judged.sample(2, random.Random(3), split="test")
    assert problems == task.sample(2, random.Random(3), split="test")
    assert collect(*base, judged, problems, max_new_tokens=2).rewards.tolist() == [0.5, 1.0]


def test_no_verdict_is_not_a_number_in_a_tensor():
    tensor = verdict_tensor([1, None, 0.5])
    assert tensor.dtype == verdict_tensor([2, 1]).dtype == torch.float32
    assert tensor.isnan().tolist() == [False, True, False] and tensor.nansum() == 1.5


def test_what_sampling_refuses_is_refused(base, listed):
    task = listed(1)
    with pytest.raises(ValueError, match="max_new_tokens"):
        collect(*base, task, task.problems, max_new_tokens=1000)
    with pytest.raises(ValueError, match="the reward 'a' gave 2 of them"):
        odd = listed(1, {"a": constant(1.0, 2.0)})
        collect(*base, odd, odd.problems, max_new_tokens=2)


class Updates(list):
    """A progress bar that only counts."""

    def update(self, n=1, note=""):
        self.append(n)


def test_the_longest_prompt_of_a_task_leaves_room_for_completions(base, listed):
    """BOS and eight bytes: nine tokens, and a tenth that is sampled."""
    tokenizer, task = base[1], listed([Problem("1234567=", ""), Problem("1=", "")])
    check_prompts(tokenizer, task, max_new_tokens=1, context=10)
    with pytest.raises(ValueError, match="the prompt '1234567=' has 9 tokens; with max_new_token"):
        check_prompts(tokenizer, task, max_new_tokens=2, context=10)


def test_parts_hold_at_most_so_many_completions_in_the_order_of_the_problems(base, listed):
    task, updates = listed(5), Updates()
    options = {"group": 3, "max_new_tokens": 3}
    parts = list(collect_in_parts(*base, task, task.problems, rows=7, progress=updates,
                                  generator=seeded(0), **options))
    assert [len(part.completions) for part in parts] == updates == [6, 6, 3]
    assert [problem for part in parts for problem in part.problems] == task.problems
    generator = seeded(0)  # one generator for all parts
    for part in parts:
        alone = collect(*base, task, part.problems, generator=generator, **options)
        assert torch.equal(part.rollouts.tokens, alone.rollouts.tokens)


def test_a_group_that_is_larger_than_a_part_is_not_split(base, listed):
    task = listed(2)
    parts = list(collect_in_parts(*base, task, task.problems, group=5, rows=4, max_new_tokens=2))
    assert [len(part.completions) for part in parts] == [5, 5]


def test_parts_are_collected_when_they_are_asked_for(base, listed):
    """An evaluation of thousands of problems must not hold all rollouts at once."""
    task, updates = listed(4), Updates()
    parts = collect_in_parts(*base, task, task.problems, rows=2, progress=updates,
                             max_new_tokens=2)
    assert updates == []
    next(parts)
    assert updates == [2]


def asked(calls):
    def reward(**columns):
        calls.append(columns)
        return [0.0] * len(columns["completions"])

    return reward


def test_rewards_are_tried_on_a_solved_problem_and_one_that_is_cut_off(base):
    calls = []
    task = JudgedTask(Arithmetic(digits=1), {"r": asked(calls)}, {"r": 1.0})
    check_rewards(base[1], task)
    call, = calls
    first, second = task.sample(2, random.Random(0))
    assert call["prompts"] == [first.prompt, second.prompt]
    assert call["completions"][0].endswith(f"</think><answer>{first.answer}</answer>")
    assert call["completions"][1] and not call["completions"][1].endswith("</answer>")
    assert call["answer"] == [first.answer, second.answer]
    assert [base[1].decode_completion(ids) for ids in call["completion_ids"]] == call["completions"]
    assert "environments" not in call


def test_with_an_environment_rewards_are_tried_with_one_of_their_own(base):
    class Room:
        def reset(self, **columns):
            return "in a room "

        def look(self) -> str:
            """Look around."""

        def get_reward(self):
            return 0.0

    calls = []
    task = with_tools(Arithmetic(digits=1), environment_factory=Room)
    check_rewards(base[1], JudgedTask(task, {**task.rewards, "r": asked(calls)}, {"r": 1.0}))
    assert [type(room) for room in calls[0]["environments"]] == [Room, Room]
    assert all(prompt.endswith("in a room ") for prompt in calls[0]["prompts"])


@pytest.mark.parametrize("reward", [lambda completions: [0.0], lambda **_: [0.0], lambda **_: 0.0])
def test_rewards_that_cannot_judge_are_refused_before_the_first_step(base, reward):
    task = JudgedTask(Arithmetic(digits=1), {"r": reward}, {"r": 1.0})
    with pytest.raises(ValueError, match="the reward 'r'"):
        check_rewards(base[1], task)
    check_rewards(base[1], JudgedTask(task, {"r": reward}, {}))        # nobody asks it


def test_what_rewards_say_of_the_two_problems_is_returned(base):
    """The second has half a completion, so that no verdict of accuracy is 1."""
    task = Arithmetic(digits=1)
    weighted = JudgedTask(task, {**task.rewards, "mine": lambda **_: [0.5, None]},
                          {"accuracy": 2.0, "mine": -1.0})
    assert check_rewards(base[1], weighted).tolist() == [1.5, 0.0]
