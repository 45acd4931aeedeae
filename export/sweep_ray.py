"""Tasks on a Ray cluster, for sweeps that one machine is too small for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from edgecls.runtime.errors import InputError, MissingExtraError

Task = TypeVar("Task")

_RETRIES = 1
_ANSWER_S = 10.0


@contextmanager
def ray_cluster(address: str, jobs: int) -> Iterator[None]:
    """Connects to a cluster for the time of the block.

    Args:
        address: As Ray takes it: `auto`, `HOST:PORT`, `ray://HOST:PORT`; `local` starts one here, that ends with the
            block.
        jobs: CPUs of a cluster that is started here; another knows what it has.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: No cluster answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without it a task that takes too much memory would be tried for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("sweep", f"--ray {address}") from error
    started: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if address == "local" else {}
    try:
        try:
            _refuse_silent(address)
            ray.init(address, log_to_driver=False, logging_level="ERROR", **started)
        except Exception as error:  # Ray says with many types, `Exception` among them, that a node did not start
            why = " ".join(str(error).split())
            raise InputError(
                f"no Ray cluster answers at {address!r} ({why}): start one with `ray start --head`, or leave --ray out"
            ) from error
        yield
    finally:
        ray.shutdown()


def _refuse_silent(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself would knock for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), _ANSWER_S).close()


def run_on_ray(
    work: Callable[[Task], str | None], tasks: Sequence[Task]
) -> Generator[tuple[Task, str | None], None, None]:
    """Gives every task to a fresh process on one CPU of the cluster, and once more where that died.

    Args:
        work: What the process does; a function that every node can import. Its answer is None, or what went wrong.
        tasks: They can be pickled.

    Yields:
        Each task, in the order in which they end, with its answer or with how its processes died.
    """
    import ray

    remote = ray.remote(num_cpus=1, max_calls=1, max_retries=_RETRIES)(work)
    running = {remote.remote(task): task for task in tasks}
    while running:
        (ready,), _ = ray.wait(list(running))
        task = running.pop(ready)
        try:
            answer = ray.get(ready)
        except ray.exceptions.RayError as error:
            answer = f"its process died {_RETRIES + 1} times; Ray says: {' '.join(str(error).split())}"
        yield task, answer
