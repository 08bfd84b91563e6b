"""minirl/app/r1.py: the stages as runs, killed and resumed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minirl.app import r1
from minirl.app.cli import build_parser, main
from minirl.app.evaluate import Evaluation
from minirl.app.plots import plot_runs
from minirl.app.presets import R1_PRESETS
from minirl.app.rundir import RunDir, RunLog
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.tasks.bilingual import DIGITS
from minirl.tasks.problem import Problem
from minirl.train.r1 import R1Config
from minirl.train.reward_model import as_reward

SMALL = ["--number-length", "1", "--examples", "1600", "--general-examples", "400", "--cold-start-examples", "64", "--demonstrations", "32", "--ranked-prompts", "40",
         "--eval-problems", "4", "--samples", "2", "--device", "cpu", "--checkpoint-every", "2", "--scale", "128", "--zero-steps", "3", "--reasoning-steps", "3",
         "--final-steps", "3", "--preference-steps", "4", "--too-long", "1", "--kept-problems", "64", "--max-new-tokens", "24"]
POLICIES = ["base", "r1-zero", "cold-start", "rl-1", "sft", "rl-2", "prefer-1", "prefer-2", "too-long", "small-base", "small-rl", "distilled"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """They take half a second a stage, and are drawn where they are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirl.app.training.plot_runs", lambda runs, out: out.touch())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r1") / "runs" / "r1"
    assert main(["r1", "--run-dir", str(folder), *SMALL]) == 0
    return folder


def test_r1_leaves_a_folder_per_stage_and_a_table(whole, capsys):
    assert {*POLICIES, "rm-1", "rm-2", "final", "stages.json", "stages.png", "hacking.png", "summary.json"} <= {p.name for p in whole.iterdir()}
    stages = json.loads((whole / "stages.json").read_text())["stages"]
    assert [s["stage"] for s in stages] == POLICIES
    for s in stages:
        assert 0 <= s["hard"] <= s["pass"] <= 1 and 0 <= s["language"] <= 1 and s["length"] > 0 and len(s["general"]) == 4
    assert next(s for s in stages if s["stage"] == "sft")["win_rate"] == 0.5
    final, last = (load_file(whole / folder / "model.safetensors") for folder in ("final", "prefer-2/final"))
    assert final.keys() == last.keys() and all(torch.equal(final[name], last[name]) for name in final)
    assert main(["r1", "--resume", "--run-dir", str(whole)]) == 0 and "complete" in capsys.readouterr().out
    assert main(["sample", "--init", str(whole / "rl-1" / "final"), "-n", "1", "--max-new-tokens", "8"]) == 0
    said = capsys.readouterr().out
    assert any(word in said for word in DIGITS["ko"] + DIGITS["en"]), "it is asked what the run was trained on"
    summary, (first, last) = json.loads((whole / "summary.json").read_text()), (next(s for s in stages if s["stage"] == name) for name in ("base", "prefer-2"))
    assert (summary["accuracy_before"], summary["accuracy_after"], summary["win_rate_after"]) == (first["hard"], last["hard"], last["win_rate"])
    assert summary["seconds"] >= sum(s["seconds"] for s in stages) > 0, "reward models take time, too"


@pytest.mark.parametrize("stage", ["base", "r1-zero", "rm-1", "prefer-2"])
def test_each_kind_of_stage_has_curves(stage, whole, tmp_path):
    assert (whole / stage / "curves.png").exists()
    plot_runs([RunDir(whole / stage)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_what_each_stage_ran_with_is_written_down(whole):
    """The preference reward stands in the metrics of the last part alone, and R1-Zero's curves show what nothing rewards."""
    numbers = json.loads((whole / "rl-2" / "config.json").read_text())["grpo"]
    assert (numbers["temperature"], numbers["minibatches"], numbers["prompts_per_step"], numbers["group_size"]) == (0.7, 16, 4, 16)
    judged = {name: json.loads((whole / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("r1-zero", "rl-2", "prefer-2", "too-long")}
    assert [name for name, metrics in judged.items() if "rewards/preference/mean" in metrics] == ["prefer-2", "too-long"]
    assert "rewards/language_consistency/mean" in judged["r1-zero"] and "rewards/general/true_reward/mean" in judged["prefer-2"]


@pytest.mark.parametrize("title, step", [
    pytest.param("base", 30, marks=pytest.mark.slow), pytest.param("rl-1", 3, marks=pytest.mark.slow),
    pytest.param("sft", 3, marks=pytest.mark.slow), ("rm-2", 3), ("prefer-2", 2), ("distilled", 2)])
def test_killed_in_any_stage_it_goes_on_bit_for_bit(title, step, whole, tmp_path, monkeypatch):
    run, log = tmp_path / "r1", RunLog.log

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if self.title.split()[-1] == title and n == step:
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)
    start = ["r1", "--run-dir", str(run), *SMALL]
    if title != "base":                                  # a run in which what comes before has been made
        shutil.copytree(whole, run)
        entries = json.loads((run / "stages.json").read_text())["stages"]
        order = ["base", "r1-zero", "cold-start", "rl-1", "sft", "rl-2", "rm-1", "prefer-1", "rm-2", "prefer-2", "too-long", "small-base", "small-rl", "distilled", "final"]
        gone = order[order.index(title):]
        for folder in gone:
            shutil.rmtree(run / folder)
        (run / "stages.json").write_text(json.dumps({"stages": [{k: v for k, v in s.items() if k != "win_rate"} for s in entries if s["stage"] not in gone]}))
        start = ["r1", "--resume", "--run-dir", str(run)]
    with pytest.raises(Killed):
        main(start)
    monkeypatch.setattr(RunLog, "log", log)
    assert not (run / "final").exists()
    assert main(["r1", "--resume", "--run-dir", str(run)]) == 0
    for weights in sorted(whole.glob("*/final/model.safetensors")):
        assert (run / weights.relative_to(whole)).read_bytes() == weights.read_bytes(), weights.parts[-3]
    timeless = [[{k: v for k, v in s.items() if k != "seconds"} for s in json.loads((r / "stages.json").read_text())["stages"]] for r in (run, whole)]
    assert timeless[0] == timeless[1]


def test_reasoning_in_korean_alone_from_a_base_model_that_is_there(whole, tmp_path):
    run = tmp_path / "ko"
    assert main(["r1", "--run-dir", str(run), "--language", "ko", "--init", str(whole / "base" / "final"), *SMALL, "--too-long", "0", "--rounds", "1", "--small", "0"]) == 0
    assert not any((run / name).exists() for name in ("base", "too-long", "hacking.png", "prefer-2", "small-base"))
    told, korean = (json.loads((r / "stages.json").read_text())["stages"][0] for r in (whole, run))
    assert told["hard"] == korean["hard"] and told["language"] != korean["language"], "one base model, held against another language"
    assert r1.R1RunConfig(language="ko").task.reason_in == "ko" and r1.R1RunConfig().task.reason_in is None


def test_going_on_for_too_long_starts_where_the_last_part_does(whole):
    """From rl-2, with the first reward model, for too_long times as many steps; a reward model's score of the same answers is the one that rm-1 gives."""
    started = []

    class Stages:
        run, tokenizer, device = RunDir(whole), load_pretrained(whole / "base" / "final")[1], torch.device("cpu")
        config, common = R1Config(preference_steps=4), r1.R1RunConfig(number_length=1, too_long=3)

        def __call__(self, name, numbers, start, page):
            started.append((name, numbers, start))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(r1, "train_grpo", lambda model, tokenizer, task, config, *, reward_weights, **rest: started.append((task, reward_weights)))
                page(start)

    r1.overdo(Stages())
    (name, numbers, start), (judged, weights) = started
    rl_2, reward_model = load_pretrained(whole / "rl-2" / "final")[0], load_reward_model(whole / "rm-1" / "final")[0]
    assert name == "too-long" and numbers.steps == 12 and numbers.temperature == 0.7 and weights["preference"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), rl_2.parameters(), strict=True))
    asked = dict(answer=["abc"], general=[True])
    assert judged.rewards["preference"](["sort cba:"], ["abc"], **asked) == as_reward(reward_model, Stages.tokenizer)(["sort cba:"], ["abc"])


def test_a_stage_that_had_ended_samples_as_one_that_was_trained_now(whole):
    """Both are compiled or not alike: rejection sampling, labelling and evaluation would else take another numeric path after --resume."""
    stages = r1.Stages(RunDir(whole), load_pretrained(whole / "base" / "final")[1], R1Config(), r1.R1RunConfig(compile="on"), device=torch.device("cpu"))
    assert stages("rl-1", R1Config().grpo(1), None, None).compiled


def test_stages_are_numbered():
    names = r1.stage_names(R1Config(rounds=1), r1.R1RunConfig(init="somewhere", too_long=0))
    assert names == ["r1-zero", "cold-start", "rl-1", "sft", "rl-2", "rm-1", "prefer-1", "small-base", "small-rl", "distilled"] and r1.title("rl-1", names) == "3/10 rl-1"
    assert len(r1.stage_names(R1Config(), r1.R1RunConfig())) == 14


def test_easy_problems_are_shorter():
    config = r1.R1RunConfig(number_length=3)
    assert config.task.digits == (2, 3) and config.of_length(3).digits == (3,) and r1.R1RunConfig(number_length=1).task.digits == (1,)


def test_the_majority_of_samples():
    found = Evaluation([Problem("", answer) for answer in "789"], [["<answer>7</answer>", "<answer>7</answer>", "<answer>1</answer>"],
                          ["<answer>1</answer>", "<answer>1</answer>", "<answer>8</answer>"], ["none", "none", "<answer>9</answer>"]], [2, 1, 1], 3, {}, 0.0, 0.0)
    assert r1.majority(found) == pytest.approx(2 / 3)


def test_win_rates_by_hand():
    """Against (1, 0): (2, 0) wins one and ties one; (0, -1) loses both."""
    rated = r1.with_win_rates([{"stage": "sft", "general": [1.0, 0.0]}, {"stage": "a", "general": [2.0, 0.0]}, {"stage": "b", "general": [0.0, -1.0]}])
    assert [s["win_rate"] for s in rated] == [0.5, 0.75, 0.0]


def test_fast_is_a_preset(tmp_path):
    parser, _ = build_parser()
    assert parser.parse_args(["r1", "--fast"]).preset == "fast" == parser.parse_args(["r1", "--preset", "fast"]).preset
    for preset in R1_PRESETS.values():
        r1.R1RunConfig(**preset.get("run", {})), R1Config(**preset.get("r1", {}))
    paper = R1Config(**R1_PRESETS["paper"]["r1"])
    assert paper.zero_steps * paper.grpo(1).minibatches == 10_400 and (paper.final_steps + paper.preference_steps) * 16 == pytest.approx(1700, abs=8)


@pytest.mark.parametrize("argv, said", [(["--language", "fr"], "language is 'fr': en, ko or prompt"), (["--number-length", "9"], "number_length is 9"), (["--samples", "0"], "samples is 0"),
                                        (["--scale", "0.1"], "scale is 0.1"), (["--too-long", "-1"], "too_long is -1"),
                                        (["--preset", "paper"], "max_new_tokens 32768 do not fit a context of 128 tokens"), (["--max-new-tokens", "20"], "worked out in up to"),
                                        (["--max-new-tokens", "120"], "do not fit a context of 128"), (["--number-length", "5"], "add --max-new-tokens"),
                                        (["--profile"], "--profile is for commands of one page"), (["--small", "40"], "small is 40")])
def test_wrong_inputs_end_in_one_line(argv, said, tmp_path, capsys):
    assert main(["r1", "--run-dir", str(tmp_path / "never"), *argv]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "never").exists()


@pytest.mark.slow
def test_the_fast_pipeline_shows_what_the_paper_reports(tmp_path):
    """minirl r1 --fast: R1-Zero learns to reason and goes on mixing, the language reward ends that, preferences lift general answers, distillation teaches a language."""
    assert main(["r1", "--fast", "--run-dir", str(tmp_path / "r1"), "--device", "cpu"]) == 0
    found = {s["stage"]: s for s in json.loads((tmp_path / "r1" / "stages.json").read_text())["stages"]}
    base, zero, spoken, last = (found[name] for name in ("base", "r1-zero", "rl-1", "prefer-2"))
    assert zero["hard"] > base["hard"] + 0.15 and zero["length"] > base["length"] + 2 and zero["format"] > base["format"] + 0.1
    assert zero["language"] < 0.85 < 0.95 < spoken["language"] and last["language"] > 0.97
    assert last["win_rate"] > 0.55 and last["hard"] > zero["hard"] - 0.1
    assert found["distilled"]["language"] > found["small-rl"]["language"] + 0.1 and found["distilled"]["easy"] > found["small-rl"]["easy"]
