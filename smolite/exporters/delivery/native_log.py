"""Native libraries that write notes straight to file descriptor 2 when they start and when they end."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def native_log_dropped() -> Iterator[None]:
    """Drops what is written to file descriptor 2 meanwhile. What matters comes as an exception."""
    sys.stderr.flush()
    # The descriptor, not `sys.stderr`: native code writes to number 2 itself, past Python.
    original = os.dup(2)
    _drop_native_log()
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


def drop_native_log_at_exit() -> None:
    """Drops what libraries write to file descriptor 2 once Python has ended, when they report what they tear down."""
    atexit.register(_drop_native_log)


def _drop_native_log() -> None:
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
