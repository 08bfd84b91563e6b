"""minirl/app/stages.py: whole runs, killed and resumed, and the runner itself."""

import json
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirl.app.cli import main
from minirl.app.commands import config_json, work
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.stages import Look, Stages
from minirl.app.sums import BaseConfig, GRPOSettings, SumsSettings
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.digests import read as read_sums
from minirl.lm.digests import seal
from minirl.lm.progress import Progress
from minirl.train.grpo import GRPOConfig
from minirl.train.metrics import NonFiniteError
from minirl.train.sft import SFTConfig, train_sft
from minirl.train.state_files import Start


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
    averages = load_file(finished / "checkpoint-4" / "optimizer.safetensors")
    assert averages["state/0/exp_avg"].any() and averages["state/0/step"] == 4


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

    def dying_save(self, state, tokenizer, seconds, **options):
        if state.step == saved_at and moment == "within the checkpoint":
            partial = run / f"checkpoint-{saved_at}.partial"
            partial.mkdir()
            (partial / "model.safetensors").write_bytes(b"half")
            raise Killed
        save(self, state, tokenizer, seconds, **options)
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
    "a bit in the training state": lambda folder: flip(folder / "training_state.json"),
    "a bit in the optimizer": lambda folder: flip(folder / "optimizer.safetensors"),
    "a bit in the weights": lambda folder: flip(folder / "model.safetensors"),
    "no training state": lambda folder: (folder / "training_state.json").unlink(),
    "no optimizer": lambda folder: (folder / "optimizer.safetensors").unlink(),
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


def newest(run, base):
    """Return the step of the checkpoint from which a run goes on."""
    start = Start(load_pretrained(base)[0])
    return run.load_checkpoint(device=torch.device("cpu"), start=start)[2]["step"]


def test_of_a_checkpoint_that_is_put_aside_nothing_stays_in_metrics_and_samples(
        base, finished, tmp_path):
    run = RunDir.resume(cut(finished, tmp_path / "run"))
    flip(run.path / "checkpoint-4" / "training_state.json")
    assert newest(run, base) == 2
    assert [m["step"] for m in run.metrics()] == [1, 2]
    assert (run.path / "samples.md").read_text().count("## step") == 2       # before, and halfway


def rewrite(folder, change, name="training_state.json"):
    """Other numbers or tensors under a SHA256SUMS that knows them, as by hand."""
    file = folder / name
    content = json.loads(file.read_text()) if file.suffix == ".json" else load_file(file)
    change(content)
    if file.suffix == ".json":
        file.write_text(json.dumps(content))
    else:
        file.unlink()
        save_file(content, file)
    seal(folder, name)


CHANGES = {"step 10**9": lambda state: state.update(step=10 ** 9),
           "step NaN": lambda state: state.update(step=float("nan")),
           "no optimizer": lambda state: state["parts"].pop("optimizer"),
           "no parts": lambda state: state.pop("parts"),
           "parts that are none": lambda state: state.update(parts=[3]),
           "a part that is elsewhere": lambda state: state["parts"].update(
               {"../checkpoint-2/optimizer": state["parts"]["optimizer"]}),
           "no seconds": lambda state: state.pop("seconds"),
           "no numbers": lambda state: state.update(numbers=None)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_training_state_of_something_else_is_put_aside(change, base, finished, tmp_path, capsys):
    """A step of 10**9 or NaN ended the run as if it were complete, a missing key in a traceback."""
    run = RunDir.resume(cut(finished, tmp_path / "run"))
    rewrite(run.path / "checkpoint-4", change)
    assert newest(run, base) == 2
    assert "no training state of step 4" in capsys.readouterr().err


def test_a_training_state_of_another_model_is_one_line(base, finished, tmp_path, capsys):
    run = cut(finished, tmp_path / "run")
    other = {"state/0/exp_avg": torch.zeros(3, 3)}
    rewrite(run / "checkpoint-4", lambda tensors: tensors.update(other), "optimizer.safetensors")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 2
    assert "it is of another model" in (said := capsys.readouterr().err) and "Traceback" not in said


@pytest.mark.parametrize("damage", [name for name in DAMAGES if "state" not in name
                                    and "optimizer" not in name])
def test_a_final_that_is_not_whole_is_made_again(damage, base, finished, tmp_path, capsys):
    """Without its weights final/ still counted: "this run is complete", exit code 0."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    DAMAGES[damage](run / "final")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)
    assert "final is damaged" in capsys.readouterr().err and RunDir(run).finished


def test_a_checkpoint_holds_each_weight_once(base, finished, tmp_path):
    """Weights stood in it twice, and the reference, which does not change, in each: 5 times their
    size. Now it is 3 times, 2 of them Adam's averages. The reference is the base model."""
    files = {file.name: file for file in (finished / "checkpoint-4").iterdir()}
    assert files.keys() == {"SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json",
                            "tokenizer_config.json", "training_state.json", "optimizer.safetensors"}
    assert set(read_sums(finished / "checkpoint-4")) == files.keys() - {"SHA256SUMS"}
    weights = sum(x.nbytes for x in load_file(files["model.safetensors"]).values())
    averages = sum(x.nbytes for x in load_file(files["optimizer.safetensors"]).values() if x.dim())
    assert averages == 2 * weights
    state = json.loads(files["training_state.json"].read_text())
    assert state["step"] == 4 and state["parts"]["reference"]["in"] == "start"
    assert state["machine"] == {"threads": torch.get_num_threads(), "processes": 1,
                                "torch": torch.__version__, "device": "cpu"}
    # each folder is enough by itself
    run = cut(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-2")
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)


def test_a_reference_that_changes_is_stored_as_it_is(base, tiny_grpo, tmp_path):
    """It is the base model until step 3 replaces it by the policy, which then goes on learning."""
    run, flags = tmp_path / "run", ["--ref-sync-steps", "3", "--steps", "5", "--checkpoint-every",
                                    "1", "--keep-checkpoints", "4"]
    assert main(start(base, run, [*tiny_grpo, *flags])) == 0
    assert RunDir(run).checkpoints() == [2, 3, 4, 5]
    folders = {step: run / f"checkpoint-{step}" for step in (2, 3, 4, 5)}
    places = {step: json.loads((folder / "training_state.json").read_text())["parts"]["reference"]
              for step, folder in folders.items()}
    assert [place["in"] for place in places.values()] == ["start", "model", "file", "file"]
    file, again = (folders[step] / "reference.safetensors" for step in (4, 5))
    reference, model = load_file(file), load_file(folders[3] / "model.safetensors")
    assert {f"model.{name}": x.tolist() for name, x in reference.items() if name[0] != "l"}.items(
        ) <= {name: x.tolist() for name, x in model.items()}.items()
    assert again.samefile(file) and file.stat().st_nlink == 2
    for step in (4, 3, 2):
        resumed = cut(run, tmp_path / f"resumed-{step}")
        for later in range(step + 1, 6):
            shutil.rmtree(resumed / f"checkpoint-{later}")
        assert main(["grpo", "--resume", "--run-dir", str(resumed)]) == 0 and same(resumed, run)


def test_where_the_base_model_has_changed_a_run_does_not_go_on(base, finished, tmp_path, capsys):
    """The checkpoint is whole: it is neither put aside, nor taken with another reference."""
    run, other = cut(finished, tmp_path / "run"), shutil.copytree(base, tmp_path / "other")
    config = json.loads((run / "config.json").read_text())
    config["settings"]["init"] = str(other)
    (run / "config.json").write_text(json.dumps(config))
    rewrite(other, lambda tensors: tensors["model.norm.weight"].add_(1e-3), "model.safetensors")
    capsys.readouterr()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 2
    assert (f"checkpoint-4: the reference is the model that the run started from, and that has "
            f"changed since: restore it, or start a new run from this checkpoint with --init {run}"
            ) in capsys.readouterr().err
    shutil.rmtree(other)
    shutil.copytree(base, other)
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)


@pytest.mark.parametrize("threads", [1, 3])
def test_another_number_of_threads_is_said(threads, base, finished, tmp_path, capsys):
    """Sums are split among the threads, and a split changes their last bits."""
    run, now = cut(finished, tmp_path / "run"), torch.get_num_threads()
    rewrite(run / "checkpoint-4", lambda state: state["machine"].update(threads=now + threads))
    capsys.readouterr()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0 and same(run, finished)
    said = [line for line in capsys.readouterr().err.splitlines() if "bits" in line]
    assert said == [f"minirl: {run}/checkpoint-4 goes on with threads {now} instead of "
                    f"{now + threads}: the bits may differ from those of a run that was not "
                    "stopped"]


def test_another_number_of_threads_is_said_before_there_is_a_checkpoint(finished, tmp_path, capsys):
    run, now = cut(finished, tmp_path / "run"), torch.get_num_threads()
    for step in (2, 4):
        shutil.rmtree(run / f"checkpoint-{step}")
    config = json.loads((run / "config.json").read_text()) | {"threads": now + 1}
    (run / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "bits" in line]
    assert len(said) == 1
    assert f"{run} was started with {now + 1} threads, and goes on with {now}: the bits" in said[0]


class Bomb:
    """Unpickling runs code: this one writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_of_an_earlier_version_is_refused_and_not_unpickled(
        finished, tmp_path, capsys):
    """Its training state may hold code, which loading would run."""
    run = cut(finished, tmp_path / "run")
    (run / "checkpoint-4" / "training_state.json").unlink()
    (run / "checkpoint-4" / "training_state.pt").write_bytes(
        pickle.dumps(Bomb(tmp_path / "executed")))
    capsys.readouterr()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 2
    said = capsys.readouterr().err
    assert "checkpoint-4 was written by an earlier version" in said and said.count("\n") == 1
    assert f"--init {run}/checkpoint-4" in said and not (tmp_path / "executed").exists()
    assert (run / "checkpoint-4").is_dir()


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


def test_the_state_that_a_stage_went_on_from_is_let_go(stages):
    """Two copies of the weights stayed in memory, on a GPU in its own, as long as the run took."""
    stages, model = stages
    with pytest.raises(Killed):
        stages("cut", QUICK, model, learn(stages, stop=5))
    came = []

    def page(model, *, resume, **hooks):
        came.extend([resume["step"], resume])
        return learn(stages)(model, resume=resume, **hooks)

    stages("cut", QUICK, model, page)
    assert came == [5, {}]


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
