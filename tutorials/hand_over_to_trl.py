"""Train with minirl, and go on with TRL: the same checkpoint folder, reward function and data file.

    python -m pip install -c constraints.txt -e '.[parity]'
    python tutorials/hand_over_to_trl.py                          a tiny stand-in, half a minute
    python tutorials/hand_over_to_trl.py --model FOLDER           a real one: SmolLM2, Qwen, Llama
    python tutorials/hand_over_to_trl.py --model FOLDER --data problems.jsonl

What is handed over is in three places, and none of them is converted:

    the checkpoint   what save_pretrained writes: config.json, model.safetensors, tokenizer.json,
                     tokenizer_config.json and the chat template, in Hugging Face's layout
    the reward       hand_over/reward.py, a function f(completions, **columns)
    the data         hand_over/problems.jsonl, one JSON object a line, prompts as messages

What is not handed over is the optimizer: TRL begins with fresh moments. Between the two trainings
the script asks both libraries about the same checkpoint: logits, ids of the prompts, greedy
continuations, and the reward of the same completions. At the end minirl reads what TRL saved.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hand_over.reward import right_number
from minirl.inference.collect import Collected, collect
from minirl.lm.chat import Chat
from minirl.lm.checkpoint import load_pretrained, save_pretrained
from minirl.lm.model import Transformer
from minirl.lm.sampling import sample
from minirl.lm.tiny import TinySizes, make_base
from minirl.lm.tokenizer import Tokenizer, build_tokenizer
from minirl.tasks.dataset import load_dataset
from minirl.tasks.problem import Problem, Task, listed
from minirl.tasks.user_rewards import with_rewards
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.sft import SFTConfig, train_sft

DATA = Path(__file__).parent / "hand_over" / "problems.jsonl"
TEMPLATE = ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant] {% endif %}")
TOLERANCE = 2e-4         # of logits: the two add up in another order


def main() -> None:
    args = arguments()
    be_quiet()
    task = read_task(args.data)
    if args.model is None:
        print("a tiny stand-in; --model FOLDER takes a real checkpoint")
        model, tokenizer = stand_in(listed(task))
    else:
        model, tokenizer = load_pretrained(args.model, dtype=torch.float32)
    tokenizer = tokenizer.with_chat(Chat())                # as TRL does with prompts of messages
    with tempfile.TemporaryDirectory() as scratch:
        hand_over(model, tokenizer, task, args, Path(args.out or scratch))


def hand_over(model: Transformer, tokenizer: Tokenizer, task: Task, args: argparse.Namespace,
              out: Path) -> Transformer:
    """Train with minirl, compare, train with TRL, and read back what TRL saved."""
    report("before", model, tokenizer, task, args)

    train_grpo(model, tokenizer, task, minirl_config(args), seed=0)
    save_pretrained(model, tokenizer, out / "from-minirl")
    report(f"after {args.steps} steps of minirl", model, tokenizer, task, args)

    compare(out / "from-minirl", model, tokenizer, task, args)

    trainer = trl_trainer(out / "from-minirl", out / "trl", args)
    trainer.train()
    rewards = [f"{line['reward']:.3f}" for line in trainer.state.log_history if "reward" in line]
    print(f"reward in TRL's steps: {' '.join(rewards)}")
    trainer.save_model(str(out / "from-trl"))              # weights, configuration and tokenizer

    back, tokenizer_back = load_pretrained(out / "from-trl", dtype=torch.float32)
    tokenizer_back.chat = tokenizer.chat
    prompts = tokenizer.encode_prompts(problem.prompt for problem in listed(task)[:8])
    assert prompts == tokenizer_back.encode_prompts(p.prompt for p in listed(task)[:8])
    difference = largest_difference(back, trainer.model.eval(), prompts)
    moved = max(float((a - b).detach().abs().max()) for a, b in
                zip(model.parameters(), back.parameters(), strict=True))
    print(f"back in minirl: logits differ from TRL's model by {difference:.1e} at most; "
          f"a weight moved by {moved:.1e}"
          + ("" if moved else ", as all rewards of each group were equal"))
    assert difference < TOLERANCE
    report(f"after {args.steps} steps of TRL", back, tokenizer_back, task, args)
    return back


def be_quiet() -> None:
    """No progress bars, and no warnings of what transformers will do in its next version."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="IProgress not found")        # in a notebook
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


# the same numbers on both sides: tutorials/TRL.md has every field

def minirl_config(args: argparse.Namespace) -> GRPOConfig:
    return GRPOConfig(steps=args.steps, prompts_per_step=args.prompts, group_size=args.group,
                      max_new_tokens=args.tokens, lr=args.lr, warmup_steps=0, min_lr_ratio=1.0,
                      kl_coef=0.0)


def trl_trainer(folder: Path, out: Path, args: argparse.Namespace) -> Any:
    """Return TRL's trainer: it reads model, tokenizer and chat template from the folder itself."""
    from datasets import load_dataset as read
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig as TheirConfig
    from trl import GRPOTrainer

    config = TheirConfig(
        max_steps=args.steps, per_device_train_batch_size=args.prompts * args.group,
        num_generations=args.group, max_completion_length=args.tokens, learning_rate=args.lr,
        lr_scheduler_type="constant", loss_type="grpo", beta=0.0, temperature=1.0, seed=0,
        model_init_kwargs={"dtype": "float32"}, use_cpu=True, bf16=False,
        output_dir=str(out), save_strategy="no", logging_steps=1,
        report_to="none", disable_tqdm=True)
    data = read("json", data_files=str(args.data), split="train", cache_dir=str(out / "cache"))
    trainer = GRPOTrainer(model=str(folder), args=config, reward_funcs=right_number,
                          train_dataset=data)
    trainer.remove_callback(PrinterCallback)               # a line of twenty metrics at each step
    return trainer


# what both see in one folder

def compare(folder: Path, model: Transformer, tokenizer: Tokenizer, task: Task,
            args: argparse.Namespace) -> None:
    """Ask transformers about the folder, and stop where it is not what minirl has."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    problems = task.sample(8, random.Random(0))
    prompts = tokenizer.encode_prompts(problem.prompt for problem in problems)

    ids = [their_tokenizer.apply_chat_template(list(problem.prompt.messages), tokenize=True,
                                               add_generation_prompt=True)["input_ids"]
           for problem in problems]
    print(f"ids of {len(ids)} prompts, {sum(map(len, ids))} in all: the same")
    assert ids == prompts

    difference = largest_difference(model, theirs, prompts)
    print(f"logits: differ by {difference:.1e} at most")
    assert difference < TOLERANCE

    ours = sample(model, prompts, max_new_tokens=args.tokens, temperature=0,
                  eos_id=tokenizer.stop_ids, pad_id=tokenizer.pad_id).completion_ids()
    continuations = [greedy(theirs, prompt, tokenizer, args.tokens) for prompt in prompts]
    print(f"greedy continuations, {sum(map(len, ours))} tokens: the same, such as "
          f"{tokenizer.decode_completion(ours[0])!r}")
    assert ours == continuations

    answers = ask(model, tokenizer, task, args)
    rewards = their_rewards(their_tokenizer, answers)
    print(f"reward of {len(rewards)} completions: the same, {sum(rewards) / len(rewards):.3f} in "
          "the mean")
    assert rewards == answers.rewards.tolist()


@torch.no_grad()
def largest_difference(model: Transformer, theirs: Any, prompts: list[list[int]]) -> float:
    """Return the largest difference of two models' logits after these prompts."""
    return max(float((model(ids) - theirs(ids).logits).abs().max())
               for ids in (torch.tensor([prompt]) for prompt in prompts))


def greedy(theirs: Any, prompt: list[int], tokenizer: Tokenizer, tokens: int) -> list[int]:
    row = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
                          max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_id,
                          eos_token_id=tokenizer.stop_ids)
    return row[0, len(prompt):].tolist()


def their_rewards(tokenizer: Any, answers: Collected) -> list[float]:
    """Decode and judge minirl's completions as TRL does: without special tokens, as messages."""
    texts = tokenizer.batch_decode(answers.rollouts.completion_ids(), skip_special_tokens=True)
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    group = len(texts) // len(answers.problems)
    right = [problem.answer for problem in answers.problems for _ in range(group)]
    return torch.tensor(right_number(completions=completions, answer=right)).tolist()   # float32


# task, model and report

def read_task(data: Path) -> Task:
    """Return the file's problems, judged by the reward alone. TRL trains on all of them, too."""
    return with_rewards(load_dataset(data, split="train"), {"right_number": 1.0},
                        {"right_number": right_number})


def stand_in(problems: Sequence[Problem], *, sums: int = 6000) -> tuple[Transformer, Tokenizer]:
    """Return a tiny model with a chat template. It has read sums, two of five with a guess."""
    tokenizer = build_tokenizer([f"[user] {problem.prompt}\n[assistant] " for problem in problems],
                                vocab_size=300)
    model, _ = make_base(TinySizes(hidden_size=64, num_heads=4, intermediate_size=256), seed=0,
                         device="cpu", tokenizer=tokenizer)
    tokenizer = tokenizer.with_chat(Chat(), TEMPLATE)
    rng = random.Random(0)
    pairs = [(problem.prompt, problem.answer if rng.random() < 0.6 else str(rng.randrange(19)))
             for problem in rng.choices(problems, k=sums)]
    train_sft(model, tokenizer, pairs, SFTConfig())
    return model, tokenizer


def ask(model: Transformer, tokenizer: Tokenizer, task: Task, args: argparse.Namespace
        ) -> Collected:
    """Return 4 completions each of some problems, the same ones at every call."""
    return collect(model, tokenizer, task, task.sample(args.asked, random.Random(1)), group=4,
                   max_new_tokens=args.tokens, generator=torch.Generator().manual_seed(1))


def report(when: str, model: Transformer, tokenizer: Tokenizer, task: Task,
           args: argparse.Namespace) -> None:
    mean = ask(model, tokenizer, task, args).rewards.mean()
    print(f"mean reward {when}: {mean:.3f}", flush=True)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint folder instead of the stand-in")
    parser.add_argument("--data", type=Path, default=DATA, help="JSON lines: prompt, answer")
    parser.add_argument("--out", type=Path, help="where both checkpoints go, and stay")
    parser.add_argument("--steps", type=int, default=10, help="of each library")
    parser.add_argument("--prompts", type=int, default=8, help="in a step")
    parser.add_argument("--group", type=int, default=8, help="completions of each prompt")
    parser.add_argument("--tokens", type=int, default=8, help="of a completion, at most")
    parser.add_argument("--asked", type=int, default=64, help="problems for each mean reward")
    parser.add_argument("--lr", type=float, default=2e-3, help="for a real model: 1e-6")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
