"""What stands beside trained weights: how they came to be, and how the training went."""

from __future__ import annotations

from importlib import metadata
from typing import Literal

import msgspec

from edgecls.models.recipe import Recipe
from edgecls.runtime.preprocess import Preprocess

Start = Literal["scratch", "library", "checkpoint"]


def library_versions() -> dict[str, str]:
    """What computes the network and what prepares its pictures: fields of a `TrainingRecord`."""
    return {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "pillow")}


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the curves."""

    phase: str
    """`head` or `all`."""
    epoch: int
    """Within the phase, from 1."""
    side_px: int
    """Of the training crops."""
    learning_rate: float
    """Of the last layer at the end of the epoch."""
    loss: float
    """Mean over the epoch's steps, of the augmented pictures."""
    val_loss: float
    val_top1: float
    """Of the averaged weights on the validation pictures, 0..1."""
    val_balanced: float
    """Mean of the classes' recalls, 0..1."""
    seconds: float
    """Since the training began, without the time in which it was not running."""


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the weights, as `NAME.train.json`: enough to train them again."""

    schema: Literal["edgecls.training/1"] = "edgecls.training/1"
    model: str
    start: Start
    """Where the weights came from."""
    start_sha256: str | None
    """Of the file that they came from."""
    match: Literal["name", "order"] = "name"
    """How the file's tensors found their places."""
    preprocess: Preprocess
    recipe: Recipe
    classes: int
    limit: int | None = None
    """At most so many training pictures were taken."""
    train_images: int
    train_sha256: str
    """Digest of the training pictures with their labels, independent of names and order."""
    val_images: int
    val_sha256: str
    device: str
    torch: str
    """Version."""
    torchvision: str | None = None
    timm: str | None = None
    pillow: str | None = None
    threads: int
    best: Epoch
    val_top1: float
    """Of the weights as they are stored, 0..1."""
    val_balanced: float
    seconds: float
    """Of training, without the reading of the pictures."""
    half: bool = False
    """Whether the weights are stored as 16-bit floats."""
    weights_sha256: str
    """Of the file of weights."""
    epochs: tuple[Epoch, ...]
