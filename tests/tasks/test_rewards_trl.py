"""minirl/tasks/rewards.py: rewards are called as TRL calls them, and TRL's own rewards run."""

import pytest

from minirl.tasks.rewards import combine, conversational, judge, text


def completions_first(completions, prompts, **_):
    return [float(len(completion)) for completion in completions]


def completions_alone(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def ids_alone(*, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def all_by_name(prompts, completions, completion_ids, answer):
    return [float(len(completion)) for completion in completions]


def gathering(*args, completions, **columns):
    return [float(len(completion)) for completion in completions]


class Instance:
    def __call__(self, completions, **_):
        return completions_alone(completions)


@pytest.mark.parametrize("reward", [completions_first, completions_alone, ids_alone, all_by_name,
                                    gathering, Instance()])
def test_rewards_are_called_by_keyword(reward):
    """They were called with prompts and completions in this order: one that takes completions first
    was asked about the prompts, and paid for the length of the question; one that takes completions
    alone could not be called."""
    prompts, completions = ["a long prompt"], ["abc"]
    columns = {"completion_ids": [[1, 2, 3]], "answer": ["5"]}
    assert judge({"r": reward}, ["r"], prompts, completions, **columns) == {"r": [3.0]}
    both = combine([reward], [2.0])
    assert both(prompts, completions, **columns) == [6.0]
    assert both(completions=completions, prompts=prompts, **columns) == [6.0]


@pytest.mark.parametrize("reward, message", [
    (lambda p, c, **_: [0.0], "missing a required argument: 'p'"),
    (lambda completions, solution, **_: [0.0], "'solution'"),
    (lambda prompts, completions: [0.0], "unexpected keyword argument 'answer'")])
def test_a_reward_that_does_not_take_the_columns_is_named(reward, message):
    with pytest.raises(ValueError, match=f"'r' cannot be called .*{message}") as error:
        judge({"r": reward}, ["r"], ["p"], ["c"], answer=["5"])
    assert "its keywords are prompts, completions, answer" in str(error.value)


def test_a_type_error_inside_a_reward_stays_what_it_is():
    """To catch the call's own TypeError would blame the signature for a fault in the body."""
    with pytest.raises(TypeError, match="can only concatenate"):
        judge({"r": lambda completions, **_: [c + 1 for c in completions]}, ["r"], ["p"], ["c"])


QUESTIONS = [[{"role": "user", "content": "2+3="}]] * 2
ANSWERS = [[{"role": "assistant", "content": f"<think>a</think>{answer}"}] for answer in "56"]


def form(completions, **kwargs):
    return [float(completion[0]["content"].startswith("<think>")) for completion in completions]


def right(completions, solution, log_extra=None, **kwargs):
    return [float(completion[0]["content"].endswith(wanted)) if wanted else None
            for completion, wanted in zip(completions, solution, strict=True)]


def overlong(completion_ids, **kwargs):
    return [-0.5 * (len(ids) > 2) for ids in completion_ids]


def repetition(prompts, completions, completion_ids, trainer_state=None, **kwargs):
    return [float(len(set(ids)) - len(ids)) for ids in completion_ids]


@pytest.mark.parametrize("reward, expected", [
    (form, [1.0, 1.0]), (right, [1.0, None]), (overlong, [0.0, -0.5]), (repetition, [0.0, -1.0])])
def test_signatures_of_trls_rewards(reward, expected):
    """TRL's own read the first message's content, which text lacks: text is made a message."""
    columns = {"completion_ids": [[1, 2], [3, 4, 4]], "solution": ["5", ""]}
    assert judge({"r": reward}, ["r"], QUESTIONS, ANSWERS, **columns) == {"r": expected}
    for completions in ([text(completion) for completion in ANSWERS], ANSWERS):
        rewards = {"r": conversational(reward)}
        assert judge(rewards, ["r"], ["2+3="] * 2, completions, **columns) == {"r": expected}


def test_conversational_rewards_read_prompts_too_and_keep_their_name():
    def echo(prompts, completions, **_):
        return [float(prompt == [{"role": "user", "content": completion[0]["content"]}])
                for prompt, completion in zip(prompts, completions, strict=True)]

    assert judge({"r": conversational(echo)}, ["r"], ["a", "b"], ["a", "c"]) == {"r": [1.0, 0.0]}
    with pytest.raises(ValueError, match="the reward 'right' cannot be called .*'solution'"):
        combine([conversational(right)], [1.0])(["p"], ["c"])


def test_trls_own_rewards():
    trl = pytest.importorskip("trl.rewards")
    overlong = trl.get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)
    repetition = trl.get_repetition_penalty_reward(ngram_size=1)
    rewards = {"form": trl.think_format_reward, "overlong": overlong, "repetition": repetition}
    columns = {"completion_ids": [[1, 2], [3, 3, 3]], "answer": ["5", "5"]}
    repeated = [0.0, pytest.approx(-2 / 3)]
    wanted = {"form": [1.0, 1.0], "overlong": [0.0, -0.5], "repetition": repeated}
    assert judge(rewards, rewards, QUESTIONS, ANSWERS, **columns) == wanted
    texts, read = [text(a) for a in ANSWERS], {n: conversational(r) for n, r in rewards.items()}
    assert judge(read, read, ["2+3="] * 2, texts, **columns) == wanted
    total = combine([*rewards.values()], [1, 1, 1])(QUESTIONS, ANSWERS, **columns)
    assert total == [1.0, pytest.approx(0.5 - 2 / 3)]
