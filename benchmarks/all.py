"""Every benchmark of a device, one after another, within a time: what stands in RESULTS.md can so be measured again with one command.

    python benchmarks/all.py                          on a CPU, about 25 minutes
    python benchmarks/all.py --device cuda            on one GPU, at most 9 minutes: its tests first

Each is a process of its own. One that fails, or that the time cuts short, is named at the end, and the others run. With --out what they print is
also kept in a file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
# command, most seconds
CPU = [("logprobs.py --repeats 3", 600), ("sampling.py", 600), ("grpo_step.py", 600), ("train_step.py", 180), ("scaling.py", 600), ("rms_norm.py", 120),
       ("startup.py", 180)]
CUDA = [("-m pytest tests/test_on_a_gpu.py tests/lm/test_decoding.py -k gpu", 120), ("train_step.py --device cuda --dtype bfloat16", 80),
        ("logprobs.py --device cuda", 90), ("sampling.py --device cuda --repeats 2", 120), ("grpo_step.py --device cuda --dtype bfloat16 --steps 2", 150),
        ("scaling.py --device cuda --dtype bfloat16", 110)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many (default: 9 on cuda, 45 on a CPU)")
    parser.add_argument("--out", type=Path, default=None, help="a file that also gets what is printed")
    args = parser.parse_args()
    until = time.perf_counter() + 60 * (args.minutes or (9 if args.device == "cuda" else 45))
    kept = open(args.out, "w") if args.out else None

    def say(text: str) -> None:
        print(text, end="", flush=True)
        if kept:
            kept.write(text)
            kept.flush()

    short = []
    for command, most in CUDA if args.device == "cuda" else CPU:
        most = min(most, until - time.perf_counter())
        if most <= 0:
            short.append(f"{command}: no time left")
            continue
        script, *flags = command.split()
        call = [sys.executable, script, *flags] if script == "-m" else [sys.executable, str(HERE / script), *flags]
        say(f"\n## python {command if script == '-m' else 'benchmarks/' + command}\n\n")
        began = time.perf_counter()
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(["timeout", "--kill-after=5", f"{most:.0f}", *call], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=HERE.parent,
                                       env=os.environ | {"PYTHONPATH": str(HERE.parent)})                     # minirl may not be installed there
            for line in process.stdout:
                say(line)
            process.wait()
            say(f"\n({time.perf_counter() - began:.0f} s)\n")
            if process.returncode:
                short.append(f"{command}: " + ("cut short" if process.returncode in (124, 137) else f"failed with {process.returncode}"))
            errors.seek(0)
            say(errors.read()[-2000:])                       # warnings, too: that nothing was compiled, for instance
    say("\n" + ("\n".join(["not complete:", *short]) if short else "all complete") + "\n")
    raise SystemExit(bool(short))


if __name__ == "__main__":
    main()
