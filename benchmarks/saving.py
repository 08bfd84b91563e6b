"""How large a training checkpoint is, and how long training stands still for one: written at once,
and in the background.

    python -m tests.parity.real_files smollm2             makes SmolLM2-135M-Instruct, 540 MB
    python benchmarks/saving.py smollm2 [--runs 3]

The state is that of GRPO: the policy after an optimizer step, AdamW's moments, and a reference that
is still the model that the run started from. Every checkpoint holds other weights and moments.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch

from common import heading, row, spread, table_head
from minirl.lm.checkpoint import load_pretrained
from minirl.train.checkpoints import Background, load_checkpoint, save_checkpoint
from minirl.train.grpo import GRPOConfig
from minirl.train.state import TrainState, freeze, make_optimizer
from minirl.train.state_files import Start


def step(state: TrainState) -> None:
    """Change every weight and every moment, as an update does."""
    for p in state.model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    start, tokenizer = load_pretrained(args.folder, dtype=torch.float32)
    model = copy.deepcopy(start)
    state = TrainState(model, make_optimizer(model, GRPOConfig()),
                       {"reference": freeze(copy.deepcopy(start))})
    first = Start(start)
    weights = sum(p.nbytes for p in model.parameters()) / 1e9
    print(heading() + "\n")

    background = Background()
    ways = {"at once": None, "in the background": background}
    pauses: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wholes: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=".") as work:
        folder = Path(work)
        for _ in range(args.runs):
            for name, way in ways.items():
                step(state)
                began, cpu_began = time.perf_counter(), time.thread_time()
                save_checkpoint(state, tokenizer, folder, start=first, background=way)
                pauses[name].append(time.perf_counter() - began)
                cpu[name].append(time.thread_time() - cpu_began)
                background.wait()
                wholes[name].append(time.perf_counter() - began)
        newest = folder / f"checkpoint-{state.step}"
        size = sum(file.stat().st_size for file in newest.iterdir()) / 1e9
        began = time.perf_counter()
        loaded = load_checkpoint(folder, device=torch.device("cpu"), start=first)
        assert loaded is not None and loaded[2]["step"] == state.step
        loading = time.perf_counter() - began
    print(f"weights {weights:.2f} GB, checkpoint {size:.2f} GB, loaded in {loading:.1f} s\n")
    print(table_head("written", "training stands still, s", "CPU s of that", "until whole, s"))
    for name in ways:
        print(row(name, spread(pauses[name], 1), f"{statistics.median(cpu[name]):.1f}",
                  spread(wholes[name], 1)))


if __name__ == "__main__":
    main()
