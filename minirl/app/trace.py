"""minirl trace: one step of GRPO or PPO on one prompt, token by token, in the terminal and as one
HTML file that loads nothing."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirl.app.commands import check_looking, check_out, open_checkpoint, trained_on
from minirl.app.pages import write_page
from minirl.lm.checkpoint import load_reward_model
from minirl.lm.files import read_json
from minirl.lm.heads import ScalarModel
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.text import table, visible
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.problem import JudgedTask, Problem, Task, weights_of
from minirl.tasks.tools import ToolError, calculate
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.instructgpt import scored_by
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.presets import PRESETS
from minirl.train.step_trace import StepTrace, traced

Config = GRPOConfig | PPOConfig

# Each number of a token: its symbol, and what it is, with the token's own numbers for {names}.
EXPLAIN = {
    "logp": ("log π", "the policy's, at this update"),
    "old_logp": ("log π_old", "the policy's, before the first update"),
    "ratio": ("ρ", "exp(log π - log π_old) = exp({logp} - {old_logp})"),
    "adv": ("A", ""),
    "objective": ("L", ""),
    "clipped": ("clipped", "no gradient by L, although A is not 0"),
    "weight": ("w", "what the token counts for: --importance and its like"),
    "ref_logp": ("log π_ref", "the reference's"),
    "kl": ("KL", ""),
    "loss": ("part of the loss", "-(L and its other terms), times its weight in the mean"),
    "coefficient": ("∂loss/∂log π", "negative: the update makes this token likelier"),
    "gradient_share": ("part of the gradient", "∂loss/∂log π · ⟨∇log π, g⟩ / |g|², 1 in all"),
    "logp_after": ("log π after", "moved by {change} in this update"),
    "entropy": ("H", "entropy of the distribution that the token was drawn from, in nats"),
    "behavior_logp": ("log μ", "the sampler's, when it drew this token"),
    "reward": ("r", "-β log(π_old/π_ref); at the last token also the completion's score"),
    "old_value": ("V_old", "the value function before the first update"),
    "return": ("R", "Σ (γλ)^l δ_(t+l) + V_old: what V learns"),
    "value": ("V", "the value function at this update"),
    "value_loss": ("L_V", "max((V - R)², (V clipped to V_old ± ε - R)²) / 2"),
}
CLIPPED = "min(ρ A, clip(ρ, {low}, {high}) A) = min({ratio} · {adv}, clip({ratio}) · {adv})"
KL = {"k3": "exp(d) - d - 1, where d = log π_ref - log π = {ref_logp} - {logp}",
      "corrected_k3": "ρ times k3 (DeepSeek-V3.2, eq. 7)", "k2": "(log π - log π_ref)² / 2"}


@dataclass(frozen=True)
class OneProblem(JudgedTask):
    """A task of one problem, judged as the task is that it comes from."""

    problem: Problem = field(kw_only=True)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> Sequence[Problem]:
        return [self.problem] * n


def command_trace(args: argparse.Namespace) -> None:
    check_looking(args)
    check_out(args.out)
    if args.answer is not None and args.prompt is None:
        raise ValueError(f"--answer {args.answer!r} is given without a prompt: name it with "
                         "--prompt")
    if args.row is not None and not 1 <= args.row <= args.group_size:
        raise ValueError(f"--row is {args.row}: 1 to {args.group_size} is wanted, the completions "
                         "of the step")
    args.init = args.checkpoint
    path, model, tokenizer = open_checkpoint(args)
    page, config, preset = what_to_do(args, read_json(Path(path).parent / "config.json"))
    task, reward_model = trained_on(path, quiet=True), None
    if args.reward_model is not None:
        reward_model, _ = load_reward_model(args.reward_model, device=model.device)
        task = scored_by(reward_model, tokenizer, task)
    task = with_one_problem(task, args.prompt, args.answer, args.seed)
    with compute_in(args.dtype, model.device):
        trace = run(page, model, tokenizer, task, config, preset, reward_model, args.seed)
    data = describe(page, preset, str(path), trace, tokenizer)
    write_page("trace.html", data, args.out)
    print(f"checkpoint: {path}", file=sys.stderr)
    print(report(data, args.row))
    if all(update["grad_norm"] == 0 for update in data["updates"]):
        print("\nThe gradient is 0: all completions got the same reward. Try another --seed, a "
              "harder --prompt or a larger --group-size")
    print(f"\n{args.out} shows all of it, with an equation for each number: open it in a browser")


def what_to_do(args: argparse.Namespace, run: Mapping[str, Any]
               ) -> tuple[str, Config, str]:
    """Return the page, its configuration and preset: those of the checkpoint's run, as far as it
    has them and no flag says otherwise."""
    page = args.page or ("ppo" if run.get("command") == "ppo" else "grpo")
    same = page == run.get("command") and args.preset is None
    preset = args.preset or (run["preset"] if same else next(iter(PRESETS[page])))
    if preset not in PRESETS[page]:
        raise ValueError(f"{page} has no preset {preset!r}: one of {', '.join(PRESETS[page])} is "
                         "wanted")
    numbers = dict(run[page]) if same else dict(PRESETS[page][preset].numbers)
    numbers |= {"steps": args.steps, "warmup_steps": 0, "temperature": args.temperature,
                "max_new_tokens": args.max_new_tokens}
    if args.lr is not None:
        numbers["lr"] = args.lr
    if page == "grpo":
        return page, GRPOConfig(**numbers | {
            "prompts_per_step": 1, "group_size": args.group_size, "iterations": args.updates,
            "minibatches": 1, "min_lr_ratio": 1.0, "dynamic_sampling": False}), preset
    return page, PPOConfig(**numbers | {
        "episodes": args.group_size, "epochs": args.updates, "minibatch_size": args.group_size}
        ), preset


def with_one_problem(task: Task, prompt: str | None, answer: str | None, seed: int) -> Task:
    """Return a task of one problem, judged as `task` judges: one that it draws, or this prompt."""
    if prompt is None:
        problem = task.sample(1, random.Random(seed))[0]
    elif answer is not None:
        problem = Problem(prompt, answer)
    else:
        try:
            problem = Problem(prompt, calculate(prompt.strip().rstrip("= ")))
        except ToolError as error:
            raise ValueError(f"the answer to {prompt!r} is not known ({error}): say what is right "
                             "with --answer") from error
    return OneProblem(task, task.rewards, weights_of(task), problem=problem)


def run(page: str, model: Transformer, tokenizer: Tokenizer, task: Task, config: Config,
        preset: str, reward_model: ScalarModel | None, seed: int) -> StepTrace:
    """Train for config.steps steps and return the trace of the last."""
    arguments: dict[str, Any] = PRESETS[page][preset].arguments(config)
    if page == "ppo":
        arguments["value_model"] = reward_model
    function: Callable[..., Transformer] = train_grpo if page == "grpo" else train_ppo
    with traced(function, config.steps - 1) as tracer:
        function(model, tokenizer, task, config, seed=seed, **arguments)
    if tracer.trace is None:
        raise ValueError("the step made no update: no completion could be learnt from")
    return tracer.trace


# what is shown

def describe(page: str, preset: str, checkpoint: str, trace: StepTrace, tokenizer: Tokenizer
             ) -> dict[str, Any]:
    """Return all that trace.html shows, as JSON holds it."""
    answers, updates = trace.answers, trace.updates
    rewards = [None if r.isnan() else float(r) for r in answers.rewards]
    numbers = next(iter(updates[0].rows.values()))
    names = [name for name in EXPLAIN if name in numbers]
    rows = []
    for row, ids in enumerate(answers.rollouts.completion_ids()):
        rows.append({
            "tokens": [visible(tokenizer.token(i)) for i in ids],
            "reward": rewards[row],
            "verdicts": {name: column[row] for name, column in answers.verdicts.items()},
            "truncated": bool(answers.rollouts.truncated[row]),
            "updates": [update.rows.get(row) for update in updates]})  # None: not learnt from
    return {"page": page.upper(), "preset": preset, "checkpoint": checkpoint,
            "prompt": answers.problems[0].prompt, "answer": answers.problems[0].answer,
            "lr": trace.config.lr, "names": names, "rows": rows,
            "updates": [{"loss": x.loss, "grad_norm": x.grad_norm} for x in updates],
            "explain": explanations(page, preset, trace, names)}


def explanations(page: str, preset: str, trace: StepTrace, names: Sequence[str]
                 ) -> dict[str, tuple[str, str]]:
    """Return symbol and equation of each number, as this configuration computes it."""
    config = trace.config
    special = PRESETS[page][preset].functions
    texts = {name: EXPLAIN[name] for name in names}
    own = f"preset {preset}'s, see train/presets.py"
    low, high = f"{1 - config.clip_low:g}", f"{1 + config.clip_high:g}"
    objective = special.get("objective")
    is_clip = objective is None or objective is PRESETS["grpo"]["grpo"].functions["objective"]
    dual = getattr(config, "dual_clip", 0)
    texts["objective"] = "L", (CLIPPED.replace("{low}", low).replace("{high}", high) + (
        f", and at least {dual:g} A where A < 0" if dual else "") if is_clip else own)
    if page == "ppo":
        texts["adv"] = "A", "Σ (γλ)^l δ_(t+l), δ_t = r_t + γ V_(t+1) - V_t" + (
            ", whitened over the batch" if config.whiten_advantages else "")
    elif special.get("advantages") is PRESETS["grpo"]["grpo"].functions["advantages"]:
        texts["adv"] = "A", "(reward - mean)" + {
            "group": " / std, of its group", "batch": " of its group / std of the batch",
            "none": " of its group"}[config.scale]
    else:
        texts["adv"] = "A", own
    if "kl" in names:
        estimator = "k3" if page == "ppo" else config.kl_estimator
        texts["kl"] = "KL", KL[estimator] + (
            "; a metric, as PPO's KL is in its rewards" if page == "ppo" else
            f"; β = {config.kl_coef:g}")
    return texts


def report(data: Mapping[str, Any], row: int | None) -> str:
    """Return the completions of the step, and one of them token by token, at the last update."""
    rows, last = data["rows"], len(data["updates"]) - 1
    shares = [sum(x for x in (numbers or {}).get("gradient_share", ()) if x is not None)
              for numbers in (r["updates"][last] for r in rows)]
    if row is None:            # the one that the update owes most to
        row = max(range(len(rows)), key=lambda i: abs(shares[i])) + 1
    lines = [f"one {data['page']} step on {visible(data['prompt'])!r}, preset {data['preset']}, lr "
             f"{data['lr']:g}: {len(rows)} completions, {last + 1} update"
             f"{'s' if last else ''}", ""]
    cells = [("completion", "reward", "tokens", "of the gradient")]
    for i, (r, share) in enumerate(zip(rows, shares, strict=True)):
        text = "".join(r["tokens"])
        reward = "none" if r["reward"] is None else f"{r['reward']:.2f}"
        cells.append((f"{i + 1} {text}", reward, str(len(r["tokens"])), f"{share:+.1%}"))
    lines += [table(cells), "", f"completion {row}, update {last + 1} of {last + 1}"]
    return "\n".join([*lines, token_table(rows[row - 1], last)])


def token_table(row: Mapping[str, Any], update: int) -> str:
    numbers = row["updates"][update]
    if numbers is None:
        return "was not learnt from"
    named = [("old_logp", "log π_old", ".3f"), ("logp", "log π", ".3f"), ("ratio", "ρ", ".3f"),
             ("adv", "A", "+.2f"), ("kl", "KL", ".3f"), ("value", "V", "+.2f"),
             ("gradient_share", "of ∇", "+.1%"), ("logp_after", "after", ".3f")]
    named = [(name, head, form) for name, head, form in named if name in numbers]
    cells = [("token", *(head for _, head, _ in named))]
    for t, token in enumerate(row["tokens"]):
        if numbers["logp"][t] is None:
            cells.append((f"{token} (given)", *("" for _ in named)))
            continue
        clipped = {"ratio": "*" if numbers["clipped"][t] else " "}
        cells.append((token, *(f"{numbers[name][t]:{form}}{clipped.get(name, '')}"
                               for name, _, form in named)))
    return table(cells) + ("\n* clipped: no gradient" if any(numbers["clipped"]) else "")
