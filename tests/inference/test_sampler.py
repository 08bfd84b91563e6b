"""minirl/inference/sampler.py: rollouts that a function of the user's makes, and what it samples
with."""

import math
import random

import pytest
import torch

from minirl.inference.collect import collect
from minirl.inference.evaluate import evaluate
from minirl.inference.sampler import Sampler, rollouts_by
from minirl.lm.logprobs import rollout_logprobs
from minirl.lm.sampling import sample
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.problem import JudgedTask
from minirl.tasks.user_rollouts import RolloutError, with_rollouts

TASK = Arithmetic(digits=2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_sampler(base, **changes):
    options = {"group": 1, "max_new_tokens": 9, "temperature": 1.0, "filters": {},
               "generator": seeded(), **changes}
    return Sampler(*base, **options)


def one_turn(prompts, sampler):
    return sampler.sample([sampler.tokenizer.encode_prompt(prompt) for prompt in prompts])


# what just samples

@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.6}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}, {"min_p": 0.2},
    {"repetition_penalty": 1.5}], ids=str)
def test_a_function_that_samples_gives_what_there_is_without_it(base, options):
    """Bit for bit: ids, masks, log-probs, texts and verdicts, with one generator."""
    problems = TASK.sample(4, random.Random(0))
    for group in (1, 3):
        options = {"group": group, "max_new_tokens": 12, **options}
        plain, ours = (collect(*base, task, problems, generator=seeded(), **options)
                       for task in (TASK, with_rollouts(TASK, one_turn)))
        for name in ("tokens", "mask", "behavior_logp", "prompt_lengths", "truncated"):
            assert torch.equal(getattr(plain.rollouts, name), getattr(ours.rollouts, name)), name
        assert (plain.completions, plain.verdicts) == (ours.completions, ours.verdicts)
        assert plain.rollouts.truncated.any() or group == 1


def test_an_evaluation_asks_it_too(base):
    plain, ours = (evaluate(*base, task, n=6, samples=2, max_new_tokens=10)
                   for task in (TASK, with_rollouts(TASK, one_turn)))
    assert plain == ours


def test_the_sampler_takes_ids_and_gives_ids(base):
    model, tokenizer = base
    prompts = [[5, 6], [5, 6], [7], [5, 6]]
    got = make_sampler(base, group=2, temperature=0.7).sample(prompts)
    expected = sample(model, prompts, max_new_tokens=9, temperature=0.7, pad_id=tokenizer.pad_id,
                      eos_id=tokenizer.stop_ids, generator=seeded())
    assert got["prompt_ids"] == prompts and got["completion_ids"] == expected.completion_ids()
    assert [x for row in got["logprobs"] for x in row] == expected.behavior_logp[
        expected.mask].tolist()
    short = make_sampler(base).sample(prompts, max_new_tokens=3)["completion_ids"]
    assert max(map(len, short)) == 3
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        make_sampler(base).sample(prompts, max_new_tokens=0)


@pytest.mark.parametrize("prompts, read", [
    ([[5], [5], [6], [6]], 2), ([[5], [6], [5], [6]], 4), ([[5], [5], [6]], 3), ([[5]] * 4, 2)])
def test_prompts_of_a_group_are_read_once(base, prompts, read, monkeypatch):
    """A function may ask for some of the rows alone, in its second turn."""
    module, asked = "minirl.inference.sampler.sample", []

    def noting(model, prompts, **options):
        asked.append((len(prompts), options["group"]))
        return sample(model, prompts, **options)

    monkeypatch.setattr(module, noting)
    got = make_sampler(base, group=2).sample(prompts)
    assert got["prompt_ids"] == prompts and len(got["completion_ids"]) == len(prompts)
    assert asked == [(read, len(prompts) // read)]


# what else it may return

def two_turns(prompts, sampler):
    """Ask, say what was said, ask again, and end with a word of the environment's."""
    encode = sampler.tokenizer.encode
    first = sampler.sample([sampler.tokenizer.encode_prompt(prompt) for prompt in prompts],
                           max_new_tokens=4)
    said = [encode(f" ({len(ids)}) ") for ids in first["completion_ids"]]
    talks = [a + b for a, b in zip(first["completion_ids"], said, strict=True)]
    second = sampler.sample([prompt + talk for prompt, talk in zip(
        first["prompt_ids"], talks, strict=True)], max_new_tokens=5)
    end = encode("!")
    turns = zip(first["logprobs"], said, second["logprobs"], strict=True)
    return {
        "prompt_ids": first["prompt_ids"],
        "completion_ids": [talk + ids + end for talk, ids in zip(talks, second["completion_ids"],
                                                                 strict=True)],
        "logprobs": [a + [math.nan] * len(b) + c + [9.0] for a, b, c in turns],
        "env_mask": [[1] * len(a) + [0] * len(b) + [1] * len(c) + [0] for a, b, c in zip(
            first["completion_ids"], said, second["completion_ids"], strict=True)],
        "turns": [2] * len(prompts), "room": "kitchen"}


def test_what_the_environment_wrote_is_read_and_not_learnt_from(base):
    """Its ids have mask 0 and log-prob 0, whatever stands beside them; they are in the texts that
    rewards read; and each id of the policy's has the log-prob with which it was drawn."""
    model, tokenizer = base
    columns = {}

    def reward(prompts, completions, **more):
        columns.update(more, prompts=prompts, completions=completions)
        return [0.0] * len(completions)

    task = with_rollouts(JudgedTask(TASK, {"r": reward}, {"r": 1.0}), two_turns)
    got = collect(*base, task, TASK.sample(3, random.Random(1)), group=2, max_new_tokens=20,
                  temperature=0.8, generator=seeded())
    r = got.rollouts
    assert columns["turns"] == [2] * 6 and columns["room"] == ["kitchen"] * 6
    assert columns["prompts"] == [p.prompt for p in got.problems for _ in range(2)]
    assert columns["completions"] == got.completions
    for i, (text, ids) in enumerate(zip(got.completions, columns["completion_ids"], strict=True)):
        start, n = int(r.prompt_lengths[i]), len(ids)
        assert text.endswith("!") and text == tokenizer.decode_completion(ids)
        assert r.tokens[i, start:start + n].tolist() == ids
        first = next(j for j in range(1, n) if not r.mask[i, start + j])
        said = len(tokenizer.encode(f" ({first}) "))
        assert r.mask[i].tolist() == [False] * start + [True] * first + [False] * said + [True] * (
            n - first - said - 1) + [False] * (r.tokens.shape[1] - start - n + 1)
    assert not r.behavior_logp[~r.mask].any()
    logp = rollout_logprobs(model, r, temperature=0.8)
    torch.testing.assert_close(r.behavior_logp, logp, atol=1e-5, rtol=0)


def test_without_log_probs_the_policy_scores_the_ids(base):
    """As if it had drawn them, at the temperature of the run: 1 where that is greedy."""
    model, tokenizer = base
    for key in ({"logprobs": None}, {}):
        for temperature in (0.7, 0.0):
            r, _ = rollouts_by(lambda prompts, sampler, key=key: {
                "prompt_ids": [[5, 6], [7]], "completion_ids": [[9, 8, 7], [6]],
                "env_mask": [[1, 0, 1], [1]], **key},
                ["a", "b"], make_sampler(base, temperature=temperature))
            expected = rollout_logprobs(model, r, temperature=temperature or 1.0)
            assert torch.equal(r.behavior_logp, expected) and (r.behavior_logp[r.mask] < 0).all()
            assert r.mask.tolist() == [[False, False, True, False, True],
                                       [False, True, False, False, False]]


def test_a_completion_is_cut_off_where_the_policys_last_id_is_no_stop(base):
    """Also where the environment had the last word; where the policy had none, it was not."""
    stop = base[1].stop_ids[0]
    rows = [([9, stop], [1, 1]), ([stop, 9], [1, 1]), ([9, stop, 8], [1, 1, 0]),
            ([stop, 8], [0, 1]), ([8], [0])]
    r, _ = rollouts_by(lambda prompts, sampler: {
        "prompt_ids": [[5]] * 5, "completion_ids": [ids for ids, _ in rows],
        "env_mask": [own for _, own in rows]}, ["a"] * 5, make_sampler(base))
    assert r.truncated.tolist() == [False, True, False, True, False]


def test_a_column_takes_the_place_of_a_field_of_that_name(base):
    """As in TRL: an environment may say what was right."""
    def rollout(prompts, sampler):
        return {**one_turn(prompts, sampler), "answer": [str(i) for i in range(len(prompts))]}

    answers = []
    task = JudgedTask(TASK, {"r": lambda answer, **_: answers.extend(answer) or [0.0, 0.0]},
                      {"r": 1.0})
    collect(*base, with_rollouts(task, rollout), TASK.sample(2, random.Random(0)),
            max_new_tokens=3)
    assert answers == ["0", "1"]


# what is refused

GOOD = {"prompt_ids": [[5, 6], [7]], "completion_ids": [[9, 8], [6]],
        "logprobs": [[-1.0, -0.5], [0.0]], "env_mask": [[1, 0], [1]]}


@pytest.mark.parametrize("returned, message", [
    (None, "returned a NoneType: a dict with prompt_ids, completion_ids and logprobs"),
    ([[9, 8], [6]], "returned a list: a dict"),
    ({"completion_ids": [[9, 8], [6]]}, "returned the keys completion_ids: a dict"),
    ({"prompt_ids": 3}, "prompt_ids is no list of lists"),
    ({"prompt_ids": None}, "prompt_ids is no list of lists"),
    ({"completion_ids": torch.tensor([[9, 8], [6, 6]])}, "completion_ids is no list of lists"),
    ({"completion_ids": ["98", "6"]}, "completion_ids is no list of lists"),
    ({"completion_ids": [[9, 8]]}, "completion_ids has 1 entries: one for each of the 2 prompts"),
    ({"prompt_ids": [[5], [6], [7]]}, "prompt_ids has 3 entries"),
    ({"completion_ids": [[9, 8], []]}, "completion_ids, row 1, is empty"),
    ({"prompt_ids": [[], [7]]}, "prompt_ids, row 0, is empty"),
    ({"completion_ids": [[9, 10_000], [6]]}, "completion_ids, row 0, holds the id 10000, unknown"),
    ({"prompt_ids": [[5, 6], [-1]]}, "prompt_ids, row 1, holds the id -1"),
    ({"prompt_ids": [[5, 6.0], [7]]}, "prompt_ids, row 0, holds the id 6.0"),
    ({"completion_ids": [[9, 8], [6] * 10]}, "row 1, has 10 ids, and max_new_tokens is 9"),
    ({"prompt_ids": [[5] * 127, [7]]}, "row 0 has 127 ids of the prompt and 2 of the completion"),
    ({"logprobs": [[-1.0], [0.0]]}, "logprobs, row 0, has 1 numbers beside 2 of completion_ids"),
    ({"logprobs": [[-1.0, -1.0], [0.1]]}, "logprobs, row 1, holds 0.1: the log of a probability"),
    ({"logprobs": [[math.nan, -1.0], [0.0]]}, "logprobs, row 0, holds nan"),
    ({"logprobs": [[-math.inf, -1.0], [0.0]]}, "logprobs, row 0, holds -inf"),
    ({"logprobs": [[None, -1.0], [0.0]]}, "logprobs, row 0, holds None"),
    ({"logprobs": [[-1.0, -1.0]]}, "logprobs has 1 entries"),
    ({"env_mask": [[1], [1]]}, "env_mask, row 0, has 1 numbers beside 2"),
    ({"env_mask": [[1, 2], [1]]}, "env_mask, row 0, holds other numbers than 0 and 1"),
    ({"env_mask": [1, 0]}, "env_mask is no list of lists"),
    ({"turns": [1, 2, 3]}, "turns has 3 entries"),
    ({"completions": ["a", "b"]}, "a column completions, which rewards get already"),
    ({"prompts": ["a", "b"]}, "a column prompts"),
    ({"environments": [None, None]}, "a column environments"),
], ids=str)
def test_what_is_no_rollout(base, returned, message):
    whole = {**GOOD, **returned} if isinstance(returned, dict) and len(returned) == 1 and (
        "the keys" not in message) else returned
    with pytest.raises(RolloutError, match=message):
        rollouts_by(lambda prompts, sampler: whole, ["a", "b"], make_sampler(base))


def test_what_is_one(base):
    """A log-prob of 0, one that rounding made larger, and what stands beside the environment's ids;
    tuples, bools and no optional key."""
    for changes in ({}, {"logprobs": [[-1.0, math.nan], [5e-5]]}, {"env_mask": None},
                    {"env_mask": ((True, False), (True,)), "logprobs": ((-1, 0), (0,))}):
        r, columns = rollouts_by(lambda prompts, sampler, changes=changes: {**GOOD, **changes},
                                 ["a", "b"], make_sampler(base))
        assert r.completion_lengths.tolist() == ([2, 1] if changes == {"env_mask": None}
                                                 else [1, 1])
        assert columns == {"completion_ids": GOOD["completion_ids"]}
        assert float(r.behavior_logp[0, 2]) == -1.0
