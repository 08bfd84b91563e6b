"""What the benchmarks share: the line about the machine, timing in turn, tables, and models and prompts of a given size."""

from __future__ import annotations

import datetime
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem

# cuDNN's attention plans every new shape for about a second, and each longer row of `generate` is one: no side's time shall be that.
torch.backends.cuda.enable_cudnn_sdp(False)

MODELS = {                             # parameters: sizes beside the vocabulary
    "0.86M": dict(vocab_size=64, hidden_size=128, num_layers=4, num_heads=4, intermediate_size=384),
    "8.9M": dict(vocab_size=4096, hidden_size=320, num_layers=6, num_heads=5, intermediate_size=896),
    "10M": dict(vocab_size=512, hidden_size=384, num_layers=6, num_heads=6, intermediate_size=1024),
    "0.5B": dict(vocab_size=151_936, hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2, intermediate_size=4864, qkv_bias=True,
                 rope_theta=1e6),      # Qwen2.5-0.5B
}


def heading(device: str = "cpu") -> str:
    """Date, hardware and versions in one line."""
    parts = [str(datetime.date.today()), processor() if device == "cpu" else torch.cuda.get_device_name(), f"{torch.get_num_threads()} threads",
             f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("transformers", "trl", "liger-kernel", "cut-cross-entropy"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            pass
    return ", ".join(parts)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    wide = [name for name in ("avx2", "avx512f", "amx_bf16") if f" {name}" in flags]
    return f"{names[0]} ({' '.join(wide)})" if names else platform.processor() or platform.machine()


def commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:                        # no git here
        return "unknown"
    return found.stdout.strip() or "unknown"


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes, the device's work included."""
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def in_turn(ways: dict[str, Callable[[], object]], *, repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time each way once, then each again: A B C A B C ..., so that a machine whose speed drifts does so for all."""
    times = {name: [] for name in ways}
    for turn in range(warmup + repeats):
        for name, way in ways.items():
            took = seconds(way)
            if turn >= warmup:
                times[name].append(took)
    return times


def spread(values: list[float], unit: float = 1.0, digits: int = 2) -> str:
    """Median (smallest to largest)."""
    low, middle, high = (f"{f(values) / unit:.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def ratio(theirs: list[float], ours: list[float]) -> str:
    """How many times our time theirs is: the median over the pairs that ran next to each other."""
    return f"{statistics.median(a / b for a, b in zip(theirs, ours)):.2f} x"


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table_head(*names: str) -> str:
    return row(*names) + "\n" + "|---" * len(names) + "|"


def make_model(name: str, *, context: int, device: str = "cpu", dtype=torch.float32, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    with torch.device(device):             # drawing half a billion numbers takes a CPU half a minute
        return Transformer(ModelConfig(**MODELS[name], max_seq_len=context, tie_embeddings=True)).to(dtype).eval()


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """Ids as words: "w7 w12" is [7, 12]. The first two are PAD and EOS."""
    vocab = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocab_size)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, pad="<pad>", bos=None, eos="<eos>")


class Words:
    """Prompts of one length, and a reward that any policy meets at times: the share of words with an even number."""

    def __init__(self, vocab_size: int, length: int):
        self.vocab_size, self.length = vocab_size, length
        self.rewards = {"even": even}

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        return [Problem(" ".join(f"w{rng.randrange(2, self.vocab_size)}" for _ in range(self.length)), "") for _ in range(n)]


def even(prompts, completions, **_) -> list[float]:
    return [sum(word[-1] in "02468" for word in words) / max(1, len(words)) for words in map(str.split, completions)]


class Listed:
    """A task whose problems are the next of a list: two trainers can so be given the same ones."""

    def __init__(self, problems: list[Problem], rewards: dict):
        self.problems, self.rewards, self.next = problems, rewards, 0

    def sample(self, n: int, rng=None, *, split: str = "train") -> list[Problem]:
        self.next += n
        return self.problems[self.next - n:self.next]
