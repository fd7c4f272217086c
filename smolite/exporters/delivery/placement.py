"""Several new files into a folder, all or none: made in a hidden folder beside, moved when whole, put back when interrupted.

What stands in a folder `.unfinished-…` is an export that goes on or was killed. Before anything is moved, a list of what is
going to be, and second names (hard links) of what stands there, are written into it. So whoever finds such a folder can put
everything back, which the next export does. One export at a time writes to a folder.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smolite.files import write_file

UNFINISHED = ".unfinished-"
_LIST, _OLD = ".moving.json", ".old"


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to make files in, for `move_files`; it is gone at the end, whatever happens.

    What exports that were killed left in `folder` is put in order first. Where another one is at work, this waits.

    Args:
        folder: where the files are going to be; made when it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        for left in folder.glob(f"{UNFINISHED}*"):
            _settle(left, folder)
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=UNFINISHED))
        try:
            yield staging
        finally:
            _settle(staging, folder)


def move_files(staging: Path, folder: Path, *, last: str) -> None:
    """Moves all that is in a staging folder to its place, over what stands there.

    Args:
        staging: from `staging_folder`.
        folder: the folder that was given there.
        last: the name of what is moved after all others.

    Raises:
        OSError: something cannot be written or moved; everything old is put back.
    """
    for file in filter(Path.is_file, staging.rglob("*")):
        _flush(file)
    # The manifest is moved last: who sees the new one sees all that it describes.
    names = sorted((entry.name for entry in staging.iterdir()), key=lambda name: (name == last, name))
    (staging / _OLD).mkdir()
    write_file(staging / _LIST, json.dumps(names).encode())
    for name in names:
        if (folder / name).is_file():
            # A second name and not a move: the old file stays where it is until the new one takes its name in one step.
            _copy(folder / name, staging / _OLD / name)
    for name in names:
        if (folder / name).is_dir():
            # A folder cannot be replaced in one step, so it goes away first; the list says where it belongs.
            (folder / name).rename(staging / _OLD / name)
        (staging / name).replace(folder / name)
    # From here on the export is done: without the list, whoever tidies up removes the old files instead of putting them back.
    (staging / _LIST).unlink()


def _settle(staging: Path, folder: Path) -> None:
    """Puts back what was moved, unless all of it was, and removes the staging folder; may be interrupted and repeated."""
    if (staging / _LIST).exists():
        for name in json.loads((staging / _LIST).read_text("utf-8")):
            _put_back(staging, folder, name)
    shutil.rmtree(staging, ignore_errors=True)  # a killed export's conversion may still be writing there


def _put_back(staging: Path, folder: Path, name: str) -> None:
    old, new, place = staging / _OLD / name, staging / name, folder / name
    if old.is_dir():
        if place.exists():
            place.rename(new)
        old.rename(place)
    elif old.exists():
        # Another link first, so that the old file keeps a name in the folder should this be interrupted, too.
        again = staging / f"{name}.again"
        _copy(old, again)
        again.replace(place)
    elif not new.exists() and place.exists():  # nothing stood there
        place.rename(new)


def _copy(file: Path, copy: Path) -> None:
    """A second name of a file, or a second file where the disk knows no such thing."""
    copy.unlink(missing_ok=True)
    try:
        os.link(file, copy)
    except OSError:
        shutil.copy2(file, copy)


def _flush(file: Path) -> None:
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder, which the system takes back from a process that ends. Windows has none of this kind."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: waiting for another export", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
