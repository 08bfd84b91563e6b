"""What a command loads before it does anything. `minirl --help` once took eight seconds, most of
them the compiler, which nothing had asked for."""

import subprocess
import sys

from minirl.app.cli import COMMANDS

HEAVY = ("torch", "numpy", "matplotlib", "tokenizers", "safetensors")
COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "matplotlib")
RUN = """
import contextlib, io, sys
from minirl.app.cli import main
for argv in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    print(code, *[name for name in {names!r} if name in sys.modules])
"""


def loaded(commands, names, cwd):
    """The exit code of each command, and which of the modules are loaded by then."""
    script = RUN.format(commands=commands, names=names)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd,
                          check=True)
    return done.stdout.splitlines()


def test_help_flag_errors_and_the_index_load_no_torch(tmp_path):
    help_of = [[name, "--help"] for name in COMMANDS]
    wrong = [["--nosuch"], ["grp"], ["grpo", "--grop-size", "4"], ["ppo", "--lr", "abc"],
             ["sft", "--preset", "best"]]
    index = [["equations"], ["equations", "--markdown"], ["equations", "--help"]]
    commands = [[], ["--help"], *help_of, *wrong, *index]
    want = ["2" if argv in wrong else "0" for argv in commands]
    assert loaded(commands, HEAVY, tmp_path) == want


def test_nothing_loads_the_compiler_before_something_is_compiled(base, tmp_path):
    """torch.compile loads it when it is called, and an optimizer of torch's when it is made."""
    init = ["--init", str(base), "--max-new-tokens", "4"]
    commands = [["equations", "kl.k3"], ["sample", "1+1=", *init],
                ["eval", "--problems", "4", "--samples", "1", *init],
                ["grpo", *init, "--lr", "-1"]]
    assert loaded(commands, COMPILER, tmp_path) == ["0", "0", "0", "2"]
    tiny = ["--steps", "1", "--prompts-per-step", "2", "--group-size", "2", "--eval-problems", "2",
            "--digits", "1"]
    compiler = [name for name in COMPILER if name != "matplotlib"]     # which draws the curves
    assert loaded([["grpo", *init, *tiny]], compiler, tmp_path) == ["0"]
