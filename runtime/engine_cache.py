"""Engines that were built here: kept in the user's cache folder, whole or not at all, built once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgecls.runtime.atomic_file import PART_PATTERN, atomic_file
from edgecls.runtime.errors import InputError
from edgecls.runtime.progress import Progress

FOLDER = "EDGECLS_CACHE"
"""Environment variable that names another folder."""

_MAGIC = b"edgecls.cache/1\n"

_ABANDONED_S = 24 * 3600.0
"""No file is being written for that long: one that never took its name is of a process that was killed."""


class CacheFolder:
    """Files that only this user (or root) may write, each with the digest of its bytes in front.

    What lies here is given to a library that trusts it: a folder that others own or may write to is refused.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Creates the folder where it does not exist.

        Args:
            path: By default `EDGECLS_CACHE`, else `edgecls` in `XDG_CACHE_HOME` or `~/.cache`.

        Raises:
            InputError: It cannot be created, or others own it or may write to it.
        """
        self.path = path or cache_path()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = self.path.stat()
        except OSError as error:
            raise InputError(
                f"the cache folder {self.path} cannot be used: {error.strerror or error}. Name another one in {FOLDER}."
            ) from error
        if os.name == "posix" and status.st_uid not in (0, os.geteuid()):
            raise InputError(
                f"the cache folder {self.path} is another user's, and an engine from there would run on your GPU. Name "
                f"one of your own in {FOLDER}."
            )
        if os.name == "posix" and status.st_mode & 0o022:
            raise InputError(
                f"others may write to the cache folder {self.path}, and an engine from there would run on your GPU. "
                f"chmod go-w it, or name another one in {FOLDER}."
            )
        self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        for part in self.path.glob(PART_PATTERN):
            with contextlib.suppress(OSError):  # a read-only folder, or another process was faster
                if time.time() - part.stat().st_mtime > _ABANDONED_S:
                    part.unlink()

    def read(self, name: str) -> bytes | None:
        """The bytes of a file.

        Returns:
            None where there is none.

        Raises:
            DamagedFileError: It was cut or changed.
        """
        path = self.path / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedFileError(path, error.strerror or str(error)) from error
        head, data = content[: len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
        if head != _MAGIC + hashlib.sha256(data).digest():
            raise DamagedFileError(path, f"its {len(content)} bytes do not have the digest that it begins with")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file, all of it or nothing.

        Raises:
            InputError: The disk is full or the folder not writable.
        """
        with atomic_file(self.path / name) as file:
            file.write(_MAGIC + hashlib.sha256(data).digest())
            file.write(data)

    @contextlib.contextmanager
    def lock(self, name: str, progress: Progress) -> Iterator[None]:
        """Holds a name for the block; who comes second waits, and is told so.

        The system frees the lock of a process that dies. Where it has no file locks two processes may do the same
        work; files are whole even then.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        path = self.path / f"{name}.lock"
        try:
            file = open(path, "ab")  # noqa: SIM115 - closed below
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}. Name another folder in {FOLDER}.") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.note("another process is building this engine; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


class DamagedFileError(Exception):
    """A file of the cache is not what was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")


def cache_path() -> Path:
    """Where the cache lies; `EDGECLS_CACHE` wins over `XDG_CACHE_HOME`, which wins over `~/.cache`."""
    if chosen := os.environ.get(FOLDER):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "edgecls"
