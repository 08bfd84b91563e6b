"""minirl/app/equations.py: the command `minirl equations`."""

from minirl.app.cli import main
from minirl.testing.index import entries, markdown_index, show_index


def test_one_equation_with_its_source_and_example(capsys):
    assert main(["equations", "kl.k3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("minirl/equations/kl.py:")
    assert "def k3(" in out and "torch.expm1(log_ratio) - log_ratio" in out
    assert out.rstrip().endswith("tensor([0.1931])") and out.count(">>>") == 2


def test_the_whole_index_as_text_and_as_markdown(capsys):
    assert main(["equations"]) == 0
    assert capsys.readouterr().out == show_index() + "\n"
    assert main(["equations", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown_index()


def test_an_unknown_equation_names_those_near_it(capsys):
    assert main(["equations", "kl.k33"]) == 2
    assert "there is no equation 'kl.k33' (near it: kl.k3" in capsys.readouterr().err


def test_tests_and_tutorials_of_an_equation_come_with_their_paths(capsys):
    """A reader of one function looks next for where it is checked and where it is shown."""
    shown = next(entry for entry in entries() if entry.tutorials)
    assert main(["equations", shown.name]) == 0
    place, tests, tutorials, *_ = capsys.readouterr().out.splitlines()
    assert place == f"{shown.file}:{shown.line}"
    assert tests == f"tests: {', '.join(shown.tests)}"
    assert tutorials == f"tutorials: {', '.join(shown.tutorials)}"
    assert shown.tutorials[0].startswith("tutorials/")
