"""The commands that look: `minirl sample`, `minirl eval`."""

from __future__ import annotations

import torch

from minirl.app.evaluate import evaluate
from minirl.app.text import table, wilson_interval
from minirl.lm.precision import compute_in
from minirl.lm.sampling import sample


def show_samples(model, tokenizer, prompts: list[str], *, n: int, temperature: float, top_k: int, top_p: float, max_new_tokens: int, seed: int, dtype: str) -> str:
    """n completions of each prompt, each with its log-prob and those of its tokens."""
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    generator = torch.Generator(model.device).manual_seed(seed)
    with compute_in(dtype, model.device):
        rollouts = sample(model, ids, group=n, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                          eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id, generator=generator)
    lines = []
    for row, completion in enumerate(rollouts.completion_ids()):
        if row % n == 0:
            lines.append(prompts[row // n])
        logp = rollouts.behavior_logp[row][rollouts.mask[row]].tolist()
        end = ", cut off" if rollouts.truncated[row] else ""
        lines.append(f"  {row % n + 1}. {tokenizer.decode_completion(completion)}")
        lines.append(f"     log-prob {sum(logp):.3f}, {len(completion)} tokens{end}: " + " ".join(f"{tokenizer.token(i)!s}:{x:.2f}" for i, x in zip(completion, logp)))
    return "\n".join(lines)


def show_evaluation(model, tokenizer, task, *, problems: int, samples: int, ks: list[int], temperature: float, max_new_tokens: int, seed: int, dtype: str) -> str:
    """Accuracy and unbiased pass@k on held-out problems, each with its 95 % interval."""
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(f"pass@{k} needs at least {k} samples per problem, and k at least 1; --samples is {samples}")
    with compute_in(dtype, model.device):
        result = evaluate(model, tokenizer, task, n=problems, samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    means = {"accuracy": result.accuracy, **{f"pass@{k}": result.pass_at(k) for k in ks}}
    rows = [(f"{problems} held-out problems, {samples} samples each, temperature {temperature:g}", "", "95 % interval")]
    rows += [(name, f"{mean:.3f}", "{:.3f} to {:.3f}".format(*wilson_interval(mean, problems))) for name, mean in means.items()]
    rows += [(f"{name}, mean", f"{mean:.3f}", "") for name, mean in result.rewards.items() if name != "accuracy"]
    rows += [("response length, tokens", f"{result.mean_length:.1f}", ""), ("cut off", f"{result.truncated:.3f}", "")]
    return table(rows)
