"""A bundle that is ready to classify pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import Bundle
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.preprocess import Picture, Preprocess


class Prediction(msgspec.Struct, frozen=True):
    """One class of a ranked answer."""

    index: int
    label: str
    score: float
    """Softmax probability, 0..1."""


class Session:
    """Runs one bundle. A context manager; safe to use from several threads."""

    bundle: Bundle
    preprocess: Preprocess
    engine_info: EngineInfo

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the graph on crops `uint8 [batch, crop, crop, 3]`, RGB (or one `[crop, crop, 3]`).

        Returns:
            `float32 [batch, classes]`.
        """
        raise NotImplementedError

    def classify(self, picture: Picture, *, top: int = 5) -> tuple[Prediction, ...]:
        """The best classes of one picture, best first."""
        raise NotImplementedError

    def classify_batch(self, pictures: Iterable[Picture], *, top: int = 5) -> tuple[tuple[Prediction, ...], ...]:
        """As `classify`, one engine call for all pictures."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees the engine."""
        raise NotImplementedError

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(path: str | os.PathLike[str] | Bundle, *, threads: int | None = None) -> Session:
    """Opens a bundle on the engine that it was made for.

    Args:
        path: The `.edgecls` file.
        threads: Threads of one inference; by default the CPUs that this process may use.
    """
    raise NotImplementedError
