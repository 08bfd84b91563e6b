"""minirl/app/survival.py: kills, power loss, full disks, second processes and signals."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minirl.app import looks
from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.runlog import RunLog
from minirl.app.survival import SIGNALS, catching_signals
from minirl.lm import files
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.files import Lock
from tests.app.states import send, state_at, step_of, tiny_model
from tests.lm.kills import moments, process_that_locks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model()[1]


def test_a_save_that_is_killed_at_any_call_leaves_whole_checkpoints(
        tokenizer, tmp_path, monkeypatch):
    """Pruning left a folder without its tokenizer under the name checkpoint-14. Whatever has the
    name of a checkpoint is whole, and the newest is that of this save or of the one before."""
    template = RunDir.create(tmp_path / "template", {})
    for step in (1, 2):
        template.append_metrics(step, {})
        template.save_checkpoint(state_at(step), tokenizer, 0.5)
    template.append_metrics(3, {})
    numbers, seen = itertools.count(), []

    def begin():
        copy = tmp_path / f"run-{next(numbers)}"
        return Path(shutil.copytree(template.path, copy, copy_function=os.link))

    def save(path):
        RunDir(path).save_checkpoint(state_at(3), tokenizer, 0.5)

    for path in moments(monkeypatch, begin, save):
        for step in RunDir(path).checkpoints():            # before anything is tidied
            model, _ = load_pretrained(path / f"checkpoint-{step}")
            assert step_of(model) == step
            assert (path / f"checkpoint-{step}" / "training_state.json").is_file()
        run = RunDir.resume(path)
        model, _, state = run.load_checkpoint(device="cpu")
        seen.append(state["step"])
        again = state_at(0)
        again.load_state_dict(state)
        assert step_of(again.model) == step_of(model) == state["step"]
        assert [m["step"] for m in run.metrics()] == list(range(1, state["step"] + 1))
        assert not {p.suffix for p in path.iterdir()} & {".partial", ".replaced", ".broken"}
    assert seen == sorted(seen) and set(seen) == {2, 3} and len(seen) > 30


def test_a_final_that_is_killed_at_any_call_is_the_old_or_the_new(tokenizer, tmp_path, monkeypatch):
    """The old one was deleted before the new one took the name, and --resume deleted that, too."""
    template = RunDir.create(tmp_path / "template", {})
    template.save_final(state_at(1).model, tokenizer)
    numbers, seen = itertools.count(), []

    def begin():
        return Path(shutil.copytree(template.path, tmp_path / f"run-{next(numbers)}"))

    def save(path):
        RunDir(path).save_final(state_at(2).model, tokenizer)

    for path in moments(monkeypatch, begin, save):
        assert RunDir.resume(path).finished
        seen.append(step_of(load_pretrained(path / "final")[0]))
        assert {p.name for p in path.iterdir()} == {"config.json", "final", ".lock"}
    assert seen == sorted(seen) and set(seen) == {1, 2}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_power_loss_finds_content_and_names_on_the_disk(tokenizer, tmp_path, monkeypatch):
    """Files were synced, folders and metrics.jsonl never: after power loss a renamed folder may be
    gone, or a checkpoint there whose metrics are not."""
    run, events = RunDir.create(tmp_path / "run", {}), []
    for step in (1, 2):
        run.append_metrics(step, {})
        run.save_checkpoint(state_at(step), tokenizer, 0.0)
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def noting_replace(source, target):
        events.append((Path(source).name, Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    run.append_metrics(3, {})
    run.save_checkpoint(state_at(3), tokenizer, 0.0)
    renamed = events.index(("checkpoint-3.partial", "checkpoint-3"))
    partial = f"{run.path}/checkpoint-3.partial"
    files = {f"{partial}/{file.name}" for file in (run.path / "checkpoint-3").iterdir()}
    assert len(files) > 5
    assert files | {partial, f"{run.path}/metrics.jsonl"} <= set(events[:renamed])
    pruned = events.index(("checkpoint-1", "checkpoint-1.partial"))
    assert str(run.path) in events[renamed:pruned]


def test_a_new_run_is_on_the_disk_with_all_folders_above_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    RunDir.create(tmp_path / "a" / "b" / "run", {})
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)


def test_links_at_the_names_of_leftovers_go_and_what_they_point_to_stays(tmp_path):
    """A link to a folder, named *.partial, stopped --resume: rmtree takes no links."""
    run, mine = RunDir.create(tmp_path / "run", {}), tmp_path / "mine"
    mine.mkdir()
    (mine / "x").write_text("precious")
    for name in ("final.partial", "checkpoint-4.partial", "checkpoint-2.replaced"):
        (run.path / name).symlink_to(mine)
    (run.path / "metrics.jsonl.partial").symlink_to(mine / "x")
    (run.path / "samples.md.partial").symlink_to("nowhere")
    (run.path / "checkpoint-2").mkdir()
    RunDir.resume(run.path).write_text("summary.json", "{}")
    left = {"config.json", ".lock", "checkpoint-2", "summary.json"}
    assert {p.name for p in run.path.iterdir()} == left
    assert (mine / "x").read_text() == "precious"


def test_a_final_that_only_lacks_its_name_gets_it(tokenizer, tmp_path):
    """Complete, and killed before the rename. It was deleted, though it may be the only copy."""
    run = RunDir.create(tmp_path / "run", {})
    run.save_final(state_at(1).model, tokenizer)
    (run.path / "final").rename(run.path / "final.partial")
    assert not RunDir(run.path).finished and RunDir.resume(run.path).finished
    (run.path / "final").rename(run.path / "final.partial")
    (run.path / "final.partial" / "tokenizer.json").unlink()
    assert not RunDir.resume(run.path).finished and not list(run.path.glob("final*"))


@pytest.fixture
def small_disk(tmp_path):
    """make(bytes) -> a folder on a disk of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size):
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(options, capture_output=True, check=False).returncode:
            pytest.skip("may not mount here")
        return folder

    yield make
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def start(base, run, flags):
    return ["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(run), *flags]


def outcome(run):
    """What two runs that computed the same have in common: weights and metrics, to the bit."""
    final = load_file(run / "final" / "model.safetensors")
    weights = {name: x.numpy().tobytes() for name, x in final.items()}
    metrics = RunDir(run).metrics()
    return weights, [{k: v for k, v in m.items() if k != "step_time"} for m in metrics]


@pytest.mark.parametrize("pages", [1, 3, 6, 20, 40, 60, 90])
def test_a_disk_that_fills_up_is_one_line_until_there_is_room(
        pages, small_disk, base, finished, tiny_grpo, capsys):
    """On 15 of 17 small disks a run ended in 25 to 34 lines of traceback."""
    run = small_disk(4096 * pages) / "run"
    capsys.readouterr()
    code = main(start(base, run, tiny_grpo))
    for _ in range(2):                                     # resumed while it is full
        said = capsys.readouterr().err.strip()
        assert code == 2 and said.count("\n") == 0 and "no space left in" in said, said
        assert not list(run.glob("*.partial*")), "what is half-done takes room"
        if not (run / "config.json").exists():
            assert "start again" in said and not run.exists()
            return
        code = main(["grpo", "--resume", "--run-dir", str(run)])
    subprocess.run(["mount", "-o", "remount,size=8m", str(run.parent)], check=True)
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0
    assert outcome(run) == outcome(finished)


# one process for each run

def test_a_second_process_is_refused_until_the_first_has_died(tmp_path):
    """Two --resume of one run wrote every line of metrics twice, and one of them died of it."""
    path = tmp_path / "run"
    RunDir.create(path, {})
    with process_that_locks(path) as holder:
        with pytest.raises(ValueError, match=f"run is in use by process {holder.pid}: wait for"):
            RunDir.resume(path)
        (path / "config.json").unlink()                    # it has the lock, and no config.json yet
        with pytest.raises(ValueError, match="run is in use by process"):
            RunDir.create(path, {})
        assert not (path / "config.json").exists()
    run = RunDir.create(path, {})
    assert (run.path / ".lock").read_text() == f"{os.getpid()}\n"


def test_one_process_may_open_its_run_twice(tmp_path):
    first = RunDir.create(tmp_path / "run", {})
    assert RunDir.resume(first.path)._lock is first._lock is Lock.of(first.path)


# signals

def signalled_at(monkeypatch, step, *numbers):
    log = RunLog.log

    def signalling_log(self, n, metrics):
        log(self, n, metrics)
        if n == step:
            send(*numbers)

    monkeypatch.setattr(RunLog, "log", signalling_log)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_newest_step(
        number, base, finished, tiny_grpo, tmp_path, monkeypatch, capsys):
    """INT redid all steps since the last checkpoint, TERM and HUP died without a word."""
    run = tmp_path / "my run"
    before = [signal.getsignal(n) for n in SIGNALS]
    signalled_at(monkeypatch, 3, number)
    assert main(start(base, run, tiny_grpo)) == 128 + number
    monkeypatch.undo()
    assert RunDir(run).checkpoints() == [2, 3]
    said = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name}; step 3 is saved: go on with " in said
    assert f"minirl grpo --resume --run-dir '{run}'" in said
    assert before == [signal.getsignal(n) for n in SIGNALS]
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0
    assert outcome(run) == outcome(finished)


def test_a_second_signal_does_not_wait(base, tiny_grpo, tmp_path, monkeypatch):
    run = tmp_path / "run"
    signalled_at(monkeypatch, 3, signal.SIGTERM, signal.SIGINT)
    assert main(start(base, run, tiny_grpo)) == 128 + signal.SIGINT
    assert RunDir(run).checkpoints() == [2]


def test_where_there_is_nothing_to_save_a_signal_does_not_wait(
        base, tiny_grpo, tmp_path, monkeypatch, capsys):
    """Before the first step a run evaluates, which may take minutes."""
    run = tmp_path / "run"
    monkeypatch.setattr(looks, "evaluate", lambda *args, **kwargs: send(signal.SIGTERM))
    assert main(start(base, run, tiny_grpo)) == 128 + signal.SIGTERM
    assert RunDir(run).metrics() == []
    error = capsys.readouterr().err
    assert "stopped by SIGTERM" in error and "go on with minirl grpo --resume" in error


def test_a_signal_that_the_shell_ignores_stays_ignored():
    """nohup minirl grpo: the terminal goes, the run does not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catching_signals(pytest.fail):
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with catching_signals(pytest.fail):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


LONG = ["--steps", "60", "--checkpoint-every", "7"]


@pytest.fixture(scope="module")
def long_run(base, tiny_grpo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "run"
    assert main(start(base, folder, [*tiny_grpo, *LONG])) == 0
    return folder


def wait(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.001)


@pytest.mark.parametrize("number, lines",
                         [(signal.SIGKILL, 9), (signal.SIGTERM, 23), (signal.SIGINT, 5)])
@pytest.mark.parametrize("saving", [False, True])
def test_a_real_signal_to_a_real_process(number, lines, saving, base, long_run, tiny_grpo,
                                         tmp_path):
    """Also while a checkpoint is being written, in a thread of its own."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "minirl", *start(base, run, [*tiny_grpo, *LONG])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    file = run / "metrics.jsonl"
    wait(process, lambda: file.is_file() and file.read_bytes().count(b"\n") >= lines)
    if saving:
        wait(process, lambda: any(run.glob("checkpoint-*.partial")))
    process.send_signal(number)
    said = process.communicate()[1]
    expected = -number if number == signal.SIGKILL else 128 + number
    assert process.returncode == expected and "Traceback" not in said, said
    assert not (run / "final").exists()
    assert main(["grpo", "--resume", "--run-dir", str(run)]) == 0
    assert outcome(run) == outcome(long_run)
