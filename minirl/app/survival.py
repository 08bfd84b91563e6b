"""What a run survives: a kill at any moment, power loss, a full disk, a signal, a second process.

Files and folders take their names only when they are complete and on the disk. Nothing here knows
what a run is, and nothing imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from minirl.app.text import visible

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
LOCK = ".lock"
TORN = "unexpected pos", "file write failed"     # torch's words for a file that it could not finish


def warn(text: str) -> None:
    """One line on stderr, of something that does not stop the run."""
    with contextlib.suppress(OSError, ValueError):             # stderr is closed: nobody reads
        print(f"minirl: {visible(' '.join(text.split()))}", file=sys.stderr, flush=True)


# files and folders that appear when they are complete

def partial_of(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def replaced_of(path: Path) -> Path:
    return path.with_name(path.name + ".replaced")


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:                        # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, if there is one. What a link points to stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to; it takes the name when the block ends well."""
    partial = partial_of(path)
    with room(path.parent):
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
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. At every moment the old one or the new one is there and complete.

    A folder cannot take the name of another. So the old one is renamed to *.replaced, the new one
    takes the name, and the old one is deleted; `settle` sorts out what a kill in between leaves.
    """
    partial, replaced = partial_of(path), replaced_of(path)
    with room(path.parent):
        settle(path)
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                sync(file)
            sync(partial)
            if os.path.lexists(path):
                os.replace(path, replaced)
            os.replace(partial, path)
        except Exception:
            settle(path)
            raise
        sync(path.parent)
        remove(replaced)


def settle(path: Path) -> None:
    """Finish or undo what a kill left of writing the file or folder `path`."""
    partial, replaced = partial_of(path), replaced_of(path)
    if os.path.lexists(replaced) and not os.path.lexists(path):    # both are complete
        os.replace(partial if os.path.lexists(partial) else replaced, path)
    remove(partial)
    remove(replaced)


def settle_all(folder: Path) -> None:
    leftovers = [path for path in folder.iterdir() if path.suffix in (".partial", ".replaced")]
    for path in {leftover.with_suffix("") for leftover in leftovers}:
        settle(path)


def delete_folder(path: Path) -> None:
    """Delete a folder of which a kill must not leave a half under its name."""
    remove(partial_of(path))
    os.replace(path, partial_of(path))
    remove(partial_of(path))


# a full disk

class NoSpace(OSError):
    """The disk is full. What was complete before is still there."""


@contextlib.contextmanager
def room(folder: Path, then: str = "go on with --resume") -> Iterator[None]:
    """Turn what the libraries raise where a write fails, each its own way, into one OSError.

    Of several rooms around a write, the outermost knows best what to do then.
    """
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise NoSpace(f"no space left in {folder}: make room, and {then}") from error
        failed = [e for e in chain(error) if isinstance(e, OSError)]
        if failed and not isinstance(error, (OSError, ValueError)):
            raise OSError(f"{folder} cannot be written to: {failed[0]}") from error
        raise


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and the errors that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_is_full(error: Exception) -> bool:
    numbers = {e.errno for e in chain(error) if isinstance(e, OSError) and e.errno is not None}
    said = " ".join(str(e) for e in chain(error))
    return (bool(numbers & {errno.ENOSPC, errno.EDQUOT}) or "No space left" in said
            or not numbers and any(words in said for words in TORN))


# one process for each run

class Lock:
    """A folder that one process may write to. The kernel frees it when the process ends, however.

    The lock is on the file .lock, which holds the process's id. Several Locks of one folder in one
    process are one: `Lock.of(folder)`.
    """

    _held: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()

    def __init__(self, descriptor: int):
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, folder: Path) -> Lock:
        """Raises ValueError, with the other's process id, where another process has it."""
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        if (held := cls._held.get(key)) is not None:
            os.close(descriptor)
            return held
        lock = cls._held[key] = cls(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            del cls._held[key]
            raise ValueError(f"{folder} is in use by process {holder or 'unknown'}: wait for its "
                             "end, or stop it") from None
        except OSError:                                        # a file system that has no locks
            return lock
        with contextlib.suppress(OSError):                     # a full disk
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return lock


# signals

class Stopped(KeyboardInterrupt):
    """A signal ended the run, after what it had reached was saved.

    `code` is what a shell reports of a process that this signal ended.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


@contextlib.contextmanager
def catching_signals(handler: Callable) -> Iterator[None]:
    """handler(number, frame) at SIGINT, SIGTERM and SIGHUP, in the main thread alone.

    A signal that whoever started the process wants ignored (nohup) stays ignored.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: old for number in SIGNALS
                  if (old := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def tell_at_once(text: str) -> None:
    """A line on stderr from a signal handler, which may have come in the middle of a print."""
    with contextlib.suppress(OSError):
        os.write(2, f"\nminirl: {visible(text)}\n".encode())
