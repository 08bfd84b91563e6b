"""SHA256SUMS: what was sealed is what is read."""

import shutil
import subprocess

import pytest

from minirl.lm.digests import seal, verify


@pytest.fixture
def folder(tmp_path):
    for name, content in (("a.txt", b"one"), ("b with space.bin", b"\x00" * 3000), ("ü", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    return tmp_path


def lines(folder):
    return (folder / "SHA256SUMS").read_text().splitlines()


def test_the_format_is_sha256sums_own(folder):
    seal(folder)
    # printf one | sha256sum
    one = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert lines(folder)[0] == f"{one}  a.txt" and len(lines(folder)) == 3
    if shutil.which("sha256sum"):
        command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
        subprocess.run(command, cwd=folder, check=True)


@pytest.mark.parametrize("name, byte", [("a.txt", 0), ("a.txt", 2), ("b with space.bin", 1234)])
def test_one_flipped_bit_is_found_and_named(folder, name, byte):
    """Of 20 bits flipped in weights, all were loaded without a word, and 4 changed the samples."""
    seal(folder)
    verify(folder)
    content = bytearray((folder / name).read_bytes())
    content[byte] ^= 4
    (folder / name).write_bytes(content)
    for names in ((), (name,), ("ü", name)):
        with pytest.raises(ValueError, match=f"{name} is not what was saved.*delete .*SHA256SUMS"):
            verify(folder, *names)
    verify(folder, "ü")


def test_a_missing_file_is_named(folder):
    seal(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(ValueError, match="a.txt is missing"):
        verify(folder)


def test_with_names_only_their_lines_change(folder):
    seal(folder, "a.txt")
    (folder / "a.txt").write_text("two")
    seal(folder, "ü")
    with pytest.raises(ValueError, match="a.txt is not what was saved"):
        verify(folder)
    seal(folder, "a.txt")
    verify(folder)
    assert [line.split("  ")[1] for line in lines(folder)] == ["a.txt", "ü"]


def test_without_names_lines_of_files_that_are_gone_go(folder):
    seal(folder)
    (folder / "ü").unlink()
    (folder / "SHA256SUMS.partial").write_text("of a process that was killed")
    seal(folder)
    verify(folder)
    assert [line.split("  ")[1] for line in lines(folder)] == ["a.txt", "b with space.bin"]


def test_what_was_never_sealed_is_not_compared(folder):
    verify(folder)
    verify(folder, "nothing")
    seal(folder, "a.txt")
    verify(folder, "ü", "nothing")


@pytest.mark.parametrize("content", [b"", b"12  a.txt\n", b"\xff\xfe\n", b"0" * 64 + b" a.txt\n"])
def test_a_damaged_list_is_named(folder, content):
    (folder / "SHA256SUMS").write_bytes(content)
    with pytest.raises(ValueError, match="SHA256SUMS is damaged"):
        verify(folder)


@pytest.mark.parametrize("name", ["../a.txt", "/etc/passwd", "sub/../../x"])
def test_a_list_that_leads_out_of_its_folder_is_refused(folder, name):
    """A downloaded folder may not make us read files elsewhere."""
    (folder / "SHA256SUMS").write_text("0" * 64 + f"  {name}\n")
    with pytest.raises(ValueError, match="leads out of its folder"):
        verify(folder)
