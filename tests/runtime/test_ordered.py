"""Order, bounds, errors in their place, and threads that end."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import queue
import random
import subprocess
import sys
import threading
import time

import pytest

from edgecls.runtime import ordered
from edgecls.runtime.ordered import in_order


def answers(work, items, *, workers=2, ahead=4):
    return [future.result() for future in in_order(work, items, workers=workers, ahead=ahead)]


def streams() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("edgecls-")]


@pytest.fixture(autouse=True)
def no_thread_is_left(monkeypatch):
    monkeypatch.setattr(ordered, "_PATIENCE_S", 60.0)  # on a busy machine threads end late
    yield
    gc.collect()
    assert streams() == []


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_order_is_kept_whoever_is_faster(workers, ahead, count):
    rng = random.Random(0)

    def work(item):
        time.sleep(rng.random() / 500)
        return item * item

    assert answers(work, range(count), workers=workers, ahead=ahead) == [item * item for item in range(count)]


def test_items_are_worked_on_at_the_same_time():
    together = threading.Barrier(3, timeout=60)  # breaks unless three are at it at once
    assert len(answers(lambda _: together.wait(), range(6), workers=3)) == 6


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 4), (4, 2)])
def test_no_more_is_taken_than_allowed(workers, ahead):
    taken = 0

    def items():
        nonlocal taken
        for item in range(20):
            taken += 1
            yield item

    with contextlib.closing(in_order(str, items(), workers=workers, ahead=ahead)) as stream:
        for given, _ in enumerate(stream, 1):
            time.sleep(0.005)
            assert taken <= given + ahead


def test_a_source_that_waits_holds_up_no_answer():
    frames: queue.Queue[int] = queue.Queue()
    frames.put(1)
    with contextlib.closing(in_order(str, iter(frames.get, None), workers=2, ahead=8)) as stream:
        assert next(stream).result() == "1"
        frames.put(2)
        assert next(stream).result() == "2"
        frames.put(None)
        assert list(stream) == []


def test_an_error_stands_in_its_place():
    stream = in_order(lambda item: 1 // item, [1, 2, 0, 4], workers=3, ahead=4)
    futures = list(stream)
    assert [future.exception() is None for future in futures] == [True, True, False, True]
    with pytest.raises(ZeroDivisionError):
        futures[2].result()


def test_an_error_of_the_source_comes_after_all_answers():
    def items():
        yield from range(5)
        raise RuntimeError("unplugged")

    stream = in_order(lambda item: time.sleep(0.01) or item, items(), workers=3, ahead=10)
    assert [next(stream).result() for _ in range(5)] == list(range(5))
    with pytest.raises(RuntimeError, match="unplugged"):
        next(stream)


def test_closing_early_ends_the_threads_and_takes_nothing_more():
    source = itertools.count()
    stream = in_order(str, source, workers=3, ahead=6)
    assert next(stream).result() == "0"
    stream.close()
    assert streams() == []
    assert next(source) <= 1 + 6


def test_leaving_the_loop_closes():
    for _ in in_order(str, itertools.count(), workers=2, ahead=3):
        break
    assert streams() == []


def test_nothing_begins_before_the_first_answer_is_asked_for():
    stream = in_order(str, itertools.count(), workers=2, ahead=3)
    assert streams() == []
    stream.close()


def test_closing_does_not_wait_for_a_source_that_waits(monkeypatch):
    monkeypatch.setattr(ordered, "_PATIENCE_S", 1.0)
    frames: queue.Queue[int] = queue.Queue()
    frames.put(1)
    stream = in_order(str, iter(frames.get, None), workers=1, ahead=2)
    next(stream)
    stream.close()
    (waiting,) = (thread for thread in threading.enumerate() if thread.name == "edgecls-0")
    assert waiting.daemon
    frames.put(2)
    waiting.join(60)
    assert not waiting.is_alive()


def test_pictures_are_let_go():
    class Item:
        alive = 0

        def __init__(self):
            Item.alive += 1

        def __del__(self):
            Item.alive -= 1

    with contextlib.closing(in_order(id, (Item() for _ in range(50)), workers=2, ahead=3)) as stream:
        for _ in stream:
            assert Item.alive <= 2 + 3
    assert Item.alive == 0


FORKED = """
import os, sys, time
from edgecls.runtime import EngineError
from edgecls.runtime.ordered import in_order
stream = in_order(str, iter(int, 1), workers=2, ahead=3)
next(stream)
if os.fork() == 0:
    try:
        next(stream)
    except EngineError as error:
        print(error, flush=True)
        sys.exit(0)
    sys.exit(1)
print(os.waitstatus_to_exitcode(os.wait()[1]), next(stream).result())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX forks")
def test_a_stream_in_a_forked_child_does_not_wait_for_ever():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    child, parent = done.stdout.splitlines()
    assert "begin it after the fork" in child
    assert parent == "0 0"
