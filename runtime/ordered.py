"""Answers in the order of the questions, while several of them are being worked out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from edgecls.runtime.errors import EngineError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_PATIENCE_S = 1.0
"""How long closing waits for a thread: it works a few milliseconds, but may also be waiting for a source that is."""


class _End(NamedTuple):
    error: BaseException | None


def in_order(
    work: Callable[[Item], Answer], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Future[Answer], None, None]:
    """Does `work` on every item in threads and gives the finished futures in the order of the items.

    The items are taken by the threads, one at a time: a source that waits (a camera) holds up no answer. Closing the
    generator ends the threads; one that is waiting for the source ends when that gives or ends, and the item is lost.

    Args:
        work: Called from several threads at once.
        items: Any source; only one thread at a time asks it.
        workers: Threads, at least 1.
        ahead: Items, at least 1, that are taken before their answers were asked for.

    Raises:
        BaseException: What `items` raises, after the answers to all items before.
        EngineError: The generator is used in a forked child, which has none of the threads; begin it there.
    """
    process = os.getpid()
    slots = threading.Semaphore(ahead)
    turns: SimpleQueue[Future[Answer] | _End] = SimpleQueue()
    turn = threading.Lock()
    source = iter(items)
    ended = threading.Event()

    def taken() -> tuple[Item, Future[Answer]] | None:
        with turn:
            if ended.is_set():
                return None
            try:
                item = next(source)
            except BaseException as error:
                ended.set()
                turns.put(_End(None if isinstance(error, StopIteration) else error))
                return None
            if ended.is_set():  # closed while the source was thinking
                return None
            future: Future[Answer] = Future()
            turns.put(future)
            return item, future

    def serve() -> None:
        while True:
            slots.acquire()
            one = taken()
            if one is None:
                slots.release()  # wakes the next thread, which then ends too
                return
            item, future = one
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)
            del one, item, future  # a picture less to hold while waiting for the next

    threads: list[threading.Thread] = []
    try:
        for number in range(workers):
            thread = threading.Thread(target=serve, name=f"edgecls-{number}", daemon=True)
            thread.start()
            threads.append(thread)
        while True:
            if os.getpid() != process:
                raise EngineError(
                    f"this stream began in process {process}, and {os.getpid()} is its forked child, which has none of "
                    "its threads; begin it after the fork"
                )
            answer = turns.get()
            if isinstance(answer, _End):
                if answer.error is not None:
                    raise answer.error
                return
            answer.exception()  # waits
            slots.release()
            yield answer
            del answer
    finally:
        if os.getpid() == process:  # in a forked child the locks may be held by threads that are not there
            ended.set()
            slots.release()
            until = time.monotonic() + _PATIENCE_S
            for thread in threads:
                if thread is not threading.current_thread():  # the collector may run anywhere
                    thread.join(max(0.0, until - time.monotonic()))
