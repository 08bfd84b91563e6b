"""The toy of benchmarks/sanity.py: numbers to write down again ("7392=" "7392"), and a sampler of
few bits.

Who copies n digits is rewarded for all of them together, so n is the length over which errors add
up. The base model has read copies in which digits from 5 to 9 are now and then wrong. Numbers
differ in how many of these they have, and so in how often the model copies them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minirl.lm.emulation import PRODUCTS
from minirl.lm.model import Transformer
from minirl.lm.seeds import derive_seed
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Problem, RewardFunction, draw, split_of
from minirl.train.sft import SFTConfig, train_sft

EASY, HARD = "01234", "56789"
RIGHT = 0.1                        # how often a number of hard digits alone is copied


# the task

@dataclass(frozen=True)
class Copies:
    """Numbers of `length` digits, to be copied. The share of hard digits is drawn anew for each."""

    length: int

    @property
    def name(self) -> str:
        return f"copies of {self.length} digits"

    @property
    def rewards(self) -> Mapping[str, RewardFunction]:
        return {"accuracy": equal}

    @property
    def weights(self) -> Mapping[str, float]:
        return {"accuracy": 1.0}

    @property
    def tokens(self) -> int:
        """As many as a completion may have: the digits, an EOS, and one too many. A prompt has a
        BOS, the digits and "="."""
        return self.length + 2

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        def one() -> tuple[Problem, str]:
            share = rng.random()
            number = "".join(rng.choice(HARD if rng.random() < share else EASY)
                             for _ in range(self.length))
            return Problem(f"{number}=", number), split_of(number)

        return draw(n, split, one)


def equal(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str],
          **_: Any) -> list[float | None]:
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def base_model(task: Copies, width: int, layers: int, read: int, *, seed: int,
               device: torch.device) -> tuple[Transformer, Tokenizer]:
    """Return a model that has read `read` copies with slips, and its tokenizer."""
    sizes = TinySizes(hidden_size=width, num_layers=layers, num_heads=max(4, width // 32),
                      intermediate_size=4 * width, max_seq_len=2 * task.tokens)
    model, tokenizer = make_base(sizes, seed=seed, device=device)
    rng = random.Random(derive_seed(seed, "read"))
    slip = (1 - RIGHT ** (1 / task.length)) * 10 / 9      # one digit in ten is right by chance

    def copied(number: str) -> str:
        return "".join(rng.choice(EASY + HARD) if digit in HARD and rng.random() < slip else digit
                       for digit in number)

    pairs = [(problem.prompt, copied(problem.answer)) for problem in task.sample(read, rng)]
    return train_sft(model, tokenizer, pairs, SFTConfig(), seed=seed), tokenizer


# the sampler

class Coarse(TorchDispatchMode):
    """While it is active, products read and return float32 numbers of a few bits: of precision, as
    in lm.precision.FORMATS, the leading 1 included. Exponents keep their range. bfloat16 has 8
    bits, FP8's E4M3 has 4, and FP4 has 2."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs, packet = kwargs or {}, function.overloadpacket
        fused = packet.__name__.startswith("_scaled_dot_product")
        if not fused and packet not in PRODUCTS:
            return function(*args, **kwargs)
        own = tuple(rounded(x, self.bits) if isinstance(x, Tensor) and x.is_floating_point() else x
                    for x in args)
        result = function(*own, **kwargs)
        if fused:
            return (rounded(result[0], self.bits), *result[1:])
        into = args[0] if packet.__name__.endswith("_") else result
        return into.copy_(rounded(result, self.bits))


def rounded(x: Tensor, bits: int) -> Tensor:
    """Round float32 numbers to `bits` of precision, ties to even.

    >>> rounded(torch.tensor([1.2, 1.25, 1.3, 1.75, -0.9]), 2)      # 1, 1.5, 2, ... and 0.5, 0.75
    tensor([ 1.0000,  1.0000,  1.5000,  2.0000, -1.0000])
    """
    dropped = 24 - bits
    pattern = x.view(torch.int32)
    half = (1 << dropped - 1) - 1 + (pattern >> dropped & 1)
    return (pattern + half & -(1 << dropped)).view(torch.float32)


def coarse_sampler(bits: int) -> Callable[[list[str], Any], dict[str, Any]]:
    """Return a rollout function (minirl/tasks/user_rollouts.py) that computes with so many bits."""
    def rollout(prompts: list[str], sampler: Any) -> dict[str, Any]:
        ids = {prompt: sampler.tokenizer.encode_prompt(prompt) for prompt in dict.fromkeys(prompts)}
        with Coarse(bits):
            return sampler.sample([ids[prompt] for prompt in prompts])

    return rollout
