"""Ways of doing the same, timed in turns: milliseconds drift on a shared machine, ratios within a round hold."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 5
"""At least."""


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    calls: int = 1,
    warm_up: int = 1,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, NDArray[np.float64]]:
    """Gives every way one turn a round, in an order drawn anew.

    Args:
        ways: What is called.
        seconds: For all rounds together.
        calls: In a turn, whose median counts: all but the first find the caches as they left them.
        warm_up: Calls of every way before.
        clock: In nanoseconds.

    Returns:
        Milliseconds, `[rounds]`, of each way.
    """
    for way in ways.values():
        for _ in range(warm_up):
            way()
    rng = np.random.default_rng(0)
    turns: dict[str, list[float]] = {name: [] for name in ways}
    until, rounds = time.perf_counter() + seconds, 0
    while rounds < _ROUNDS or time.perf_counter() < until:
        for name in rng.permutation(list(ways)):
            times = []
            for _ in range(calls):
                began = clock()
                ways[name]()
                times.append(clock() - began)
            turns[name].append(float(np.median(times)) / 1e6)
        rounds += 1
    return {name: np.asarray(values) for name, values in turns.items()}


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keeps this thread, and all that it starts, on one CPU, where the system lets it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
