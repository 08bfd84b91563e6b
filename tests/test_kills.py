"""benchmarks/kills.py: what counts as a kill while saving, what is lost, and several processes.

What is killed here is a script that writes what a run of minirl writes. Real runs are killed in
tests/app/test_survival.py.
"""

import random
import sys
from dataclasses import dataclass

import pytest

from tests.benchmark_modules import imported

BEGIN = """
import json, os, pathlib, subprocess, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(exist_ok=True)
(run / "config.json").write_text("{}")
def step(n):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": n}) + "\\n")
"""
SAVES = BEGIN + """
(run / "checkpoint-1").mkdir(exist_ok=True)
for n in (1, 2, 3):
    step(n)
(run / "checkpoint-3.partial").mkdir()
time.sleep(60)
"""
TRAINS = BEGIN + """
for n in range(1, 100):
    step(n)
    time.sleep(0.1)
"""
ENDS = BEGIN + "step(1)"
LAUNCHES = BEGIN + """
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
children = [subprocess.Popen(sleep, env={**os.environ, "RANK": str(rank)}, start_new_session=True)
            for rank in range(2)]
(run / "children").write_text(" ".join(str(child.pid) for child in children))
for n in (1, 2, 3):
    step(n)
while all(child.poll() is None for child in children):
    time.sleep(0.01)
if {obeys}:
    for child in children:
        child.kill()
    sys.exit(1)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def modules():
    with imported("kills", "killing") as modules:
        yield modules


@pytest.fixture(scope="module")
def killing(modules):
    return modules["killing"]


@pytest.fixture
def kill(killing, tmp_path):
    """kill(script, aim) -> the kill of a process that runs this script."""
    @dataclass(frozen=True)
    class Script(killing.Job):
        text: str = ""

        def argv(self, run):
            return [sys.executable, "-c", self.text, str(run)]

    def kill_once(text, aim, *, processes=1, seed=0):
        return killing.kill_once(Script("grpo", [], processes, text), tmp_path / "run",
                                 random.Random(seed), whole=4, aim=aim)

    return kill_once


def test_a_half_written_checkpoint_makes_it_a_kill_while_saving(kill, killing):
    """Steps 2 and 3 came after the newest checkpoint."""
    assert kill(SAVES, "saving") == killing.Kill("saving", 2)


def test_the_dead_process_decides_what_was_hit(kill, tmp_path):
    (tmp_path / "run").mkdir()
    assert kill(SAVES, "training").kind == "saving"


def test_what_an_earlier_kill_left_does_not_count(kill, killing, tmp_path):
    (tmp_path / "run" / "checkpoint-9.partial").mkdir(parents=True)
    assert kill(TRAINS, "training").kind == "training"
    assert [name for name, _ in killing.half_written(tmp_path / "run")] == ["checkpoint-9.partial"]


def test_a_process_that_was_sooner_is_no_kill(kill):
    assert kill(ENDS, "training") is None and kill(ENDS, "saving") is None


def test_a_process_that_fails_by_itself_is_an_error(kill):
    with pytest.raises(RuntimeError, match="minirl grpo ended with 3: see .*run.log"):
        kill("import sys; sys.exit(3)", "training")


@pytest.mark.parametrize("before, lost", [
    ({"run": 4}, ["run: checkpoint 4 of before the kill", "run: metrics of the steps 2 to 3"]),
    ({"run": 3, "rm": 2}, ["rm: checkpoint 2 of before the kill",
                           "run: metrics of the steps 2 to 3"]),
    ({}, ["run: metrics of the steps 2 to 3"]),
])
def test_what_is_lost(killing, tmp_path, before, lost):
    """The newest checkpoint is that of step 3, and of its steps the first alone is written."""
    run = tmp_path / "run"
    (run / "checkpoint-3").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert killing.after(run, "training", before, []).lost == lost


@pytest.mark.parametrize("seed, obeys, lost", [
    (0, True, []), (0, False, ["a process lived on for 1 s"]),
    (1, False, []),                                        # all of them are hit
])
def test_where_one_of_several_processes_is_killed_the_others_have_to_end(
        kill, killing, monkeypatch, tmp_path, seed, obeys, lost):
    """And none is left: a launcher that is killed alone leaves its children, as they have sessions
    of their own."""
    monkeypatch.setattr(killing, "ALONE", 1)
    hit = kill(LAUNCHES.replace("{obeys}", str(obeys)), "training", processes=2, seed=seed)
    assert (hit.kind, hit.lost) == ("training", lost)
    children = [int(child) for child in (tmp_path / "run" / "children").read_text().split()]
    assert len(children) == 2 and not any(map(killing.alive, children))


def test_the_table_adds_up(modules, capsys):
    def line(page, kinds, lost=(), differing=()):
        kills = [{"kind": kind, "again": 3, "lost": [], "seconds": 0.0} for kind in kinds]
        return {"what": "kills", "page": page, "processes": 1, "kills": kills, "lost": list(lost),
                "differing": list(differing)}

    modules["kills"].table([
        line("sft", ["saving", "training"]), line("grpo", ["saving"] * 2),
        line("sft", ["training"]),
        line("grpo", ["first seconds"], lost=["a"], differing=["b", "c"]),
        {"what": "threads", "page": "sft", "processes": 1, "said": ["the bits may differ"]},
        {"what": "threads", "page": "grpo", "processes": 1, "said": []}])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["sft", "1", "2", "3", "1", "0", "3", "-", "0", "0", "1 of 1"],
        ["grpo", "1", "2", "3", "2", "1", "3", "-", "1", "1", "0 of 1"],
        ["all", "", "4", "6", "3", "1", "3", "-", "1", "1", "1 of 2"]]
