"""What the benchmarks share: the line about the machine, timing in turn, tables, figures, runs of
the command line, and models and prompts of a given size."""

from __future__ import annotations

import datetime
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from minirl.app.rundir import RunDir
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.precision import DTYPES
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem, RewardFunction

# cuDNN's attention takes about a second to plan for every new shape, and in `generate` each longer
# row is a new shape. That must not count as the time of either side.
torch.backends.cuda.enable_cudnn_sdp(False)

MODELS: dict[str, dict[str, Any]] = {  # by number of parameters
    "0.86M": dict(vocab_size=64, hidden_size=128, num_layers=4, num_heads=4,
                  intermediate_size=384),
    "8.9M": dict(vocab_size=4096, hidden_size=320, num_layers=6, num_heads=5,
                 intermediate_size=896),
    "10M": dict(vocab_size=512, hidden_size=384, num_layers=6, num_heads=6,
                intermediate_size=1024),
    # Qwen2.5-0.5B
    "0.5B": dict(vocab_size=151_936, hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2,
                 intermediate_size=4864, qkv_bias=True, rope_theta=1e6),
}


# the machine

def heading(device: str = "cpu") -> str:
    """Return date, hardware and versions in one line."""
    hardware = processor() if device == "cpu" else torch.cuda.get_device_name()
    parts = [str(datetime.date.today()), hardware, f"{torch.get_num_threads()} threads",
             f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("transformers", "trl", "liger-kernel", "cut-cross-entropy"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            pass
    return ", ".join(parts)


def processor() -> str:
    """Return the name of the CPU, and those of its wide instructions that matter here."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    if not names:
        return platform.processor() or platform.machine()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    wide = [name for name in ("avx2", "avx512f", "amx_bf16") if name in flags]
    return f"{names[0]} ({' '.join(wide)})"


def commit() -> str:
    """Return the short name of the commit, "unknown" where there is no git."""
    try:
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True,
                             text=True, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


# timing

def synchronise() -> None:
    """Wait until the GPU, where there is one, has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long one call takes, including the work on the device.

    With time.process_time as its clock this is the work of the process's threads on the CPU, which
    depends less on what else the machine does."""
    synchronise()
    began = clock()
    work()
    synchronise()
    return clock() - began


def in_turn(ways: Mapping[Any, Callable[[], object]], *, repeats: int, warmup: int = 1,
            clock: Callable[[], float] = time.perf_counter) -> dict[Any, list[float]]:
    """Time each way once, then each again: A B C A B C ..., so that a machine that becomes slower
    or faster does so for all of them."""
    times: dict[Any, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + repeats):
        for name, way in ways.items():
            duration = seconds(way, clock)
            if turn >= warmup:
                times[name].append(duration)
    return times


def product_rate(n: int, device: str, dtype: str) -> float:
    """Return the FLOPs per second of a product of two n x n matrices: the most that one may expect
    of this machine."""
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    a @ b
    return 2 * n ** 3 / statistics.median(seconds(lambda: a @ b) for _ in range(5))


# tables

def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return "median (smallest to largest)"."""
    middle, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} ({low} to {high})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Return their time over ours: the median over pairs that ran one after the other."""
    return f"{statistics.median(a / b for a, b in zip(theirs, ours, strict=True)):.2f} x"


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table_head(*names: str) -> str:
    return row(*names) + "\n" + "|---" * len(names) + "|"


# figures

def title(axis: Any, text: str) -> None:
    axis.set_title(text, fontsize=10, loc="left", fontweight="bold")


# the command line

MINIRL = (sys.executable, "-c", "import sys; from minirl.app.cli import main; sys.exit(main())")


def run_minirl(command: str, run_dir: Path, *flags: object, threads: int | None = None) -> RunDir:
    """Run a training command in a process of its own -> its run directory.

    A run that is finished is not made again, and one that was cut short goes on. What the command
    prints is added to <run_dir>.log. Raises RuntimeError, with the end of it, if the command fails.
    """
    run = RunDir(run_dir)
    if run.finished:
        return run
    if (run_dir / "config.json").exists():
        flags = ("--resume",)
    argv = [*MINIRL, command, "--run-dir", str(run_dir), *map(str, flags)]
    env = dict(os.environ)
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = Path(f"{run_dir}.log")
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.run(argv, stdout=file, stderr=subprocess.STDOUT, env=env)
    if process.returncode:
        end = log.read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"minirl {command} ended with {process.returncode}; it printed\n{end}")
    return run


# models, tokenizers and tasks of a given size

def make_model(name: str, *, context: int, device: str = "cpu",
               dtype: torch.dtype = torch.float32, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    # made on the device: a CPU needs half a minute to draw half a billion numbers
    with torch.device(device):
        model = Transformer(ModelConfig(**MODELS[name], max_seq_len=context, tie_embeddings=True))
    return model.to(dtype).eval()


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a tokenizer with a word for each id: "w7 w12" is [7, 12]. The first two are PAD and
    EOS."""
    vocab = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocab_size)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, pad="<pad>", bos=None, eos="<eos>")


class Words:
    """A task of prompts of one length, with a reward that any policy gets at times: the share of
    even words."""

    name = "even words"

    def __init__(self, vocab_size: int, length: int) -> None:
        self.vocab_size, self.length = vocab_size, length
        self.rewards: dict[str, RewardFunction] = {"even": even}
        self.weights = {"even": 1.0}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        return [Problem(self.prompt(rng), "") for _ in range(n)]

    def prompt(self, rng: random.Random) -> str:
        return " ".join(f"w{rng.randrange(2, self.vocab_size)}" for _ in range(self.length))


def even(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
    """Return the share of words with an even number, 0 for no words."""
    texts = [completion.split() for completion in completions]
    return [sum(word[-1] in "02468" for word in words) / max(1, len(words)) for words in texts]


class Listed:
    """A task that gives the problems of a list one after the other, so that two trainers get the
    same ones."""

    name = "listed problems"

    def __init__(self, problems: Sequence[Problem], rewards: Mapping[str, RewardFunction]) -> None:
        self.problems, self.rewards, self.next = problems, rewards, 0
        self.weights = dict.fromkeys(rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> Sequence[Problem]:
        self.next += n
        return self.problems[self.next - n:self.next]
