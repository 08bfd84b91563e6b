"""tutorials/cheat_sheet.py: two pages, whose numbers are those of the equations."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "tutorials"


@pytest.fixture
def sheet(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return runpy.run_path(str(FOLDER / "cheat_sheet.py"))


def test_both_pages_are_drawn(sheet, tmp_path):
    sheet["main"](tmp_path)
    names = ["cheat_sheet.pdf", "cheat_sheet_1.png", "cheat_sheet_2.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert all((FOLDER / "figures" / name).is_file() for name in names)
    assert (tmp_path / "cheat_sheet.pdf").read_bytes().startswith(b"%PDF")


def test_the_tables_by_hand(sheet):
    """Four answers of 2, 3, 3 and 8 tokens: 16 in all. Rewards 1, 0, 0, 0."""
    assert [row[3:] for row in sheet["means_table"]()[1:]] == [
        ["0.1250", "0.0833", "0.0312"], ["0.0625"] * 3, ["0.0312"] * 3, ["0.2500"] * 3]
    assert [row[2:] for row in sheet["advantages_table"]()[1:]] == [
        ["1.5000", "-0.5000"], ["0.7500", "-0.2500"], ["1.0000", "-0.3333"], ["3.0000", "-1.0000"]]
