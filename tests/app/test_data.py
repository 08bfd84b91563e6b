"""minirl/app/data.py: a user's files at the command line."""

import json
import shutil

import pytest

from minirl.app.cli import main
from minirl.app.data import check_answers, check_unchanged, digest_of, measured_on
from minirl.app.rundir import RunDir
from minirl.app.sums import SumsSettings, pairs_of_file
from minirl.tasks.dataset import load_dataset
from minirl.tasks.user_rewards import with_rewards

ROWS = [{"question": f"{i}+{i}=", "answer": str(2 * i), "topic": "twice"} for i in range(8)]
REWARDS = """
def topical(completions, topic, **_):
    assert set(topic) == {"twice"}
    return [len(completion) / 100 for completion in completions]
"""


def written(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "mine.jsonl")


@pytest.fixture
def learnt(base, tiny_grpo, inside, file, capsys):
    """A run of minirl grpo on the file."""
    (inside / "my_rewards.py").write_text(REWARDS)
    assert main(["grpo", "--data", "mine.jsonl", "--init", str(base), "--run-dir", "run",
                 "--reward", "accuracy", "my_rewards:topical", *tiny_grpo]) == 0
    said = capsys.readouterr().out
    assert "minirl grpo: mine.jsonl, 7 problems and 1 held out, from " in said
    assert "1 distinct held-out problems" in said and "Next: minirl sample  |" in said
    return inside / "run"


def test_grpo_on_a_file(learnt, file):
    """The run keeps what it needs, and another folder finds the file."""
    config = RunDir(learnt).config
    assert config["task"]["name"] == "dataset" and config["task"]["data"] == str(file)
    assert isinstance(config["task"]["math_verify"], bool)
    assert config["files"] == {"data": {"path": str(file), "sha256": digest_of(file)}}
    assert "rewards/topical/mean" in RunDir(learnt).metrics()[-1]


def test_eval_and_sample_ask_what_was_held_out(learnt, file, tmp_path, capsys):
    held_out = load_dataset(file).split["test"][0].prompt
    flags = ["--init", str(learnt / "final"), "--max-new-tokens", "4"]
    assert main(["sample", *flags, "-n", "1"]) == 0
    assert capsys.readouterr().out.startswith(held_out)
    same = shutil.copy(file, tmp_path / "copy.jsonl")
    other = written(tmp_path / "other.jsonl", [*ROWS, {"question": "9+9=", "answer": "18"}])
    for data, name, asked in ((None, "mine.jsonl", 1), (same, "copy.jsonl", 1),
                              (other, "other.jsonl", 9)):
        data_flags = [] if data is None else ["--data", str(data)]
        assert main(["eval", *flags, *data_flags, "--problems", "20", "--samples", "1"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{name}, ") and f"{asked} distinct held-out problems" in said
    assert main(["sample", *flags, "-n", "1", "--data", str(other)]) == 0
    assert "+" in capsys.readouterr().out


def test_which_problems_are_measured(file, tmp_path, capsys):
    run = {"task": {"name": "gsm8k", "data": "/gone/train.jsonl", "eval_data": "/gone/test.jsonl"},
           "files": {"data": {"path": "/gone/train.jsonl", "sha256": digest_of(file)}}}
    assert measured_on(str(file), None, run) == {
        "name": "gsm8k", "data": str(file), "eval_data": "/gone/test.jsonl"}, "what it held out"
    new = {"name": "dataset", "data": str(file), "split": "test"}
    assert measured_on(str(file), None, {}) == new
    assert measured_on(str(file), "gsm8k", {}) == {**new, "name": "gsm8k"}
    other = str(written(tmp_path / "other.jsonl", ROWS[:2]))
    assert measured_on(other, None, run) == {"name": "gsm8k", "data": other, "split": "test"}
    assert not capsys.readouterr().err
    assert measured_on(str(file), None, {**run, "task": {"name": "addition"}}) == new
    assert "has learnt from all of" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the task addition reads no file"):
        measured_on(str(file), "addition", {})


def test_a_run_goes_on_with_the_same_file_alone(learnt, file, capsys):
    """A problem more, and the draws of all later steps were others."""
    last = RunDir(learnt).metrics()[-1]
    shutil.rmtree(learnt / "final")
    shutil.rmtree(learnt / "checkpoint-4")
    content = file.read_text()
    for change, says in ((lambda: file.write_text(content + content[:20]), "has changed since"),
                         (file.unlink, "is gone: restore it, or start a new run")):
        change()
        capsys.readouterr()
        assert main(["grpo", "--resume", "--run-dir", str(learnt)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"minirl grpo: {file}, which --data named, ") and says in error
    file.write_text(content)
    assert main(["grpo", "--resume", "--run-dir", str(learnt)]) == 0
    again = RunDir(learnt).metrics()[-1]
    assert {**again, "step_time": 0} == {**last, "step_time": 0}


def test_a_folder_has_one_digest(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        written(tmp_path / name)
    before = digest_of(tmp_path)
    config = {"files": {"data": {"path": str(tmp_path), "sha256": before}}}
    check_unchanged(config)
    check_unchanged({})
    written(tmp_path / "test.jsonl", ROWS[:2])
    with pytest.raises(ValueError, match="which --data named, has changed"):
        check_unchanged(config)


def test_sft_on_a_task_leaves_out_what_is_held_out(base, file, tmp_path, capsys):
    held_out = load_dataset(file).split["test"][0]
    pairs = pairs_of_file(SumsSettings(task="dataset", data=str(file)))
    assert len(pairs) == 7 and held_out.prompt not in dict(pairs)
    assert ("1+1=", "<think></think><answer>2</answer>") in pairs
    assert len(pairs_of_file(SumsSettings(data=str(file)))) == 8
    flags = ["--init", str(base), "--batch-size", "4", "--data", str(file)]
    task = ["--task", "dataset", "--eval-problems", "4"]
    for more, said in ((task, "accuracy "), ([], "loss ")):
        run = tmp_path / f"run{len(more)}"
        assert main(["sft", *flags, *more, "--run-dir", str(run)]) == 0
        assert capsys.readouterr().out.splitlines()[-2].startswith(said)
        assert main(["eval", "--init", str(run / "final"), "--data", str(file), "--samples", "1",
                     "--max-new-tokens", "4"]) == 0
        out = capsys.readouterr()
        assert f"{1 if more else 8} distinct held-out problems" in out.out
        assert ("has learnt from all of" in out.err) == (not more)


def test_a_base_model_for_a_file_reads_sums(file):
    """minirl grpo --data without --init: the toy has to have read something."""
    from minirl.app.sums import GRPOSettings, sums_of

    assert sums_of(GRPOSettings(data=str(file))).name == "3-digit addition"
    assert sums_of(GRPOSettings(task="subtraction", digits=2)).name == "2-digit subtraction"


def test_the_longest_prompt_of_a_file_is_found_before_the_run(base, tmp_path, capsys):
    """Of a thousand problems 400 are drawn; a long one among the others ended a run in its middle.
    """
    rows = [{"prompt": f"{i}+{i}=", "answer": 2 * i} for i in range(1000)]
    file = written(tmp_path / "a.jsonl", [*rows, {"prompt": "1+" * 100 + "1=", "answer": 101}])
    for seed in ("0", "1"):
        assert main(["grpo", "--data", str(file), "--init", str(base), "--seed", seed]) == 2
        error = capsys.readouterr().err
        assert "the prompt '1+1+" in error and " has 203 tokens" in error and len(error) < 500


def test_problems_without_answers_want_a_reward(tmp_path):
    file = written(tmp_path / "prompts.jsonl", [{"prompt": "Write."}, {"prompt": "Sing."}])
    task = load_dataset(file)
    with pytest.raises(ValueError, match="prompts.jsonl, .* no problem has an answer"):
        check_answers(task)
    with pytest.raises(ValueError, match="no problem has an answer"):
        check_answers(with_rewards(task, {"format_reward": 1.0}, {}))
    check_answers(with_rewards(task, {"mine": 1.0}, {"mine": lambda **_: []}))
