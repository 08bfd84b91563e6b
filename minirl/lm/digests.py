"""SHA256SUMS: a digest beside the files of a checkpoint, so that one flipped bit is found.

The file is that of the command `sha256sum`, so that `sha256sum -c SHA256SUMS` checks it, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


class DigestError(ValueError):
    """A file that is not the one that was sealed."""


def seal(folder: str | Path, *names: str) -> None:
    """Write the digests of `names` into folder/SHA256SUMS, and keep the other lines.

    Without names: of every regular file in the folder, and of no other.
    """
    folder = Path(folder)
    sums = read(folder) if names else {}
    names = names or [file.name for file in folder.iterdir() if file.is_file()
                      and not file.is_symlink() and not file.name.startswith(SUMS)]
    sums |= {name: digest(folder / name) for name in names}
    partial = folder / f"{SUMS}.partial"
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, folder / SUMS)


def verify(folder: str | Path, *names: str) -> None:
    """Compare the files `names` (without names: all that are listed) with folder/SHA256SUMS.

    A name that is not listed, or a folder without a SHA256SUMS, was never sealed: nothing to
    compare. Raises DigestError, naming the file, if one differs or is missing.
    """
    folder = Path(folder)
    sums = read(folder)
    for name in names or sums:
        if name not in sums:
            continue
        if not (folder / name).is_file():
            raise DigestError(f"{folder / name} is missing, but {SUMS} lists it: restore it, or "
                              f"delete {folder / SUMS} if it was meant to go")
        if digest(folder / name) != sums[name]:
            raise DigestError(f"{folder / name} is not what was saved: its digest differs from "
                              f"the one in {SUMS}. Restore it, or delete {folder / SUMS} if the "
                              "change was meant")


def read(folder: Path) -> dict[str, str]:
    """folder/SHA256SUMS as file name -> digest; {} where there is none."""
    file = folder / SUMS
    if not file.is_file():
        return {}
    text = file.read_bytes().decode(errors="replace").removesuffix("\n")
    matches = [LINE.fullmatch(line) for line in text.split("\n")]
    if not all(matches):
        raise DigestError(f"{file} is damaged: each line is a digest and a file's name; restore "
                          "it, or delete it to load without a comparison")
    sums = {match[2]: match[1] for match in matches}
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DigestError(f"{file} lists {name!r}, which leads out of its folder: restore or "
                              "delete it")
    return sums


def digest(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as content:
        while part := content.read(1 << 20):
            sha.update(part)
    return sha.hexdigest()
