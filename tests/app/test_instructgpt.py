"""minirl/app/instruct.py: InstructGPT in miniature, smaller still; killed and resumed."""

import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minirl.app import instruct, measure
from minirl.app.cli import main
from minirl.app.plots import plot_runs
from minirl.app.rundir import RunDir, RunLog, newest_checkpoint
from minirl.lm.checkpoint import load_pretrained, load_reward_model, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks.instructions import KINDS, split_of
from minirl.tasks.preferences import load_rankings, pairs
from minirl.train.reward_model import as_reward
from minirl.train.sft import SFTConfig

SMALL = ["--eval-problems", "16", "--device", "cpu", "--checkpoint-every", "1"]
LABELLED = ["--demonstrations", "96", "--ranked-prompts", "80"]      # of a run that makes its own rankings
BEST_OF = ["--best-of", "4"]                                         # of one that compares policies
PPO = ["--steps", "4", "--episodes", "8", "--minibatch-size", "4", "--ptx-coef", "0.1", "--ptx-batch-size", "4"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer examples, fewer epochs: enough that answers end. Curves, which take half a second a stage, are drawn where they are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirl.app.training.plot_runs", lambda runs, out: out.touch())
        patch.setattr(instruct, "READ", {"answers": 2200, "texts": 220})
        patch.setattr(instruct, "HELD_OUT", 8)
        patch.setattr(instruct, "DEMONSTRATIONS_SFT", SFTConfig(epochs=3, lr=1e-3, warmup_steps=0, dropout=0.2, min_lr_ratio=0.1))
        yield


@pytest.fixture(scope="module")
def rm(tmp_path_factory):
    """A finished `minirl rm`."""
    folder = tmp_path_factory.mktemp("rm") / "runs" / "rm"
    assert main(["rm", "--run-dir", str(folder), *SMALL, *LABELLED]) == 0
    return folder


def from_rm(rm, *more):
    return ["--init", str(rm / "rl-init" / "final"), "--reward-model", str(rm / "final"), "--rankings", str(rm / "rankings.jsonl"), *SMALL, *more]


@pytest.fixture(scope="module")
def ppo(rm, tmp_path_factory):
    """A finished `minirl ppo` on what that left."""
    folder = tmp_path_factory.mktemp("ppo") / "runs" / "ppo"
    assert main(["ppo", "--run-dir", str(folder), *from_rm(rm, *BEST_OF, *PPO)]) == 0
    return folder


def final_weights(run):
    return {name: x.numpy().tobytes() for name, x in load_file(run / "final" / "model.safetensors").items()}


def timeless(run):
    return [{k: v for k, v in json.loads(line).items() if k != "step_time"} for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_rm_leaves_its_files(rm):
    names = {p.name for p in rm.iterdir()}
    assert {"base", "sft", "rl-init", "rankings.jsonl", "held-out.jsonl", "final", "summary.json", "calibration.png", "sft-epochs.png", "sft-epochs.json", "curves.png"} <= names
    assert {p.name for p in (rm / "sft").glob("epoch-*")} == {"epoch-01", "epoch-02", "epoch-03"} and (rm / "final" / "score.safetensors").is_file()
    summary = json.loads((rm / "summary.json").read_text())
    held_out = load_rankings(rm / "held-out.jsonl")
    assert summary["held_out_comparisons"] == len(pairs(held_out)) > 0 and 0.0 <= summary["pair_accuracy"] <= 1.0
    epochs = json.loads((rm / "sft-epochs.json").read_text())["epochs"]
    assert [e["epoch"] for e in epochs] == [1, 2, 3] and [e["chosen"] for e in epochs].count(True) == 1
    assert next(e for e in epochs if e["chosen"])["score"] == max(e["score"] for e in epochs)


@pytest.mark.parametrize("stage", ["rm/sft", "rm", "ppo/dpo", "ppo"])
def test_each_page_has_curves(stage, rm, ppo, tmp_path):
    run, _, part = stage.partition("/")
    folder = {"rm": rm, "ppo": ppo}[run] / part
    assert (folder / "curves.png").exists()
    plot_runs([RunDir(folder)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_rankings_are_of_the_right_prompts_and_sizes(rm):
    for name, split in (("rankings.jsonl", "train"), ("held-out.jsonl", "test")):
        rankings = load_rankings(rm / name)
        assert rankings and all(split_of(r.prompt) == split and 4 <= len(r.completions) <= 9 for r in rankings)


def test_ppo_leaves_its_files_and_one_table_of_all_four(rm, tmp_path, capsys):
    folder = tmp_path / "ppo"
    assert main(["ppo", "--run-dir", str(folder), *from_rm(rm, *BEST_OF, *PPO)]) == 0
    out = capsys.readouterr().out
    assert [bool(re.search(rf"^{name} +-?[\d.]+ \+- ", out, re.MULTILINE)) for name in ("SFT", "best of 4", "DPO", "PPO")] == [True] * 4
    summary = json.loads((folder / "summary.json").read_text())
    assert {"accuracy_before", "accuracy_after", "mean_length_before", "mean_length_after", "true_reward_before", "true_reward_after", "kl_after", "seconds"} <= set(summary)
    assert (folder / "samples.md").read_text().count("## step") == 3 and (folder / "dpo" / "final" / "config.json").is_file()
    assert [m["step"] for m in RunDir(folder).metrics()] == [1, 2, 3, 4]
    assert main(["ppo", "--resume", "--run-dir", str(folder)]) == 0 and "complete" in capsys.readouterr().out


def test_dpo_alone(rm, tmp_path, capsys):
    assert main(["dpo", "--run-dir", str(tmp_path / "dpo"), *from_rm(rm)]) == 0
    assert "DPO" in capsys.readouterr().out and json.loads((tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines()[0])["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_run_without_init_makes_what_it_needs(tmp_path, capsys, monkeypatch):
    """And rl-init, not the many epochs of SFT, is where it starts."""
    run = tmp_path / "ppo"
    assert main(["ppo", "--run-dir", str(run), *SMALL, *LABELLED, *BEST_OF, *PPO]) == 0
    assert {"base", "sft", "rl-init", "rm", "dpo", "rankings.jsonl"} <= {p.name for p in run.iterdir()} and not list((run / "sft").glob("epoch-*"))
    model, tokenizer = load_pretrained(run / "rl-init" / "final")
    start = instruct.measure(model, tokenizer, 16, seed=derive_seed(0, "instruct", "evaluate"), reward_model=load_reward_model(run / "rm" / "final")[0])
    assert json.loads((run / "summary.json").read_text())["score_before"] == pytest.approx(sum(start.scores) / 16, abs=1e-6)
    for stage, command, page in (("rm", "rm", "rm"), ("dpo", "dpo", "dpo"), ("sft", "sft", "sft")):
        config = json.loads((run / stage / "config.json").read_text())
        assert config["command"] == command and config[page]["lr"] > 0 and config["run"]["demonstrations"] == 96, "what ran is written down"


def test_training_does_not_see_the_true_reward(rm, ppo, tmp_path, monkeypatch):
    """It is drawn beside the curves with weight 0: another true reward, the same policy."""
    for module in (instruct, measure):
        monkeypatch.setattr(module, "true_reward", lambda prompts, completions, **_: [-7.0] * len(completions))
    assert main(["ppo", "--run-dir", str(tmp_path / "ppo"), *from_rm(rm, *PPO)]) == 0
    assert final_weights(tmp_path / "ppo") == final_weights(ppo)
    assert json.loads((tmp_path / "ppo" / "summary.json").read_text())["true_reward_after"] == -7.0


def dying_at(monkeypatch, title, step):
    log = RunLog.log

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if self.title == title and n == step:
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)


def until(rm, run, *stages):
    """The run `rm` as it was when these stages had ended and no other had begun."""
    run.mkdir()
    shutil.copy(rm / "config.json", run)
    for stage in stages:
        shutil.copytree(rm / stage, run / stage)
    return ["rm", "--resume", "--run-dir", str(run)]


@pytest.mark.parametrize("title, step, saved", [("base", 33, "base/checkpoint-30"), ("sft", 7, "sft/checkpoint-5"), ("rl-init", 7, "rl-init/checkpoint-5"),
                                                ("reward model", 7, "checkpoint-5")])
def test_rm_killed_in_any_stage_resumes_bit_for_bit(title, step, saved, rm, tmp_path, monkeypatch):
    """Each behind a checkpoint of that stage, so that it goes on from there and does not begin again."""
    run = tmp_path / "rm"
    before = {"base": (), "sft": ("base",), "rl-init": ("base", "sft"), "reward model": ("base", "sft", "rl-init")}[title]
    dying_at(monkeypatch, title, step)
    with pytest.raises(Killed):
        main(until(rm, run, *before) if before else ["rm", "--run-dir", str(run), *SMALL, *LABELLED])
    monkeypatch.undo()
    assert not (run / "final").exists() and (run / saved).is_dir()
    assert main(["rm", "--resume", "--run-dir", str(run)]) == 0
    same_run(run, rm)


def same_run(run, whole):
    assert final_weights(run) == final_weights(whole) and timeless(run) == timeless(whole)
    assert (run / "final" / "score.safetensors").read_bytes() == (whole / "final" / "score.safetensors").read_bytes()
    for name in ("rankings.jsonl", "held-out.jsonl", "sft-epochs.json"):
        assert (run / name).read_text() == (whole / name).read_text(), name
    for epoch in (whole / "sft").glob("epoch-*"):
        assert (run / "sft" / epoch.name / "model.safetensors").read_bytes() == (epoch / "model.safetensors").read_bytes()
    assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize("name, call", [("save_rankings", 1), ("save_rankings", 2), ("plot_calibration", 1), ("plot_epochs", 1)])
def test_a_kill_between_two_stages_loses_nothing(name, call, rm, tmp_path, monkeypatch):
    """After SFT, between the two files of rankings, after the reward model has been trained, and after the run itself has ended."""
    calls, function = [], getattr(instruct, name)

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(instruct, name, dying)
    again = until(rm, tmp_path / "rm", "base", "sft", "rl-init")
    with pytest.raises(Killed):
        main(again)
    monkeypatch.setattr(instruct, name, function)
    assert main(again) == 0
    same_run(tmp_path / "rm", rm)


@pytest.mark.parametrize("title, step", [("DPO", 3), ("PPO", 1), ("PPO", 3), ("PPO", 4)])
def test_ppo_killed_at_any_step_resumes_bit_for_bit(title, step, rm, ppo, tmp_path, monkeypatch):
    run = tmp_path / "ppo"
    dying_at(monkeypatch, title, step)
    with pytest.raises(Killed):
        main(["ppo", "--run-dir", str(run), *from_rm(rm, *PPO)])
    monkeypatch.undo()
    assert main(["ppo", "--resume", "--run-dir", str(run)]) == 0
    assert final_weights(run) == final_weights(ppo) and timeless(run) == timeless(ppo)
    assert (run / "samples.md").read_text() == (ppo / "samples.md").read_text()


def test_the_best_of_several_is_the_one_with_the_highest_score(rm):
    model, tokenizer = load_pretrained(rm / "rl-init" / "final")
    reward_model, _ = load_reward_model(rm / "final")
    one = instruct.measure(model, tokenizer, 12, seed=3, reward_model=reward_model, reference=model)
    best = instruct.measure(model, tokenizer, 12, seed=3, reward_model=reward_model, best_of=8)
    assert one.kl == pytest.approx(0.0, abs=1e-5) and best.kl == pytest.approx(math.log(8) - 7 / 8)
    assert sum(best.scores) > sum(one.scores)
    for problems, rollouts in instruct.completed(model, tokenizer, 12, group=8, seed=3):
        scores = torch.tensor(as_reward(reward_model, tokenizer)([p.prompt for p in problems for _ in range(8)], [""] * 96, completion_ids=rollouts.completion_ids()))
        assert best.scores == pytest.approx(scores.view(12, 8).amax(1).tolist(), abs=1e-5)


def test_more_rows_than_fit_at_once_are_sampled_in_turn(rm):
    model, tokenizer = load_pretrained(rm / "rl-init" / "final")
    parts = list(instruct.completed(model, tokenizer, 10, group=3, seed=1, rows=12))
    assert [len(problems) for problems, _ in parts] == [4, 4, 2] and [len(rollouts) for _, rollouts in parts] == [12, 12, 6]


def test_a_file_of_rankings_is_split_by_prompt(rm, tmp_path, capsys):
    """Every tenth prompt is held out, with all of its lines: a prompt on both sides would flatter the reward model."""
    file = tmp_path / "data.jsonl"
    lines = [{"prompt": f"sort {i % 20}:", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["rm", "--run-dir", str(tmp_path / "rm"), "--init", str(rm / "rl-init" / "final"), "--rankings", str(file), *SMALL]) == 0
    assert "36 rankings, 36 comparisons; of 4 held-out comparisons" in capsys.readouterr().out
    assert len(instruct.split_rankings(instruct.InstructConfig(rankings=str(file), reward_model="there"))[0]) == 40      # nothing to hold out
    assert not (tmp_path / "rm" / "sft").exists()


def test_wrong_inputs_end_in_one_line(rm, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": "a", "rejected": "a"}\n')
    single, latin, half = (tmp_path / name for name in ("single.jsonl", "latin.jsonl", "half.jsonl"))
    single.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    latin.write_bytes(b'{"prompt": "q", "chosen": "\xe4", "rejected": "b"}\n')
    half.write_text('{"prompt": "q", "chosen": "\\ud800", "rejected": "b"}\n')
    for argv, said in ((["rm", "--rankings", str(bad)], "bad.jsonl, line 2: two equal completions"), (["dpo", "--rankings", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
                       (["ppo", "--reward-model", str(rm / "rl-init" / "final")], "holds no reward model"), (["ppo", "--init", str(rm / "final")], "holds a reward model"),
                       (["sample", "--init", str(rm / "final")], "holds a reward model"), (["ppo", "--ema-decay", "1"], "ema_decay is 1"),
                       (["ppo", "--best-of", "0"], "best_of is 0"), (["ppo", "--checkpoint-every", "0"], "checkpoint_every is 0"),
                       (["ppo", "--labeller-noise", "0"], "labeller_noise is 0"), (["rm", "--reward-model", str(rm / "final")], "minirl rm, which trains one"),
                       (["rm", "--rankings", str(single)], "rankings of 1 prompt"), (["dpo", "--rankings", str(latin)], "latin.jsonl is not UTF-8"),
                       (["dpo", "--rankings", str(half)], "half of a surrogate pair"), (["sft", "--data", str(bad)], "bad.jsonl, line 1: 'completion' is missing")):
        assert main([*argv, *(["--run-dir", str(tmp_path / "never")] if argv[0] != "sample" else [])]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "never").exists()


def test_sample_and_eval_know_the_task_of_the_run(rm, ppo, capsys):
    assert main(["eval", "--init", str(ppo / "final"), "--problems", "4", "--samples", "2", "--k", "1", "--max-new-tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("instructions\n") and "true_reward, mean" in out
    for folder in (rm / "rl-init" / "final", rm / "sft" / "epoch-01", rm / "base" / "final"):
        assert main(["sample", "--init", str(folder), "-n", "1", "--max-new-tokens", "8"]) == 0
        assert capsys.readouterr().out.split()[0] in KINDS, "the prompts are instructions, and no sums"


def test_a_reward_model_is_not_the_newest_policy(rm, ppo, tmp_path):
    for name, source in (("ppo", ppo), ("rm", rm)):
        shutil.copytree(source / "final", tmp_path / "runs" / name / "final")
    assert newest_checkpoint(tmp_path / "runs") == tmp_path / "runs" / "ppo" / "final"


def test_sft_on_a_file_of_demonstrations(rm, tmp_path, capsys):
    file = tmp_path / "demos.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"copy {x}:", "completion": x}) + "\n" for x in ("abc", "bca", "cab", "aab")))
    common = ["--init", str(rm / "rl-init" / "final"), "--data", str(file), "--device", "cpu"]
    assert main(["sft", "--run-dir", str(tmp_path / "sft"), *common, "--epochs", "2", "--batch-size", "2", "--lr", "1e-3"]) == 0
    assert "nats per token" in capsys.readouterr().out and len(RunDir(tmp_path / "sft").metrics()) == 4
    with open(file, "a") as f:
        f.write(json.dumps({"prompt": "copy", "completion": "x" * 300}) + "\n")
    assert main(["sft", "--run-dir", str(tmp_path / "long"), *common]) == 2
    assert "demos.jsonl, line 5 has " in capsys.readouterr().err


def test_a_reward_model_that_reads_other_words_is_refused(rm, tmp_path, capsys):
    """Ids of one vocabulary in a model of another: an index error at best, and a score of other words at worst."""
    tokenizer = build_tokenizer()
    stranger = ScalarModel(Transformer(ModelConfig(tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2)))
    save_pretrained(stranger, tokenizer, tmp_path / "stranger")
    for init in ([], ["--init", str(rm / "rl-init" / "final")]):
        assert main(["ppo", "--run-dir", str(tmp_path / "never"), "--reward-model", str(tmp_path / "stranger"), *init]) == 2
        assert "have different tokenizers" in capsys.readouterr().err and not (tmp_path / "never").exists()


def test_a_policy_that_does_not_answer_is_named_before_anything_is_written(rm, tmp_path, capsys):
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    save_pretrained(Transformer(ModelConfig(tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2)), tokenizer, tmp_path / "dumb")
    assert main(["rm", "--run-dir", str(tmp_path / "rm"), "--init", str(tmp_path / "dumb"), *SMALL, *LABELLED]) == 2
    assert "there is nothing to rank" in capsys.readouterr().err and not (tmp_path / "rm" / "rankings.jsonl").exists()


def test_a_policy_without_a_bos_and_in_bfloat16_is_trained(rm, tmp_path, capsys):
    """Qwen's checkpoints have no BOS, and most are in bfloat16: text begins with its own first token, and training is in float32."""
    start = tmp_path / "start"
    shutil.copytree(rm / "rl-init" / "final", start)
    for name, key in (("tokenizer_config.json", "bos_token"), ("tokenizer.json", "post_processor")):
        content = json.loads((start / name).read_text())
        assert content.pop(key)
        (start / name).write_text(json.dumps(content))
    (start / "SHA256SUMS").unlink()
    model, tokenizer = load_pretrained(start)
    assert tokenizer.bos_id is None
    save_pretrained(model.to(torch.bfloat16), tokenizer, start)
    assert main(["ppo", "--run-dir", str(tmp_path / "ppo"), "--init", str(start), "--reward-model", str(rm / "final"), "--rankings", str(rm / "rankings.jsonl"),
                 *SMALL, *PPO]) == 0
    assert load_pretrained(tmp_path / "ppo" / "final")[0].dtype == torch.float32
