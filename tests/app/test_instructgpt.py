"""minirl/app/instructgpt.py: InstructGPT in miniature, smaller still; killed and resumed."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minirl.app import instructgpt, looks
from minirl.app.cli import main
from minirl.app.instructgpt import (
    InstructSettings,
    given_rankings,
    tokens_of_rankings,
)
from minirl.app.plots import plot_runs
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.runs import newest_checkpoint
from minirl.inference.evaluate import evaluate
from minirl.lm.checkpoint import load_pretrained, load_reward_model, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tokenizer import build_tokenizer
from minirl.tasks import instructions
from minirl.tasks.instructions import KINDS, Instructions
from minirl.tasks.preferences import load_rankings, pairs
from minirl.tasks.problem import split_of
from minirl.train import instructgpt as pipeline
from minirl.train.sft import SFTConfig

SMALL = ["--eval-problems", "16", "--device", "cpu", "--checkpoint-every", "1"]
LABELLED = ["--demonstrations", "96", "--ranked-prompts", "80"]      # makes its own rankings
BEST_OF = ["--best-of", "4"]                                         # compares policies
PPO = ["--steps", "4", "--episodes", "8", "--minibatch-size", "4", "--ptx-coef", "0.1",
       "--ptx-batch-size", "4"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer examples, fewer epochs: enough that answers end. Curves, which take half a second a
    stage, are drawn where they are looked for."""
    epochs = SFTConfig(epochs=3, lr=1e-3, warmup_steps=0, dropout=0.2, min_lr_ratio=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minirl.app.stages.plot_runs", lambda runs, out: out.touch())
        patch.setattr(instructgpt, "READ", {"n_answers": 2200, "n_texts": 220})
        patch.setattr(instructgpt, "HELD_OUT", 8)
        patch.setattr(pipeline, "DEMONSTRATIONS_SFT", epochs)
        yield


@pytest.fixture(scope="module")
def rm(tmp_path_factory):
    """A finished `minirl rm`."""
    folder = tmp_path_factory.mktemp("rm") / "runs" / "rm"
    assert main(["rm", "--run-dir", str(folder), *SMALL, *LABELLED]) == 0
    return folder


def from_rm(rm, *more):
    return ["--init", str(rm / "rl-init" / "final"), "--reward-model", str(rm / "final"),
            "--rankings", str(rm / "rankings.jsonl"), *SMALL, *more]


@pytest.fixture(scope="module")
def ppo(rm, tmp_path_factory):
    """A finished `minirl ppo` on what that left."""
    folder = tmp_path_factory.mktemp("ppo") / "runs" / "ppo"
    assert main(["ppo", "--run-dir", str(folder), *from_rm(rm, *BEST_OF, *PPO)]) == 0
    return folder


def final_weights(run):
    final = load_file(run / "final" / "model.safetensors")
    return {name: x.numpy().tobytes() for name, x in final.items()}


def timeless(run):
    return [{k: v for k, v in metrics.items() if k != "step_time"}
            for metrics in RunDir(run).metrics()]


def test_rm_leaves_its_files(rm):
    names = {p.name for p in rm.iterdir()}
    assert {"base", "sft", "rl-init", "rankings.jsonl", "held-out.jsonl", "final", "summary.json",
            "calibration.png", "sft-epochs.png", "sft-epochs.json", "curves.png"} <= names
    epochs = [f"epoch-0{n}" for n in (1, 2, 3)]
    assert sorted(p.name for p in (rm / "sft").glob("epoch-*")) == epochs
    assert (rm / "final" / "score.safetensors").is_file()
    summary = json.loads((rm / "summary.json").read_text())
    held_out = load_rankings(rm / "held-out.jsonl")
    assert summary["held_out_comparisons"] == len(pairs(held_out)) > 0
    assert 0.0 <= summary["pair_accuracy"] <= 1.0
    epochs = json.loads((rm / "sft-epochs.json").read_text())["epochs"]
    assert [e["epoch"] for e in epochs] == [1, 2, 3]
    assert [e["chosen"] for e in epochs].count(True) == 1
    chosen = next(e for e in epochs if e["chosen"])
    assert chosen["score"] == max(e["score"] for e in epochs)


def test_the_seconds_are_those_of_all_stages(rm):
    summary = json.loads((rm / "summary.json").read_text())
    stages = [json.loads((rm / name / "summary.json").read_text())["seconds"]
              for name in ("base", "sft", "rl-init")]
    assert summary["seconds"] >= sum(stages) > 0


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
        assert rankings
        assert all(split_of(r.prompt) == split and 4 <= len(r.completions) <= 9 for r in rankings)


def test_ppo_leaves_its_files_and_one_table_of_all_four(rm, tmp_path, capsys):
    folder = tmp_path / "ppo"
    assert main(["ppo", "--run-dir", str(folder), *from_rm(rm, *BEST_OF, *PPO)]) == 0
    out = capsys.readouterr().out
    for name in ("SFT", "best of 4", "DPO", "PPO"):
        assert re.search(rf"^{name} +-?[\d.]+ \+- ", out, re.MULTILINE), name
    summary = json.loads((folder / "summary.json").read_text())
    assert {"accuracy_before", "accuracy_after", "mean_length_before", "mean_length_after",
            "true_reward_before", "true_reward_after", "kl_after", "seconds"} <= set(summary)
    assert (folder / "samples.md").read_text().count("## step") == 3
    assert (folder / "dpo" / "final" / "config.json").is_file()
    assert [m["step"] for m in RunDir(folder).metrics()] == [1, 2, 3, 4]
    assert main(["ppo", "--resume", "--run-dir", str(folder)]) == 0
    assert "complete" in capsys.readouterr().out


def test_no_policy_is_measured_twice(rm, tmp_path, monkeypatch):
    """DPO and PPO start from one policy, and DPO's own stage measures what the table shows."""
    titles, watched = [], looks.watched
    monkeypatch.setattr(looks, "watched", lambda title, *args, **options: (
        titles.append(title), watched(title, *args, **options))[1])
    assert main(["ppo", "--run-dir", str(tmp_path / "ppo"), *from_rm(rm, *BEST_OF, *PPO)]) == 0
    assert titles == ["measuring before", "measuring after", "measuring after",
                      "measuring best of 4"]


def test_dpo_alone(rm, tmp_path, capsys):
    assert main(["dpo", "--run-dir", str(tmp_path / "dpo"), *from_rm(rm)]) == 0
    assert "DPO" in capsys.readouterr().out
    first = RunDir(tmp_path / "dpo").metrics()[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_run_without_init_makes_what_it_needs(tmp_path):
    """And rl-init, not the many epochs of SFT, is where it starts."""
    run = tmp_path / "ppo"
    assert main(["ppo", "--run-dir", str(run), *SMALL, *LABELLED, *BEST_OF, *PPO]) == 0
    assert {"base", "sft", "rl-init", "rm", "dpo", "rankings.jsonl"} <= {
        p.name for p in run.iterdir()}
    assert not list((run / "sft").glob("epoch-*"))
    model, tokenizer = load_pretrained(run / "rl-init" / "final")
    reward_model, _ = load_reward_model(run / "rm" / "final")
    task = pipeline.scored_by(reward_model, tokenizer, Instructions())
    start = evaluate(model, tokenizer, task, n=16, max_new_tokens=16,
                     seed=derive_seed(0, "instruct", "evaluate"))
    before = json.loads((run / "summary.json").read_text())["score_before"]
    assert before == pytest.approx(start.mean("reward_model"), abs=1e-6)
    for stage in ("rm", "dpo", "sft"):
        config = json.loads((run / stage / "config.json").read_text())
        assert config["command"] == stage and config[stage]["lr"] > 0
        assert config["settings"]["demonstrations"] == 96, "what ran is written down"
        assert config["task"] == {"name": "instructions"}


def test_training_does_not_see_the_true_reward(rm, ppo, tmp_path, monkeypatch):
    """It is drawn beside the curves with weight 0: another true reward, the same policy."""
    monkeypatch.setattr(instructions, "true_reward",
                        lambda prompts, completions, **_: [-7.0] * len(completions))
    assert main(["ppo", "--run-dir", str(tmp_path / "ppo"), *from_rm(rm, *PPO)]) == 0
    assert final_weights(tmp_path / "ppo") == final_weights(ppo)
    summary = json.loads((tmp_path / "ppo" / "summary.json").read_text())
    assert summary["true_reward_after"] == -7.0


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


@pytest.mark.parametrize("title, step, saved", [
    ("base", 33, "base/checkpoint-30"), ("sft", 7, "sft/checkpoint-5"),
    ("rl-init", 7, "rl-init/checkpoint-5"), ("rm", 7, "checkpoint-5")])
def test_rm_killed_in_any_stage_resumes_bit_for_bit(title, step, saved, rm, tmp_path, monkeypatch):
    """Each behind a checkpoint of that stage: it goes on from there and does not begin again."""
    run = tmp_path / "rm"
    stages = ["base", "sft", "rl-init", "rm"]
    before = stages[:stages.index(title)]
    dying_at(monkeypatch, title, step)
    with pytest.raises(Killed):
        main(until(rm, run, *before) if before else
             ["rm", "--run-dir", str(run), *SMALL, *LABELLED])
    monkeypatch.undo()
    assert not (run / "final").exists() and (run / saved).is_dir()
    assert main(["rm", "--resume", "--run-dir", str(run)]) == 0
    same_run(run, rm)


def same_run(run, whole):
    assert final_weights(run) == final_weights(whole) and timeless(run) == timeless(whole)
    scores = [folder / "final" / "score.safetensors" for folder in (run, whole)]
    assert scores[0].read_bytes() == scores[1].read_bytes()
    for name in ("rankings.jsonl", "held-out.jsonl", "sft-epochs.json"):
        assert (run / name).read_text() == (whole / name).read_text(), name
    for epoch in (whole / "sft").glob("epoch-*"):
        kept = run / "sft" / epoch.name / "model.safetensors"
        assert kept.read_bytes() == (epoch / "model.safetensors").read_bytes()
    assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize("name, call", [("save_rankings", 1), ("save_rankings", 2),
                                        ("plot_calibration", 1), ("plot_epochs", 1)])
def test_a_kill_between_two_stages_loses_nothing(name, call, rm, tmp_path, monkeypatch):
    """After SFT, between the two files of rankings, after the reward model has been trained, and
    after the epochs of SFT have been compared."""
    module = instructgpt if name == "save_rankings" else looks
    calls, function = [], getattr(module, name)

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, dying)
    again = until(rm, tmp_path / "rm", "base", "sft", "rl-init")
    with pytest.raises(Killed):
        main(again)
    monkeypatch.setattr(module, name, function)
    assert main(again) == 0
    same_run(tmp_path / "rm", rm)


@pytest.mark.parametrize("title, step", [("dpo", 3), ("ppo", 1), ("ppo", 3), ("ppo", 4)])
def test_ppo_killed_at_any_step_resumes_bit_for_bit(title, step, rm, ppo, tmp_path, monkeypatch):
    run = tmp_path / "ppo"
    dying_at(monkeypatch, title, step)
    with pytest.raises(Killed):
        main(["ppo", "--run-dir", str(run), *from_rm(rm, *PPO)])
    monkeypatch.undo()
    assert main(["ppo", "--resume", "--run-dir", str(run)]) == 0
    assert final_weights(run) == final_weights(ppo) and timeless(run) == timeless(ppo)
    assert (run / "samples.md").read_text() == (ppo / "samples.md").read_text()


def test_a_file_of_rankings_is_split_by_prompt(rm, tmp_path, capsys):
    """Every tenth prompt is held out, with all of its lines: a prompt on both sides would flatter
    the reward model."""
    file = tmp_path / "data.jsonl"
    lines = [{"prompt": f"sort {i % 20}:", "chosen": f"a{i}", "rejected": f"b{i}"}
             for i in range(40)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--init", str(rm / "rl-init" / "final"), "--rankings", str(file)]
    assert main(["rm", "--run-dir", str(tmp_path / "rm"), *flags, *SMALL]) == 0
    said = capsys.readouterr().out
    assert "36 rankings, 36 comparisons; of 4 held-out comparisons" in said
    settings = InstructSettings(rankings=str(file), reward_model="there")
    assert len(given_rankings(settings)[0]) == 40, "nothing to hold out"
    assert not (tmp_path / "rm" / "sft").exists()


def test_the_tokens_of_rankings_are_counted_in_a_file_and_estimated_before_there_is_one(tmp_path):
    """They decide whether to compile: at most 9 completions of 16 tokens, prompts as long."""
    assert tokens_of_rankings(InstructSettings(ranked_prompts=10)) == 10 * 9 * (16 + 16)
    file = tmp_path / "rankings.jsonl"
    file.write_text(json.dumps({"prompt": "abcd", "chosen": "ef", "rejected": "g"}) + "\n")
    assert tokens_of_rankings(InstructSettings(rankings=str(file))) == 4 + 2 + 4 + 1


@pytest.fixture
def files(tmp_path):
    """Files of rankings of which each has a fault."""
    lines = {"bad": '{"prompt": "q", "chosen": "a", "rejected": "b"}\n'
                    '{"prompt": "q", "chosen": "a", "rejected": "a"}\n',
             "single": '{"prompt": "q", "chosen": "a", "rejected": "b"}\n',
             "half": '{"prompt": "q", "chosen": "\\ud800", "rejected": "b"}\n'}
    for name, text in lines.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "q", "chosen": "\xe4", "rejected": "b"}\n')
    return tmp_path


@pytest.mark.parametrize("line, says", [
    ("rm --rankings {files}/bad.jsonl", "bad.jsonl, line 2: two equal completions"),
    ("dpo --rankings nowhere.jsonl", "there is no file nowhere.jsonl"),
    ("ppo --reward-model {rm}/rl-init/final", "holds no reward model"),
    ("ppo --init {rm}/final", "holds a reward model"),
    ("sample --init {rm}/final", "holds a reward model"),
    ("ppo --ema-decay 1", "ema_decay is 1"), ("ppo --best-of 0", "best_of is 0"),
    ("ppo --checkpoint-every 0", "checkpoint_every is 0"),
    ("ppo --labeller-noise 0", "labeller_noise is 0"),
    ("rm --reward-model {rm}/final", "minirl rm, which trains one"),
    ("rm --rankings {files}/single.jsonl", "rankings of 1 prompt"),
    ("dpo --rankings {files}/latin.jsonl", "latin.jsonl is not UTF-8"),
    ("dpo --rankings {files}/half.jsonl", "half of a surrogate pair"),
    ("sft --data {files}/bad.jsonl", "bad.jsonl, line 1: 'completion' is missing")])
def test_wrong_inputs_end_in_one_line(line, says, rm, files, tmp_path, capsys):
    command, *flags = line.format(rm=rm, files=files).split()
    where = [] if command == "sample" else ["--run-dir", str(tmp_path / "never")]
    assert main([command, *flags, *where]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "never").exists()


def test_sample_and_eval_know_the_task_of_the_run(rm, ppo, capsys):
    few = ["--problems", "4", "--samples", "2", "--k", "1", "--max-new-tokens", "8"]
    assert main(["eval", "--init", str(ppo / "final"), *few]) == 0
    out = capsys.readouterr().out
    assert out.startswith("instructions\n") and "true_reward, mean" in out
    for folder in (rm / "rl-init" / "final", rm / "sft" / "epoch-01", rm / "base" / "final"):
        assert main(["sample", "--init", str(folder), "-n", "1", "--max-new-tokens", "8"]) == 0
        first = capsys.readouterr().out.split()[0]
        assert first in KINDS, "the prompts are instructions, and no sums"


def test_a_reward_model_is_not_the_newest_policy(rm, ppo, tmp_path):
    for name, source in (("ppo", ppo), ("rm", rm)):
        shutil.copytree(source / "final", tmp_path / "runs" / name / "final")
    assert newest_checkpoint(tmp_path / "runs") == tmp_path / "runs" / "ppo" / "final"


def test_sft_on_a_file_of_demonstrations(rm, tmp_path, capsys):
    file = tmp_path / "demos.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"copy {x}:", "completion": x}) + "\n"
                            for x in ("abc", "bca", "cab", "aab")))
    flags = ["--init", str(rm / "rl-init" / "final"), "--data", str(file), "--device", "cpu"]
    quick = ["--epochs", "2", "--batch-size", "2", "--lr", "1e-3"]
    assert main(["sft", "--run-dir", str(tmp_path / "sft"), *flags, *quick]) == 0
    assert "nats per token" in capsys.readouterr().out
    assert len(RunDir(tmp_path / "sft").metrics()) == 4
    with open(file, "a") as f:
        f.write(json.dumps({"prompt": "copy", "completion": "x" * 300}) + "\n")
    assert main(["sft", "--run-dir", str(tmp_path / "long"), *flags]) == 2
    assert "demos.jsonl, line 5 has " in capsys.readouterr().err


def tiny_transformer(tokenizer):
    return Transformer(ModelConfig(tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2))


def test_a_reward_model_that_reads_other_words_is_refused(rm, tmp_path, capsys):
    """Ids of one vocabulary in a model of another: an index error at best, and a score of other
    words at worst."""
    tokenizer = build_tokenizer()
    stranger = tmp_path / "stranger"
    save_pretrained(ScalarModel(tiny_transformer(tokenizer)), tokenizer, stranger)
    flags = ["--run-dir", str(tmp_path / "never"), "--reward-model", str(stranger)]
    for init in ([], ["--init", str(rm / "rl-init" / "final")]):
        assert main(["ppo", *flags, *init]) == 2
        assert "have different tokenizers" in capsys.readouterr().err
        assert not (tmp_path / "never").exists()


def test_a_policy_that_does_not_answer_is_named_before_anything_is_written(rm, tmp_path, capsys):
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    save_pretrained(tiny_transformer(tokenizer), tokenizer, tmp_path / "dumb")
    flags = ["--run-dir", str(tmp_path / "rm"), "--init", str(tmp_path / "dumb")]
    assert main(["rm", *flags, *SMALL, *LABELLED]) == 2
    assert "there is nothing to rank" in capsys.readouterr().err
    assert not (tmp_path / "rm" / "rankings.jsonl").exists()


def test_a_policy_without_a_bos_and_in_bfloat16_is_trained(rm, tmp_path):
    """Qwen's checkpoints have no BOS, and most are in bfloat16: text begins with its own first
    token, and training is in float32."""
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
    again = from_rm(rm)
    again[again.index("--init") + 1] = str(start)
    assert main(["ppo", "--run-dir", str(tmp_path / "ppo"), *again, *PPO]) == 0
    assert load_pretrained(tmp_path / "ppo" / "final")[0].dtype == torch.float32
