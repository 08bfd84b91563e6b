"""Pages: HTML files that load nothing, and show numbers that stand in them as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

DATA = "/*DATA*/null"                                   # where a template wants its numbers,
PARTS = {"/*PAGE.CSS*/": "page.css", "/*PAGE.JS*/": "page.js"}  # and what all of them share


def write_page(template: str, data: Mapping[str, Any], out: Path) -> None:
    """Write a template of this folder, with the numbers in it. No text in them can end the script:
    "<" is escaped."""
    numbers = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    folder = resources.files("minirl.app")
    page = folder.joinpath(template).read_text(encoding="utf-8")
    for place, name in PARTS.items():
        page = page.replace(place, folder.joinpath(name).read_text(encoding="utf-8"))
    out.write_text(page.replace(DATA, numbers), encoding="utf-8")
