"""What Linux tells in files below /proc, /sys and /etc, and what boards tell by tools of their own.

Everything is looked for below a root folder, the tools too: a copy of a board's files stands for the board in tests.
What a system does not tell is None.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

_TOOL_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin", "opt/vc/bin")
_TOOL_S = 2.0
"""Longest wait for a tool."""


def read_text(path: Path) -> str | None:
    """The text of a small file without the zeros of device trees around it; None where it is absent or empty."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n") or None
    except OSError:  # some thermal zones answer "try again" for ever
        return None


def read_numbers(paths: Iterable[Path]) -> list[float]:
    """The whole numbers in files; those that hold none are left out."""
    texts = (read_text(path) for path in paths)
    return [float(text) for text in texts if text and re.fullmatch(r"-?\d+", text)]


def ask_tool(root: Path, name: str, *arguments: str) -> str | None:
    """What a board's tool prints, or None where it is absent, fails or hangs."""
    program = shutil.which(name, path=":".join(str(root / folder) for folder in _TOOL_FOLDERS))
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TOOL_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() or None
