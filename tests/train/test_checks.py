"""minirl/train/checks.py, and the intervals of every page's configuration."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from minirl.train.checks import COUNT, ROWS, check, outside
from minirl.train.dpo import DPOConfig
from minirl.train.grpo import GRPOConfig
from minirl.train.ppo import PPOConfig
from minirl.train.r1 import R1Config
from minirl.train.reward_model import RewardModelConfig
from minirl.train.sft import SFTConfig

CONFIGS = [SFTConfig(), RewardModelConfig(), DPOConfig(), PPOConfig(), GRPOConfig(), R1Config()]
NAN, INF = float("nan"), float("inf")


def fields_of_type(*kinds):
    """Return (configuration, field) for every field of these types, of every page."""
    return [pytest.param(config, field.name, id=f"{type(config).__name__}.{field.name}")
            for config in CONFIGS for field in dataclasses.fields(config) if field.type in kinds]


@pytest.mark.parametrize("config, name", fields_of_type("int", "float"))
@pytest.mark.parametrize("value", [NAN, INF, -INF, -1, True, "1", None, [1]], ids=repr)
def test_no_number_of_any_page_takes_what_it_cannot_be(config, name, value):
    """Some field accepted each of these once: --lam -1 was refused after minutes of other work,
    an infinite temperature after the cold start, and True was taken for 1."""
    with pytest.raises(ValueError, match=rf"^{name} is .* wanted"):
        replace(config, **{name: value})


@pytest.mark.parametrize("config, name", fields_of_type("int"))
def test_counts_are_whole_and_bounded(config, name):
    """--prompts-per-step 10**12 filled the memory, and --steps 10**26 cannot end."""
    for value in (1.0, 10 ** 12, 10 ** 26):
        with pytest.raises(ValueError, match=rf"^{name} is "):
            replace(config, **{name: value})


@pytest.mark.parametrize("bad, message", [
    (dict(lam=-1), "lam is -1: at least 0 is wanted"),
    (dict(gamma=1.5), "gamma is 1.5: at most 1 is wanted"),
    (dict(beta2=1.0), "beta2 is 1.0: less than 1 is wanted"),
    (dict(lr=0), "lr is 0: a positive number is wanted"),
    (dict(lr=INF), "lr is inf: a finite number is wanted"),
    (dict(lr=NAN), "lr is nan: a positive number is wanted"),
    (dict(warmup_steps=-1), "warmup_steps is -1: at least 0 is wanted"),
    (dict(steps=10 ** 10), "steps is 10000000000: at most 1,000,000,000 is wanted"),
    (dict(episodes=2 ** 21), "episodes is 2097152: at most 1,048,576 is wanted"),
    (dict(steps=3.0), "steps is 3.0, of type float: a whole number is wanted"),
    (dict(whiten_advantages=1), "whiten_advantages is 1, of type int: True or False is wanted"),
])
def test_the_message_says_what_came_and_what_is_wanted(bad, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**bad)


def test_a_field_takes_the_ends_of_its_interval():
    config = PPOConfig(lr=1, lam=0, gamma=1, ema_decay=0, steps=10 ** 9, episodes=ROWS)
    assert (config.lr, config.lam, config.gamma, config.episodes) == (1, 0, 1, 1_048_576)


@pytest.mark.parametrize("value, interval, expected", [
    (1 - 2 ** -53, "[0, 1)", None),                        # the greatest number below 1
    (1.0, "[0, 1)", "less than 1"),
    (1.0, "(0, 1]", None),
    (0.0, "(0, 1]", "a positive number"),
    (10 ** 9, COUNT, None),
    (10 ** 9 + 1, COUNT, "at most 1,000,000,000"),
    (NAN, "[0, inf)", "at least 0"),
])
def test_the_ends_of_an_interval(value, interval, expected):
    assert outside(value, interval) == expected


def test_a_step_has_a_bounded_number_of_completions():
    """Each number may be in its interval, and their product beyond any memory."""
    with pytest.raises(ValueError, match="is 2048 and group_size 1024: at most 1,048,576"):
        GRPOConfig(prompts_per_step=2048, group_size=1024)
    assert GRPOConfig(prompts_per_step=1024, group_size=1024).minibatches == 1


@dataclass(frozen=True)
class OwnConfig:
    path: str | None = None
    share: float | None = 0.5
    pieces: int = 1


def test_another_configuration_brings_its_own_intervals():
    """None is a value where the type says so."""
    intervals = {"share": "[0, 1]", "pieces": "[0, 9]"}
    check(OwnConfig(share=None), **intervals)
    with pytest.raises(ValueError, match="share is 2.0: at most 1"):
        check(OwnConfig(share=2.0), **intervals)
    with pytest.raises(ValueError, match="path is 3, of type int: a text"):
        check(OwnConfig(path=3), **intervals)


def test_a_number_without_an_interval_is_a_mistake_of_the_caller():
    with pytest.raises(KeyError, match="share"):
        check(OwnConfig())


def test_checks_load_no_torch():
    """The command line checks its flags here, and must start at once."""
    file = importlib.util.find_spec("minirl.train.checks").origin
    code = f"import runpy, sys; runpy.run_path({file!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@dataclass(frozen=True)
class Several:
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        check(self, weights="[-1, 1]")


@pytest.mark.parametrize("bad, message", [
    (dict(weights=(0.5, 2)), "weights is 2: at most 1 is wanted"),
    (dict(weights=(NAN,)), "weights is nan: at least -1 is wanted"),
    (dict(weights=("1",)), "weights is '1', of type str: a number is wanted"),
    (dict(names=("a", 5)), "names is 5, of type int: a text is wanted")])
def test_each_entry_of_a_tuple_is_checked(bad, message):
    Several(names=("a", "b"), weights=(0.5, -1))
    with pytest.raises(ValueError, match=f"^{message}"):
        Several(**bad)
