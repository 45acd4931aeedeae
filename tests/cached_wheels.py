"""Wheels of PyPI in the cache folder of debian.py, for this machine or another: nothing is installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from debian import CACHE, UnavailableError

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def cached_wheels(name: str, packages: Sequence[str], *options: str) -> Path:
    """A folder of the cache with packages, of the versions that this project pins, and all they need; fetched once.

    Args:
        name: Of the folder.
        packages: Names, or names with versions.
        options: Of `pip install`: for which machine.

    Raises:
        UnavailableError: PyPI cannot be reached, or has no wheel for that machine.
    """
    folder = CACHE / name
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        site = Path(scratch) / "site"
        choice = ["--only-binary=:all:", "--constraint", str(CONSTRAINTS), "--target", str(site), *options]
        done = subprocess.run([*command, *choice, *packages], capture_output=True, text=True, timeout=1800)
        if done.returncode != 0:
            raise UnavailableError(f"pip install {' '.join(packages)} failed: {done.stderr.strip()}")
        site.rename(folder)
    return folder
