"""minirl/app/cli.py: what a person types, and what comes back."""

import json
import re
import shutil

import pytest

from minirl.app.cli import COMMANDS, build_parser, main
from minirl.app.commands import configured, given_flags


def refused(capsys, *argv):
    """Run a command that must end with exit code 2 and one line on stderr; return the line."""
    try:
        code = main(list(argv))
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
    return error


@pytest.mark.parametrize("line, says", [
    ("grpo --foo", "unknown argument --foo"), ("grpo --grop-size 4", "did you mean --group-size"),
    ("grp", "invalid choice: 'grp'"), ("grpo --lr abc", "invalid float value"),
    ("grpo --task poetry", "'poetry': one of addition"), ("grpo --digits 9", "digits is 9"),
    ("sft --task instructions", "task is 'instructions': one of addition, subtraction"),
    ("grpo --group-size 1", "group_size is 1"), ("grpo --temperature -1", "temperature is -1"),
    ("grpo --max-new-tokens 0", "max_new_tokens is 0"),
    ("grpo --init nowhere", "no checkpoint at nowhere"),
    ("grpo --preset best", "invalid choice: 'best'"),
    ("grpo --device abacus", "'abacus': auto, cpu or cuda"),
    ("grpo --resume", "there is no run grpo"), ("grpo --resume --run-dir x", "no run to resume"),
    ("sft --dropout 1.5", "dropout is 1.5"),
    ("sample --init nowhere", "no checkpoint at nowhere"),
    ("eval --init nowhere", "no checkpoint"), ("plot", "no run under runs/"),
    ("plot nowhere", "nowhere is no run directory")])
def test_bad_input_ends_in_one_line_that_says_what_to_do(line, says, capsys, inside):
    assert says in refused(capsys, *line.split())
    assert not (inside / "runs").exists(), "a refused command leaves nothing behind"


@pytest.mark.parametrize("line, says", [
    ("--temperature -1", "temperature is -1"), ("--max-new-tokens 0", "max_new_tokens is 0"),
    ("--max-new-tokens 500", "context of 128"), ("1" * 200, "context of 128"), ("-n 0", "n is 0"),
    ("--top-p 0", "top_p is 0")])
def test_bad_sampling_numbers(line, says, capsys, base):
    assert says in refused(capsys, "sample", "--init", str(base), *line.split())


def test_truncated_and_incomplete_checkpoints(capsys, base, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(base, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = refused(capsys, "sample", "--init", str(cut))
    assert "model.safetensors is not what was saved" in said
    (cut / "SHA256SUMS").unlink()                          # as a folder from elsewhere has none
    assert "may be cut short" in refused(capsys, "sample", "--init", str(cut))
    weights.unlink()
    assert "lacks model.safetensors" in refused(capsys, "sample", "--init", str(cut))


def test_sample_shows_every_token_with_its_logprob_on_request(capsys, base):
    numbers = ["-n", "3", "--max-new-tokens", "5", "--seed", "1", "--logprobs"]
    argv = ["sample", "3+4=", "--init", str(base), *numbers]
    assert main(argv) == 0
    out, error = capsys.readouterr()
    assert out.startswith("3+4=\n") and all(f"  {i}. " in out for i in (1, 2, 3))
    assert error == f"checkpoint: {base}\n"
    lines = re.findall(r"log-prob (-?[\d.]+), (\d+) tokens.*?:((?: .*\n)(?: {7}.*\n)*)", out)
    assert len(lines) == 3
    for total, tokens, listed in lines:
        logp = [float(x) for x in re.findall(r":(-?\d+\.\d\d)(?= |$|\n)", listed)]
        assert len(logp) == int(tokens)
        assert sum(logp) == pytest.approx(float(total), abs=0.01 * len(logp))
    main(argv)
    assert capsys.readouterr().out == out


def test_eval_gives_intervals(capsys, base):
    few = ["--problems", "5", "--samples", "4", "--k", "1", "4", "--max-new-tokens", "5"]
    assert main(["eval", "--init", str(base), *few]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1-digit addition\n"), "the task is that of the checkpoint's run"
    for name in ("accuracy", "pass@1", "pass@4"):
        row = re.search(rf"(?m)^{name} +([\d.]+) +([\d.]+) to ([\d.]+)", out)
        mean, low, high = map(float, row.groups())
        assert 0 <= low <= mean <= high <= 1
    many = ["--samples", "4", "--k", "8"]
    said = refused(capsys, "eval", "--init", str(base), *many)
    assert "pass@8 needs at least 8 samples" in said


def test_plot_draws_one_run_or_several(capsys, finished, inside):
    assert main(["plot", str(finished), "-o", "one.png"]) == 0
    assert main(["plot", str(finished), str(finished), "-o", "two.png"]) == 0
    for name in ("one.png", "two.png"):
        assert (inside / name).read_bytes()[:4] == b"\x89PNG"


def test_a_run_directory_is_never_overwritten(capsys, base, finished):
    before = (finished / "summary.json").read_text()
    where = ["--run-dir", str(finished)]
    assert "already holds a run" in refused(capsys, "grpo", "--init", str(base), *where)
    assert "keeps the numbers" in refused(capsys, "grpo", "--resume", *where, "--lr", "1")
    assert main(["grpo", "--resume", *where]) == 0 and "complete" in capsys.readouterr().out
    assert "run of minirl grpo" in refused(capsys, "sft", "--resume", *where)
    assert (finished / "summary.json").read_text() == before


def test_config_json_is_the_object_that_ran(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["grpo"]["steps"] == 4 and config["grpo"]["group_size"] == 3
    assert config["settings"]["digits"] == 1 and config["preset"] == "grpo"
    assert config["task"] == {"name": "addition", "digits": 1}


def test_flags_win_over_the_preset(capsys, base, tmp_path):
    few = ["--digits", "1", "--steps", "1", "--prompts-per-step", "2", "--max-new-tokens", "4",
           "--eval-problems", "2"]
    where = ["--init", str(base), "--run-dir", str(tmp_path / "r")]
    flags = ["--group-size", "2", "--lr", "0.5"]
    assert main(["grpo", *where, "--preset", "trl", *few, *flags]) == 0
    config = json.loads((tmp_path / "r" / "config.json").read_text())["grpo"]
    assert (config["lr"], config["group_size"]) == (0.5, 2)
    assert (config["aggregate"], config["kl_coef"]) == ("token_mean", 0.0)


def test_help_names_every_command_and_flag(capsys):
    parser, commands = build_parser()
    assert set(commands) == set(COMMANDS)
    text = commands["grpo"].format_help()
    for flag in ("--group-size", "--iterations", "--kl-coef", "--aggregate", "--preset",
                 "--resume", "--init", "--dtype", "--task", "--seed"):
        assert flag in text
    assert main([]) == 0 and "grpo" in capsys.readouterr().out


def test_a_flag_reaches_its_own_commands_configuration_alone():
    """GRPO and the SFT of its base model both have lr, beta1 and token_budget. `minirl grpo --lr
    4e-4` once trained the base model with 4e-4, too."""
    def configs(*argv):
        args = build_parser()[0].parse_args(argv)
        return configured(args.command, given_flags(args), args.configs)

    grpo = configs("grpo", "--lr", "0.5", "--token-budget", "7", "--seed", "3")
    assert (grpo["grpo"].lr, grpo["grpo"].token_budget, grpo["settings"].seed) == (0.5, 7, 3)
    assert (grpo["sft"], grpo["base"]) == (configs("sft")["sft"], configs("sft")["base"])
    sft = configs("sft", "--lr", "0.5", "--examples", "9", "--seed", "3")
    assert (sft["sft"].lr, sft["base"].examples, sft["settings"].seed) == (0.5, 9, 3)


def test_inherited_flags_keep_their_help():
    _, commands = build_parser()
    for name in ("ppo", "grpo"):
        text = " ".join(commands[name].format_help().split())
        assert "held-out problems, before and after" in text and "auto, cpu or cuda" in text
    text = " ".join(commands["r1"].format_help().split())
    assert "of each kind: easy, hard, general" in text
    assert "before and after" not in text, "a field that is given anew is explained anew"


@pytest.mark.parametrize("line", [
    "--nosuch", "ppo --whiten-advantages maybe", "grpo --dtype float99", "grpo --compile maybe",
    "grpo --scale std", "grpo --ddof 5", "grpo --beta1 2"])
def test_a_wrong_value_is_one_line_and_leaves_no_run(line, inside, capsys):
    refused(capsys, *line.split())
    assert not list(inside.iterdir())


def test_false_is_false():
    """argparse takes any word for True."""
    _, commands = build_parser()
    for word, value in (("false", False), ("True", True)):
        args = commands["ppo"].parse_args(["--whiten-advantages", word])
        assert args.whiten_advantages is value
