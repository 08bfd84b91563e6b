"""SHA256SUMS: the digests of a checkpoint's files, so that a single flipped bit is noticed.

The format is that of the command `sha256sum`: `sha256sum -c SHA256SUMS` checks it, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


class DigestError(ValueError):
    """A file is missing, or has changed since its digest was written."""


def seal(folder: str | Path, *names: str) -> None:
    """Write the digests of the files `names` into folder/SHA256SUMS, and keep its other lines.

    Without names, write those of all regular files in the folder, and keep no other line.
    """
    folder = Path(folder)
    sums = read(folder) if names else {}
    every = [file.name for file in folder.iterdir() if file.is_file()
             and not file.is_symlink() and not file.name.startswith(SUMS)]
    sums |= {name: digest(folder / name) for name in names or every}
    partial = folder / f"{SUMS}.partial"
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, folder / SUMS)


def verify(folder: str | Path, *names: str) -> None:
    """Compare the files `names`, without names all that are listed, with folder/SHA256SUMS.

    A file that is not listed is not compared, nor is any in a folder without a SHA256SUMS. Raises
    DigestError, naming the file, if one differs or is missing.
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
    """Return folder/SHA256SUMS as file name -> digest; {} where there is no such file."""
    file = folder / SUMS
    if not file.is_file():
        return {}
    text = file.read_bytes().decode(errors="replace").removesuffix("\n")
    sums = {}
    for line in text.split("\n"):
        match = LINE.fullmatch(line)
        if match is None:
            raise DigestError(f"{file} is damaged: each line is a digest and a file's name; "
                              "restore it, or delete it to load without a comparison")
        sums[match[2]] = match[1]
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DigestError(f"{file} lists {name!r}, which leads out of its folder: restore or "
                              "delete it")
    return sums


def digest(file: Path) -> str:
    """Return the SHA-256 digest of a file."""
    sha = hashlib.sha256()
    with file.open("rb") as content:
        while part := content.read(1 << 20):
            sha.update(part)
    return sha.hexdigest()
