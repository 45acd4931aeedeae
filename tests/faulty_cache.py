"""Fault operation: a file of the cache is replaced."""

from __future__ import annotations

from pathlib import Path

from edgecls.runtime.engine_cache import CacheFolder

OLD, NEW = b"old plan" * 1000, b"new plan" * 25_000


def prepare(folder: Path) -> None:
    CacheFolder(folder / "cache").write("a.engine", OLD)


def run(folder: Path) -> None:
    CacheFolder(folder / "cache").write("a.engine", NEW)
