"""minirl/train/grpo.py, where a function of the user's makes the completions."""

from dataclasses import replace

import pytest
import torch

from minirl.equations.objectives import policy_gradient
from minirl.tasks.user_rollouts import with_rollouts
from minirl.train.grpo import GRPOConfig, train_grpo
from tests.train.small import TOKENIZER, Digits, Log, copy_of, save_step, tiny, weights

CONFIG = GRPOConfig(steps=3, prompts_per_step=3, group_size=4, lr=1e-2, warmup_steps=0,
                    min_lr_ratio=1.0, max_new_tokens=8)


def mixed(completion):
    return float(sum(map(ord, completion)) % 3)


def one_turn(prompts, sampler):
    return sampler.sample([TOKENIZER.encode_prompt(prompt) for prompt in prompts])


def two_turns(prompts, sampler):
    """Three ids, two of the environment's, which it draws with the sampler's generator, and three
    more."""
    first = sampler.sample([TOKENIZER.encode_prompt(prompt) for prompt in prompts],
                           max_new_tokens=3)
    said = torch.randint(5, 50, (len(prompts), 2), generator=sampler.generator).tolist()
    talks = [a + b for a, b in zip(first["completion_ids"], said, strict=True)]
    second = sampler.sample([prompt + talk for prompt, talk in zip(
        first["prompt_ids"], talks, strict=True)], max_new_tokens=3)
    turns = list(zip(first["logprobs"], second["logprobs"], strict=True))
    return {"prompt_ids": first["prompt_ids"],
            "completion_ids": [a + b for a, b in zip(talks, second["completion_ids"],
                                                     strict=True)],
            "logprobs": [[*a, 0.0, 0.0, *b] for a, b in turns],
            "env_mask": [[1] * len(a) + [0, 0] + [1] * len(b) for a, b in turns]}


def train(rollout, *, log=None, save=None, resume=None, **changes):
    task = Digits(mixed) if rollout is None else with_rollouts(Digits(mixed), rollout)
    return train_grpo(tiny(), TOKENIZER, task, replace(CONFIG, **changes), log=log, save=save,
                      resume=resume)


@pytest.mark.parametrize("changes", [
    {}, {"iterations": 2, "minibatches": 2, "top_p": 0.8},
    {"dynamic_sampling": True, "max_draws": 3, "off_policy": 1, "importance": "token_truncate"}],
    ids=str)
def test_a_function_that_samples_trains_as_without_it_bit_for_bit(changes):
    logs = Log(), Log()
    plain, ours = (train(rollout, log=log, **changes)
                   for rollout, log in zip((None, one_turn), logs, strict=True))
    assert torch.equal(weights(plain), weights(ours))
    for a, b in zip(*logs, strict=True):
        assert {**a, "step_time": 0} == {**b, "step_time": 0}
    assert not torch.equal(weights(tiny()), weights(ours))


def test_what_the_environment_wrote_has_no_gradient():
    """By the objective's own log-probs: two ids of each completion, between its own."""
    batches = []

    def objective(logp, old, adv, mask):
        logp.register_hook(lambda grad: batches.append((grad, adv, mask)))
        return policy_gradient(logp, adv)

    train_grpo(tiny(), TOKENIZER, with_rollouts(Digits(mixed), two_turns), replace(CONFIG, steps=1),
               objective=objective)
    grad, adv, mask = batches[-1]
    inside = mask.cumsum(1).bool() & mask.flip(1).cumsum(1).flip(1).bool()  # first to last own id
    said = inside & ~mask
    assert said.sum(1).tolist() == [2] * 12
    assert not grad[said].any() and not adv[said].any()
    assert grad[mask].any() and not grad[~mask].any()


def test_tokens_of_the_environment_are_not_counted():
    log = Log()
    train(two_turns, log=log, steps=1)
    assert log[0]["completions/max_length"] == 6
    assert log[0]["sampling/sampling_logp_difference/max"] < 1e-5


def test_its_log_probs_are_those_of_the_sampler():
    """A function that says that it drew each id with half of the probability: π_old/μ is 2."""
    def rollout(prompts, sampler):
        made = one_turn(prompts, sampler)
        half = torch.tensor(2.0).log().item()
        return {**made, "logprobs": [[x - half for x in row] for row in made["logprobs"]]}

    log = Log()
    train(rollout, log=log, steps=1, importance="token_truncate", importance_max=1.5)
    assert log[0]["sampling/ratio/min"] == pytest.approx(2, abs=1e-4)
    assert log[0]["sampling/ratio/max"] == pytest.approx(2, abs=1e-4)
    assert log[0]["weights/mean"] == pytest.approx(1.5)


def test_a_run_goes_on_as_if_it_had_not_been_cut_short():
    save, state = save_step(2)
    whole = train(two_turns, save=save)
    assert torch.equal(weights(train(two_turns, resume=copy_of(state))), weights(whole))
