"""minirl/lm/files.py: kills, full disks and second processes."""

import errno
import itertools
import os
from pathlib import Path

import pytest
import torch

from minirl.lm.files import LOCK, Lock, NoSpace, replacing, room, settle
from tests.lm.kills import moments, process_that_locks

FULL = Path("/dev/full")                       # a file on a disk that is always full
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def test_tidying_up_may_be_killed_too(tmp_path, monkeypatch):
    """Between the two renames: the new folder is complete, the old one out of the way."""
    numbers = itertools.count()

    def begin():
        folder = tmp_path / str(next(numbers))
        for name in ("final.partial", "final.replaced"):
            (folder / name).mkdir(parents=True)
            (folder / name / "x").write_text(name)
        return folder / "final"

    for final in moments(monkeypatch, begin, settle):
        settle(final)
        assert (final / "x").read_text() == "final.partial"
        assert os.listdir(final.parent) == ["final"]


def test_the_old_folder_comes_back_where_the_new_one_is_gone(tmp_path):
    (tmp_path / "final.replaced").mkdir()
    settle(tmp_path / "final")
    assert os.listdir(tmp_path) == ["final"]


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    def begin():
        (tmp_path / "x.json").write_text("old")
        return tmp_path / "x.json"

    def work(file):
        with replacing(file) as partial:
            partial.write_text("new")

    seen = [file.read_text() for file in moments(monkeypatch, begin, work)]
    assert set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True)


def test_a_file_is_not_written_through_a_link_at_its_partial_name(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "x.partial").symlink_to(tmp_path / "mine")
    with replacing(tmp_path / "x") as partial:
        partial.write_text("new")
    assert (tmp_path / "mine").read_text() == "precious" and (tmp_path / "x").read_text() == "new"


# a full disk

def torch_to_a_path(file):
    torch.save({"x": torch.zeros(1000)}, file)


def torch_to_a_file(file):
    with open(file, "wb") as f:
        torch.save({"x": torch.zeros(1000)}, f)


def text(file):
    file.write_text("x" * 100_000)


def in_an_error_of_our_own(file):
    try:
        text(file)
    except OSError as error:
        raise ValueError("cannot be written") from error


@needs_full
@pytest.mark.parametrize("write", [torch_to_a_path, torch_to_a_file, text, in_an_error_of_our_own])
def test_each_library_says_in_its_own_way_that_the_disk_is_full(write, tmp_path):
    """torch raised "unexpected pos 14848 vs 14742", a RuntimeError: 25 lines of traceback."""
    says = f"no space left in {tmp_path}: make room, and start again"
    with pytest.raises(NoSpace, match=says), room(tmp_path, "start again"):
        write(FULL)


@needs_full
def test_of_nested_rooms_the_outermost_says_what_to_do_then(tmp_path):
    with pytest.raises(NoSpace, match="make room, and start again"):
        with room(tmp_path, "start again"), room(tmp_path / "x"):
            text(FULL)
    with pytest.raises(NoSpace, match="make room, and try again"), room(tmp_path):
        text(FULL)


class SafetensorError(Exception):
    """What safetensors raises is no OSError either."""


@pytest.mark.parametrize("error, says", [
    (SafetensorError("I/O error: No space left on device (os error 28)"), "no space left"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left"),
    (OSError(errno.EIO, "Input/output error"), "^.Errno 5. Input/output error$"),
    (ValueError("lr is -1"), "^lr is -1$"), (ZeroDivisionError("x"), "^x$")])
def test_only_a_full_disk_is_one(error, says, tmp_path):
    wanted = NoSpace if says == "no space left" else type(error)
    with pytest.raises(wanted, match=says), room(tmp_path):
        raise error


def test_another_failed_write_that_a_library_reports_is_an_oserror(tmp_path):
    """A limit on file sizes, a broken disk: the reason comes after torch's "unexpected pos"."""
    says = f"{tmp_path} cannot be written to: .*File too large"
    with pytest.raises(OSError, match=says), room(tmp_path):
        try:
            raise OSError(errno.EFBIG, "File too large")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")


# one process for each folder

def test_a_second_process_is_refused_until_the_first_has_died(tmp_path):
    with process_that_locks(tmp_path) as holder:
        with pytest.raises(ValueError, match=f"is in use by process {holder.pid}: wait for"):
            Lock.of(tmp_path)
    assert Lock.of(tmp_path)
    assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_in_one_process_a_folder_has_one_lock(tmp_path):
    first = Lock.of(tmp_path)
    assert Lock.of(tmp_path) is first


def test_a_lock_does_not_write_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        Lock.of(tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
