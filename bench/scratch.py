"""A folder for the files of a measurement, gone afterwards: by its own run, or by the next after it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "edgecls-bench-"
_YOUNG_S = 60.0
"""A folder younger than this may not be locked yet."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder that is locked while the block runs and removed after it.

    What killed processes of this user left behind is removed first: the system takes their locks from them.
    """
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, locked(Path(name)):
        yield Path(name)


def _sweep(folder: Path) -> None:
    if os.name != "posix":
        return
    for left in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = left.lstat()
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _YOUNG_S:
                with locked(left):
                    shutil.rmtree(left)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which no child inherits and which ends with the process.

    Raises:
        BlockingIOError: A living process holds it.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
