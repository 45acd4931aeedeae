"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from edgecls.runtime.errors import InputError

PART_PATTERN = ".edgecls-*.part"
"""What a file is called before it takes its name; the star is random."""


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file for writing that takes the name `path` only when the block ends well.

    The bytes go to a hidden file in the same folder, are flushed to the disk and renamed. If the block raises, or the
    disk is full, that file is removed and an older file of the name `path` is untouched; a killed process leaves it
    behind. Where `path` is a link, the file that it leads to is replaced. The new file has the permissions of the old
    one, and where the system allows it the owner and the group.

    Raises:
        InputError: The folder does not exist or cannot be written, `path` is no file, or the disk is full; choose
            another `-o`. What the block raises for other reasons passes through.
    """
    target = Path(os.path.realpath(path))
    try:
        old = target.stat()
    except OSError:
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise InputError(f"cannot write {target}: it exists and is not a file. Choose another name")
    # Not `tempfile`: its files are private, and the umask that would tell the usual mode cannot be read without
    # changing it for all threads.
    part = target.with_name(PART_PATTERN.replace("*", secrets.token_hex(8)))
    # Given when it is created: narrowed afterwards, somebody might have opened it before.
    mode = 0o666 if old is None else old.st_mode & 0o777
    try:
        raw = _WatchedFile(part, "xb", opener=lambda name, flags: os.open(name, flags, mode))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        if old is not None and os.name == "posix":
            with contextlib.suppress(OSError):
                os.fchown(raw.fileno(), old.st_uid, old.st_gid)
            with contextlib.suppress(OSError):
                os.fchmod(raw.fileno(), mode)
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            raw.watch(os.fsync, raw.fileno())
        raw.watch(os.replace, part, target)
    except OSError as error:
        if error is not raw.failure:
            raise
        raise _cannot_write(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()  # gone already after a rename


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """Refuses a file whose folder cannot be written, before the minutes of work that would be lost.

    Raises:
        InputError: The folder is not writable; choose another `-o`.
    """
    folder = Path(os.path.realpath(path)).parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"the folder {folder} cannot be written (no permission, or a read-only file system): choose another -o"
        )


def refuse_overwriting(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuses an output that would take the place of what it is made from.

    Raises:
        InputError: `path` is one of `inputs`, by its own name or by links; choose another name.
    """
    target = os.path.realpath(path)
    if any(os.path.realpath(source) == target for source in inputs):
        raise InputError(f"{path} is read by this command, and its output would replace it: choose another name")


class _WatchedFile(io.FileIO):
    """Remembers its own last failure, to tell it from those of other files that a block may open."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        written: int = self.watch(super().write, data)
        return written

    def watch(self, operation: Any, *arguments: Any) -> Any:
        try:
            return operation(*arguments)
        except OSError as error:
            self.failure = error
            raise


def _cannot_write(target: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {target}: {error.strerror or error}. Choose a folder that exists, is writable and has room."
    )
