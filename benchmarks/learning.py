"""From nothing to a policy that works its sums out: `minirl grpo` on several seeds, one after another.

    python benchmarks/learning.py [--seeds 5]

Prints a row per seed: held-out accuracy and mean response length before and after GRPO, and seconds from start to end of the command. Each seed
is a process of its own, so that importing, training the base model, evaluating and drawing are all in its time.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    print(f"{datetime.date.today()}, {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}\n")
    print("| seed | accuracy before | after | length before | after | seconds |\n|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            run, began = Path(folder) / f"seed-{seed}", time.perf_counter()
            subprocess.run([sys.executable, "-m", "minirl", "grpo", "--seed", str(seed), "--run-dir", str(run)], check=True, capture_output=True)
            summary = json.loads((run / "summary.json").read_text())
            rows.append([summary[key] for key in ("accuracy_before", "accuracy_after", "mean_length_before", "mean_length_after")] + [time.perf_counter() - began])
            print(f"| {seed} | " + table_row(rows[-1]), flush=True)
    print("| median | " + table_row([statistics.median(column) for column in zip(*rows)]))


def table_row(row: list[float]) -> str:
    return "{:.3f} | {:.3f} | {:.1f} | {:.1f} | {:.0f} |".format(*row)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
