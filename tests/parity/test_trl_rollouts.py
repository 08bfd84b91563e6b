"""Rollout functions (tasks/user_rollouts.py) against TRL's `rollout_func`: what a function gets,
and what is made of what it returns. Skipped where TRL is not installed."""

from types import SimpleNamespace

import pytest
import torch

from minirl.inference.sampler import Sampler, rollouts_by
from minirl.lm.tiny import TinySizes, make_base
from tests.parity.trl_stand_ins import ACCELERATOR, NO_TRL, stand_in

trl = pytest.importorskip("trl", reason=NO_TRL)

MODEL, TOKENIZER = make_base(TinySizes(hidden_size=16, num_layers=1, num_heads=2,
                                       intermediate_size=32), seed=0, device="cpu")
PROMPTS = ["1+1=", "1+1=", "2+2=", "2+2="]                # two completions of each problem
EOS = TOKENIZER.eos_id


def returned():
    """Completions of three ids; in the middle of the first, and at the end of the second, one is
    the environment's."""
    return {"prompt_ids": [TOKENIZER.encode_prompt(prompt) for prompt in PROMPTS],
            "completion_ids": [[70, 71, EOS], [72, EOS, 73], [74, 75, 76], [77, 78, EOS]],
            "logprobs": [[-1.0, 0.0, -2.0], [-1.0, -0.5, 0.0], [-1.0] * 3, [-1.0] * 3],
            "env_mask": [[1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]],
            "turns": [1, 2, 3, 4]}


class Backend:
    """What TRL decodes with."""

    def batch_decode(self, rows, skip_special_tokens):
        return [TOKENIZER.decode_completion(row) for row in rows]


def theirs(rollout_func):
    trainer = stand_in(
        accelerator=SimpleNamespace(**{**vars(ACCELERATOR), "gather": lambda x: x}),
        rollout_func=rollout_func, use_vllm=False, tools=None, processing_class=Backend(),
        _tokenizer=SimpleNamespace(pad_token_id=TOKENIZER.pad_id), eos_token_ids=[EOS],
        state=SimpleNamespace(num_input_tokens_seen=0))
    return trainer, trl.GRPOTrainer._generate(trainer, PROMPTS)


def ours(rollout):
    sampler = Sampler(MODEL, TOKENIZER, 2, 8, 1.0, {}, torch.Generator().manual_seed(0))
    return rollouts_by(rollout, PROMPTS, sampler)


def test_a_function_gets_a_prompt_for_each_completion_and_an_object():
    """The prompts of a group come one after the other, as TRL's sampler repeats them."""
    calls = []

    def rollout(prompts, other):
        calls.append((prompts, other))
        return returned()

    trainer, _ = theirs(rollout)
    ours(rollout)
    (their_prompts, their_object), (our_prompts, our_object) = calls
    assert their_prompts == our_prompts == PROMPTS
    assert their_object is trainer and isinstance(our_object, Sampler)
    repeated = trl.trainer.utils.RepeatSampler(range(2), mini_repeat_count=2, batch_size=2,
                                               shuffle=False)
    assert list(repeated) == [0, 0, 1, 1]


def test_the_same_ids_masks_log_probs_and_columns():
    trainer, (prompt_ids, completion_ids, tool_mask, completions, logprobs, extra, *_) = theirs(
        lambda prompts, trainer: returned())
    rollouts, columns = ours(lambda prompts, sampler: returned())
    assert columns == {"completion_ids": completion_ids, **extra}
    assert [TOKENIZER.decode_completion(row) for row in completion_ids] == completions
    for i, prompt in enumerate(prompt_ids):
        n = len(prompt)
        assert rollouts.tokens[i].tolist() == prompt + completion_ids[i]
        assert rollouts.mask[i].tolist() == [False] * n + [bool(x) for x in tool_mask[i]]
        assert rollouts.behavior_logp[i].tolist() == [0.0] * n + logprobs[i]
    mean = trainer._metrics["train"]["completions/mean_length"]
    assert mean == [float(rollouts.completion_lengths.float().mean())] == [2.5]


def test_log_probs_may_be_none():
    """TRL then has no ratio to the sampler; here the policy scores the ids."""
    without = {**returned(), "logprobs": None}
    assert theirs(lambda prompts, trainer: without)[1][4] is None
    rollouts, _ = ours(lambda prompts, sampler: without)
    assert (rollouts.behavior_logp[rollouts.mask] < 0).all()


def test_deviation_the_key_may_be_missing():
    without = {name: x for name, x in returned().items() if name != "logprobs"}
    with pytest.raises(ValueError, match="must return keys"):
        theirs(lambda prompts, trainer: without)
    ours(lambda prompts, sampler: without)


def test_deviation_the_environment_may_have_the_last_word():
    """The second row ends with an id of the environment's, after the policy's EOS. TRL counts it as
    cut off, and mask_truncated_completions would leave it out: 2 of 4. Here, 1 of 4."""
    trainer, _ = theirs(lambda prompts, trainer: returned())
    rollouts, _ = ours(lambda prompts, sampler: returned())
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [0.5]
    assert rollouts.truncated.tolist() == [False, False, True, False]
