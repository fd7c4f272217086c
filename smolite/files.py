"""Writing files so that nothing is ever half-written: a temporary name beside the target, then a rename."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes `data` to `path`, replacing what is there only when all of it is on the disk.

    Args:
        path: the file; its folder is made when it is missing.
        data: the whole content.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the old file is whole, no other stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic on one file system only.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # Before the rename, or a power cut could leave the new name on an empty file.
            # A file that is renamed before its bytes are on the disk may be empty after a power cut.
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a run is to be as readable as any file its user writes.
        # mkstemp lets only its owner read the file; the old one, or another made here, is read by whom the umask lets.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def new_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives an empty folder to write into, which becomes `path` only when the `with` block ends well.

    With `overwrite`, files of the old directory that the new one does not have are kept.

    Args:
        path: the directory to make. An empty one counts as free.
        overwrite: whether a directory may be replaced.

    Raises:
        FileExistsError: `path` is a directory that is not empty and `overwrite` is false.
        NotADirectoryError: `path` is a file.
        OSError: a file cannot be written; the old directory is whole, no temporary one stays.
    """
    path = Path(path).resolve()
    if path.is_file():
        raise NotADirectoryError(f"{path} must be a directory. Received: a file. Choose another one.")
    if not overwrite and path.exists() and any(path.iterdir()):
        raise FileExistsError(
            f"{path} must be a new directory. Received: one that exists already. Choose another name, or "
            "allow replacing it with `overwrite=True`."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in (entry for entry in temporary.rglob("*") if entry.is_file()):
            file.chmod(0o666 & ~_umask())
            _flush(file)
        _take_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _flush(file: Path) -> None:
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def _take_place(new: Path, path: Path) -> None:
    """Renames `new` to `path`, moves what only the old directory had into it, and removes the old one."""
    if not path.exists():
        os.rename(new, path)
        return
    # Two renames leave a moment without the directory, but never half of one.
    old = new.with_name(f"{new.name}.old")
    try:
        os.rename(path, old)
        os.rename(new, path)
    except BaseException:
        if not path.exists():
            os.rename(old, path)
        raise
    for entry in list(old.iterdir()):
        if not (path / entry.name).exists():
            os.rename(entry, path / entry.name)
    shutil.rmtree(old)
