"""minirl/app/instruct.py: InstructGPT in miniature, smaller still; killed and resumed."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file

from minirl.app import instruct
from minirl.app.cli import main
from minirl.app.rundir import RunDir, RunLog, newest_checkpoint
from minirl.lm.checkpoint import load_pretrained, load_reward_model
from minirl.tasks.instructions import split_of
from minirl.tasks.preferences import load_rankings, pairs
from minirl.train.sft import SFTConfig

SMALL = ["--demonstrations", "48", "--ranked-prompts", "24", "--eval-problems", "16", "--best-of", "4", "--device", "cpu", "--checkpoint-every", "1"]
PPO = ["--steps", "4", "--episodes", "8", "--minibatch-size", "4", "--ptx-coef", "0.1", "--ptx-batch-size", "4"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer examples, fewer epochs: enough that answers end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instruct, "READ", {"answers": 3200, "texts": 320})
        patch.setattr(instruct, "HELD_OUT", 8)
        patch.setattr(instruct, "DEMONSTRATIONS_SFT", SFTConfig(epochs=3, lr=1e-3, warmup_steps=0, dropout=0.2, min_lr_ratio=0.1))
        yield


@pytest.fixture(scope="module")
def rm(tmp_path_factory):
    """A finished `minirl rm`."""
    folder = tmp_path_factory.mktemp("rm") / "runs" / "rm"
    assert main(["rm", "--run-dir", str(folder), *SMALL]) == 0
    return folder


def from_rm(rm, *more):
    return ["--init", str(rm / "rl-init" / "final"), "--reward-model", str(rm / "final"), "--rankings", str(rm / "rankings.jsonl"), *SMALL, *more]


@pytest.fixture(scope="module")
def ppo(rm, tmp_path_factory):
    """A finished `minirl ppo` on what that left."""
    folder = tmp_path_factory.mktemp("ppo") / "runs" / "ppo"
    assert main(["ppo", "--run-dir", str(folder), *from_rm(rm, *PPO)]) == 0
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


def test_rankings_are_of_the_right_prompts_and_sizes(rm):
    for name, split in (("rankings.jsonl", "train"), ("held-out.jsonl", "test")):
        rankings = load_rankings(rm / name)
        assert rankings and all(split_of(r.prompt) == split and 4 <= len(r.completions) <= 9 for r in rankings)


def test_ppo_leaves_its_files_and_one_table_of_all_four(rm, tmp_path, capsys):
    folder = tmp_path / "ppo"
    assert main(["ppo", "--run-dir", str(folder), *from_rm(rm, *PPO)]) == 0
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
    """And rl-init, not the 16 epochs of SFT, is where it starts."""
    assert main(["ppo", "--run-dir", str(tmp_path / "ppo"), *SMALL, *PPO]) == 0
    assert {"base", "sft", "rl-init", "rm", "dpo", "rankings.jsonl"} <= {p.name for p in (tmp_path / "ppo").iterdir()}
    assert json.loads((tmp_path / "ppo" / "rm" / "config.json").read_text())["command"] == "rm"


def test_training_does_not_see_the_true_reward(rm, ppo, tmp_path, monkeypatch):
    """It is drawn beside the curves with weight 0: another true reward, the same policy."""
    monkeypatch.setattr(instruct, "true_reward", lambda prompts, completions, **_: [-7.0] * len(completions))
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


@pytest.mark.parametrize("title, step", [("base", 30), ("sft", 4), ("rl-init", 2), ("reward model", 2)])
def test_rm_killed_in_any_stage_resumes_bit_for_bit(title, step, rm, tmp_path, monkeypatch):
    run = tmp_path / "rm"
    dying_at(monkeypatch, title, step)
    with pytest.raises(Killed):
        main(["rm", "--run-dir", str(run), *SMALL])
    monkeypatch.undo()
    assert not (run / "final").exists()
    assert main(["rm", "--resume", "--run-dir", str(run)]) == 0
    assert final_weights(run) == final_weights(rm) and timeless(run) == timeless(rm)
    assert (run / "final" / "score.safetensors").read_bytes() == (rm / "final" / "score.safetensors").read_bytes()
    assert (run / "rankings.jsonl").read_text() == (rm / "rankings.jsonl").read_text() and not list(run.rglob("*.partial"))


@pytest.mark.parametrize("title, step", [("DPO", 1), ("PPO", 1), ("PPO", 3), ("PPO", 4)])
def test_ppo_killed_at_any_step_resumes_bit_for_bit(title, step, rm, ppo, tmp_path, monkeypatch):
    run = tmp_path / "ppo"
    dying_at(monkeypatch, title, step)
    with pytest.raises(Killed):
        main(["ppo", "--run-dir", str(run), *from_rm(rm, *PPO)])
    monkeypatch.undo()
    assert main(["ppo", "--resume", "--run-dir", str(run)]) == 0
    assert final_weights(run) == final_weights(ppo) and timeless(run) == timeless(ppo)
    assert (run / "samples.md").read_text() == (ppo / "samples.md").read_text()


def test_best_of_one_is_the_policy_itself(rm):
    model, tokenizer = load_pretrained(rm / "rl-init" / "final")
    reward_model, _ = load_reward_model(rm / "final")
    one = instruct.measure(model, tokenizer, 12, seed=3, reward_model=reward_model, reference=model)
    best = instruct.measure_best_of(model, tokenizer, 12, 1, seed=3, reward_model=reward_model)
    assert best.completions == one.completions and best.kl == 0.0 and one.kl == pytest.approx(0.0, abs=1e-5)
    several = instruct.measure_best_of(model, tokenizer, 12, 8, seed=3, reward_model=reward_model)
    assert sum(several.scores) > sum(one.scores)


def test_a_file_of_rankings_is_split_by_prompt(rm, tmp_path, capsys):
    """Every tenth prompt is held out, with all of its lines: a prompt on both sides would flatter the reward model."""
    file = tmp_path / "data.jsonl"
    lines = [{"prompt": f"sort {i % 20}:", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["rm", "--run-dir", str(tmp_path / "rm"), "--init", str(rm / "rl-init" / "final"), "--rankings", str(file), *SMALL]) == 0
    assert "36 rankings, 36 comparisons; of 4 held-out comparisons" in capsys.readouterr().out
    assert not (tmp_path / "rm" / "sft").exists()


def test_wrong_inputs_end_in_one_line(rm, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": "a", "rejected": "a"}\n')
    for argv, said in ((["rm", "--rankings", str(bad)], "bad.jsonl, line 2: two equal completions"), (["dpo", "--rankings", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
                       (["ppo", "--reward-model", str(rm / "rl-init" / "final")], "holds no reward model"), (["ppo", "--init", str(rm / "final")], "holds a reward model"),
                       (["sample", "--init", str(rm / "final")], "holds a reward model"), (["ppo", "--ema-decay", "1"], "ema_decay is 1"),
                       (["ppo", "--best-of", "0"], "best_of is 0"), (["sft", "--data", str(bad)], "bad.jsonl, line 1: 'completion' is missing")):
        assert main([*argv, *(["--run-dir", str(tmp_path / "never")] if argv[0] != "sample" else [])]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "never").exists()


def test_sample_and_eval_know_the_task_of_the_run(rm, ppo, capsys):
    assert main(["eval", "--init", str(ppo / "final"), "--problems", "4", "--samples", "2", "--k", "1", "--max-new-tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("instructions\n") and "true_reward, mean" in out
    assert main(["sample", "--init", str(rm / "rl-init" / "final"), "-n", "1", "--max-new-tokens", "8"]) == 0


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
