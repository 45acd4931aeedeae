"""The processes that decode and augment pictures for a training."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import threading


def begin_worker(worker: int) -> None:
    """A process that decodes gives way to the arithmetic, and ends with the training, however that ends.

    Threads of one operation wait for each other, so that on a CPU without cores to spare every picture decoded beside
    them stops them all; between the steps, when nothing computes, there is time enough.
    """
    if hasattr(os, "nice"):  # Windows has none
        os.nice(19)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Torch watches the wrong process: the server that made this one, which waits for it in turn."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def workers_context(workers: int) -> multiprocessing.context.BaseContext | None:
    """How worker processes begin: from a server that has imported what they need and runs no threads.

    A fork of this process would copy the locks of engines' and BLAS' threads without the threads that hold them.
    """
    if not workers:
        return None
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edgecls.models.augment"])
    return context
