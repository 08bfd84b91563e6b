"""Which groups a step learns from: sampled, judged, and drawn again where they teach nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from minirl.equations.advantages import dynamic_sampling, zero_spread
from minirl.equations.rewards import overlong_penalty
from minirl.inference.collect import Collected, collect
from minirl.lm import world
from minirl.lm.model import Transformer
from minirl.lm.rollouts import Rollouts
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import Task
from minirl.train.metrics import Sums, check_judged


class GroupConfig(Protocol):
    """The fields of a page's configuration that are read here."""

    @property
    def prompts_per_step(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def filters(self) -> dict[str, Any]: ...
    @property
    def dynamic_sampling(self) -> bool: ...
    @property
    def max_draws(self) -> int: ...
    @property
    def overlong_cache(self) -> int: ...


def score(answers: Collected, model: Transformer, tokenizer: Tokenizer, task: Task,
          config: GroupConfig, seed_of: Callable[..., int], sums: Sums
          ) -> tuple[Collected, Tensor, Tensor]:
    """Return the groups of a step, what their advantages are made of, and the rows to learn from.

    Shapes     P groups -> P' >= P groups, rewards (P', G), NaN: no verdict, rows (B',)
    Raises     ValueError where no completion got a verdict.

    The rewards are lowered by DAPO's overlong penalty, where there is one. Dynamic sampling and the
    metrics see them without it: completions that are equally wrong teach nothing, however long they
    are. Metrics are of all groups that were drawn, those without spread too: they describe the
    policy, and not a choice of its completions.
    """
    answers = fill_up(answers, model, tokenizer, task, config, seed_of)
    rewards = check_judged(answers.rewards).view(-1, config.group_size)  # (P', G)
    sums.add("frac_reward_zero_std", zero_spread(rewards).float())
    kept = dynamic_sampling(rewards) if config.dynamic_sampling else torch.ones(len(rewards)).bool()
    if config.max_draws > 1:
        sums.add("dynamic_sampling/drawn", world.total(float(len(kept))))
        sums.add("dynamic_sampling/kept", world.total(float(kept.sum())))
    if config.overlong_cache:
        lengths = answers.rollouts.completion_lengths.cpu().view_as(rewards)
        penalty = overlong_penalty(lengths, max_length=config.max_new_tokens,
                                   cache=config.overlong_cache)  # (P', G), -1 to 0
        sums.add("rewards/overlong_penalty/mean", penalty)
        rewards = rewards + penalty
    chosen = kept.repeat_interleave(config.group_size).nonzero().squeeze(1)  # (B',)
    return answers, rewards, chosen.to(answers.rollouts.tokens.device)


def fill_up(answers: Collected, model: Transformer, tokenizer: Tokenizer, task: Task,
            config: GroupConfig, seed_of: Callable[..., int]) -> Collected:
    """DAPO's dynamic sampling: draw more prompts until as many groups differ as were asked for.

    Paper      DAPO, arXiv:2503.14476, section 3.2 and algorithm 1, lines 4 to 8: a batch that is
               not full is filled up before the update.

    Each draw has as many prompts as groups are missing, so no group that differs is thrown away
    (the paper draws whole batches). After `max_draws` draws, the first one included, the batch
    stays smaller. Returned are all groups that were drawn.
    """
    if not config.dynamic_sampling:
        return answers
    wanted = len(answers.problems)
    for draw in range(1, config.max_draws):
        kept = dynamic_sampling(answers.rewards.view(-1, config.group_size))  # (P',)
        missing = wanted - int(kept.sum())
        if missing == 0:
            break
        place = (draw, *world.place())
        problems = task.sample(missing, random.Random(seed_of("problems", *place)))
        generator = torch.Generator(model.device).manual_seed(seed_of("sample", *place))
        more = collect(model, tokenizer, task, problems, group=config.group_size,
                       max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                       **config.filters, generator=generator)
        answers = joined(answers, more, tokenizer.pad_id)
    return answers


def joined(first: Collected, second: Collected, pad_id: int) -> Collected:
    """Return the groups of both, one after the other."""
    a, b = first.rollouts, second.rollouts
    width = max(a.tokens.shape[1], b.tokens.shape[1])
    rollouts = Rollouts(**{
        field.name: torch.cat([
            widened(getattr(x, field.name), width, pad_id if field.name == "tokens" else 0)
            for x in (a, b)])
        for field in fields(Rollouts)})
    verdicts = {name: [*column, *second.verdicts[name]] for name, column in first.verdicts.items()}
    return replace(first, problems=both(first.problems, second.problems), rollouts=rollouts,
                   completions=first.completions + second.completions, verdicts=verdicts,
                   rewards=torch.cat([first.rewards, second.rewards]),
                   sessions=both(first.sessions, second.sessions))


def both(first: Sequence, second: Sequence) -> list:
    return [*first, *second]


def widened(x: Tensor, width: int, fill: float) -> Tensor:
    """Return (B, T) as (B, width), filled up on the right; (B,) as it is."""
    return x if x.dim() == 1 else torch.nn.functional.pad(x, (0, width - x.shape[1]), value=fill)
