"""What benchmarks/kills.py needs to kill a run: its processes, and what it has on the disk.

Linux alone: the processes of torchrun are found in /proc.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import MINIRL
from minirl.app.rundir import RunDir

FIRST = 6.0                # seconds of a process, in which it loads, and tidies up after a kill
PATIENCE = 900             # seconds without a step, after which a process is taken to hang
ALONE = 120                # seconds that processes have to end, after one of them was killed
SAVING, FIRST_SECONDS, TRAINING = KINDS = "saving", "first seconds", "training"


# what a run has on the disk

def folders(run: Path) -> list[Path]:
    """Return the folders of a run and of its stages."""
    return [run, *(path.parent for path in run.glob("*/config.json")
                   if not path.parent.name.startswith(("checkpoint-", "final")))]


def steps(run: Path) -> int:
    """Return how many steps a run and its stages have written down."""
    files = [folder / "metrics.jsonl" for folder in folders(run)]
    return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())


def half_written(run: Path) -> set[tuple[str, int]]:
    """Return the names of checkpoints and final/ that are being written, each with its inode: what
    an earlier kill left has another one."""
    found = set()
    for folder in folders(run):
        for path in folder.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):   # it has got its name
                if path.is_dir():
                    found.add((str(path.relative_to(run)), path.stat().st_ino))
    return found


def newest(run: Path) -> dict[str, float]:
    """Return the newest checkpoint's step of a run and of each stage; inf where it is finished."""
    return {folder.name: math.inf if RunDir(folder).finished
            else max(RunDir(folder).checkpoints(), default=0) for folder in folders(run)}


def written(run: Path) -> dict[str, int]:
    """Return the last step that a run and each stage have written down."""
    return {folder.name: max((line["step"] for line in RunDir(folder).metrics()), default=0)
            for folder in folders(run)}


def outcome(run: Path) -> dict[str, Any]:
    """Return what two runs that computed the same have in common, to the bit."""
    content: dict[str, Any] = {}
    for folder in folders(run):
        name = str(folder.relative_to(run))
        content[f"{name}: metrics"] = [
            {key: value for key, value in line.items() if key != "step_time"}
            for line in RunDir(folder).metrics()]
        for file in (folder / "samples.md", *folder.glob("*/*.safetensors")):
            if file.is_file():
                content[f"{name}: {file.relative_to(folder)}"] = digest(file)
    return content


def digest(file: Path) -> str:
    sha = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


# its processes

@dataclass(frozen=True)
class Job:
    """A command of minirl with its flags, on so many processes."""

    command: str
    flags: list[str]
    processes: int = 1

    def argv(self, run: Path) -> list[str]:
        """Return the command line that begins a run, or goes on with it."""
        launcher: tuple[str, ...] = MINIRL
        if self.processes > 1:
            launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone",
                        "--nproc-per-node", str(self.processes), "-m", "minirl")
        begun = (run / "config.json").is_file()
        return [*launcher, self.command, "--run-dir", str(run),
                *(["--resume"] if begun else self.flags)]

    @contextlib.contextmanager
    def started(self, run: Path, threads: int | None = None) -> Iterator[subprocess.Popen]:
        """Begin a run, or go on with it: after the block none of its processes is left."""
        env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with open(log_of(run), "a", encoding="utf-8") as log:
            process = subprocess.Popen(self.argv(run), stdout=log, stderr=subprocess.STDOUT,
                                       env=env)
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_all([process.pid, *ranks(process.pid)])
            process.wait()

    def finish(self, run: Path, threads: int | None = None) -> None:
        """Begin a run, or go on with it, to its end."""
        with self.started(run, threads) as process:
            if code := process.wait():
                raise RuntimeError(f"minirl {self.command} ended with {code}: see {log_of(run)}")


def log_of(run: Path) -> Path:
    return Path(f"{run}.log")


def ranks(launcher: int) -> list[int]:
    """Return the ids of the processes that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    with contextlib.suppress(OSError):
        return [child for child in map(int, children.read_text().split()) if has_rank(child)]
    return []


def has_rank(process: int) -> bool:
    with contextlib.suppress(OSError):
        return b"\0RANK=" in b"\0" + Path(f"/proc/{process}/environ").read_bytes()
    return False


def alive(process: int) -> bool:
    """Return whether a process exists, and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# kills

@dataclass
class Kill:
    """A kill that was.

    kind     "saving", "first seconds" or "training"
    again    how many steps are done again: those after the newest checkpoint
    lost     what was there before the kill and is gone, and processes that did not end
    seconds  until the others had ended, where one of several processes was killed; else 0
    """

    kind: str
    again: int
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kill_once(job: Job, run: Path, rng: random.Random, *, whole: int, aim: str) -> Kill | None:
    """Start a run, or go on with it, and kill it -> the kill; None where it ended by itself.

    `aim`: the kind that is wanted. The kind that counts is what the dead process left. `whole`: the
    steps of the whole run.
    """
    earlier, before = half_written(run), newest(run)
    target = min(whole - 1, steps(run) + rng.randrange(0, max(2, whole // 5)))
    began = time.perf_counter()
    with job.started(run) as process:

        def wait(condition: Callable[[], bool]) -> None:
            while process.poll() is None and not condition():
                time.sleep(0.001)
                if time.perf_counter() - began > PATIENCE:
                    raise RuntimeError(f"no step in {PATIENCE} s: see {log_of(run)}")

        if aim == FIRST_SECONDS:
            moment = began + rng.uniform(0, FIRST)
            wait(lambda: time.perf_counter() > moment)
        else:
            wait(lambda: steps(run) > target)
            if aim == SAVING:
                wait(lambda: bool(half_written(run) - earlier))
            time.sleep(rng.uniform(0, 0.02 if aim == SAVING else 0.3))
        one = strike(process, rng)
        saving, struck = bool(half_written(run) - earlier), time.perf_counter()
        lost = [] if ends(process, ALONE) else [f"a process lived on for {ALONE} s"]
        seconds = 0.0 if one is None else round(time.perf_counter() - struck, 1)
    if process.returncode == 0:
        return None
    if one is None and process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"minirl {job.command} ended with {process.returncode}: see "
                           f"{log_of(run)}")
    kind = SAVING if saving else aim if aim != SAVING else TRAINING
    kill = after(run, kind, before, lost)
    kill.seconds = seconds
    return kill


def strike(process: subprocess.Popen, rng: random.Random) -> int | None:
    """Kill a process; of several, one or all -> the one, None for all."""
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGSTOP)                    # a launcher starts no more of them
    others = ranks(process.pid)
    one = rng.choice([None, *others])
    dying = [process.pid, *others] if one is None else [one]
    kill_all(dying)
    process.send_signal(signal.SIGCONT)
    return one


def kill_all(processes: Sequence[int]) -> None:
    """Kill processes, and wait until they are dead."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    while any(map(alive, processes)):
        time.sleep(0.0005)


def ends(process: subprocess.Popen, seconds: float) -> bool:
    """Return whether a process has ended within that time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    return False


def after(run: Path, kind: str, before: dict[str, float], lost: list[str]) -> Kill:
    """Return a kill of this kind, with what it cost."""
    now, lines = newest(run), written(run)
    for name, step in before.items():
        if now.get(name, -1) < step:
            lost.append(f"{name}: checkpoint {step:g} of before the kill")
    for name, step in now.items():
        if lines[name] < step < math.inf:
            lost.append(f"{name}: metrics of the steps {lines[name] + 1} to {step:g}")
    again = sum(max(0, lines[name] - int(step)) for name, step in now.items() if step < math.inf)
    return Kill(kind, again, lost)
