"""What `check` knows beside equations: log-prob kernels, masks, samplers and reward functions."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minirl.equations.kl import AdaptiveKLController
from minirl.equations.schedules import update_ema
from minirl.lm.logprobs import linear_logprobs, token_logprobs
from minirl.lm.model import ModelConfig, Transformer
from minirl.lm.sampling import sample
from minirl.tasks.rewards import accuracy, format_reward, language_consistency
from minirl.testing.probes import Function, Probe, Target

VOCAB, EOS, MOST = 6, 5, 6             # of the tiny model: ids, the last of them, and new tokens


@functools.cache
def tiny() -> Transformer:
    """Return a model of random weights, one layer in float64."""
    torch.manual_seed(0)
    config = ModelConfig(VOCAB, hidden_size=8, num_layers=1, num_heads=2, max_seq_len=16,
                         initializer_range=0.5)
    return Transformer(config).double().eval()


# log-prob kernels

def kernel_probes(reduced: str | None) -> Iterator[Probe]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.tensor([3, 0, 6, 6, 1])
    hidden = torch.tensor([[1.0]]).double()
    yield Probe("golden values: logits 0 and ln 3 are p = 1/4 and 3/4", {
        "hidden": hidden, "weight": torch.tensor([[1.0], [3.0]]).double().log(),
        "targets": torch.tensor([1])})
    batch = {"hidden": random(5, 4), "weight": random(7, 4), "targets": targets}
    yield Probe("a batch", batch)
    for temperature in (0.5, 2.0):
        yield Probe("temperature divides the logits", batch, {"temperature": temperature})
    far = {"hidden": 100 * random(5, 4), "weight": random(7, 4), "targets": targets}
    yield Probe("logits of hundreds do not overflow", far)
    for dtype in (torch.float32, torch.bfloat16):
        low = {key: value.to(dtype) if value.is_floating_point() else value
               for key, value in batch.items()}
        yield Probe(str(dtype).removeprefix("torch."), low, dtype=dtype,
                    read=lambda logp: logp.float())


def token_probes(reduced: str | None) -> Iterator[Probe]:
    tokens = torch.tensor([[1, 4, 2, 3, 5], [0, 3, 3, 5, 5], [2, 5, 5, 5, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]).bool()
    gaps = torch.tensor([[0, 1, 0, 0, 1], [0, 1, 1, 0, 1], [0, 1, 0, 0, 1]]).bool()
    model = tiny()
    yield Probe("slot t is about emitting token t",
                {"model": model, "tokens": tokens, "mask": mask})
    yield Probe("tool tokens under a zero mask are attended to",
                {"model": model, "tokens": tokens, "mask": gaps},
                hint="the mask of what was sampled is used as an attention mask: tool output must "
                     "be read, though it is not trained; seen in TimeSearch-R1")
    wide = torch.nn.functional.pad(tokens, (0, 3), value=4)
    yield Probe("padding changes nothing", {
        "model": model, "tokens": wide, "mask": torch.nn.functional.pad(mask, (0, 3))})
    yield Probe("temperature divides the logits",
                {"model": model, "tokens": tokens, "mask": mask}, {"temperature": 0.5},
                hint="the temperature is forgotten: the ratio to the sampler starts away from 1; "
                     "seen in tiny-grpo, simple_GRPO and rlhf-book")


# masks

def completion_mask(tokens: Tensor, prompt_lengths: Tensor, eos_id: int) -> Tensor:
    """Return (B, T) bool: every token after the prompt up to its first EOS, which counts too.

    Padding may be the EOS's id: only the first one in a completion was sampled.
    """
    after = torch.arange(tokens.shape[1]) >= prompt_lengths[:, None]
    ended = ((tokens == eos_id) & after).long().cumsum(1)
    earlier = ended - ((tokens == eos_id) & after).long()
    return after & (earlier == 0)


def mask_probes(reduced: str | None) -> Iterator[Probe]:
    lengths = torch.tensor([2, 1, 3])
    plain = torch.tensor([[1, 2, 3, 4, EOS], [1, EOS, 0, 0, 0], [1, 2, 3, 4, 4]])
    same = plain.masked_fill(plain == 0, EOS)
    in_prompt = torch.tensor([[EOS, 2, 3, EOS, 0], [1, 2, EOS, 0, 0], [1, EOS, 3, 4, EOS]])
    lost = ("the EOS is lost where padding has its id, so stopping is never trained: make the mask "
            "from lengths; seen in tiny-grpo, rlhf-book and simple_GRPO")
    for name, tokens, hint in (
            ("the EOS is trained", plain, "the EOS is not in the mask: stopping is never trained"),
            ("the EOS is trained where padding has its id", same, lost),
            ("an EOS inside the prompt ends nothing", in_prompt,
             "the EOS is searched in the prompt, too")):
        yield Probe(name, {"tokens": tokens, "prompt_lengths": lengths, "eos_id": EOS},
                    read=lambda mask: torch.as_tensor(mask).double(), hint=hint)


# samplers

def sampler_probes(reduced: str | None) -> Iterator[Probe]:
    """Yield calls of a sampler whose draws are its own: what they must have in common is compared,
    not the draws."""
    prompts = [[1, 2], [3, 1, 4], [0]]
    inputs = {"model": tiny(), "prompts": prompts}
    for temperature in (1.0, 0.5):
        options = {"group": 4, "max_new_tokens": MOST, "temperature": temperature, "eos_id": EOS}
        for pad_id in (0, EOS):
            read = functools.partial(reading, prompts, temperature)
            yield Probe("its log-probs are the model's, and its mask holds what was sampled",
                        inputs, {**options, "pad_id": pad_id}, read=read)
    yield Probe("temperature 0 takes the likeliest token", inputs, {
        "group": 1, "max_new_tokens": MOST, "temperature": 0.0, "eos_id": EOS, "pad_id": 0},
        read=lambda rollouts: (rollouts.tokens * rollouts.mask).double())


def reading(prompts: Sequence[Sequence[int]], temperature: float, rollouts: Any) -> Tensor:
    """Return what is wrong with rollouts as numbers, all 0 where nothing is."""
    group = len(rollouts.tokens) // len(prompts)
    owners = [list(prompt) for prompt in prompts for _ in range(group)]
    wrong_prompts = sum(row[:len(prompt)] != prompt for row, prompt
                        in zip(rollouts.tokens.tolist(), owners, strict=True))
    mask = rollouts.mask.bool()
    lengths = torch.tensor([len(prompt) for prompt in owners])
    slots = torch.arange(mask.shape[1])
    wanted = completion_mask(rollouts.tokens, lengths, EOS) & (slots < lengths[:, None] + MOST)
    ends = (wanted & (rollouts.tokens == EOS)).any(1)
    logp = token_logprobs(tiny(), rollouts.tokens, mask=wanted, temperature=temperature)
    difference = (torch.where(wanted, rollouts.behavior_logp, 0) - logp).abs().max()
    return torch.stack([torch.tensor(float(wrong_prompts)), (mask != wanted).sum().float(),
                        (rollouts.truncated == ends).sum().float(),
                        (difference > 1e-4).float()]).double()


# what keeps a state

def controller_probes(reduced: str | None) -> Iterator[Probe]:
    """Yield updates of Ziegler's controller: its error is cut off at 0.2 on either side."""
    for name, kl, n in (("too far: 1 + 0.2 16 / 100", 9.0, 16),
                        ("too near: 1 - 0.2 16 / 100", 3.0, 16),
                        ("inside: 1 + 0.1 10 / 100", 6.6, 10),
                        ("at the target nothing changes", 6.0, 16)):
        yield Probe(name, {"kl_coef": 0.15, "target": 6.0, "horizon": 100},
                    read=functools.partial(updated, kl, n))


def updated(kl: float, n_samples: int, controller: Any) -> Tensor:
    controller.update(kl, n_samples)
    controller.update(kl, n_samples)                   # from where the first one led
    return torch.tensor(controller.kl_coef).double()


def ema_probes(reduced: str | None) -> Iterator[Probe]:
    """Yield averages that are updated where they are: decay times the old, the rest of the new."""
    for options in ({}, {"decay": 0.5}, {"decay": 0.0}, {"decay": 1.0}):
        yield Probe("decay times the old, and the rest of the new", {
            "averages": [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])],
            "weights": [torch.tensor([3.0, 2.0]), torch.tensor([[-1.0]])]}, options,
            changes="averages")
    yield Probe("averages in float64, weights in bfloat16", {
        "averages": [torch.ones(2).double()], "weights": [torch.zeros(2).bfloat16()]},
        changes="averages")


# reward functions

def verdicts(values: Any) -> Tensor:
    return torch.tensor([torch.nan if value is None else float(value) for value in values]).double()


def reward_probes(cases: dict[str, tuple[list[str], list[Any] | None]], column: str | None,
                  reduced: str | None) -> Iterator[Probe]:
    for name, (completions, entries) in cases.items():
        inputs: dict[str, Any] = {"prompts": ["?"] * len(completions), "completions": completions}
        if column is not None:
            inputs[column] = entries
        yield Probe(name, inputs, read=verdicts)


def _answers(*answers: str) -> list[str]:
    return [f"<think>so</think><answer>{answer}</answer>" for answer in answers]


ACCURACY: dict[str, tuple[list[str], list[Any] | None]] = {
    "right and wrong": (_answers("12", "13"), ["12", "12"]),
    "equal numbers are equal": (_answers("1,234", "62.0", "062", "+7", ".5"),
                                ["1234.00", "62", "62", "7", "0.5"]),
    "text is compared as text": (_answers(" Seoul ", "seoul"), ["Seoul", "Seoul"]),
    "listing guesses does not pay": (["<answer>12</answer><answer>13</answer>"], ["12"]),
    "no answer is wrong": (["12", "<answer>12"], ["12", "12"]),
    "no gold answer, no verdict": (_answers("12", "12"), [None, "12"]),
}
FORMAT: dict[str, tuple[list[str], list[Any] | None]] = {
    "the form": (["<think>a</think><answer>b</answer>", "<think>a</think>\n<answer>b</answer>"],
                 None),
    "nothing before or after": (["x<think>a</think><answer>b</answer>",
                                 "<think>a</think><answer>b</answer> done"], None),
    "each tag once": (["<think>a</think><think>a</think><answer>b</answer>"], None),
    "in this order": (["<answer>b</answer><think>a</think>"], None),
    "all of them": (["<answer>b</answer>", "<think>a</think>", ""], None),
}
LANGUAGE: dict[str, tuple[list[str], list[Any] | None]] = {
    "a share of words": (["<think>일 plus 이</think>", "<think>one two</think>"], ["ko", "en"]),
    "numerals are no words": (["<think>3 더하기 4</think>"], ["ko"]),
    "what stands outside does not count": (["<think>셋</think><answer>three</answer>"], ["ko"]),
    "silence does not pay": (["<think></think>", "셋"], ["ko", "ko"]),
    "no language, no verdict": (["<think>one</think>"], [None]),
}


def _rewards(function: Function, cases: dict[str, tuple[list[str], list[Any] | None]],
             column: str | None) -> Target:
    return Target(function, functools.partial(reward_probes, cases, column))


OTHERS: dict[str, Target] = {
    "linear_logprobs": Target(linear_logprobs, kernel_probes, frozenset({"hidden", "weight"})),
    "token_logprobs": Target(token_logprobs, token_probes),
    "completion_mask": Target(completion_mask, mask_probes),
    "sample": Target(sample, sampler_probes),
    "AdaptiveKLController": Target(AdaptiveKLController, controller_probes),
    "update_ema": Target(update_ema, ema_probes),
    "accuracy": _rewards(accuracy, ACCURACY, "answer"),
    "format_reward": _rewards(format_reward, FORMAT, None),
    "language_consistency": _rewards(language_consistency, LANGUAGE, "language"),
}
