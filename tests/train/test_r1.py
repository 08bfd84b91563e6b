"""minirl/train/r1.py"""

import copy
import random
from dataclasses import FrozenInstanceError, asdict, replace
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import pytest
import torch

from minirl.lm.heads import ScalarModel
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import TAGS, build_tokenizer
from minirl.tasks.bilingual import WORDS, Bilingual, demonstrations, rewrite
from minirl.tasks.instructions import Instructions, answers
from minirl.tasks.preferences import Ranking
from minirl.tasks.problem import weights_of
from minirl.train import r1
from minirl.train.grpo import GRPOConfig
from minirl.train.r1 import (
    General,
    R1Config,
    cold_start_pairs,
    distill,
    over_optimise,
    rejection_sample,
    rl_numbers,
    train_r1,
    with_replay,
)
from minirl.train.sft import SFTConfig, train_sft
from tests.train.small import Log, weights

TOKENIZER = build_tokenizer(special_tokens=(*TAGS, *WORDS))
TASK, PROMPTS = Bilingual((1,)), Instructions()
CONFIG = R1Config(scale=256, zero_steps=2, reasoning_steps=2, kept_problems=24, final_steps=2,
                  preference_steps=3, rounds=2, max_new_tokens=20)
COLD = demonstrations(TASK, 32, random.Random(0))
STAGES = ["r1-zero", "cold-start", "rl-1", "sft", "rl-2", "rm-1", "prefer-1", "rm-2", "prefer-2"]
RULES = {"accuracy": 1.0, "format_reward": 1.0}


class People:
    """They prefer the first of two answers, whatever the policy. `policies` are the weights of
    those whose completions they were to compare, and `seeds` the seeds."""

    def __init__(self):
        self.policies, self.seeds = [], []

    def __call__(self, policy, seed):
        self.policies.append(weights(policy))
        self.seeds.append(seed)
        problems = PROMPTS.sample(20, random.Random(seed))
        return [Ranking(problem.prompt, (problem.answer, "no " + problem.answer))
                for problem in problems]


def general():
    """Return general prompts, with people who have not compared anything yet."""
    written = answers(PROMPTS, 16, random.Random(2), right_share=1.0, frame_weights=(1, 1, 1, 1))
    return General(PROMPTS, written, People())


def make_model(**sizes):
    return Transformer(ModelConfig(TOKENIZER.vocab_size, rope_theta=100.0, qk_norm=True, **sizes))


@pytest.fixture(scope="module")
def base():
    """A model that has read one-digit sums, so that some of its completions are right."""
    torch.manual_seed(0)
    model = make_model(hidden_size=48, num_layers=2, num_heads=4, initializer_range=0.15)
    pairs = demonstrations(TASK, 3200, random.Random(1), worked_share=0.8, mixed_share=0.3)
    return train_sft(model, TOKENIZER, pairs, SFTConfig(batch_size=32))


class StageRun(NamedTuple):
    """The weights that a stage started from, its configuration, and the model it returned."""

    start: torch.Tensor
    config: Any
    model: torch.nn.Module


def run(base, prompts=None, **changes):
    """Return the runs of the stages by name, and what the pipeline returned."""
    runs = {}

    def stage(name, config, start, page):
        model = page(copy.deepcopy(start), log=None, save=None, resume=None)
        runs[name] = StageRun(weights(start), config, model)
        return model

    config = replace(CONFIG, **changes)
    last = train_r1(base, TOKENIZER, TASK, config, cold_start=COLD,
                    general=prompts or general(), stage=stage)
    return runs, last


def assert_right_and_in_one_language(pairs):
    """Each completion has a verdict of 1 by all rewards of its problem."""
    problems = {problem.prompt: problem for problem in TASK.sample(8000, random.Random(5))}
    for prompt, completion in pairs:
        problem = problems[prompt]
        for reward in TASK.rewards.values():
            assert reward([prompt], [completion], answer=[problem.answer],
                          language=[problem.language]) == [1.0]


@pytest.fixture
def sft_data(monkeypatch):
    """The data of each SFT stage. SFT itself learns nothing then."""
    data = []

    def train_sft(model, tokenizer, pairs, *args, **options):
        data.append(pairs)
        return model

    monkeypatch.setattr(r1, "train_sft", train_sft)
    return data


@pytest.fixture
def grpo_tasks(monkeypatch):
    """The task of each stage of reinforcement learning. GRPO itself learns nothing then."""
    tasks = []

    def train_grpo(model, tokenizer, task, *args, **options):
        tasks.append(task)
        return model.eval()

    monkeypatch.setattr(r1, "train_grpo", train_grpo)
    return tasks


# the stages

class Pipeline(NamedTuple):
    """A whole run: the base model's weights before it, the stages, and the model it returned."""

    before: torch.Tensor
    runs: dict[str, StageRun]
    last: torch.nn.Module
    people: People


@pytest.fixture(scope="module")
def pipeline(base):
    before, prompts = weights(base), general()
    runs, last = run(base, prompts)
    return Pipeline(before, runs, last, prompts.compare)


def test_every_stage_starts_from_the_right_model(base, pipeline):
    """rl-1 continues from the cold start, and rl-2 from SFT, which itself begins with the base
    model again, not with rl-1. The base model does not change."""
    before, runs, last, people = pipeline
    assert list(runs) == STAGES
    after = {name: weights(stage.model) for name, stage in runs.items()}
    starts = {
        "r1-zero": before,
        "cold-start": before,
        "rl-1": after["cold-start"],
        "sft": before,
        "rl-2": after["sft"],
        "rm-1": before,
        "prefer-1": after["rl-2"],
        "rm-2": after["rm-1"],
        "prefer-2": after["prefer-1"],
    }
    for name, start in starts.items():
        assert torch.equal(runs[name].start, start), name
        if name != "rm-1":                               # which has a new head, so more weights
            assert not torch.equal(after[name], start), name
    assert last is runs["prefer-2"].model and not last.training
    assert torch.equal(weights(base), before)
    first, second = people.policies                      # whose completions were compared
    assert torch.equal(first, before) and torch.equal(second, after["prefer-1"])
    assert people.seeds == [derive_seed(0, "compare", 1), derive_seed(0, "compare", 2)]


def test_all_rounds_together_have_preference_steps(pipeline):
    steps = [pipeline.runs[name].config.steps for name in ("prefer-1", "prefer-2")]
    assert steps == [1, 2]


def test_a_round_keeps_the_reference_that_it_starts_from(pipeline):
    assert pipeline.runs["rl-2"].config.ref_sync_steps == 1
    assert pipeline.runs["prefer-1"].config.ref_sync_steps == 0


def test_one_round_has_one_reward_model(base):
    runs, last = run(base, rounds=1)
    assert list(runs) == STAGES[:-2]
    assert last is runs["prefer-1"].model


def test_twice_is_the_same_bit_for_bit(base):
    first, again, other = (
        weights(train_r1(base, TOKENIZER, TASK, CONFIG, cold_start=COLD, general=general(),
                         seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_rewards_of_each_stage(base, grpo_tasks):
    """R1-Zero: right answers and the format. Then the language as well (eq. 7), and in the last
    part general prompts by preference."""
    run(base, language_weight=0.5)
    spoken = {**RULES, "language_consistency": 0.5}
    mixed = {**spoken, "preference": 1.0, "general/accuracy": 0.0, "general/true_reward": 0.0}
    both = f"{TASK.name} and {PROMPTS.name}"
    assert [(task.name, dict(task.weights)) for task in grpo_tasks] == [
        (TASK.name, {**RULES, "language_consistency": 0.0}),
        (TASK.name, spoken),
        (TASK.name, spoken),
        (both, mixed),
        (both, mixed),
    ]


def test_over_optimising_is_the_last_part_for_longer_with_the_first_reward_model(base, grpo_tasks):
    calls = []

    def stage(name, config, start, page):
        calls.append((name, config.steps, config.ref_sync_steps))
        return page(start, log=None, save=None, resume=None)

    reward_model = ScalarModel(base)
    policy = over_optimise(base, reward_model, TOKENIZER, TASK, CONFIG, general=PROMPTS, factor=3,
                           seed=0, stage=stage)
    assert calls == [("too-long", 3 * CONFIG.preference_steps, 0)] and policy is base
    judged, = grpo_tasks
    assert {problem.general for problem in judged.sample(50, random.Random(0))} == {True, False}
    assert weights_of(judged)["preference"] == 1.0


def test_replay_is_a_tenth_of_what_was_ranked_before():
    """The last round's 20 rankings, and 8 of the 30 + 50 earlier ones."""
    rounds = [[Ranking(f"{n} {i}", ("a", "b")) for i in range(size)]
              for n, size in enumerate((30, 50, 20))]
    rankings = with_replay(rounds, 0)
    assert rankings[:20] == rounds[2]
    assert len(rankings) == len({ranking.prompt for ranking in rankings}) == 28
    assert with_replay(rounds[:1], 0) == rounds[0]
    assert with_replay(rounds, 0) == rankings


# numbers

def test_the_papers_numbers():
    """512 questions x 16 samples are 8192 outputs, in 16 minibatches. A new reference every 400
    minibatches is one every 25 rollouts."""
    assert rl_numbers(1) == dict(
        lr=3e-6, min_lr_ratio=1.0, warmup_steps=0, kl_coef=0.001, temperature=1.0, group_size=16,
        prompts_per_step=512, iterations=1, minibatches=16, ref_sync_steps=25)
    paper = GRPOConfig(**rl_numbers(1))
    assert paper.prompts_per_step * paper.group_size == 8192


def test_the_numbers_of_a_smaller_run():
    """16 times fewer samples and larger steps: 512/16 = 32 questions, lr 16 * 3e-6 = 4.8e-5, and a
    new reference every 25/16 = 1.6, so 2, rollouts."""
    toy = GRPOConfig(**rl_numbers(16))
    assert toy.lr == pytest.approx(4.8e-5)
    assert (toy.prompts_per_step, toy.group_size, toy.minibatches) == (32, 16, 16)
    assert toy.ref_sync_steps == 2
    assert rl_numbers(512)["prompts_per_step"] == rl_numbers(512)["ref_sync_steps"] == 1


@pytest.mark.parametrize("scale", [0.5, 512.5])
def test_a_run_larger_than_the_papers_or_without_a_question_is_an_error(scale):
    with pytest.raises(ValueError, match=f"scale is {scale}: 1 .* to 512"):
        R1Config(scale=scale)


def test_a_round_may_have_one_step():
    assert replace(CONFIG, preference_steps=2, rounds=2).preference_steps == 2


@pytest.mark.parametrize("bad, message", [
    (dict(kept_problems=0), "kept_problems is 0"),
    (dict(language_weight=-1.0), "language_weight is -1"),
    (dict(rounds=0), "rounds is 0"),
    (dict(preference_steps=1, rounds=2), "preference_steps is 1 and rounds 2"),
    (dict(general_share=0.0), "general_share is 0.0"),
])
def test_bad_numbers(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **bad)


# distillation

@pytest.fixture
def student():
    torch.manual_seed(1)
    return make_model(hidden_size=16, num_layers=1, num_heads=2)


def test_a_smaller_model_has_r1_zeros_rewards_or_the_teachers_completions(
        base, student, grpo_tasks, monkeypatch):
    teachers = []

    def rejection_sample(teacher, *args, **options):
        teachers.append(teacher)
        return COLD

    monkeypatch.setattr(r1, "rejection_sample", rejection_sample)
    distill(base, student, TOKENIZER, TASK, CONFIG)
    assert [task.weights for task in grpo_tasks] == [{**RULES, "language_consistency": 0.0}]
    assert teachers == [base]


def test_a_smaller_model_learns_alone_and_from_a_teacher(base, student):
    """Two steps of GRPO, whose loss is 0 at ratio 1, and then SFT on the teacher's completions."""
    before, log = weights(student), Log()
    alone, taught = distill(base, student, TOKENIZER, TASK, CONFIG, log=log)
    assert torch.equal(weights(student), before)
    assert not torch.equal(weights(alone), before)
    assert not torch.equal(weights(taught), weights(alone))
    losses = [metrics.get("loss") for metrics in log]
    assert losses[:2] == pytest.approx([0, 0], abs=1e-6)
    assert losses[-1] < losses[2]


# rejection sampling and the cold start

def test_rejection_sampling_keeps_what_is_right_in_the_format_and_in_one_language(base):
    """At most one completion of each problem."""
    config = replace(CONFIG, kept_problems=600, kept_samples=2)
    pairs = rejection_sample(base, TOKENIZER, TASK, config, seed=0)
    assert 0 < len(pairs) == len({prompt for prompt, _ in pairs})
    assert_right_and_in_one_language(pairs)


def test_nothing_to_keep_is_an_error(base):
    model = copy.deepcopy(base)
    with torch.no_grad():
        model.norm.weight.zero_()                        # every token is as likely as every other
    message = "of 96 completions none was right, in form and in one language"
    with pytest.raises(ValueError, match=message):
        rejection_sample(model, TOKENIZER, TASK, CONFIG, seed=0)


def test_a_cold_start_without_an_output_is_an_error_unless_there_are_demonstrations(base):
    model = copy.deepcopy(base)
    with torch.no_grad():
        model.norm.weight.zero_()
    ask = partial(cold_start_pairs, model, TOKENIZER, TASK,
                  replace(CONFIG, cold_start_problems=24), None, seed=0)
    with pytest.raises(ValueError, match="of R1-Zero's 96 outputs none was right"):
        ask()
    assert ask(required=False) == []


def with_a_space(problem, completion):
    """Rewrite a completion visibly, without a change of its language."""
    return completion.replace("<think>", "<think> ")


def test_the_cold_start_is_r1_zeros_own_reasoning_rewritten_and_demonstrations(base, sft_data):
    """It was demonstrations alone once, in which R1-Zero had no part."""
    config = replace(CONFIG, cold_start_problems=200)
    train_r1(base, TOKENIZER, TASK, config, general=general(), rewrite=with_a_space,
             cold_start=COLD[:3])
    own, given = sft_data[0][:-3], sft_data[0][-3:]
    assert given == COLD[:3]
    assert len(own) > 5
    assert all(completion.startswith("<think> ") for _, completion in own)
    assert_right_and_in_one_language(own)


def test_rewriting_keeps_right_completions_that_mix_languages(base):
    config = replace(CONFIG, cold_start_problems=400)
    plain = cold_start_pairs(base, TOKENIZER, TASK, config, None, seed=0)
    rewritten = cold_start_pairs(base, TOKENIZER, TASK, config, rewrite, seed=0)
    assert len(rewritten) > len(plain) > 0
    assert set(plain) <= set(rewritten)


def test_demonstrations_alone_can_be_the_cold_start(base, sft_data):
    config = replace(CONFIG, cold_start_problems=0)
    train_r1(base, TOKENIZER, TASK, config, general=general(), cold_start=COLD)
    assert sft_data[0] == COLD


def test_a_cold_start_from_nothing_is_an_error(base):
    config = replace(CONFIG, cold_start_problems=0)
    with pytest.raises(ValueError, match="cold_start_problems is 0, and cold_start has no pairs"):
        train_r1(base, TOKENIZER, TASK, config, general=general())


def test_the_defaults():
    """The README and RESULTS.md quote runs with these numbers."""
    assert asdict(R1Config()) == dict(
        scale=32.0, zero_steps=60, cold_start_problems=512, reasoning_steps=60,
        language_weight=1.0, kept_problems=2048, kept_samples=4, final_steps=30,
        final_temperature=0.7, preference_steps=24, general_share=0.5, rounds=2,
        max_new_tokens=48)
    assert r1.COLD_START_SFT == SFTConfig(epochs=4, lr=1e-3, warmup_steps=0, min_lr_ratio=0.1)
    assert r1.SECOND_SFT == SFTConfig(epochs=3, lr=2e-3, warmup_steps=0, min_lr_ratio=0.1)
    assert (r1.RULES, r1.REPLAY, r1.PART) == (RULES, 0.1, 512)
    assert [signature(page).parameters["seed"].default for page in (train_r1, distill)] == [0, 0]
    with pytest.raises(FrozenInstanceError):
        R1Config().scale = 1.0
    with pytest.raises(FrozenInstanceError):
        general().demonstrations = []
