"""minirl/train/r1.py"""

import copy
import random
from dataclasses import replace

import pytest
import torch

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.bilingual import WORDS, Bilingual, demonstrations
from minirl.tasks.instructions import Instructions, answers
from minirl.tasks.preferences import Ranking
from minirl.train import r1
from minirl.train.grpo import GRPOConfig
from minirl.train.r1 import General, R1Config, distill, rejection_sample, rl_numbers, train_r1, with_replay
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import weights

TOKENIZER = build_tokenizer(special_tokens=(*TAGS, *WORDS))
TASK, PROMPTS = Bilingual((1,)), Instructions()
CONFIG = R1Config(scale=256, zero_steps=2, reasoning_steps=2, kept_problems=24, final_steps=2, preference_steps=3, rounds=2, max_new_tokens=20)
COLD = demonstrations(TASK, 32, random.Random(0))
STAGES = ["r1-zero", "cold-start", "rl-1", "sft", "rl-2", "rm-1", "prefer-1", "rm-2", "prefer-2"]


class People:
    """Those who prefer the first of two answers whatever the policy; `asked` are the policies, and what they ranked."""

    def __init__(self):
        self.asked = []

    def __call__(self, policy, seed):
        rng = random.Random(seed)
        self.asked.append((weights(policy), [Ranking(p.prompt, (p.answer, "no " + p.answer)) for p in PROMPTS.sample(20, rng)]))
        return self.asked[-1][1]


def general():
    return General(PROMPTS, answers(PROMPTS, 16, random.Random(2), right_share=1.0, frame_weights=(1, 1, 1, 1)), People())


@pytest.fixture(scope="module")
def base():
    """A model that has read one-digit sums, so that some of its completions are right."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(TOKENIZER.vocab_size, hidden_size=48, num_layers=2, num_heads=4, rope_theta=100.0, qk_norm=True, initializer_range=0.15))
    read = demonstrations(TASK, 3200, random.Random(1), worked_share=0.8, mixed_share=0.3)
    return train_sft(model, TOKENIZER, read, SFTConfig(batch_size=32))


def led(base, people=None, **rest):
    """The stages, with what each starts from and what came of it, and the last model."""
    seen = {}

    def stage(name, settings, start, page):
        seen[name] = (weights(start), page(copy.deepcopy(start), log=None, save=None, resume=None), settings)
        return seen[name][1]

    return seen, train_r1(base, TOKENIZER, TASK, replace(CONFIG, **rest), cold_start=COLD, general=people or general(), stage=stage)


def test_every_stage_starts_from_the_right_model(base):
    """rl-1 goes on from the cold start, rl-2 from the SFT, and that SFT begins with the base model again, not with rl-1. The base model is not changed."""
    before, people = weights(base), general()
    seen, last = led(base, people)
    assert list(seen) == STAGES
    origins = {"r1-zero": before, "cold-start": before, "rl-1": "cold-start", "sft": before, "rl-2": "sft", "rm-1": before, "prefer-1": "rl-2", "rm-2": "rm-1",
               "prefer-2": "prefer-1"}
    for name, origin in origins.items():
        origin = weights(seen[origin][1]) if isinstance(origin, str) else origin
        assert torch.equal(seen[name][0], origin), name
        if name != "rm-1":                               # there a head is new
            assert not torch.equal(weights(seen[name][1]), origin), name
    assert last is seen["prefer-2"][1] and torch.equal(weights(base), before) and not last.training
    asked = [policy for policy, _ in people.compare.asked]
    assert len(asked) == 2 and torch.equal(asked[0], before) and torch.equal(asked[1], weights(seen["prefer-1"][1])), "people rank what the policy of the round says"
    assert [seen[name][2].steps for name in ("prefer-1", "prefer-2")] == [1, 2], "all rounds together have preference_steps"
    assert [seen[name][2].ref_sync_steps for name in ("rl-2", "prefer-1")] == [1, 0], "a round keeps the reference that it starts from"


def test_one_round_has_one_reward_model(base):
    seen, last = led(base, rounds=1)
    assert list(seen) == STAGES[:-2] and last is seen["prefer-1"][1]


def test_twice_is_the_same_bit_for_bit(base):
    first, again, other = (weights(train_r1(base, TOKENIZER, TASK, CONFIG, cold_start=COLD, general=general(), seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_paid_for_in_each_stage(base, monkeypatch):
    asked = []
    monkeypatch.setattr(r1, "train_grpo", lambda m, tokenizer, task, *args, **rest: asked.append(
        (task.name, dict(task.weights))) or m.eval())
    led(base, language_weight=0.5)
    rules = {"accuracy": 1.0, "format_reward": 1.0}
    spoken = {**rules, "language_consistency": 0.5}
    everything = (f"{TASK.name} and {PROMPTS.name}", {
        **spoken, "preference": 1.0, "general/accuracy": 0.0, "general/true_reward": 0.0})
    assert asked == [(TASK.name, {**rules, "language_consistency": 0.0}), (TASK.name, spoken),
                     (TASK.name, spoken), everything, everything]


def test_replay_is_a_tenth_of_what_was_ranked_before():
    rounds = [[Ranking(f"{n} {i}", ("a", "b")) for i in range(size)] for n, size in enumerate((30, 50, 20))]
    drawn = with_replay(rounds, 0)
    assert drawn[:20] == rounds[2] and len(drawn) == 20 + 8 and len({r.prompt for r in drawn}) == 28
    assert with_replay(rounds[:1], 0) == rounds[0] and with_replay(rounds, 0) == drawn


def test_the_papers_numbers_by_hand_and_scaled_by_one_factor():
    """512 questions x 16 = 8192 outputs in 16 mini-batches of 512 = 400 steps are 25 rollouts."""
    paper = GRPOConfig(**rl_numbers(1))
    assert (paper.lr, paper.kl_coef, paper.temperature, paper.minibatches, paper.iterations, paper.ref_sync_steps) == (3e-6, 0.001, 1.0, 16, 1, 25)
    assert paper.prompts_per_step * paper.group_size == 8192
    toy = GRPOConfig(**rl_numbers(16))
    assert (toy.lr, toy.prompts_per_step, toy.group_size, toy.minibatches, toy.ref_sync_steps) == (pytest.approx(4.8e-5), 32, 16, 16, 2)
    assert rl_numbers(512)["prompts_per_step"] == 1
    with pytest.raises(ValueError, match="scale is 0.5: 1 .* to 512"):
        R1Config(scale=0.5)


def test_a_smaller_model_learns_alone_and_from_a_teacher(base):
    torch.manual_seed(1)
    student = Transformer(ModelConfig(TOKENIZER.vocab_size, hidden_size=16, num_layers=1, num_heads=2, rope_theta=100.0, qk_norm=True))
    before, losses = weights(student), []
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r1, "train_grpo", lambda m, tokenizer, task, *args, **rest: asked.append(
            dict(task.weights)) or m)
        patch.setattr(r1, "rejection_sample", lambda teacher, *args, **rest: asked.append(teacher) or COLD)
        distill(base, student, TOKENIZER, TASK, CONFIG)
    assert asked == [{"accuracy": 1.0, "format_reward": 1.0, "language_consistency": 0.0}, base], "paid as R1-Zero is; taught by the teacher"
    alone, taught = distill(base, student, TOKENIZER, TASK, CONFIG, log=lambda step, metrics: losses.append(metrics.get("loss")))
    assert torch.equal(weights(student), before) and not torch.equal(weights(alone), before) and not torch.equal(weights(taught), weights(alone))
    assert losses[:2] == [None, None] and losses[-1] < losses[2], "two rollouts, and then SFT on what the teacher said"


def test_what_is_kept_is_right_in_form_and_in_one_language(base):
    kept = rejection_sample(base, TOKENIZER, TASK, replace(CONFIG, kept_problems=600, kept_samples=2), seed=0)
    problems = {p.prompt: p for p in TASK.sample(8000, random.Random(5))}
    assert 0 < len(kept) <= len(problems), "one for each problem"
    for prompt, completion in kept:
        problem = problems[prompt]
        assert all(reward([prompt], [completion], answer=[problem.answer], language=[problem.language]) == [1.0] for reward in TASK.rewards.values())


def test_nothing_to_keep_is_an_error(base):
    dumb = copy.deepcopy(base)
    with torch.no_grad():
        dumb.norm.weight.zero_()                             # every token is as likely as every other
    with pytest.raises(ValueError, match="of 96 completions none was right, in form and in one language"):
        rejection_sample(dumb, TOKENIZER, TASK, CONFIG, seed=0)


@pytest.mark.parametrize("bad, message", [(dict(kept_problems=0), "kept_problems is 0"), (dict(language_weight=-1.0), "language_weight is -1"), (dict(rounds=0), "rounds is 0"),
                                          (dict(preference_steps=1, rounds=2), "preference_steps is 1 and rounds 2"), (dict(general_share=0.0), "general_share is 0.0")])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **bad)
