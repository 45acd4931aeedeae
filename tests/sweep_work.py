"""What workers of a sweep are given in tests: work that ends them, on numbers instead of points."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def die_when_told(task: tuple[str, str]) -> str | None:
    """Dies of SIGKILL: of `always` every time, of `once` the first time; each life leaves a line in the file."""
    kind, file = task
    lives = Path(file)
    with lives.open("a") as log:
        log.write(f"{os.getpid()}\n")
    if kind == "always" or (kind == "once" and len(lives.read_text().split()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"refused {kind}" if kind == "refused" else None


def wait_for_ever(task: str) -> None:
    """Leaves its process's number, and does not end."""
    Path(task).write_text(str(os.getpid()))
    while True:
        signal.pause()


def wait_or_answer(task: tuple[str, str]) -> None:
    """Waits for ever where it is told to."""
    if task[0]:
        wait_for_ever(task[1])
