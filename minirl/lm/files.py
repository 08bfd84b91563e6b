"""Files and folders that survive a kill, power loss, a full disk and a second process.

A file or folder gets its name only when it is complete and on the disk. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
TRY_AGAIN = "try again"
TORN = "unexpected pos", "file write failed"  # torch's words for a file that it could not finish


# files and folders that appear when they are complete

def partial_of(path: Path) -> Path:
    """Return the name under which `path` is written."""
    return path.with_name(path.name + ".partial")


def replaced_of(path: Path) -> Path:
    """Return the name that the old folder has while the new one takes its place."""
    return path.with_name(path.name + ".replaced")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, if it exists. The target of a link stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


@contextlib.contextmanager
def replacing(path: Path, then: str = TRY_AGAIN) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; it is renamed to `path` after the block.

    Where the block raises an error, the old file stays as it was.
    """
    partial = partial_of(path)
    with room(path.parent, then):
        remove(partial)
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
        except Exception:
            remove(partial)
            raise
        sync(path.parent)


@contextlib.contextmanager
def replacing_folder(path: Path, then: str = TRY_AGAIN) -> Iterator[Path]:
    """Do the same for a folder. At every moment the old one or the new one exists and is complete.

    A folder cannot be renamed over another one. So the old one is renamed to *.replaced, the new
    one takes its name, and the old one is deleted. `settle` repairs what a kill in between leaves.
    """
    partial, old = partial_of(path), replaced_of(path)
    with room(path.parent, then):
        settle(path)
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                sync(file)
            sync(partial)
            if os.path.lexists(path):
                os.replace(path, old)
            os.replace(partial, path)
        except Exception:
            settle(path)
            raise
        sync(path.parent)
        remove(old)


def settle(path: Path) -> None:
    """Finish or undo the writing of the file or folder `path` that a kill interrupted."""
    partial, old = partial_of(path), replaced_of(path)
    if os.path.lexists(old) and not os.path.lexists(path):  # both are complete
        os.replace(partial if os.path.lexists(partial) else old, path)
    remove(partial)
    remove(old)


def settle_all(folder: Path) -> None:
    """Settle every file and folder in `folder` whose writing was interrupted."""
    leftovers = [path for path in folder.iterdir() if path.suffix in (".partial", ".replaced")]
    for path in {leftover.with_suffix("") for leftover in leftovers}:
        settle(path)


def delete_folder(path: Path) -> None:
    """Delete a folder so that a kill never leaves half of it under its name."""
    remove(partial_of(path))
    os.replace(path, partial_of(path))
    remove(partial_of(path))


# a full disk

class NoSpace(OSError):
    """The disk is full. Files that were complete before are still there."""


@contextlib.contextmanager
def room(folder: Path, then: str = TRY_AGAIN) -> Iterator[None]:
    """Raise NoSpace where the block fails because the disk is full, whatever a library raised.

    The message advises to make room and then do `then`. Blocks may be nested: the advice of the
    outermost one is given. A write that fails for another reason raises OSError.
    """
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise NoSpace(f"no space left in {folder}: make room, and {then}") from error
        os_errors = [e for e in chain(error) if isinstance(e, OSError)]
        if os_errors and not isinstance(error, (OSError, ValueError)):
            raise OSError(f"{folder} cannot be written to: {os_errors[0]}") from error
        raise


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_is_full(error: Exception) -> bool:
    """Return whether an error, or one that caused it, says that the disk is full."""
    numbers = {e.errno for e in chain(error) if isinstance(e, OSError) and e.errno is not None}
    messages = " ".join(str(e) for e in chain(error))
    if numbers & {errno.ENOSPC, errno.EDQUOT} or "No space left" in messages:
        return True
    return not numbers and any(words in messages for words in TORN)


# one process for each run

class Lock:
    """The right to write to a folder, which one process at a time has.

    The lock is on the file .lock, which holds the process's id. The kernel frees it when the
    process ends, even by a kill. `Lock.of(folder)` returns the same lock each time in one process.
    """

    _held: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()

    def __init__(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, folder: Path) -> Lock:
        """Take the lock. Raises ValueError, with the other's id, where another process has it."""
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        if (own := cls._held.get(key)) is not None:
            os.close(descriptor)
            return own
        lock = cls._held[key] = cls(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            del cls._held[key]
            raise ValueError(f"{folder} is in use by process {holder or 'unknown'}: wait for its "
                             "end, or stop it") from None
        except OSError:  # a file system that has no locks
            return lock
        with contextlib.suppress(OSError):  # a full disk
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return lock


# reading

def read_json(path: Path) -> dict:
    """Return the JSON object in a file; {} where there is no file.

    Raises ValueError, naming the file, where it is broken, nested too deeply, or holds a number too
    long to read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:    # of the decoder, of UTF-8, of int()
        raise ValueError(f"{path} is not valid JSON ({error}): it may be cut short; restore "
                         "it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: a JSON object is wanted")
    return content
