"""minirl/app/flags.py: what is read from the source is what the classes are."""

import ast
import dataclasses
import importlib

import pytest

from minirl.app.cli import COMMANDS, build_parser
from minirl.app.flags import ROOT, fields_of, keys_of

CONFIGS = ["minirl.app.sums.BaseConfig", "minirl.app.sums.SumsSettings",
           "minirl.app.sums.GRPOSettings", "minirl.app.ppo.PPOSettings",
           "minirl.app.instructgpt.InstructSettings", "minirl.app.r1.R1Settings",
           "minirl.app.prm.StepSettings", "minirl.train.process_reward.ProcessRewardConfig",
           "minirl.train.sft.SFTConfig", "minirl.train.grpo.GRPOConfig",
           "minirl.train.options.GRPOOptions",
           "minirl.train.reward_model.RewardModelConfig", "minirl.train.ppo.PPOConfig",
           "minirl.train.dpo.DPOConfig", "minirl.train.r1.R1Config",
           "minirl.app.distill.DistillSettings", "minirl.train.distill.DistillConfig",
           "minirl.app.search.SearchSettings", "minirl.train.search.SearchConfig",
           "minirl.corpus.mining.MineConfig"]
PRESETS = [f"minirl.train.presets.{name}_PRESETS"
           for name in ("SFT", "GRPO", "RM", "PRM", "PPO", "DPO", "DISTILL", "R1",
                        "SEARCH")]


def imported(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", CONFIGS)
def test_fields_are_the_dataclass_s(path):
    """Names, order, types and defaults, inherited and given anew."""
    want = [(f.name, f.type.removesuffix(" | None"), f.default)
            for f in dataclasses.fields(imported(path))]
    assert [(f.name, f.kind, f.default) for f in fields_of(path)] == want


@pytest.mark.parametrize("path", PRESETS)
def test_keys_are_the_dictionary_s(path):
    assert keys_of(path) == list(imported(path))


def test_these_are_all_that_the_command_line_names():
    source = (ROOT / "minirl" / "app" / "cli.py").read_text(encoding="utf-8")
    texts = {node.value for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = {text for text in texts if text.startswith("minirl.") and ":" not in text}
    assert named == {*CONFIGS, *PRESETS}


def test_help_is_the_comment_behind_a_field():
    help_of = {field.name: field.help for field in fields_of("minirl.train.grpo.GRPOConfig")}
    assert help_of["iterations"] == "μ: passes over one batch of rollouts"
    assert help_of["lr"] == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_of_eighty_columns(name):
    _, commands = build_parser()
    assert max(map(len, commands[name].format_help().splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_a_function_that_is_there(name):
    module, function = COMMANDS[name].function.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_flag_of_a_pipeline_goes_to_one_configuration():
    """A preset's numbers and the flags are flat: each goes to the one dataclass that has it."""
    for name in ("sft", "grpo", "rm", "prm", "ppo", "dpo", "distill", "r1", "search"):
        args = build_parser()[0].parse_args([name])
        fields = [field.name for path in args.configs for field in fields_of(path)]
        assert len(fields) == len(set(fields)), name
