"""One way to ask a policy: sample completions of a task's problems, decode them and judge them.

Every training page and every evaluation goes through `collect`. Completions are handed to reward
functions as text and as the ids that were sampled, so that nothing is decoded and encoded again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from minirl.inference.sampler import Sampler, rollouts_by
from minirl.inference.tool_use import begin_sessions, call_stops, encode_prompts, replies_of
from minirl.lm.model import Transformer
from minirl.lm.rollouts import Rollouts
from minirl.lm.sampling import check_context
from minirl.lm.text import shortened
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.calls import Tool
from minirl.tasks.environment import EnvironmentFactory, Session, tool_task, with_tools
from minirl.tasks.problem import Problem, Task, columns, listed, weights_of
from minirl.tasks.rewards import judge, weighted_sum
from minirl.tasks.user_rollouts import rollout_of

ROWS = 512        # completions that are sampled together, unless the caller says otherwise
SHOWN = 100       # characters of a prompt in an error
LOOKED_AT = 200   # problems of a split whose lengths stand for all


class Counter(Protocol):
    """What progress is reported to, such as a progress bar."""

    def update(self, n: int = 1, note: str = "") -> None: ...


@dataclass(frozen=True)
class Collected:
    """Completions of P problems, B = P * group rows. Row p * group + g is sample g of problem p.

    problems      P of them
    rollouts      tokens, mask and log-probs, (B, T) each
    completions   B texts
    verdicts      for each reward B numbers, None where there is no verdict
    rewards       (B,) float32 on the CPU: the weighted sum of a row's verdicts, NaN: no verdict
    sessions      with tools: the calls of each of the B completions, and its environment
    weights       how much each reward counts in the sum
    """

    problems: Sequence[Problem]
    rollouts: Rollouts
    completions: list[str]
    verdicts: dict[str, list[float | None]]
    rewards: Tensor
    sessions: Sequence[Session] = ()
    weights: Mapping[str, float] = field(default_factory=dict)


def collect(model: Transformer, tokenizer: Tokenizer, task: Task, problems: Sequence[Problem], *,
            group: int = 1, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0,
            top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
            generator: torch.Generator | None = None, tools: Sequence[Tool] | None = None,
            environment_factory: EnvironmentFactory | None = None) -> Collected:
    """Sample `group` completions of each problem, and judge them by the task's rewards.

    Raises     ValueError for a prompt that does not fit the context, sampling options out of range,
               and a reward function that does not give one number (or None) per completion.
    See        lm.sampling.sample, tasks.rewards.judge, collect_in_parts.

    The rewards that have a weight are asked, in the order of the weights; a reward of weight 0 is
    judged and does not count in the sum. They get the problems' fields as columns, and
    `completion_ids`: the ids of each row, which end with EOS unless it was cut off.

    With `tools` or an `environment_factory`, or a task that has them (a ToolTask), completions may
    call: see tasks.environment. Rewards then get the column `environments`, too. The completions of
    a task with a rollout function are that function's, and rewards get its columns, too: see
    tasks.user_rollouts.
    """
    task = with_tools(task, tools, environment_factory)
    weights = weights_of(task)
    texts = [problem.prompt for problem in problems for _ in range(group)]  # B
    sessions: list[Session] = []
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p,
               "repetition_penalty": repetition_penalty}
    sampler = Sampler(model, tokenizer, group, max_new_tokens, temperature, filters, generator)
    if (rollout := rollout_of(task)) is not None:
        rollouts, more = rollouts_by(rollout, texts, sampler)
    else:
        stops, reply = tokenizer.stop_ids, None
        if (calling := tool_task(task)) is not None:
            sessions, texts = begin_sessions(calling, tokenizer, problems, group)
            stops, reply = call_stops(tokenizer), replies_of(sessions, tokenizer)
        prompt_ids = encode_prompts(tokenizer, texts, sessions)
        rollouts = sampler.rollouts(prompt_ids, eos_id=stops, reply=reply)
        more = {"completion_ids": rollouts.completion_ids()}
    completions = [tokenizer.decode_completion(row) for row in more["completion_ids"]]  # B texts

    by_name = {**columns(problems, repeat=group), **more}  # B entries each
    if sessions:
        by_name["environments"] = [session.environment for session in sessions]
    verdicts = judge(task.rewards, weights, texts, completions, **by_name)
    sums: list[float | None] = [None] * len(completions)
    if verdicts:
        sums = weighted_sum(list(verdicts.values()), list(weights.values()))
    return Collected(problems, rollouts, completions, verdicts, verdict_tensor(sums), sessions,
                     weights)


def check_prompts(tokenizer: Tokenizer, task: Task, *, max_new_tokens: int, context: int) -> None:
    """Raise ValueError where a task's prompts leave no room for completions in a model's context:
    before the first step, and not when the longest of them is drawn."""
    rng = random.Random(0)
    prompts = [problem.prompt for split in ("train", "test")
               for problem in task.sample(LOOKED_AT, rng, split=split)]
    prompts += [problem.prompt for problem in listed(task)]
    sessions: list[Session] = []
    if (calling := tool_task(task)) is not None:
        sessions, _ = begin_sessions(calling, tokenizer, task.sample(1, rng), 1)
    lengths = list(map(len, encode_prompts(tokenizer, prompts, sessions)))
    longest = max(lengths)
    prompt = shortened(prompts[lengths.index(longest)], SHOWN)
    check_context(f"the prompt {prompt!r}", longest, max_new_tokens, context)


def check_rewards(tokenizer: Tokenizer, task: Task) -> Tensor:
    """Raise ValueError where a task's rewards cannot judge: before the first step. They are asked
    about two problems, one solved, the other with a completion that is cut off halfway; what they
    say of them is returned, as Collected.rewards. (2,)"""
    problems = list(task.sample(2, random.Random(0)))
    texts = [f"<think>{problem.worked}</think><answer>{problem.answer}</answer>"
             for problem in problems]
    texts[-1] = texts[-1][:len(texts[-1]) // 2]
    by_name = {**columns(problems), "completion_ids": [tokenizer.encode(text) for text in texts]}
    prompts = [problem.prompt for problem in problems]
    if (calling := tool_task(task)) is not None:
        sessions, prompts = begin_sessions(calling, tokenizer, problems, 1)
        by_name["environments"] = [session.environment for session in sessions]
    weights = weights_of(task)
    verdicts = judge(task.rewards, weights, prompts, texts, **by_name)
    return verdict_tensor(weighted_sum(list(verdicts.values()), list(weights.values())))


def verdict_tensor(verdicts: Sequence[float | None]) -> Tensor:
    """Return verdicts as float32, "no verdict" as NaN. (B,)"""
    return torch.tensor([math.nan if verdict is None else float(verdict) for verdict in verdicts])


def collect_in_parts(model: Transformer, tokenizer: Tokenizer, task: Task,
                     problems: Sequence[Problem], *, group: int = 1, rows: int = ROWS,
                     progress: Counter | None = None, **sampling: Any) -> Iterator[Collected]:
    """`collect` for many problems: parts of at most `rows` completions, one after the other.

    A part has at least one problem. `sampling` goes to `collect`. `progress.update(n)` is called
    after each part of n completions.
    """
    size = max(1, rows // group)
    for start in range(0, len(problems), size):
        part = collect(model, tokenizer, task, problems[start:start + size], group=group,
                       **sampling)
        if progress is not None:
            progress.update(len(part.completions))
        yield part
