"""minirl/app/pages.py: HTML files that load nothing."""

import re

import pytest

from minirl.app.pages import DATA, PARTS, write_page
from tests.app.reading import numbers_in


@pytest.mark.parametrize("template", ["trace.html", "report.html"])
def test_a_page_loads_nothing_and_no_text_ends_its_script(template, tmp_path):
    data = {"prompt": "</script><script>alert(1)</script><!--", "한국어": "안녕"}
    write_page(template, data, tmp_path / "x.html")
    html = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert numbers_in(html) == data
    assert html.count("</script>") == 2 and "alert(1)</script>" not in html
    assert not any(place in html for place in (DATA, *PARTS))
    assert not re.findall(r"https?://(?!www.w3.org/2000/svg)|src=|@import|url\(|<link", html)


def test_a_number_that_json_has_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_page("trace.html", {"x": float("nan")}, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
