"""tutorials/GLOSSARY.md: what it names exists, and every row has both languages."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1]
        for line in (ROOT / "tutorials" / "GLOSSARY.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")]


def test_every_name_of_the_glossary_is_in_the_code():
    source = "\n".join(file.read_text(encoding="utf-8")
                       for file in sorted((ROOT / "minirl").rglob("*.py")))
    words = set(re.findall(r"\w+", source))
    names = [name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])]
    assert len(names) > 50 and len(names) == len(set(names))
    assert not [name for name in names if name not in words]


def test_every_row_has_four_cells_in_two_languages():
    assert len(ROWS) > 45
    for row in ROWS:
        assert len(row) == 4 and all(cell.strip() for cell in row), row
        assert re.search("[가-힣]", row[2]) and not re.search("[가-힣]", row[1]), row
