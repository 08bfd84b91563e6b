"""minirl/app/r1.py: the stages as runs, killed and resumed."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minirl.app.cli import build_parser, main
from minirl.app.commands import configured
from minirl.app.plots import plot_runs
from minirl.app.r1 import R1Settings, show_hacking, stage_names
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.stages import Stages
from minirl.app.tasks import make_task
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.tasks.bilingual import DIGITS
from minirl.tasks.problem import columns, weights_of
from minirl.train.presets import R1_PRESETS
from minirl.train.r1 import R1Config
from minirl.train.reward_model import as_reward

SMALL = ["--number-length", "1", "--examples", "1600", "--general-examples", "400",
         "--cold-start-examples", "64", "--demonstrations", "32", "--ranked-prompts", "40",
         "--eval-problems", "4", "--samples", "2", "--device", "cpu", "--checkpoint-every", "2",
         "--scale", "128", "--zero-steps", "3", "--reasoning-steps", "3", "--final-steps", "3",
         "--preference-steps", "4", "--too-long", "1", "--kept-problems", "64",
         "--cold-start-problems", "16", "--max-new-tokens", "24"]
POLICIES = ["base", "r1-zero", "cold-start", "rl-1", "sft", "rl-2", "prefer-1", "prefer-2",
            "too-long", "small-base", "small-rl", "distilled"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """They take half a second a stage, and are drawn where they are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirl.app.stages.plot_runs", lambda runs, out: out.touch())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r1") / "runs" / "r1"
    assert main(["r1", "--run-dir", str(folder), *SMALL]) == 0
    return folder


def entries_of(run):
    return json.loads((run / "stages.json").read_text())["stages"]


def test_r1_leaves_a_folder_per_stage_and_a_table(whole, capsys):
    assert {*POLICIES, "rm-1", "rm-2", "final", "stages.json", "stages.png", "hacking.png",
            "summary.json"} <= {p.name for p in whole.iterdir()}
    stages = {entry["stage"]: entry for entry in entries_of(whole)}
    assert list(stages) == POLICIES
    for entry in stages.values():
        assert 0 <= entry["hard"] <= entry["pass"] <= 1 and 0 <= entry["language"] <= 1
        assert entry["length"] > 0 and len(entry["general"]) == 4
    assert stages["sft"]["win_rate"] == 0.5
    final, last = (load_file(whole / folder / "model.safetensors")
                   for folder in ("final", "prefer-2/final"))
    assert final.keys() == last.keys()
    assert all(torch.equal(final[name], last[name]) for name in final)
    assert main(["r1", "--resume", "--run-dir", str(whole)]) == 0
    assert "complete" in capsys.readouterr().out
    summary, first, last = RunDir(whole).summary, stages["base"], stages["prefer-2"]
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (first["hard"], last["hard"])
    assert summary["win_rate_after"] == last["win_rate"]
    seconds = sum(entry["seconds"] for entry in stages.values())
    assert summary["seconds"] >= seconds > 0, "reward models take time, too"


def test_a_stage_is_asked_what_it_was_trained_on(whole, capsys):
    init = ["--init", str(whole / "rl-1" / "final"), "--max-new-tokens", "8"]
    assert main(["sample", *init, "-n", "1"]) == 0
    said = capsys.readouterr().out
    assert any(word in said for word in DIGITS["ko"] + DIGITS["en"])
    assert main(["eval", *init, "--problems", "2", "--samples", "1"]) == 0
    assert capsys.readouterr().out.startswith("1-digit addition in English and Korean\n")


@pytest.mark.parametrize("stage", ["base", "r1-zero", "rm-1", "prefer-2"])
def test_each_kind_of_stage_has_curves(stage, whole, tmp_path):
    assert (whole / stage / "curves.png").exists()
    plot_runs([RunDir(whole / stage)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_what_each_stage_ran_with_is_written_down(whole):
    """The preference reward stands in the metrics of the last part alone, and R1-Zero's curves show
    what nothing rewards."""
    numbers = RunDir(whole / "rl-2").config["grpo"]
    assert (numbers["temperature"], numbers["minibatches"]) == (0.7, 16)
    assert (numbers["prompts_per_step"], numbers["group_size"]) == (4, 16)
    first = {name: RunDir(whole / name).metrics()[0]
             for name in ("r1-zero", "rl-2", "prefer-2", "too-long")}
    preferred = [name for name, metrics in first.items() if "rewards/preference/mean" in metrics]
    assert preferred == ["prefer-2", "too-long"]
    assert "rewards/language_consistency/mean" in first["r1-zero"]
    assert "rewards/general/true_reward/mean" in first["prefer-2"]


ORDER = ["base", "r1-zero", "cold-start", "rl-1", "sft", "rl-2", "rm-1", "prefer-1", "rm-2",
         "prefer-2", "too-long", "small-base", "small-rl", "distilled", "final"]


def until(whole, run, stage):
    """Copy a run as it was before a stage was made."""
    shutil.copytree(whole, run)
    gone = ORDER[ORDER.index(stage):]
    for folder in gone:
        shutil.rmtree(run / folder)
    left = [{k: v for k, v in entry.items() if k != "win_rate"}
            for entry in entries_of(run) if entry["stage"] not in gone]
    (run / "stages.json").write_text(json.dumps({"stages": left}))


@pytest.mark.parametrize("stage, step", [
    pytest.param("base", 30, marks=pytest.mark.slow),
    pytest.param("rl-1", 3, marks=pytest.mark.slow), pytest.param("sft", 3, marks=pytest.mark.slow),
    ("rm-2", 3), ("prefer-2", 2), ("distilled", 2)])
def test_killed_in_any_stage_it_goes_on_bit_for_bit(stage, step, whole, tmp_path, monkeypatch):
    run, log = tmp_path / "r1", RunLog.log

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if self.title.split()[-1] == stage and n == step:
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)
    start = ["r1", "--run-dir", str(run), *SMALL]
    if stage != "base":                                  # what comes before has been made
        until(whole, run, stage)
        start = ["r1", "--resume", "--run-dir", str(run)]
    with pytest.raises(Killed):
        main(start)
    monkeypatch.setattr(RunLog, "log", log)
    assert not (run / "final").exists()
    assert main(["r1", "--resume", "--run-dir", str(run)]) == 0
    for weights in sorted(whole.glob("*/final/model.safetensors")):
        same = (run / weights.relative_to(whole)).read_bytes() == weights.read_bytes()
        assert same, weights.parts[-3]
    timeless = [[{k: v for k, v in entry.items() if k != "seconds"} for entry in entries_of(r)]
                for r in (run, whole)]
    assert timeless[0] == timeless[1]


def test_reasoning_in_korean_alone_from_a_base_model_that_is_there(whole, tmp_path):
    run = tmp_path / "ko"
    flags = ["--language", "ko", "--init", str(whole / "base" / "final"), *SMALL]
    few = ["--too-long", "0", "--rounds", "1", "--small", "0"]
    assert main(["r1", "--run-dir", str(run), *flags, *few]) == 0
    for name in ("base", "too-long", "hacking.png", "prefer-2", "small-base"):
        assert not (run / name).exists(), name
    prompts, korean = (entries_of(r)[0] for r in (whole, run))
    assert prompts["hard"] == korean["hard"] and prompts["language"] != korean["language"], (
        "one base model, held against another language")
    assert R1Settings(language="ko").task.reason_in == "ko" and R1Settings().task.reason_in is None
    assert RunDir(run).config["task"] == {"name": "bilingual", "digits": 1, "reason_in": "ko"}


def stages_of(whole, **changes):
    """The stages of a run that is there, with other settings."""
    settings = R1Settings(number_length=1, **changes)
    tokenizer = load_pretrained(whole / "base" / "final")[1]
    return Stages(RunDir(whole), tokenizer, settings, device=torch.device("cpu"))


def test_going_on_for_too_long_starts_where_the_last_part_does(whole, tmp_path):
    """From rl-2, with the first reward model, for too_long times as many steps; a reward model's
    score of the same answers is the one that rm-1 gives."""
    copy = tmp_path / "r1"
    shutil.copytree(whole, copy)
    stages, calls = stages_of(copy, too_long=3), []
    show_hacking(stages, lambda *args: calls.append(args), R1Config(preference_steps=4))
    (name, numbers, start, page), = calls
    assert name == "too-long" and numbers.steps == 12 and numbers.temperature == 0.7
    rl_2 = load_pretrained(whole / "rl-2" / "final")[0]
    assert all(torch.equal(a, b)
               for a, b in zip(start.parameters(), rl_2.parameters(), strict=True))
    judged = page.keywords["task"]
    assert weights_of(judged)["preference"] == 1.0
    problem = next(p for p in judged.sample(50, random.Random(0)) if p.general)
    asked = [problem.prompt], ["abc"]
    reward = as_reward(load_reward_model(whole / "rm-1" / "final")[0], stages.tokenizer)
    assert judged.rewards["preference"](*asked, **columns([problem])) == reward(*asked)


def test_the_stages_in_order():
    names = stage_names(R1Config(rounds=1), R1Settings(init="somewhere", too_long=0))
    assert names == ["r1-zero", "cold-start", "rl-1", "sft", "rl-2", "rm-1", "prefer-1",
                     "small-base", "small-rl", "distilled"]
    assert len(stage_names(R1Config(), R1Settings())) == 14


def test_easy_problems_are_shorter():
    settings = R1Settings(number_length=3)
    assert (settings.task.digits, settings.easy.digits, settings.hard.digits) == (
        (2, 3), (2,), (3,))
    assert R1Settings(number_length=1).task.digits == (1,)
    assert make_task(settings.task_fields) == settings.hard


def test_fast_is_a_preset():
    parser, _ = build_parser()
    fast = parser.parse_args(["r1", "--fast"])
    assert fast.preset == "fast" == parser.parse_args(["r1", "--preset", "fast"]).preset
    for preset in R1_PRESETS.values():
        configs = configured("r1", preset.numbers, fast.configs)
        for name, value in preset.numbers.items():
            section = "settings" if hasattr(configs["settings"], name) else "r1"
            assert getattr(configs[section], name) == value
    paper = R1Config(**R1_PRESETS["paper"].numbers)
    assert paper.zero_steps * paper.grpo(1).minibatches == 10_400
    assert (paper.final_steps + paper.preference_steps) * 16 == pytest.approx(1700, abs=8)


@pytest.mark.parametrize("line, says", [
    ("--language fr", "language is 'fr': en, ko or prompt"),
    ("--number-length 9", "number_length is 9"), ("--samples 0", "samples is 0"),
    ("--scale 0.1", "scale is 0.1"), ("--too-long -1", "too_long is -1"),
    ("--preset paper", "max_new_tokens 32768 do not fit a context of 128 tokens"),
    ("--max-new-tokens 20", "worked out in up to"),
    ("--max-new-tokens 120", "do not fit a context of 128"),
    ("--number-length 5", "add --max-new-tokens"),
    ("--cold-start-problems 0", "cold_start_problems are both 0"),
    ("--profile", "--profile is for commands of one page"), ("--small 40", "small is 40")])
def test_wrong_inputs_end_in_one_line(line, says, tmp_path, capsys):
    assert main(["r1", "--run-dir", str(tmp_path / "never"), *line.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "never").exists()


@pytest.mark.slow
def test_the_fast_pipeline_shows_what_the_paper_reports(tmp_path):
    """minirl r1 --fast: R1-Zero learns to reason and goes on mixing, the language reward ends that,
    preferences lift general answers, distillation teaches a language."""
    assert main(["r1", "--fast", "--run-dir", str(tmp_path / "r1"), "--device", "cpu"]) == 0
    stages = {entry["stage"]: entry for entry in entries_of(tmp_path / "r1")}
    base, zero, spoken, last = (stages[name] for name in ("base", "r1-zero", "rl-1", "prefer-2"))
    assert zero["hard"] > base["hard"] + 0.15 and zero["length"] > base["length"] + 2
    assert zero["format"] > base["format"] + 0.1
    assert zero["language"] < 0.85 < 0.95 < spoken["language"] and last["language"] > 0.97
    assert last["win_rate"] > 0.55 and last["hard"] > zero["hard"] - 0.1
    assert stages["distilled"]["language"] > stages["small-rl"]["language"] + 0.1
    assert stages["distilled"]["easy"] > stages["small-rl"]["easy"]
