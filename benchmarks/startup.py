"""How long commands take to start, beside `import torch` alone: medians of whole processes, in
turn.

    python benchmarks/startup.py [--runs 5]

Aims: help, a mistyped flag and the index of equations in less than 0.5 s; every other command
within 1.2 times `import torch`. "refused" is a command that has loaded all that it needs and then
refuses a value.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from common import MINIRL, in_turn

TORCH = "python -c 'import torch'"
COMMANDS = {
    TORCH: (sys.executable, "-c", "import torch"),
    "python -c pass": (sys.executable, "-c", "pass"),
    "minirl --help": (*MINIRL, "--help"),
    "minirl grpo --help": (*MINIRL, "grpo", "--help"),
    "minirl grpo --nosuch": (*MINIRL, "grpo", "--nosuch"),
    "minirl equations": (*MINIRL, "equations"),
    "minirl equations kl.k3": (*MINIRL, "equations", "kl.k3"),
    "minirl sample, refused": (*MINIRL, "sample", "--init", "nowhere"),
    "minirl eval, refused": (*MINIRL, "eval", "--init", "nowhere"),
    "minirl grpo, refused": (*MINIRL, "grpo", "--lr", "-1"),
    "minirl ppo, refused": (*MINIRL, "ppo", "--lr", "-1"),
    "minirl r1, refused": (*MINIRL, "r1", "--scale", "-1"),
    "minirl plot, refused": (*MINIRL, "plot", "nowhere"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    env = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PATH": "/usr/bin:/bin"}
    with tempfile.TemporaryDirectory() as empty:
        calls = {name: partial(subprocess.run, argv, cwd=empty, env=env, capture_output=True)
                 for name, argv in COMMANDS.items()}
        times = in_turn(calls, repeats=runs)       # the warm-up fills the file cache
    torch = statistics.median(times[TORCH])
    print(f"{'median of ' + str(runs):28} seconds  of import torch")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:28} {median:7.2f}  {median / torch:15.2f}")


if __name__ == "__main__":
    main()
