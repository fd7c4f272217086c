"""Referee: the operating system, which is told to refuse long files, and what lies in the folder afterwards."""

import os
import stat

import pytest

from smolite.files import new_directory, write_file

LONG = b"x" * 100_000


@pytest.fixture
def short_files_only():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path):
    path = write_file(tmp_path / "new" / "a.txt", b"one")
    assert path.read_bytes() == b"one"
    write_file(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(path.parent) == ["a.txt"]
    umask = os.umask(0o027)
    try:
        assert stat.S_IMODE(write_file(path, b"three").stat().st_mode) == 0o640
    finally:
        os.umask(umask)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, short_files_only):
    write_file(tmp_path / "a", b"old")
    with pytest.raises(OSError, match="File too large"):
        write_file(tmp_path / "a", LONG)
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_directory_appears_when_it_is_complete(tmp_path):
    with new_directory(tmp_path / "deep" / "run") as folder:
        write_file(folder / "a", b"1")
        assert not (tmp_path / "deep" / "run").exists()
    assert os.listdir(tmp_path / "deep") == ["run"] and os.listdir(tmp_path / "deep" / "run") == ["a"]


def test_a_directory_that_fails_stays_as_it_was(tmp_path, short_files_only):
    with new_directory(tmp_path / "run") as folder:
        write_file(folder / "a", b"old")
    for error, data in ((OSError, LONG), (KeyboardInterrupt, b"new")):
        with pytest.raises(error), new_directory(tmp_path / "run", overwrite=True) as folder:
            write_file(folder / "a", data)
            raise KeyboardInterrupt
        assert (tmp_path / "run" / "a").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["run"]


def test_overwriting_keeps_what_is_not_replaced(tmp_path):
    with new_directory(tmp_path / "run") as folder:
        write_file(folder / "a", b"old")
    write_file(tmp_path / "run" / "logs" / "log.csv", b"kept")
    with new_directory(tmp_path / "run", overwrite=True) as folder:
        write_file(folder / "a", b"new")
    assert (tmp_path / "run" / "a").read_bytes() == b"new"
    assert (tmp_path / "run" / "logs" / "log.csv").read_bytes() == b"kept"
    assert os.listdir(tmp_path) == ["run"]


def test_an_interrupt_between_the_two_renames_puts_the_old_directory_back(tmp_path, monkeypatch):
    with new_directory(tmp_path / "run") as folder:
        write_file(folder / "a", b"old")
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "run", overwrite=True) as folder:
        write_file(folder / "a", b"new")
        monkeypatch.setattr(os, "rename", interrupted)
    assert (tmp_path / "run" / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["run"]


def test_what_is_in_the_way_is_refused(tmp_path):
    write_file(tmp_path / "run" / "a", b"old")
    with (
        pytest.raises(FileExistsError, match="must be a new directory.*exists already.*`overwrite=True`"),
        new_directory(tmp_path / "run"),
    ):
        pass
    with (
        pytest.raises(NotADirectoryError, match="must be a directory. Received: a file. Choose another one"),
        new_directory(tmp_path / "run" / "a", overwrite=True),
    ):
        pass
    assert (tmp_path / "run" / "a").read_bytes() == b"old"
