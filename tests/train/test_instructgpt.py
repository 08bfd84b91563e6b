"""minirl/train/instructgpt.py"""

import copy
import random
from dataclasses import FrozenInstanceError, replace
from inspect import signature

import pytest
import torch

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.instructions import WORDS, Instructions, answers, pretraining_text, true_reward
from minirl.tasks.preferences import Ranking
from minirl.train.dpo import DPOConfig
from minirl.train.instructgpt import (
    DEMONSTRATIONS_SFT,
    FEWEST,
    MAX_NEW_TOKENS,
    MOST,
    RL_INIT_SFT,
    InstructGPTConfig,
    compare_epochs,
    epochs_table,
    learn_rewards,
    prefer,
    rank_completions,
    scored_by,
    supervise,
    train_instructgpt,
)
from minirl.train.ppo import PPOConfig
from minirl.train.presets import SFT_PRESETS
from minirl.train.reward_model import train_reward_model
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.stage import in_memory
from tests.train.small import weights

TOKENIZER, TASK = build_tokenizer(special_tokens=WORDS), Instructions()
EVENLY = (1, 1, 1, 1)
DEMONSTRATIONS = answers(TASK, 27, random.Random(1), right_share=1.0, frame_weights=EVENLY)
TEXTS = pretraining_text(20, random.Random(2))
CONFIG = InstructGPTConfig(ppo=PPOConfig(steps=2, episodes=8, minibatch_size=4))


@pytest.fixture(scope="module")
def base():
    """A model that has read instructions, so that its completions end and differ."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(TOKENIZER.vocab_size, hidden_size=32, num_layers=2, num_heads=4,
                                    rope_theta=100.0, qk_norm=True, initializer_range=0.15))
    read = answers(TASK, 1600, random.Random(0), right_share=0.6, frame_weights=EVENLY)
    return train_sft(model, TOKENIZER, read, SFTConfig(batch_size=32))


def rank(policy, **changes):
    return rank_completions(policy, TOKENIZER, TASK, 12, **{"noise": 0.4, "seed": 0, **changes})


def run(base, seed=0):
    """The stages by name, each with the weights that it starts from, its configuration and its
    result; the last model; and the policies whose completions were ranked."""
    stages, ranked = {}, []

    def stage(name, config, start, page):
        result = page(copy.deepcopy(start), log=None, save=None, resume=None)
        stages[name] = weights(start), config, result
        return result

    def people(policy):
        ranked.append(policy)
        return rank(policy)

    last = train_instructgpt(base, TOKENIZER, TASK, CONFIG, demonstrations=DEMONSTRATIONS,
                             pretraining=TEXTS, rank=people, seed=seed, stage=stage)
    return stages, last, ranked


def test_every_stage_starts_from_the_right_model(base):
    before = weights(base)
    stages, last, ranked = run(base)
    assert list(stages) == ["sft", "rl-init", "rm", "ppo"]
    starts = {"sft": before, "rl-init": before, "rm": weights(stages["sft"][2]),
              "ppo": weights(stages["rl-init"][2])}
    for name, start in starts.items():
        assert torch.equal(stages[name][0], start), name
    assert ranked == [stages["sft"][2]] and last is stages["ppo"][2]
    assert torch.equal(weights(base), before) and not torch.equal(weights(last), starts["ppo"])


def test_twice_is_the_same_bit_for_bit(base):
    first, again, other = (weights(run(base, seed)[1]) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_tenth_of_what_rl_init_reads_is_pretraining_text(base, monkeypatch):
    """27 demonstrations and 3 texts: InstructGPT, appendix C.3."""
    read = []
    monkeypatch.setattr("minirl.train.instructgpt.train_sft",
                        lambda m, tokenizer, pairs, *_, **__: read.append(list(pairs)) or m)
    for texts in (TEXTS, TEXTS[:3]):
        supervise(base, TOKENIZER, DEMONSTRATIONS, texts, seed=0, stage=in_memory(None))
    assert read == 2 * [DEMONSTRATIONS, DEMONSTRATIONS + [("", text) for text in TEXTS[:3]]]


def test_too_little_pretraining_text_is_an_error(base):
    """The mixture had silently less than a tenth of it."""
    says = "pretraining has 2 texts for 27 demonstrations: at least 3"
    with pytest.raises(ValueError, match=says):
        supervise(base, TOKENIZER, DEMONSTRATIONS, TEXTS[:2], seed=0, stage=in_memory(None))


def test_the_first_fine_tuning_has_the_papers_numbers_but_for_the_learning_rate():
    paper = SFTConfig(**SFT_PRESETS["instructgpt"].numbers)
    assert replace(DEMONSTRATIONS_SFT, lr=paper.lr) == paper


def test_ppo_is_paid_by_the_reward_model_alone(base):
    reward_model = train_reward_model(copy.deepcopy(base), TOKENIZER, rank(base), CONFIG.rm)
    task = scored_by(reward_model, TOKENIZER, TASK)
    assert task.weights == {"reward_model": 1.0, "accuracy": 0.0, "true_reward": 0.0}
    assert task.name == TASK.name and list(task.rewards) == list(task.weights)


def test_rankings_are_of_whole_completions_by_the_true_reward(base):
    """A steady hand: the order is that of the true reward."""
    rankings = rank(base, noise=1e-6)
    seed = derive_seed(derive_seed(0, "instruct", "ranked", "train"), "problems")
    answer = {p.prompt: p.answer for p in TASK.sample(12, random.Random(seed))}
    assert 0 < len(rankings) <= 12
    for ranking in rankings:
        K = len(ranking.completions)
        rewards = true_reward([ranking.prompt] * K, ranking.completions,
                              answer=[answer[ranking.prompt]] * K)
        assert 4 <= K <= MOST and rewards == sorted(rewards, reverse=True)
    assert rank(base) == rank(base) != rank(base, seed=1)


def test_rankings_of_four_to_nine_are_kept(base, monkeypatch):
    """InstructGPT, section 3.5. None: the completions do not differ."""
    sizes = iter([3, 4, None, 9] * 3)

    def draw_ranking(prompt, *args, **options):
        K = next(sizes)
        return K and Ranking(prompt, tuple(map(str, range(K))))

    monkeypatch.setattr("minirl.train.instructgpt.draw_ranking", draw_ranking)
    assert [len(ranking.completions) for ranking in rank(base)] == [4, 9] * 3


def test_a_policy_that_says_one_thing_cannot_be_ranked(base):
    silent = copy.deepcopy(base)
    with torch.no_grad():
        silent.norm.weight.mul_(50.0)               # nearly greedy: nine times the same completion
    with pytest.raises(ValueError, match="to none of 12 prompts did the policy give 4 different"):
        rank(silent)


def test_the_reward_model_chooses_the_epoch(base):
    """It takes the best score, whatever the validation losses are."""
    lost = copy.deepcopy(base)
    with torch.no_grad():
        lost.norm.weight.mul_(0.0)
    reward_model = learn_rewards(base, TOKENIZER, lambda: rank(base), CONFIG.rm, seed=0,
                                 stage=in_memory(None))
    epochs = compare_epochs([(1, lost), (2, base)], reward_model, TOKENIZER, TASK,
                            validation=DEMONSTRATIONS, n=8, seed=0)
    assert [entry["epoch"] for entry in epochs] == [1, 2]
    chosen, = (entry for entry in epochs if entry["chosen"])
    assert chosen["score"] == max(entry["score"] for entry in epochs)
    assert epochs[0]["validation_loss"] > epochs[1]["validation_loss"]


def test_dpo_stands_in_the_place_of_stages_two_and_three(base):
    policy = prefer(base, TOKENIZER, lambda: rank(base), DPOConfig(batch_size=4), seed=0,
                    stage=in_memory(None))
    assert not torch.equal(weights(policy), weights(base))


def test_the_epochs_fit_a_terminal():
    epochs = [{"epoch": i, "validation_loss": 12345.678, "score": -12345.678,
               "true_reward": 12345.678, "chosen": i == 3} for i in range(1, 17)]
    table = epochs_table(epochs)
    assert max(map(len, table.splitlines())) <= 80 and "chosen" in table


def test_the_table_has_every_other_epoch_and_those_that_somebody_would_choose():
    epochs = [{"epoch": i, "validation_loss": abs(i - 5) + 1.0, "score": i / 8, "true_reward": 0.5,
               "chosen": i == 3} for i in range(1, 18)]
    rows = [line.split() for line in epochs_table(epochs).splitlines()]
    assert [int(row[0]) for row in rows if row[0].isdigit()] == [1, 2, 3, 4, 5, 8, 16]
    assert ["3", "3.000", "0.375", "0.500", "chosen"] in rows
    assert ["5", "1.000", "0.625", "0.500", "least", "validation", "loss"] in rows
    epochs[4]["chosen"], epochs[2]["chosen"] = True, False
    assert "chosen and least validation loss" in epochs_table(epochs)


def test_the_defaults():
    """The README and RESULTS.md quote runs with these numbers."""
    assert DEMONSTRATIONS_SFT == SFTConfig(
        epochs=16, batch_size=32, lr=1e-3, min_lr_ratio=0.1, warmup_steps=0, dropout=0.2,
        beta1=0.9, beta2=0.95)
    assert RL_INIT_SFT == SFTConfig(epochs=2, lr=1e-3, min_lr_ratio=0.1, warmup_steps=0,
                                    beta2=0.95)
    assert (FEWEST, MOST, MAX_NEW_TOKENS) == (4, 9, 16)
    assert signature(train_instructgpt).parameters["seed"].default == 0
    with pytest.raises(FrozenInstanceError):
        InstructGPTConfig().ppo = PPOConfig()
