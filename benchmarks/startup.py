"""How long commands take to start, beside `import torch` alone: medians of whole processes, in turn.

    python benchmarks/startup.py [--runs 5]

Aims: help, a mistyped flag and the index of equations in less than 0.5 s; every other command within 1.2
times `import torch`. "refused" is a command that has loaded all that it needs and then refuses a value.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAIN = "-c", "import sys; from minirl.app.cli import main; sys.exit(main())"
COMMANDS = {
    "python -c 'import torch'": ("-c", "import torch"),
    "python -c pass": ("-c", "pass"),
    "minirl --help": (*MAIN, "--help"),
    "minirl grpo --help": (*MAIN, "grpo", "--help"),
    "minirl grpo --nosuch": (*MAIN, "grpo", "--nosuch"),
    "minirl equations": (*MAIN, "equations"),
    "minirl equations kl.k3": (*MAIN, "equations", "kl.k3"),
    "minirl sample, refused": (*MAIN, "sample", "--init", "nowhere"),
    "minirl eval, refused": (*MAIN, "eval", "--init", "nowhere"),
    "minirl grpo, refused": (*MAIN, "grpo", "--lr", "-1"),
    "minirl ppo, refused": (*MAIN, "ppo", "--lr", "-1"),
    "minirl r1, refused": (*MAIN, "r1", "--scale", "-1"),
    "minirl plot, refused": (*MAIN, "plot", "nowhere"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    root = Path(__file__).resolve().parents[1]
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as empty:
        for run in range(runs + 1):                                      # the first fills the file cache
            for name, argv in COMMANDS.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, *argv], cwd=empty, capture_output=True,
                               env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"})
                if run:
                    seconds[name].append(time.perf_counter() - began)
    torch = statistics.median(seconds["python -c 'import torch'"])
    print(f"{'median of ' + str(runs):28} seconds  of import torch")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:28} {median:7.2f}  {median / torch:15.2f}")


if __name__ == "__main__":
    main()
