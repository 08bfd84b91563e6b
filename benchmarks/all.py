"""Every benchmark of a device, one after the other, within a time limit: one command measures again
what stands in RESULTS.md.

    python benchmarks/all.py                          on a CPU, about 25 minutes
    python benchmarks/all.py --device cuda            on one GPU, at most 9 minutes: its tests first

Each is a process of its own. The end names those that failed or ran out of time; the others run in
any case. With --out, what they print is also written to a file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
# command -> seconds after which it is stopped
CPU = {"logprobs.py --repeats 3": 600, "sampling.py": 600, "grpo_step.py": 600,
       "train_step.py": 180, "search_speed.py": 600, "scaling.py": 600, "rms_norm.py": 120,
       "startup.py": 180, "corpus.py classifier": 180}
CUDA = {"-m pytest tests/test_on_a_gpu.py tests/lm/test_decoding.py -k gpu": 120,
        "train_step.py --device cuda --dtype bfloat16": 80,
        "logprobs.py --device cuda": 90,
        "sampling.py --device cuda --repeats 2": 120,
        "grpo_step.py --device cuda --dtype bfloat16 --steps 2": 150,
        "scaling.py --device cuda --dtype bfloat16": 110}
MINUTES = {"cpu": 45, "cuda": 9}
STOPPED = (124, 137)               # what `timeout` returns for a process that it stopped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=None,
                        help="the time limit (default: 9 on cuda, 45 on a CPU)")
    parser.add_argument("--out", type=Path, default=None,
                        help="a file that also gets what is printed")
    args = parser.parse_args()
    end = time.perf_counter() + 60 * (args.minutes or MINUTES[args.device])
    copy = open(args.out, "w") if args.out else None

    def say(text: str) -> None:
        print(text, end="", flush=True)
        if copy:
            copy.write(text)
            copy.flush()

    incomplete = []
    for command, limit in (CUDA if args.device == "cuda" else CPU).items():
        problem = run(command, min(limit, end - time.perf_counter()), say)
        if problem:
            incomplete.append(f"{command}: {problem}")
    lines = ["not complete:", *incomplete] if incomplete else ["all complete"]
    say("\n" + "\n".join(lines) + "\n")
    raise SystemExit(bool(incomplete))


def run(command: str, limit: float, say: Callable[[str], None]) -> str | None:
    """Run a command for at most `limit` seconds, and say what it prints -> what went wrong."""
    if limit <= 0:
        return "no time left"
    script, *flags = command.split()
    is_module = script == "-m"
    say(f"\n## python {command if is_module else 'benchmarks/' + command}\n\n")
    argv = [sys.executable, script if is_module else str(HERE / script), *flags]
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}        # minirl may not be installed
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(["timeout", "--kill-after=5", f"{limit:.0f}", *argv],
                                   stdout=subprocess.PIPE, stderr=errors, text=True,
                                   cwd=HERE.parent, env=env)
        assert process.stdout is not None
        for line in process.stdout:
            say(line)
        process.wait()
        say(f"\n({time.perf_counter() - began:.0f} s)\n")
        errors.seek(0)
        say(errors.read()[-2000:])         # warnings, too: that nothing was compiled, for instance
    if process.returncode in STOPPED:
        return "cut short"
    return f"failed with {process.returncode}" if process.returncode else None


if __name__ == "__main__":
    main()
