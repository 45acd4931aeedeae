"""What becomes of an engine in a forked child: it is dead there, and says so.

A fork copies memory but no threads. An engine whose threads are gone waits for them for ever, both when it is asked and
when it is freed, and a GPU's driver refuses the child. Opening the bundle again behind the caller's back would take the
memory and the time of a second engine in every child, so the caller is told to.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.engines import Engine
from edgecls.runtime.errors import EngineError


def skip_exit_handlers() -> None:
    """Lets this forked child end as those of multiprocessing do: without the exit handlers of its parent's libraries.

    That of OpenVINO's threads waits for them, now and then for ever (glibc alone can be told).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)


class ForkedEngine:
    """Stands in a forked child where its parent has an engine.

    Attributes:
        info: Of the parent's engine.
    """

    def __init__(self, engine: Engine) -> None:
        """Takes the place of `engine`, which is never freed: freeing it would wait for its threads."""
        self.info = engine.info
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Refuses.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            f"this session was opened before process {os.getpid()} was forked, and {self.info.name} does not survive "
            "that: let each process load its own (gunicorn without --preload; multiprocessing with 'spawn')"
        )

    def close(self) -> None:
        """As `Engine.close`; does nothing."""
