"""Every number that decides how a classifier is trained."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from edgecls.runtime.errors import InvalidRecordError

_SHARES = ("label_smoothing", "erasing", "val_fraction", "shift")
_POSITIVE = ("learning_rate", "clip_norm", "crop_scale", "layer_decay")
_NOT_NEGATIVE = ("weight_decay", "mixup", "cutmix", "warmup_epochs", "ema_decay")


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a classifier is trained; the defaults fine-tune weights that know other pictures.

    Raises:
        InvalidRecordError: A field is out of its range; the message says which.
    """

    epochs: int = 20
    """Passes over the pictures in which every layer learns; 0 leaves the backbone as it is."""
    head_epochs: int = 3
    """Passes before, in which only the new last layer learns: its first, wild gradients would spoil the others."""
    batch_size: int = 64
    """Pictures a step, of all processes together."""
    learning_rate: float = 1e-3
    """Of the last layer, at its highest."""
    layer_decay: float = 0.75
    """Factor on the learning rate from each group of layers to the one before it (ULMFiT: Howard and Ruder 2018)."""
    warmup_epochs: float = 1.0
    """Of a rising learning rate, in each phase; a cosine down to zero follows."""
    weight_decay: float = 0.05
    """AdamW's; biases and normalisation layers have none."""
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.999
    """Of the averaged weights, which are what is validated and kept; 0 keeps the plain ones. Few steps average less."""
    patience: int = 8
    """Epochs without a better validation after which the training ends; of those that refine, where there are any."""
    crop_scale: float = 0.35
    """Least share of a picture's area that a random crop shows."""
    shift: float = 0.0
    """Above 0: no random crops, but the device's own, shifted by at most this share of the side (He et al. 2016): for
    pictures so small that every crop would lose what is to be seen."""
    train_px: int | None = None
    """Side of the random crops; None is the network's own. They show objects larger than the device's centre crop does,
    so that somewhat less makes up for it, and is faster (FixRes: Touvron et al. 2019)."""
    start_px: int | None = None
    """Side of the crops in the first epochs, growing by two thirds of them (progressive learning: Tan and Le 2021);
    None begins at full size."""
    flip: bool = True
    """Left and right are exchanged in every second picture; not for text, nor for organs."""
    trivial_augment: bool = True
    """A random change of geometry or colour a picture (TrivialAugment Wide: Müller and Hutter 2021)."""
    erasing: float = 0.1
    """Share of the pictures in which a rectangle is erased (Zhong et al. 2017)."""
    mixup: float = 0.0
    """Parameter of the Beta distribution by which pairs of pictures are blended (Zhang et al. 2017); 0 never."""
    cutmix: float = 0.0
    """The same for rectangles cut from one picture into another (Yun et al. 2019); with both, batches take turns."""
    refine_epochs: int = 0
    """The last of `epochs`, in which pictures are cropped and flipped and nothing else: what was learned from changed
    pictures is fitted to real ones (He et al. 2019, "Data Augmentation Revisited")."""
    class_weights: bool = False
    """Whether rare classes weigh as much as frequent ones; the best epoch is then chosen by balanced accuracy."""
    bf16: bool = False
    """Whether a CPU multiplies bfloat16 numbers (Kalamkar et al. 2019) and keeps weights, sums and validation in fp32;
    try whether it pays, for not every operation has a fast kernel. GPUs always compute in half precision."""
    val_fraction: float = 0.1
    """Share of every class that validates, where the data are one folder."""
    seed: int = 0

    @classmethod
    def from_scratch(cls, **fields: Any) -> Recipe:
        """The defaults of a network that knows nothing yet; `fields` override them."""
        return cls(
            **{
                "epochs": 60,
                "head_epochs": 0,
                "batch_size": 128,
                "learning_rate": 3e-3,
                "layer_decay": 1.0,
                "warmup_epochs": 2.0,
                "patience": 20,
                **fields,
            }
        )

    def __post_init__(self) -> None:
        checks = {
            **{name: 0 <= getattr(self, name) < 1 for name in _SHARES},
            **{name: 0 < getattr(self, name) < math.inf for name in _POSITIVE},
            **{name: 0 <= getattr(self, name) < math.inf for name in _NOT_NEGATIVE},
            "crop_scale": 0 < self.crop_scale <= 1,
            "layer_decay": 0 < self.layer_decay <= 1,
            "ema_decay": 0 <= self.ema_decay < 1,
            "val_fraction": 0 < self.val_fraction < 1,
            "batch_size": self.batch_size >= 2,
            "patience": self.patience >= 1,
            "epochs": self.epochs >= 0 and self.head_epochs >= 0 and self.epochs + self.head_epochs >= 1,
            "refine_epochs": 0 <= self.refine_epochs <= self.epochs,
            "train_px": self.train_px is None or self.train_px >= 8,
            "start_px": self.start_px is None or self.start_px >= 8,
        }
        wrong = next((name for name, good in checks.items() if not good), None)
        if wrong is not None:
            raise InvalidRecordError(f"{wrong} is {getattr(self, wrong)!r}, which is out of its range")

    def side_px(self, crop_px: int, epoch: int) -> int:
        """Side of the random crops in an epoch of the phase in which every layer learns, growing in steps of 8 px.

        Args:
            crop_px: Of the network.
            epoch: From 0.
        """
        end_px = self.train_px or crop_px
        start_px = min(self.start_px or end_px, end_px)
        grown = min(1.0, epoch / max(1.0, 2 / 3 * self.epochs))
        return start_px + 8 * int((end_px - start_px) * grown / 8) if grown < 1 else end_px
