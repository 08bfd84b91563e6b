"""minirl/app/user_code.py: rewards that a user brings to minirl grpo, from the first word to a run
that goes on after one of them failed."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.app.user_code import imported, rewarded, rolled_out
from minirl.inference.collect import collect
from minirl.lm.checkpoint import load_pretrained
from minirl.tasks.arithmetic import Arithmetic
from minirl.tasks.rewards import accuracy
from minirl.tasks.user_rollouts import rollout_of
from tests.app.test_cli import refused
from tests.app.test_survival import outcome

ROOT = Path(__file__).parents[2]

# What is in the file `fault`, such as "raise 6", happens at a call, here the sixth: preflight,
# before, step 1, step 2, its samples, step 3.
MINE = '''
import asyncio, pathlib, sys, time

calls = 0

def short(completions, **_):
    global calls
    calls += 1
    file = pathlib.Path(__file__).with_name("fault")
    fault, call = file.read_text().split() if file.exists() else ("", 0)
    if calls == int(call):
        if fault == "raise": {}["solution"]
        if fault == "hang": time.sleep(600)
        if fault == "exit": sys.exit(0)
        if fault == "few": return [0.0]
    return [-len(text) / 100 for text in completions]

async def judged(completions, answer, **_):
    await asyncio.sleep(0.01)
    return [float(text.count(a[0])) for text, a in zip(completions, answer)]

def last(completion_ids, **_):
    return [ids[-1] / 1000 if ids else None for ids in completion_ids]

number = 3

asked = 0

def turns(prompts, sampler):
    global asked
    asked += 1
    file = pathlib.Path(__file__).with_name("turn")
    if file.exists() and asked == int(file.read_text()): {}["turn"]
    tokenizer = sampler.tokenizer
    first = sampler.sample([tokenizer.encode_prompt(p) for p in prompts], max_new_tokens=4)
    texts = map(tokenizer.decode_completion, first["completion_ids"])
    return {**first, "letters": [len(text) for text in texts]}

def few_letters(letters, **_):
    return [-n for n in letters]
'''
FLAGS = ["--reward", "mine:short", "mine:judged", "--reward", "mine:last", "accuracy",
         "--reward-weights", "1", "-0.5", "2", "1", "--reward-timeout", "1.5"]


@pytest.fixture
def folder(inside, monkeypatch):
    """A folder with mine.py, from which commands are started."""
    (inside / "mine.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield inside
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def undisturbed(base, tiny_grpo, tmp_path_factory):
    """A run with these rewards in which nothing went wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "mine.py").write_text(MINE)
    before, path = os.getcwd(), [*sys.path]
    os.chdir(folder)
    assert main(start(base, folder / "run", tiny_grpo)) == 0
    os.chdir(before)
    sys.path[:] = path
    sys.modules.pop("mine")
    return folder / "run"


def start(base, run, flags):
    return ["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(run), *flags, *FLAGS]


def test_a_run_with_rewards_of_ones_own(undisturbed):
    """Their verdicts are logged by name, and so are those of the task's own rewards. The reward is
    their sum with the weights."""
    config = json.loads((undisturbed / "config.json").read_text())["settings"]
    assert config["reward"] == ["mine:short", "mine:judged", "mine:last", "accuracy"]
    assert config["reward_weights"] == [1, -0.5, 2, 1] and config["reward_timeout"] == 1.5
    for line in RunDir(undisturbed).metrics():
        short, judged, last, right = (line[f"rewards/{name}/mean"]
                                      for name in ("short", "judged", "last", "accuracy"))
        assert line["reward"] == pytest.approx(short - 0.5 * judged + 2 * last + right, abs=1e-5)
        assert line["rewards/format_reward/mean"] == 0.0 and short < 0 < last


@pytest.mark.parametrize("fault, says", [
    ("raise", "the reward 'short' raised KeyError: 'solution' (mine.py, line 12); the first "),
    ("hang", "the reward 'short' gave no result within 1.5 s for 6 completions; the first "),
    ("exit", "the reward 'short' raised SystemExit: 0 (mine.py, line 14); the first "),
    ("few", "the reward 'short' gave 1 of them: a list of one number (or None) for each of the 6")])
def test_a_run_that_a_reward_ended_goes_on_when_it_is_repaired(
        fault, says, folder, base, undisturbed, tiny_grpo, capsys):
    """Exit code 2 and one line; then weights and metrics as if nothing had happened, bit for bit.
    """
    (folder / "fault").write_text(f"{fault} 6")
    assert main(start(base, folder / "run", tiny_grpo)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"minirl grpo: after step 2 of 4: {says}")
    assert "completion was '" in said
    assert said.endswith(f"go on with minirl grpo --resume --run-dir {folder}/run")
    assert RunDir(folder / "run").checkpoints() == [2] and not (folder / "run" / "final").exists()
    (folder / "fault").unlink()
    assert main(["grpo", "--resume", "--run-dir", str(folder / "run")]) == 0
    assert outcome(folder / "run") == outcome(undisturbed)


@pytest.mark.slow
def test_a_process_of_its_own_that_hangs(folder, base, undisturbed, tiny_grpo):
    """In Python that catches every Exception, and before the first checkpoint."""
    source = MINE.replace("time.sleep(600)", "in_spite_of_errors()") + '''
def in_spite_of_errors():
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass
'''
    (folder / "mine.py").write_text(source)
    (folder / "fault").write_text("hang 3")
    command = [sys.executable, "-m", "minirl"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *start(base, "run", tiny_grpo)], env=environment, timeout=120,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "minirl grpo: after step 0 of 4: the reward 'short' gave no result within 1.5 s" in (
        done.stderr)
    (folder / "fault").unlink()
    done = subprocess.run([*command, "grpo", "--resume", "--run-dir", "run"], env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcome(folder / "run") == outcome(undisturbed)


def test_a_run_whose_rewards_are_gone_says_so(folder, base, tiny_grpo, capsys):
    (folder / "fault").write_text("raise 6")
    assert main(start(base, folder / "run", tiny_grpo)) == 2
    capsys.readouterr()
    (folder / "mine.py").unlink()
    sys.modules.pop("mine")
    said = refused(capsys, "grpo", "--resume", "--run-dir", str(folder / "run"))
    assert "mine:short cannot be imported: ModuleNotFoundError: No module named 'mine'" in said


@pytest.mark.parametrize("flags, says", [
    ("--reward mine:nosuch", "mine:nosuch cannot be imported: AttributeError"),
    ("--reward nosuch:f", "nosuch:f cannot be imported: ModuleNotFoundError"),
    ("--reward mine.py:short", "'mine.py:short' is no function: expected module:function"),
    ("--reward mine:number", "mine:number is a int, and no function"),
    ("--reward broken:f", "broken:f cannot be imported: SyntaxError"),
    ("--reward leaving:f", "leaving:f cannot be imported: SystemExit: 3"),
    ("--reward short", "no reward 'short': the task has accuracy, format_reward"),
    ("--reward mine:short other:short", "two rewards are called short"),
    ("--reward accuracy accuracy", "two rewards are called accuracy"),
    ("--reward minirl.tasks.rewards:accuracy", "a reward of its own that is called accuracy"),
    ("--reward other:needs_solution", "'needs_solution' cannot be called .*'solution'"),
    ("--reward other:raising", "'raising' raised ZeroDivisionError: division by zero .other.py, "
                               "line 3.; the completion was '<think>"),
    ("--reward other:two", "'two' gave 3 of them: .* for each of the 2 completions"),
    ("--reward other:endless --reward-timeout 0.2", "'endless' gave no result within 0.2 s"),
    ("--reward mine:short --reward-weights 1 2", "has 2 numbers beside 1 of reward"),
    ("--reward-weights 1", "has 1 numbers beside 0 of reward"),
    ("--reward mine:short --reward-weights nan", "reward_weights is nan"),
    ("--reward mine:short --reward-weights inf", "reward_weights is inf"),
    ("--reward mine:short --reward-weights much", "invalid float value: 'much'"),
    ("--reward mine:short accuracy --reward-weights 0 0", "weight of every reward is 0"),
    ("--preset maxrl --reward mine:short", "give -0.42 and -0.2 for a right answer and one "
                                           "that is cut off, and preset maxrl cannot learn"),
    ("--preset maxrl --reward accuracy --reward-weights -1", "give -1 and 0 .* preset maxrl"),
    ("--reward mine:short --reward-timeout -1", "reward_timeout is -1"),
    ("--reward mine:short --reward-timeout nan", "reward_timeout is nan"),
    ("--reward-timeout 5", "--reward-timeout is given, but there is no --reward"),
    ("--reward", "expected at least one argument")])
def test_what_cannot_work_is_one_line_before_there_is_a_folder(flags, says, folder, base, capsys):
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "leaving.py").write_text("import sys; sys.exit(3)\n")
    (folder / "other.py").write_text('''
def raising(**_):
    return [1 / 0]

def two(completions, **_):
    return [0.0] * (len(completions) + 1)

def endless(**_):
    while True: pass

def short(**_): pass

def needs_solution(completions, solution, **_): pass
''')
    said = refused(capsys, "grpo", "--init", str(base), "--digits", "1", *flags.split())
    assert re.search(says, said), said
    assert not (folder / "runs").exists()
    for name in ("other", "broken", "leaving"):
        sys.modules.pop(name, None)


def test_sft_has_no_rewards(capsys, inside):
    assert "unknown argument --reward" in refused(capsys, "sft", "--reward", "mine:short")


def test_imported_looks_into_the_current_folder_first(folder):
    (folder / "json.py").write_text("")                    # what is loaded already stays
    assert imported("mine:short").__name__ == "short" and imported("json:dumps") is json.dumps
    assert imported("mine:short") and sys.path.count(str(folder)) == 1


# rollouts

def start_rollouts(base, run, flags):
    return ["grpo", "--init", str(base), "--digits", "1", "--run-dir", str(run), *flags,
            "--rollout", "mine:turns", "--reward", "accuracy", "mine:few_letters"]


def test_a_run_whose_completions_a_function_makes(folder, base, tiny_grpo, capsys):
    """Its reward reads a column that only the function's completions have. A function that raises
    ends the run with a line, and the run goes on as if it had not, bit for bit."""
    assert main(start_rollouts(base, folder / "whole", tiny_grpo)) == 0
    config = json.loads((folder / "whole" / "config.json").read_text())["settings"]
    assert config["rollout"] == "mine:turns"
    for line in RunDir(folder / "whole").metrics():
        assert line["rewards/few_letters/mean"] < 0 and line["completions/max_length"] <= 4
    sys.modules.pop("mine")
    (folder / "turn").write_text("5")                      # before, step 1, step 2, samples, step 3
    capsys.readouterr()
    assert main(start_rollouts(base, folder / "run", tiny_grpo)) == 2
    line = MINE.splitlines().index(
        '    if file.exists() and asked == int(file.read_text()): {}["turn"]') + 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "minirl grpo: after step 2 of 4: the rollout function 'turns' raised KeyError: 'turn' "
        f"(mine.py, line {line}). Repair it, and go on with minirl grpo --resume --run-dir "
        f"{folder}/run")
    (folder / "turn").unlink()
    assert main(["grpo", "--resume", "--run-dir", str(folder / "run")]) == 0
    assert outcome(folder / "run") == outcome(folder / "whole")


@pytest.mark.parametrize("flags, says", [
    ("--rollout mine:nosuch", "mine:nosuch cannot be imported: AttributeError"),
    ("--rollout mine", "'mine' is no function: expected module:function"),
    ("--rollout mine:few_letters", "the rollout function cannot be called .*: it takes the prom"),
    ("--rollout mine:turns --task products --tools calculator", "sums has tools, and a rollout fu"),
    ("--rollout mine:turns --reward nosuch", "there is no reward 'nosuch'")])
def test_a_rollout_function_that_cannot_be_is_refused(flags, says, folder, base, capsys):
    said = refused(capsys, "grpo", "--init", str(base), "--digits", "1", *flags.split())
    assert re.search(says, said), said
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("readme", ["README.md", "README.ko.md"])
def test_the_readmes_function(readme, folder, base, tiny_grpo):
    """Each completion begins with <think>, which the policy did not draw."""
    code, = re.findall(r"^```python\n(def thinking_first.*?)^```$",
                       (ROOT / readme).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (folder / "my_rollouts.py").write_text(code)
    task = rolled_out(Arithmetic(digits=1), "my_rollouts:thinking_first")
    model, tokenizer = load_pretrained(base)
    got = collect(model, tokenizer, task, task.sample(3, random.Random(0)), group=2,
                  max_new_tokens=8)
    sys.modules.pop("my_rollouts")
    assert all(text.startswith("<think>") for text in got.completions)
    starts = got.rollouts.prompt_lengths
    assert not got.rollouts.mask[torch.arange(6), starts].any()
    assert got.rollouts.mask[torch.arange(6), starts + 1].all()


def test_rolled_out(folder):
    task = Arithmetic()
    assert rolled_out(task, None) is task
    assert rollout_of(rolled_out(task, "mine:turns")).__name__ == "turns"


def test_rewarded(folder):
    task = Arithmetic()
    assert rewarded(task, (), (), seconds=1.0) is task
    judged = rewarded(task, ("mine:last", "accuracy"), (), seconds=1.0)
    assert judged.weights == {"accuracy": 1.0, "format_reward": 0.0, "last": 1.0}
    assert judged.rewards["accuracy"] is accuracy


def test_a_run_with_tools(folder, tiny_grpo, base):
    flags = ["--task", "products", "--tools", "calculator", "--max-new-tokens", "17"]
    assert main([*start(base, "run", tiny_grpo), *flags]) == 0
    line = RunDir("run").metrics()[-1]
    assert {"tools/call_frequency", "rewards/short/mean", "rewards/call_cost/mean"} <= set(line)
