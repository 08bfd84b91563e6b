"""minirl/app/stages.py: whole runs, killed and resumed, and the runner itself."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from minirl.app.cli import main
from minirl.app.commands import config_json, work
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.stages import Look, Stages
from minirl.app.sums import BaseConfig, GRPOSettings, SumsSettings
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.digests import seal
from minirl.lm.progress import Progress
from minirl.train.grpo import GRPOConfig
from minirl.train.metrics import NonFiniteError
from minirl.train.sft import SFTConfig, train_sft


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is cleaned up."""


def final_weights(run):
    final = load_file(run / "final" / "model.safetensors")
    return {name: x.numpy().tobytes() for name, x in final.items()}


def timeless(run):
    return [{k: v for k, v in metrics.items() if k != "step_time"}
            for metrics in RunDir(run).metrics()]


def test_the_run_that_others_are_compared_with_learns_something(base, finished):
    """It did not: every reward was 0, and final/ was the base model to the bit. A resume that lost
    the optimizer, the reference or the checkpoint would have ended with the same weights."""
    assert final_weights(finished) != final_weights(base.parent)
    state = torch.load(finished / "checkpoint-4" / "training_state.pt", weights_only=True)
    averages = state["optimizer"]["state"][0]
    assert averages["exp_avg"].any() and averages["step"] == 4


def test_a_run_leaves_its_files(finished):
    assert {p.name for p in finished.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "curves.png", "samples.md", "checkpoint-2",
        "checkpoint-4", "final", ".lock"}
    summary = json.loads((finished / "summary.json").read_text())
    assert {"accuracy_before", "accuracy_after", "mean_length_before", "mean_length_after",
            "seconds"} <= set(summary)
    assert [m["step"] for m in RunDir(finished).metrics()] == [1, 2, 3, 4]
    samples = (finished / "samples.md").read_text()
    for n, when in ((0, "before"), (2, "halfway"), (4, "after")):
        assert samples.count(f"## step {n}: {when}") == 1


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("moment", ["after the metrics line", "within the metrics line",
                                    "within the checkpoint", "after the checkpoint"])
def test_killed_at_any_step_it_resumes_bit_for_bit(
        moment, step, base, finished, tiny_grpo, tmp_path, monkeypatch):
    run, log, save = tmp_path / "run", RunLog.log, RunDir.save_checkpoint
    saved_at = 2 if step < 3 else 4

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if n == step and moment == "after the metrics line":
            raise Killed
        if n == step and moment == "within the metrics line":
            with open(run / "metrics.jsonl", "a") as f:
                f.write('{"step": 9, "rew')
            raise Killed

    def dying_save(self, state, tokenizer, seconds):
        if state.step == saved_at and moment == "within the checkpoint":
            partial = run / f"checkpoint-{saved_at}.partial"
            partial.mkdir()
            (partial / "model.safetensors").write_bytes(b"half")
            raise Killed
        save(self, state, tokenizer, seconds)
        if state.step == saved_at and moment == "after the checkpoint":
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)
    monkeypatch.setattr(RunDir, "save_checkpoint", dying_save)
    with pytest.raises(Killed):
        main(["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(run), *tiny_grpo])
    monkeypatch.undo()
    assert not (run / "final").exists()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0
    assert final_weights(run) == final_weights(finished) and timeless(run) == timeless(finished)
    assert (run / "samples.md").read_text() == (finished / "samples.md").read_text()
    assert not list(run.glob("*.partial"))


def test_a_kill_while_the_base_model_is_made(tmp_path, monkeypatch):
    """The base model is a stage, in base/: it goes on too, and is not made twice."""
    settings = GRPOSettings(digits=1, eval_problems=4, checkpoint_every=1, device="cpu")
    base = BaseConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, examples=128)
    grpo = GRPOConfig(steps=2, prompts_per_step=2, group_size=2, max_new_tokens=4)
    configs = {"settings": settings, "base": base, "sft": SFTConfig(batch_size=16), "grpo": grpo}

    def begin(folder):
        run = RunDir.create(folder, config_json("grpo", configs, "grpo"))
        work(run, configs, torch.device("cpu"))

    begin(tmp_path / "whole")
    log = RunLog.log

    def dying_log(self, n, metrics):
        log(self, n, metrics)
        if n == 7:                           # the base model's checkpoints are at 5 and 8
            raise Killed

    monkeypatch.setattr(RunLog, "log", dying_log)
    with pytest.raises(Killed):
        begin(tmp_path / "cut")
    monkeypatch.undo()
    assert RunDir(tmp_path / "cut" / "base").checkpoints() == [5]
    work(RunDir.resume(tmp_path / "cut"), configs, torch.device("cpu"))
    assert final_weights(tmp_path / "cut") == final_weights(tmp_path / "whole")
    assert timeless(tmp_path / "cut" / "base") == timeless(tmp_path / "whole" / "base")


def start(base, run, flags):
    return ["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(run), *flags]


def cut(finished, run):
    """The finished run as it was before its last evaluation."""
    shutil.copytree(finished, run)
    shutil.rmtree(run / "final")
    return run


def flip(file, at=0.5):
    """One bit, as a disk loses it."""
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)


def same(run, finished):
    return (final_weights(run) == final_weights(finished) and timeless(run) == timeless(finished)
            and (run / "samples.md").read_text() == (finished / "samples.md").read_text())


DAMAGES = {
    "a bit in the training state": lambda folder: flip(folder / "training_state.pt"),
    "a bit in the reference": lambda folder: flip(folder / "training_state-reference.pt"),
    "a bit in the weights": lambda folder: flip(folder / "model.safetensors"),
    "no state": lambda folder: (folder / "training_state.pt").write_bytes(b"not a state"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "nothing": lambda folder: [file.unlink() for file in folder.iterdir()]}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(
        damage, base, finished, tmp_path, capsys):
    """Of 20 flipped bits in weights and 16 in training states 30 were taken as they were, and some
    changed the result. Others ended the run, though a good checkpoint stood beside the bad one."""
    run = cut(finished, tmp_path / "run")
    copied = {file.name: file.read_bytes() for file in (run / "checkpoint-2").iterdir()}
    DAMAGES[damage](run / "checkpoint-4")
    assert {file.name: file.read_bytes() for file in (run / "checkpoint-2").iterdir()} == copied
    capsys.readouterr()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1
    assert "checkpoint-4 is damaged" in lines[0] and "goes on from checkpoint-2" in lines[0]
    assert (run / "checkpoint-4").is_dir() and (run / "checkpoint-4.broken").is_dir()


def test_where_no_checkpoint_is_whole_the_run_begins_again(base, finished, tmp_path, capsys):
    run = cut(finished, tmp_path / "run")
    for step in (2, 4):
        flip(run / f"checkpoint-{step}" / "model.safetensors")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)
    assert "checkpoint-2 is damaged" in (said := capsys.readouterr().err) and "begins again" in said


def test_of_a_checkpoint_that_is_put_aside_nothing_stays_in_metrics_and_samples(finished, tmp_path):
    run = RunDir.resume(cut(finished, tmp_path / "run"))
    flip(run.path / "checkpoint-4" / "training_state.pt")
    assert run.load_checkpoint(device="cpu")[2]["step"] == 2
    assert [m["step"] for m in run.metrics()] == [1, 2]
    assert (run.path / "samples.md").read_text().count("## step") == 2       # before, and halfway


def rewrite(folder, change):
    """Another training state under a SHA256SUMS that knows it, as by hand."""
    state = torch.load(folder / "training_state.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "training_state.pt")
    seal(folder, "training_state.pt")


CHANGES = {"step 10**9": lambda state: state.update(step=10 ** 9),
           "step NaN": lambda state: state.update(step=float("nan")),
           "no optimizer": lambda state: state.pop("optimizer"),
           "no seconds": lambda state: state.pop("seconds"),
           "no numbers": lambda state: state.update(numbers=None)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_training_state_of_something_else_is_put_aside(change, finished, tmp_path, capsys):
    """A step of 10**9 or NaN ended the run as if it were complete, a missing key in a traceback."""
    run = RunDir.resume(cut(finished, tmp_path / "run"))
    rewrite(run.path / "checkpoint-4", change)
    assert run.load_checkpoint(device="cpu")[2]["step"] == 2
    assert "no training state of step 4" in capsys.readouterr().err


def test_a_training_state_of_another_model_is_one_line(base, finished, tmp_path, capsys):
    run = cut(finished, tmp_path / "run")
    other = {"exp_avg": torch.zeros(3, 3)}
    rewrite(run / "checkpoint-4", lambda state: state["optimizer"]["state"][0].update(other))
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 2
    assert "it is of another model" in (said := capsys.readouterr().err) and "Traceback" not in said


@pytest.mark.parametrize("damage", [name for name in DAMAGES if "state" not in name
                                    and "reference" not in name])
def test_a_final_that_is_not_whole_is_made_again(damage, base, finished, tmp_path, capsys):
    """Without its weights final/ still counted: "this run is complete", exit code 0."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    DAMAGES[damage](run / "final")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)
    assert "final is damaged" in capsys.readouterr().err and RunDir(run).finished


def test_a_checkpoint_holds_everything_once(base, finished, tmp_path):
    """Weights stood in it twice, and the reference, which does not change, in each: 5 times their
    size. Now it is 3 times, 2 of them Adam's averages, and the reference once for all of them."""
    first, second = finished / "checkpoint-2", finished / "checkpoint-4"
    weights = (first / "model.safetensors").stat().st_size
    reference, again = (folder / "training_state-reference.pt" for folder in (first, second))
    assert reference.samefile(again) and reference.stat().st_nlink == 2
    own = (second / "training_state.pt").stat().st_size
    assert 1.8 * weights < own < 2.2 * weights + 20_000    # names and shapes take a little
    # each folder is enough by itself
    run = cut(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-2")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)


def test_a_reference_that_changes_is_stored_as_it_is(base, tiny_grpo, tmp_path):
    run = tmp_path / "run"
    assert main(start(base, run, [*tiny_grpo, "--ref-sync-steps", "3"])) == 0
    files = [run / f"checkpoint-{n}" / "training_state-reference.pt" for n in (2, 4)]
    first, second = (torch.load(file, weights_only=True) for file in files)
    assert not files[0].samefile(files[1])
    assert torch.equal(first["lm_head.weight"], load_pretrained(base)[0].lm_head.weight)
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])


def test_a_checkpoint_of_an_earlier_version_goes_on(base, finished, tmp_path, capsys):
    """It has the weights and the parts in training_state.pt, and no SHA256SUMS."""
    run = cut(finished, tmp_path / "run")
    for step in (2, 4):
        folder = run / f"checkpoint-{step}"
        copy = RunDir(cut(finished, tmp_path / f"copy-{step}"))
        _, _, state = copy.load_checkpoint(device="cpu")
        if step == 4:
            torch.save(state, folder / "training_state.pt")
        for name in ("SHA256SUMS", "training_state-reference.pt"):
            (folder / name).unlink()
    capsys.readouterr()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--lr", "1e39"], ["--lr", "1e-3", "--weight-decay", "1e30"]])
def test_absurd_numbers_end_in_one_line_and_save_nothing(flags, base, tiny_grpo, tmp_path, capsys):
    """They ended in final/ with nothing but NaN in it, and exit code 0; or in NaN checkpoints,
    after which --resume failed for good."""
    run, each = tmp_path / "run", ["--checkpoint-every", "1", "--warmup-steps", "0"]
    assert main(start(base, run, [*tiny_grpo, *each, *flags])) == 2
    said = capsys.readouterr().err
    assert re.search(r"step 1: the update made \S+ as large as", said) and "Traceback" not in said
    assert not list(run.glob("checkpoint-*")) and not (run / "final").exists()


def test_weights_that_break_later_leave_the_last_good_checkpoint(
        base, finished, tiny_grpo, tmp_path, monkeypatch, capsys):
    """Whoever breaks them: what is not finite is not saved, and --resume goes on from what is."""
    run, log = tmp_path / "run", RunLog.log

    def breaking_log(self, step, metrics):
        log(self, step, metrics)
        if step == 4:
            monkeypatch.setattr(RunLog, "save", breaking_save)

    def breaking_save(self, state):
        with torch.no_grad():
            next(state.model.parameters())[0, 0] = float("nan")
        save(self, state)

    save = RunLog.save
    monkeypatch.setattr(RunLog, "log", breaking_log)
    assert main(start(base, run, tiny_grpo)) == 2
    assert "step 4" in capsys.readouterr().err and RunDir(run).checkpoints() == [2]
    monkeypatch.undo()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)


def test_a_final_model_that_is_not_finite_is_not_saved(base, tmp_path):
    model, tokenizer = load_pretrained(base)
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("inf")
    run = RunDir.create(tmp_path / "run", {})
    with pytest.raises(NonFiniteError):
        run.save_final(model, tokenizer)
    assert {path.name for path in run.path.iterdir()} == {".lock", "config.json"}


def test_a_training_state_that_would_run_code_is_refused(finished, tmp_path, capsys):
    """Pickles run code when they are read. A checkpoint from elsewhere may not."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "final")
    (run / "checkpoint-4" / "training_state.pt").write_bytes(pickle.dumps(Bomb()))
    (run / "checkpoint-4" / "SHA256SUMS").unlink()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0
    assert not (tmp_path / "exploded").exists()
    assert "cannot be read as a training state" in capsys.readouterr().err


# the runner itself

PAIRS = [("1+1=", "2"), ("2+2=", "4"), ("3+3=", "6"), ("4+4=", "8"), ("5+5=", "10")]
QUICK = SFTConfig(epochs=2, batch_size=2, warmup_steps=0)              # 3 steps an epoch


@pytest.fixture
def stages(base, tmp_path, monkeypatch):
    """Stages of a run of minirl r1, whose curves are not drawn, and the model they start from."""
    monkeypatch.setattr("minirl.app.stages.plot_runs", lambda runs, out: out.touch())
    model, tokenizer = load_pretrained(base)
    config = {"command": "r1", "task": {"name": "bilingual"}, "settings": {"seed": 3}}
    run = RunDir.create(tmp_path / "r1", config)
    settings = SumsSettings(checkpoint_every=1)
    return Stages(run, tokenizer, settings, device=torch.device("cpu")), model


def learn(stages, seed=0, stop=None):
    def page(model, *, log, save, resume):
        def stopping_save(state):
            save(state)
            if state.step == stop:
                raise Killed
        return train_sft(model, stages.tokenizer, PAIRS, QUICK, seed=seed, log=log,
                         save=stopping_save, resume=resume)
    return page


def weights(model):
    return [p.detach().numpy().tobytes() for p in model.parameters()]


def test_a_stage_is_a_run_inside_the_run(stages):
    stages, model = stages
    before = weights(model)
    trained = stages("sft", QUICK, model, learn(stages))
    run = RunDir(stages.run.path / "sft")
    assert run.finished and weights(model) == before != weights(trained)
    config = run.config
    assert (config["command"], config["stage_of"], config["sft"]["epochs"]) == ("sft", "r1", 2)
    assert config["task"] == {"name": "bilingual"} and config["settings"] == {"seed": 3}
    assert {p.name for p in run.path.iterdir()} == {
        ".lock", "config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoint-5",
        "checkpoint-6", "final"}
    assert run.summary["steps"] == 6 and stages.seconds == run.summary["seconds"]


def test_a_finished_stage_is_loaded_and_not_made_again(stages):
    stages, model = stages
    model.compiled = True
    trained = stages("sft", QUICK, model, learn(stages))
    assert trained.compiled, "what comes next samples from it as it would in the next process"
    again = stages("sft", QUICK, model, lambda model, **hooks: pytest.fail("trained again"))
    assert weights(again) == weights(trained) and again.compiled
    assert next(again.parameters()).dtype == torch.float32


def test_a_stage_that_was_cut_short_goes_on(stages):
    stages, model = stages
    whole = stages("whole", QUICK, model, learn(stages))
    with pytest.raises(Killed):
        stages("cut", QUICK, model, learn(stages, stop=5))
    assert weights(stages("cut", QUICK, model, learn(stages))) == weights(whole)
    cut, run = (RunDir(stages.run.path / name) for name in ("cut", "whole"))
    assert timeless(cut.path) == timeless(run.path) and cut.summary["steps"] == 6


def test_the_stage_that_has_the_name_of_the_command_is_the_run(stages, base):
    stages, model = stages
    stages.run.write_json("config.json", {"command": "sft"})
    stages("first", QUICK, model, learn(stages))
    seconds = stages.seconds
    stages("sft", QUICK, model, learn(stages))
    assert stages.run.finished and not (stages.run.path / "sft").exists()
    assert stages.run.summary["seconds"] == stages.seconds >= seconds, "its clock goes on"


def test_a_look_sees_the_start_every_step_and_the_end(stages):
    stages, model = stages
    seen = []

    class Watch(Look):
        def before(self, run, start, *, resumed):
            seen.append(("before", start is model, resumed))

        def step(self, run, model, step, steps):
            seen.append((step, steps, len(run.metrics())))

        def after(self, run, model, steps):
            seen.append(("after", steps, (run.path / "final").exists()))
            return {"answer": 42}

    stages.looks["sft"] = Watch()
    with pytest.raises(Killed):
        stages("sft", QUICK, model, learn(stages, stop=5))
    assert seen == [("before", True, False), *[(n, 6, n) for n in (1, 2, 3, 4, 5)]]
    stages("sft", QUICK, model, learn(stages))
    assert seen[6:] == [("before", True, True), (6, 6, 6), ("after", 6, False)]
    summary = RunDir(stages.run.path / "sft").summary
    assert list(summary) == ["steps", "answer", "seconds"] and summary["answer"] == 42


def test_steps_that_only_the_data_tell_are_learnt_from_the_first_step(stages, monkeypatch):
    """The bar has a total, and the last step a checkpoint, without reading the data beforehand."""
    stages, model = stages
    totals, expect = [], Progress.expect
    monkeypatch.setattr(Progress, "expect", lambda self, n: totals.append(n) or expect(self, n))
    stages.settings = SumsSettings(checkpoint_every=1000)
    stages("sft", QUICK, model, learn(stages))
    assert totals == [6] and RunDir(stages.run.path / "sft").checkpoints() == [6]


def test_a_file_of_the_run_is_made_once(stages):
    stages, _ = stages
    calls = []

    def make():
        calls.append(1)
        return "content"

    for _ in range(2):
        content = stages.file("x.txt", make, lambda path: path.read_text(),
                              lambda text, path: path.write_text(text))
        assert content == "content"
    assert calls == [1] and [p.name for p in stages.run.path.glob("x*")] == ["x.txt"]


def test_stages_are_numbered_where_there_are_several(stages):
    stages, _ = stages
    assert stages.title("sft") == "sft"
    stages.names = ["base", "sft", "rl"]
    assert stages.title("sft") == "2/3 sft"


def test_only_the_run_itself_is_profiled(stages, capsys):
    stages, model = stages
    stages.profile = True
    stages.run.write_json("config.json", {"command": "sft"})
    stages("base", QUICK, model, learn(stages))
    assert "profile" not in capsys.readouterr().out
    stages("sft", QUICK, model, learn(stages))
    assert "under the profiler" in capsys.readouterr().out
    assert [p.parent.name for p in stages.run.path.rglob("profile.json.gz")] == ["r1"]
