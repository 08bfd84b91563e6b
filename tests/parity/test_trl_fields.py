"""tutorials/TRL.md names every field of TRL's GRPOConfig that is its own, with its default, and
what it says of ours is so. Skipped where TRL is not installed."""

import dataclasses
import re
from pathlib import Path

import pytest

from minirl.app.cli import build_parser
from minirl.train.grpo import GRPOConfig
from minirl.train.options import GRPOOptions
from minirl.train.presets import GRPO_PRESETS
from tests.parity.trl_stand_ins import NO_TRL

trl = pytest.importorskip("trl", reason=NO_TRL)
transformers = pytest.importorskip("transformers", reason=NO_TRL)

TEXT = (Path(__file__).parents[2] / "tutorials" / "TRL.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")]
        for line in re.findall(r"^\| `.*\|$", TEXT, re.MULTILINE)]
FIELDS = [row for row in ROWS if len(row) >= 4]          # the table of loss types has three columns
BASE = {field.name: field.default for field in dataclasses.fields(transformers.TrainingArguments)}
OWN = {field.name: field.default for field in dataclasses.fields(trl.GRPOConfig)
       if field.name not in BASE or field.default != BASE[field.name]}
FLAGS = set(build_parser()[1]["grpo"]._option_string_actions)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}


def name_of(row):
    return row[0].strip("`")


def test_every_field_is_named_once():
    assert sorted(map(name_of, FIELDS)) == sorted(OWN)


@pytest.mark.parametrize("row", FIELDS, ids=name_of)
def test_defaults_are_trls(row):
    assert row[1].strip("`") == str(OWN[name_of(row)])


@pytest.mark.parametrize("row", FIELDS, ids=name_of)
def test_a_flag_is_there_and_has_the_default(row):
    """What begins with -- is a flag of `minirl grpo`; a number beside it is its default."""
    flags = re.findall(r"`(--[a-z0-9-]+)`", row[2])
    assert set(flags) <= FLAGS
    field = flags[0][2:].replace("-", "_") if len(flags) == 1 else ""
    if field in DEFAULTS:
        assert row[3].strip("`") == str(DEFAULTS[field])


def test_every_preset_and_every_flag_in_the_text_exists():
    flags = set(re.findall(r"`(?:minirl grpo )?(--[a-z0-9-]+)", TEXT))
    assert flags and flags <= FLAGS
    presets = {name for text in re.findall(r"presets? ((?:`[a-z0-9-_]+`(?:, | and |\s)?)+)", TEXT)
               for name in re.findall(r"`([a-z0-9-_]+)`", text)}
    presets |= set(re.findall(r"--preset ([a-z0-9-_]+)`", TEXT))
    assert len(presets) > 10 and presets <= set(GRPO_PRESETS)


def test_every_loss_type_is_in_the_table():
    """As TRL's own help lists them."""
    help_of = {field.name: field.metadata["help"] for field in dataclasses.fields(trl.GRPOConfig)
               if "help" in field.metadata}
    listed = re.search(r"Supported values are (.*?)\.", help_of["loss_type"])[1]
    named = {name_of(row) for row in ROWS if len(row) < 4}
    assert named == set(re.findall(r"'(\w+)'", listed))


def test_how_many_fields_are_left_out():
    count = int(re.search(r"The other (\d+) fields", TEXT)[1])
    assert count == len(dataclasses.fields(trl.GRPOConfig)) - len(OWN)


def test_every_option_of_ours_is_in_the_text():
    """An option that TRL has, or has not: either way a reader should find it."""
    missing = [field.name for field in dataclasses.fields(GRPOOptions)
               if f"--{field.name.replace('_', '-')}" not in TEXT]
    assert missing == ["pass_k", "dppo_delta"]            # of a preset alone that TRL has not
