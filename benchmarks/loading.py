"""How long a checkpoint takes to load, and how much memory: minirl and transformers in turn, each
time in a process of its own, without the time of its imports.

    python -m tests.parity.real_files smollm2             makes SmolLM2-135M-Instruct, 540 MB
    python benchmarks/loading.py smollm2 [--runs 5]

Aims: as quick as transformers' `from_pretrained`, and at most 1.2 times the memory of the weights.

Three folders: the one that is named, which has no digests; what minirl saves of it, whose digests
are compared; and the same in bfloat16, loaded into float32, as a run that trains does. "loaded" is
the peak of the memory that loading adds, and "used" is the peak after every weight was read.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import heading, row, spread, table_head

SIDES = ("minirl", "transformers", "transformers, weights alone")
MIB = 2 ** 20


def memory(field: str) -> float:
    """Return a field of /proc/self/status in MiB: VmRSS now, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def load(side: str, folder: Path) -> dict[str, float]:
    """Load a checkpoint in this process -> seconds, and MiB."""
    if side == "minirl":
        from minirl.lm.checkpoint import load_pretrained

        def work() -> Any:
            return load_pretrained(folder, dtype=torch.float32)
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.models.llama import modeling_llama, tokenization_llama  # noqa: F401

        def work() -> Any:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            return model, None if "alone" in side else AutoTokenizer.from_pretrained(folder)

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")          # the peak counts from here
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    model, _ = work()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    loaded = memory("VmHWM") - before
    weights = sum(p.nbytes for p in model.parameters()) / MIB
    for p in model.parameters():
        p.detach().sum()
    return {"seconds": seconds, "weights": weights, "loaded": loaded,
            "used": memory("VmHWM") - before,
            "cpu": after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime}


def folders(source: Path, work: Path) -> dict[str, Path]:
    """Save a checkpoint again, as it is and in bfloat16 -> the three folders."""
    from minirl.lm.checkpoint import load_pretrained, save_pretrained
    model, tokenizer = load_pretrained(source, dtype=torch.float32)
    save_pretrained(model, tokenizer, work / "saved")
    save_pretrained(model.bfloat16(), tokenizer, work / "bfloat16")
    return {"as downloaded": source, "saved by minirl": work / "saved",
            "saved in bfloat16": work / "bfloat16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(load(args.side, args.folder)))
        return

    print(heading() + "\n")
    print(table_head("folder", "side", "seconds", "CPU seconds", "loaded, MiB", "used, MiB",
                     "of the weights"))
    with tempfile.TemporaryDirectory() as work:
        for name, folder in folders(args.folder, Path(work)).items():
            results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for turn in range(args.runs + 1):              # the first fills the file cache
                for side in SIDES:
                    argv = [sys.executable, __file__, str(folder), "--side", side]
                    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
                    if turn:
                        results[side].append(json.loads(out.splitlines()[-1]))
            for side, runs in results.items():
                column = {key: [run[key] for run in runs] for key in runs[0]}
                loaded, used = (statistics.median(column[key]) for key in ("loaded", "used"))
                print(row(name, side, spread(column["seconds"]), spread(column["cpu"]),
                          f"{loaded:.0f}", f"{used:.0f}",
                          f"{used / column['weights'][0]:.2f}"), flush=True)


if __name__ == "__main__":
    main()
