"""What a policy on instructions is worth, on held-out problems: the true reward, the reward model's
score, and the distance from where it started."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from minirl.app.evaluate import distinct_problems
from minirl.app.progress import Progress
from minirl.app.text import code_span, hanging, table
from minirl.equations.inference_time import best_of_n, best_of_n_kl
from minirl.inference.intervals import mean_interval
from minirl.lm.heads import ScalarModel
from minirl.lm.logprobs import rollout_logprobs, token_logprobs
from minirl.lm.rollouts import Rollouts, completion_batch, micro_batches
from minirl.lm.sampling import sample
from minirl.lm.seeds import derive_seed
from minirl.tasks.instructions import Instructions, right_answer, true_reward
from minirl.tasks.problem import Problem, columns
from minirl.train.reward_model import as_reward

TASK = Instructions()
MAX_NEW_TOKENS = 16
SHOWN = 4                      # problems that a run shows


@dataclass(frozen=True)
class Measured:
    """A policy on distinct held-out problems: what people think of it, what the reward model does,
    and how far it went. A number per problem."""

    problems: list[Problem]
    completions: list[str]
    true: list[float]
    right: list[float]
    lengths: list[int]
    scores: list[float]               # the reward model's
    kl: float | None = None           # to the reference, in nats per completion; of best-of-n its bound


def completed(model, tokenizer, n: int, *, group: int = 1, seed: int, split: str = "test",
              max_new_tokens: int = MAX_NEW_TOKENS, temperature: float = 1.0, rows: int = 512,
              progress: Progress | None = None) -> Iterator[tuple[list[Problem], Rollouts]]:
    """`group` completions of each of n problems of a split, so many rows at a time.

    Held-out problems are distinct, and fewer where there are not so many. Those to learn from are
    drawn with replacement, as in training. `progress` is told how many problems are done.
    """
    rng = random.Random(derive_seed(seed, "problems"))
    held_out = split == "test"
    problems = distinct_problems(TASK, n, rng) if held_out else TASK.sample(n, rng, split=split)
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, "sample"))
    size = max(1, rows // group)
    for part in (problems[i:i + size] for i in range(0, len(problems), size)):
        yield part, sample(model, [tokenizer.encode_prompt(p.prompt) for p in part], group=group,
                           max_new_tokens=max_new_tokens, temperature=temperature,
                           eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id, generator=generator)
        if progress is not None:
            progress.update(len(part))


def measure(model, tokenizer, n: int, *, seed: int, reward_model: ScalarModel, reference=None, best_of: int = 1, **sampling) -> Measured:
    """Of `best_of` completions of each of n distinct held-out problems the one that the reward model
    likes best; of one, that one. `sampling` goes to `completed`."""
    found = Measured([], [], [], [], [], [])
    distances = []
    for problems, rollouts in completed(model, tokenizer, n, group=best_of, seed=seed, **sampling):
        ids = rollouts.completion_ids()
        texts, prompts = [tokenizer.decode_completion(row) for row in ids], [p.prompt for p in problems for _ in range(best_of)]
        scores = as_reward(reward_model, tokenizer)(prompts, texts, completion_ids=ids)
        picked = [i * best_of + best_of_n(scores[i * best_of:(i + 1) * best_of]) for i in range(len(problems))]
        kept, known, prompts = [texts[i] for i in picked], columns(problems), [p.prompt for p in problems]
        for column, new in ((found.problems, problems), (found.completions, kept), (found.true, true_reward(prompts, kept, **known)),
                            (found.right, right_answer(prompts, kept, **known)), (found.lengths, [len(ids[i]) for i in picked]), (found.scores, [scores[i] for i in picked])):
            column += new
        if reference is not None and best_of == 1:
            temperature = sampling.get("temperature", 1.0)
            distances += (rollout_logprobs(model, rollouts, temperature=temperature) - rollout_logprobs(reference, rollouts, temperature=temperature)).sum(1).tolist()
    return replace(found, kl=best_of_n_kl(best_of) if best_of > 1 else mean(distances) if distances else None)


@torch.no_grad()
def text_loss(model, tokenizer, encoded: tuple[list[list[int]], list[list[int]]]) -> float:
    """Nats per token of what comes behind prompts, EOS included: of encode_pairs or encode_texts."""
    prompts, completions = encoded
    total, lengths = 0.0, torch.tensor([len(p) + len(c) for p, c in zip(prompts, completions)])
    for part in micro_batches(lengths):
        tokens, mask = completion_batch([prompts[i] for i in part], [completions[i] for i in part], tokenizer.pad_id, model.device)
        total -= float(token_logprobs(model, tokens, mask=mask).double().sum())
    return total / sum(map(len, completions))


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def comparison(found: dict[str, Measured]) -> str:
    """A row per policy, and what the first and the last say to a few problems."""
    policies = list(found.values())
    title = f"{len(policies[0].problems)} distinct held-out instructions"
    rows = [("", "true reward", "right", "reward model", "KL", "tokens")]
    for name, m in found.items():
        rows.append((name, mean_interval(m.true), f"{mean(m.right):.3f}", f"{mean(m.scores):.3f}",
                     "" if m.kl is None else f"{m.kl:.2f}", f"{mean(m.lengths):.1f}"))
    lines = [title, table(rows), ""]
    ends = [list(found.items())[i] for i in (0, -1)]
    width = max(len(name) for name, _ in ends)
    for i, problem in enumerate(policies[0].problems[:SHOWN]):
        lines += hanging("", problem.prompt)
        for name, m in ends:
            verdict = "right" if m.right[i] else "wrong"
            lines += hanging(f"  {name:{width}}  {verdict}  ", m.completions[i])
    return "\n".join(lines)


def markdown(found: Measured) -> str:
    """The first problems with what was said to them, as a list."""
    lines = []
    columns = found.problems, found.completions, found.right, found.true, found.scores
    for problem, completion, right, true, score in list(zip(*columns))[:SHOWN]:
        lines += [f"- {code_span(problem.prompt)} (right: {code_span(problem.answer)})",
                  f"  - {'right' if right else 'wrong'}, true reward {true:.2f}, "
                  f"reward model {score:.2f}: {code_span(completion)}"]
    return "\n".join(lines)


def epochs_table(epochs: Sequence[dict]) -> str:
    """Every other epoch, the chosen one and the one that validation loss would have chosen."""
    least = min(epochs, key=lambda e: e["validation_loss"])
    rows = [("SFT epoch", "validation loss", "reward model", "true reward", "")]
    for epoch in epochs:
        if epoch["epoch"] in (1, 2, 4, 8, 16) or epoch["chosen"] or epoch is least:
            note = " and ".join(n for n, yes in (("chosen", epoch["chosen"]), ("least validation loss", epoch is least)) if yes)
            rows.append((str(epoch["epoch"]), f"{epoch['validation_loss']:.3f}", f"{epoch['score']:.3f}",
                         f"{epoch['true_reward']:.3f}", note))
    return table(rows)
