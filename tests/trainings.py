"""Trainings of small networks that take a second, and one that dies on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecls.models.recipe import Recipe
from edgecls.models.train import TrainResult, train
from edgecls.models.training_data import TrainingData
from edgecls.runtime import Preprocess
from edgecls.runtime.progress import SilentProgress

INPUT = Preprocess(resize_px=36, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


RECIPE = Recipe.from_scratch(
    epochs=3, head_epochs=1, batch_size=8, learning_rate=0.02, trivial_augment=False, mixup=0.2, cutmix=1.0, seed=5
)


def fit(network: str, data: TrainingData, output: Path, recipe: Recipe = RECIPE, **options) -> TrainResult:
    options = {"preprocess": INPUT, "from_scratch": True, "threads": 1, **options}
    return train(network, data, output=output, recipe=recipe, **options)


class KilledError(BaseException):
    pass


class Killer(SilentProgress):
    """Dies at a step, as a killed process does: nobody catches it and nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self._left = step

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator:
        def advance(steps: int) -> None:
            self._left -= steps
            if self._left < 0:
                raise KilledError

        yield advance
