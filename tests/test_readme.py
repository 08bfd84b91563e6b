"""The READMEs say what is there: commands parse, files and functions exist, the breakpoint stops at
stage 1."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from minirl.app.cli import build_parser, main
from minirl.app.rundir import RunDir
from minirl.equations.objectives import clipped_surrogate
from minirl.lm.checkpoint import save_pretrained
from minirl.lm.text import columns_of
from minirl.lm.tiny import TinySizes, make_base

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.ko.md"]
TESTS = "python -m pytest -n auto --dist loadfile"


def blocks(text, language=""):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if kind == language]


def joined(block):
    """A block whose commands are a line each."""
    return re.sub(r" *\\\n *", " ", block)


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_every_command_parses(readme):
    parser, _ = build_parser()
    text = readme.read_text(encoding="utf-8")
    lines = [line for block in blocks(text) for line in joined(block).splitlines()]
    in_blocks = [line.split("   ")[0] for line in lines
                 if line.startswith("minirl ") and not line.startswith("minirl grpo:")]
    inline = [command for command in re.findall(r"`(minirl [^`]+)`", text) if "|" not in command]
    assert len(in_blocks) >= 4
    for command in [*in_blocks, *inline]:
        if "--help" not in command:
            parser.parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_files_functions_and_pictures_exist(readme):
    text = readme.read_text(encoding="utf-8")
    rows = re.findall(r"\| (`(?:equations|train|tasks|lm)/[^|]*) \|", text)
    assert len(rows) >= 8
    for row in rows:
        module = None
        for name in re.findall(r"`([^`]+)`", row):
            if name.endswith(".py"):
                assert (ROOT / "minirl" / name).is_file(), name
                module = importlib.import_module("minirl." + name[:-3].replace("/", "."))
            else:
                assert hasattr(module, name), f"{module.__name__} has no {name}"
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_the_breakpoint_stops_at_stage_one(readme):
    text = readme.read_text(encoding="utf-8")
    line = int(re.search(r"break minirl/train/grpo.py:(\d+)", text)[1])
    source = (ROOT / "minirl" / "train" / "grpo.py").read_text(encoding="utf-8").splitlines()
    assert source[line - 2].strip().startswith("# 1. sample")
    assert not source[line - 1].strip().startswith("#")


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_the_two_commands_and_the_code(readme):
    text = readme.read_text(encoding="utf-8")
    commands = "\n".join(blocks(text))
    assert "python -m pip install -c constraints.txt -e . && minirl grpo\n" in commands
    assert f"python -m pip install -c constraints.txt -e '.[test]' && {TESTS}\n" in commands
    for block in blocks(text, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install" in script and "-c constraints.txt -e '.[test]'" in script
    assert f"{TESTS}\n" in script


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_no_line_is_wider_than_a_hundred_columns(readme):
    lines = readme.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if columns_of(line) > 100]


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_the_equation_is_the_library_s(readme):
    """Checks and fields of the docstring are left out. The rest stands in the source."""
    code = blocks(readme.read_text(encoding="utf-8"), "python")
    block, = (block for block in code if "def clipped" in block)
    source = {" ".join(line.split()) for line in inspect.getsource(clipped_surrogate).splitlines()}
    signature, *lines = (" ".join(line.split()) for line in block.splitlines())
    assert signature == ("def clipped_surrogate(logp, old_logp, adv, *, clip_low=0.2, "
                         "clip_high=0.2):")
    for line in lines:
        assert line in source or any(whole.startswith(line) for whole in source), line


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_the_equations_run_by_themselves(readme):
    """A group of rewards 1 0 0 1: std 1/sqrt(3), advantages 0.866 and -0.866, which cancel; what is
    left is 0.04 k3 at a log-ratio of -0.1."""
    code = blocks(readme.read_text(encoding="utf-8"), "python")
    block, = (block for block in code if "group_advantages" in block)
    names = {}
    exec(compile(block, str(readme), "exec"), names)
    assert names["loss"].item() == pytest.approx(0.04 * (0.904837418 + 0.1 - 1), abs=1e-6)
    assert names["logp"].grad.abs().sum() > 0


TEMPLATE = ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}")


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_the_real_model_s_command_runs_on_a_tiny_checkpoint(readme, tmp_path, monkeypatch):
    """The problems that the README's program prints, and its command, with a tiny model."""
    text = readme.read_text(encoding="utf-8")
    program, = (block for block in blocks(text, "python") if "# sums.py" in block)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, str(readme), "exec"), {})
    problems = [json.loads(line) for line in printed.getvalue().splitlines()]
    held_out = {problem["answer"] for problem in problems if problem["split"] == "test"}
    assert len(problems) == 225 and len(held_out) > 20
    monkeypatch.chdir(tmp_path)
    Path("sums.jsonl").write_text(printed.getvalue())
    model, tokenizer = make_base(TinySizes(hidden_size=16, num_layers=1, num_heads=2,
                                           intermediate_size=32), seed=0, device="cpu")
    save_pretrained(model, tokenizer, Path("tiny"))
    Path("tiny/chat_template.jinja").write_text(TEMPLATE)
    command, = (line for block in blocks(text) for line in joined(block).splitlines()
                if line.startswith("minirl grpo") and "--data sums.jsonl" in line)
    command = command.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "tiny").split("   ")[0]
    few = ["--steps", "2", "--eval-problems", "4", "--run-dir", "run"]
    assert main([*shlex.split(command)[1:], *few]) == 0
    assert len(RunDir("run").metrics()) == 2
