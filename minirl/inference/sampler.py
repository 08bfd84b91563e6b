"""How `collect` samples from a policy: with the numbers and the generator of a run. A rollout
function of the user's (tasks/user_rollouts.py) samples with the same object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch

from minirl.lm.logprobs import rollout_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import Rollouts, completion_batch
from minirl.lm.sampling import sample
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.user_rollouts import RolloutError, RolloutFunction

Rows = Sequence[Sequence[Any]]

ROWS = ("prompt_ids", "completion_ids", "logprobs", "env_mask")
ROUNDING = 1e-4        # by which a log-prob may exceed 0
RESERVED = ("prompts", "completions", "environments")     # columns of the rewards that are not its


@dataclass(frozen=True)
class Sampler:
    """What completions are sampled with.

    model, tokenizer   the policy that samples in this step, and its tokenizer
    group              so many prompts in a row are the same, as `collect` asks
    max_new_tokens     of a completion
    temperature        0: greedy
    filters            top_k, top_p, min_p, repetition_penalty: see lm.sampling.sample
    generator          decides every draw; a rollout function may use it for draws of its own
    """

    model: Transformer
    tokenizer: Tokenizer
    group: int
    max_new_tokens: int
    temperature: float
    filters: Mapping[str, Any]
    generator: torch.Generator | None

    def sample(self, prompt_ids: Sequence[Sequence[int]], *, max_new_tokens: int | None = None
               ) -> dict[str, Any]:
        """Sample a completion of each prompt -> prompt_ids, completion_ids, logprobs: lists with an
        entry for each, as a rollout function returns them.

        A completion ends with a stop of the tokenizer, or has max_new_tokens. The next turn's
        prompt is this prompt, this completion and what is said to it, as ids.
        """
        limit = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        rollouts = self.rollouts(prompt_ids, **limit)
        completions = rollouts.completion_ids()
        rows = zip(rollouts.behavior_logp.tolist(), rollouts.prompt_lengths.tolist(), completions,
                   strict=True)
        return {"prompt_ids": [list(ids) for ids in prompt_ids], "completion_ids": completions,
                "logprobs": [row[start:start + len(ids)] for row, start, ids in rows]}

    def rollouts(self, prompt_ids: Sequence[Sequence[int]], **changes: Any) -> Rollouts:
        """Sample a completion of each prompt. Where prompts come in groups, one is read once for
        its group. `changes` are options of lm.sampling.sample."""
        prompts, group = [list(ids) for ids in prompt_ids], self.group
        if prompts != [prompt for prompt in prompts[::group] for _ in range(group)]:
            group = 1
        options = {"max_new_tokens": self.max_new_tokens, "eos_id": self.tokenizer.stop_ids,
                   **changes}
        return sample(self.model, prompts[::group], group=group, temperature=self.temperature,
                      **self.filters, pad_id=self.tokenizer.pad_id, generator=self.generator,
                      **options)


def rollouts_by(function: RolloutFunction, prompts: Sequence[str], sampler: Sampler
                ) -> tuple[Rollouts, dict[str, list[Any]]]:
    """Ask a rollout function for a completion of each prompt -> the rollouts, and the columns for
    the rewards, completion_ids among them.

    Raises     RolloutError where what it returns is not what tasks/user_rollouts.py asks for.

    A completion is cut off where the last id that the policy drew is no stop. What the environment
    wrote counts in max_new_tokens.
    """
    returned = function(list(prompts), sampler)
    if not isinstance(returned, Mapping) or not {"prompt_ids", "completion_ids"} <= {*returned}:
        came = f"the keys {', '.join(map(str, returned))}" if isinstance(returned, Mapping) else (
            f"a {type(returned).__name__}")
        raise RolloutError(f"the rollout function returned {came}: a dict with prompt_ids, "
                           "completion_ids and logprobs is wanted")
    n = len(prompts)
    before, completions, logprobs, own = (_rows(name, returned.get(name), n) for name in ROWS)
    own = own or [[1] * len(ids) for ids in completions]
    _check_ids(before, completions, sampler)
    _check_own(completions, own)
    if logprobs is not None:
        _check_logprobs(completions, logprobs, own)
    columns = {name: _column(name, x, n) for name, x in returned.items() if name not in ROWS}
    return (_laid_out(before, completions, logprobs, own, sampler),
            {"completion_ids": completions, **columns})


def _laid_out(prompts: Rows, completions: Rows, logprobs: Rows | None, own: Rows, sampler: Sampler
              ) -> Rollouts:
    tokenizer, device = sampler.tokenizer, sampler.model.device
    tokens, mask = completion_batch(prompts, completions, tokenizer.pad_id, device,
                                    own_tokens=[[bool(x) for x in row] for row in own])  # (B, T)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,)
    drawn = list(map(_drawn, completions, own))
    truncated = torch.tensor([bool(ids) and ids[-1] not in tokenizer.stop_ids for ids in drawn],
                             device=device)  # (B,)
    nothing = torch.zeros(tokens.shape, device=device)  # (B, T)
    rollouts = Rollouts(tokens, mask, lengths, nothing, truncated)
    if logprobs is None:
        logp = rollout_logprobs(sampler.model, rollouts, temperature=sampler.temperature or 1.0)
    else:
        numbers = torch.tensor([x for row in map(_drawn, logprobs, own) for x in row],
                               dtype=torch.float32, device=device)
        logp = nothing.masked_scatter(mask, numbers)
    return replace(rollouts, behavior_logp=logp)


def _drawn(row: Sequence[Any], own: Sequence[int]) -> list[Any]:
    """What stands beside the ids that the policy drew."""
    return [x for x, its_own in zip(row, own, strict=True) if its_own]


# what a function returned

def _rows(name: str, rows: Any, n: int) -> Any:
    """n lists of numbers, or None."""
    if rows is None and name in ("logprobs", "env_mask"):
        return None
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, (list, tuple))
                                                      for row in rows):
        raise RolloutError(f"{name} is no list of lists: one with a list of numbers for each "
                           "prompt is wanted")
    return _column(name, rows, n)


def _column(name: str, column: Any, n: int) -> list[Any]:
    """A column with an entry for each of n prompts."""
    if name in RESERVED:
        raise RolloutError(f"the rollout function returned a column {name}, which rewards get "
                           "already: give it another name")
    if not isinstance(column, (list, tuple)):
        return [column] * n
    if len(column) != n:
        raise RolloutError(f"{name} has {len(column)} entries: one for each of the {n} prompts is "
                           "wanted, in their order (a prompt comes once for each completion)")
    return list(column)


def _check_ids(prompts: Rows, completions: Rows, sampler: Sampler) -> None:
    config = sampler.model.config
    for name, rows in zip(ROWS, (prompts, completions), strict=False):
        for i, row in enumerate(rows):
            if not row:
                raise RolloutError(f"{name}, row {i}, is empty: at least one id is wanted")
            for id in row:
                if not isinstance(id, Integral) or not 0 <= int(id) < config.vocab_size:
                    raise RolloutError(f"{name}, row {i}, holds the id {id!r}, unknown to the "
                                       f"model: whole numbers in [0, {config.vocab_size}) are "
                                       "wanted")
    for i, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
        if len(ids) > sampler.max_new_tokens:
            raise RolloutError(f"completion_ids, row {i}, has {len(ids)} ids, and max_new_tokens "
                               f"is {sampler.max_new_tokens}, with what the environment wrote: end "
                               "it earlier, or raise max_new_tokens")
        if len(prompt) + len(ids) > config.max_seq_len:
            raise RolloutError(f"row {i} has {len(prompt)} ids of the prompt and {len(ids)} of the "
                               "completion, more than the model's context of "
                               f"{config.max_seq_len}: end it earlier")


def _check_own(completions: Rows, own: Rows) -> None:
    for i, row in enumerate(own):
        _check_length("env_mask", i, row, completions)
        if not {*row} <= {0, 1}:
            raise RolloutError(f"env_mask, row {i}, holds other numbers than 0 and 1")


def _check_logprobs(completions: Rows, logprobs: Rows, own: Rows) -> None:
    for i, row in enumerate(logprobs):
        _check_length("logprobs", i, row, completions)
        for x in _drawn(row, own[i]):
            if not isinstance(x, Real) or not -math.inf < float(x) <= ROUNDING:
                raise RolloutError(f"logprobs, row {i}, holds {x!r}: the log of a probability is "
                                   "wanted, at most 0, for each id that the policy drew (or no "
                                   "logprobs: the policy scores the ids)")


def _check_length(name: str, i: int, row: Sequence[Any], completions: Rows) -> None:
    if len(row) != len(completions[i]):
        raise RolloutError(f"{name}, row {i}, has {len(row)} numbers beside {len(completions[i])} "
                           "of completion_ids: one for each id is wanted")
