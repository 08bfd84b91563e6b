"""minirl/app/equations.py: the index says what the code says, and nothing in it hangs in the air."""

import doctest
from pathlib import Path

import pytest

from minirl.app.cli import main
from minirl.app.equations import entries, markdown_index, run_example, show_equation, show_index

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = entries()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_equation_has_a_paper_a_file_and_a_test(entry):
    paper, _, name, file, tests, _ = entry.row
    assert paper and "Equation" in entry.fields
    assert (ROOT / file).is_file() and tests != "-", f"{name} has no test in tests/equations/test_{entry.module}.py"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_example_gives_what_the_docstring_says(entry):
    shown = run_example(entry).split()
    for example in doctest.DocTestParser().get_examples(entry.doc):
        assert " ".join(example.want.split()) in " ".join(shown)


def test_the_page_is_not_stale():
    assert (ROOT / "tutorials/EQUATIONS.md").read_text(encoding="utf-8") == markdown_index(), "run: minirl equations --markdown > tutorials/EQUATIONS.md"


# the papers of a reader's notes: each must be findable by the name that the paper gives the thing
@pytest.mark.parametrize("name, paper, equation", [
    ("kl.k3", "DeepSeekMath, arXiv:2402.03300", "eq. 4"), ("objectives.clipped_surrogate", "PPO, arXiv:1707.06347", "eq. 7"),
    ("advantages.gae", "GAE, arXiv:1506.02438", "eqs. 9 and 16"), ("preferences.ranking_loss", "InstructGPT, arXiv:2203.02155", "eq. 1"),
    ("objectives.ptx_objective", "InstructGPT, arXiv:2203.02155", "eq. 2"), ("preferences.dpo_loss", "DPO, arXiv:2305.18290", "eq. 7"),
    ("objectives.sequence_ratio", "GSPO, arXiv:2507.18071", "eq. 7"), ("coefficients.grpo_coefficient", "DeepSeekMath, arXiv:2402.03300", "eq. 21"),
    ("kl.AdaptiveKLController", "Ziegler et al., arXiv:1909.08593", "section 2.2"), ("inference_time.pass_at_k", "Codex, arXiv:2107.03374", "eq. 1"),
    ("advantages.optimal_baseline", "Weaver and Tao 2001", "-"), ("objectives.clipped_value_loss", "none", "-")])
def test_rows_read_from_docstrings(name, paper, equation):
    entry, = (entry for entry in ENTRIES if entry.name == name)
    assert (entry.paper, entry.equation) == (paper, equation) and f"  {entry.function} " in show_index()


def test_one_equation_with_its_source_and_example(capsys):
    assert main(["equations", "kl.k3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("minirl/equations/kl.py:") and "def k3(" in out and "torch.expm1(log_ratio) - log_ratio" in out
    assert out.rstrip().endswith("tensor([0.1931])") and out.count(">>>") == 2
    assert show_equation("gae") == show_equation("advantages.gae")


def test_an_unknown_equation_names_those_near_it(capsys):
    assert main(["equations", "kl.k33"]) == 2
    assert "there is no equation 'kl.k33' (near it: kl.k3" in capsys.readouterr().err
