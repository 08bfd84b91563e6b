"""tutorials/FAQ.md and its Korean twin: fifteen questions, whose numbers are computed there."""

import doctest
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "tutorials"
PAGES = [FOLDER / "FAQ.md", FOLDER / "FAQ.ko.md"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_of(page):
    return re.findall(r"(?ms)^```python\n(.*?)^```$", page.read_text(encoding="utf-8"))


@pages
def test_the_numbers_are_those_that_the_page_computes(page):
    test = doctest.DocTestParser().get_doctest("\n".join(code_of(page)), {}, page.name, None, 0)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted >= 35 and result.failed == 0


@pages
def test_each_answer_is_short_and_leads_on(page):
    """At most five lines of text, a tutorial, and a place where somebody asked."""
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## (\d+)\. ", text) == [str(n) for n in range(1, 16)]
    for answer in re.split(r"(?m)^## ", text)[1:]:
        prose = answer.split("```")[0].strip().splitlines()[1:]
        assert len([line for line in prose if line]) <= 5, prose
        assert re.search(r"\]\(https://github\.com/[\w.-]+/[\w.-]+/issues/\d+\)", answer)
        tutorials = re.findall(r"\]\((\d\d_\w+(?:\.ko)?\.ipynb)\)", answer)
        assert tutorials and all((FOLDER / name).is_file() for name in tutorials)


def test_both_languages_compute_the_same():
    english, korean = (re.sub(r"#.*", "", "\n".join(code_of(page))) for page in PAGES)
    assert english == korean
