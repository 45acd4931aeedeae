"""Tasks in fresh processes of this machine, so many at a time; what kills one of them costs no other anything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

Task = TypeVar("Task")

_SPAWN = multiprocessing.get_context("spawn")
_ATTEMPTS = 2


def run_in_processes(
    work: Callable[[Task], str | None], tasks: Sequence[Task], jobs: int
) -> Generator[tuple[Task, str | None], None, None]:
    """Gives every task to a process of its own, and once more to another one where the first died.

    Args:
        work: What the process does; a function that can be imported. Its answer is None, or what went wrong.
        tasks: They can be pickled.
        jobs: Processes at a time.

    Yields:
        Each task, in the order in which they end, with its answer or with how its processes died.
    """
    waiting = deque((task, 1) for task in tasks)
    running: dict[Connection, tuple[Task, int, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task, attempt = waiting.popleft()
                receiver, sender = _SPAWN.Pipe(duplex=False)
                process = _SPAWN.Process(target=_serve, args=(work, task, sender), daemon=True)
                process.start()
                sender.close()
                running[receiver] = task, attempt, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                task, attempt, process = running.pop(ready)
                with ready:
                    try:
                        answer = ready.recv()
                    except EOFError:
                        process.join()
                        if attempt < _ATTEMPTS:
                            waiting.append((task, attempt + 1))
                            continue
                        answer = f"its process died {_ATTEMPTS} times, now of {_cause(process)}"
                process.join()
                yield task, answer
    finally:
        for _, _, process in running.values():
            process.kill()
            process.join()


def _serve(work: Callable[[Task], str | None], task: Task, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sender.send(work(task))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _cause(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    if code >= 0:
        return f"exit code {code}"
    hint = ": not enough memory? Give fewer --jobs" if -code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{hint}"
