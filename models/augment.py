"""Training pictures, changed at random: what a network sees is never twice the same, and always repeatable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

# isort: split
from edgecls.models import torchvision_operators  # noqa: F401 (must come before torchvision)

# isort: split
from torchvision.transforms import InterpolationMode, v2

from edgecls.models.recipe import Recipe
from edgecls.models.rng import untouched_rng
from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.picture import open_picture
from edgecls.runtime.preprocess import Preprocess

_MARGIN_PX, _TEXT_PX = 4, 14
_COLUMNS = 8


class Draw(NamedTuple):
    """A picture as training will see it once."""

    picture: int
    """Its index."""
    seed: int
    """Of every random choice."""
    side_px: int
    """Of the crop."""
    refining: bool = False
    """Cropped and flipped, and nothing else."""


def seed_from(*parts: int | str) -> int:
    """63 bits that depend on all parts: every random choice of a training is named by where it happens.

    So a training that was killed needs no state of random generators to go on, and the number of worker processes
    changes nothing.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


class AugmentedPictures(Dataset[tuple[torch.Tensor, int]]):
    """Pictures as training sees them: random crop, flip, TrivialAugment, erasing.

    Args:
        images: With labels.
        preprocess: Of the network: its filter, EXIF rule and mean colour.
        recipe: What is done to them.
    """

    def __init__(self, images: ImageSet, preprocess: Preprocess, recipe: Recipe) -> None:
        self._images = images
        self._preprocess = preprocess
        self._recipe = recipe
        self._changes = {refining: self._changes_of(refining=refining) for refining in (False, True)}
        self._crops: dict[int, v2.Transform] = {}

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, int]:
        """`uint8 [3, side, side]`, RGB, and the class; the same draw gives the same pixels."""
        index, seed, side_px, refining = draw
        image = self._images.images[index]
        path = self._images.root / image.path
        picture: Any
        if self._recipe.shift:
            picture = Image.fromarray(self._device(side_px).pixels(path))
        else:
            picture = open_picture(path, self._preprocess.exif)
        # Not torch.manual_seed, which seeds every device and takes longer than the crop. Nobody restores the state:
        # the training names its own random numbers too.
        torch.default_generator.manual_seed(seed)
        changed: Any = self._crop(side_px)(picture)
        for change in self._changes[refining]:
            changed = change(changed)
        assert image.label is not None
        return changed, image.label

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._images)

    def _changes_of(self, *, refining: bool) -> list[Any]:
        """What follows the crop."""
        recipe, fill = self._recipe, _mean_colour(self._preprocess)
        changes: list[Any] = []
        if recipe.flip:
            changes.append(v2.RandomHorizontalFlip())
        if recipe.trivial_augment and not refining:
            changes.append(v2.TrivialAugmentWide(fill=fill))
        changes.append(v2.PILToTensor())
        if recipe.erasing and not refining:
            changes.append(v2.RandomErasing(recipe.erasing, value=fill))
        return changes

    def _crop(self, side_px: int) -> v2.Transform:
        if side_px not in self._crops:
            if self._recipe.shift:
                border = round(self._recipe.shift * side_px)
                crop: v2.Transform = v2.RandomCrop(side_px, padding=border, fill=_mean_colour(self._preprocess))
            else:
                crop = v2.RandomResizedCrop(
                    side_px,
                    scale=(self._recipe.crop_scale, 1.0),
                    interpolation=InterpolationMode(self._preprocess.interpolation),
                )
            self._crops[side_px] = crop
        return self._crops[side_px]

    def _device(self, side_px: int) -> Preprocess:
        """The network's own preprocessing, for crops of another side."""
        resize_px = round(self._preprocess.resize_px * side_px / self._preprocess.crop_px)
        return msgspec.structs.replace(self._preprocess, resize_px=max(resize_px, side_px), crop_px=side_px)


class DevicePictures(Dataset[tuple[torch.Tensor, int]]):
    """Pictures as the device will see them: `Preprocess.pixels`, nothing random.

    Args:
        images: With labels.
        preprocess: Of the network.
    """

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self._images = images
        self._preprocess = preprocess

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """`uint8 [3, crop_px, crop_px]`, RGB, and the class."""
        image = self._images.images[index]
        assert image.label is not None
        return torch.from_numpy(self._preprocess.pixels(self._images.root / image.path)).permute(2, 0, 1), image.label

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._images)


class Draws:
    """The batches of a phase from a certain step on: a batch sampler that forgets nothing because it knows nothing.

    Args:
        count: Of pictures.
        steps: Of the whole phase.
        steps_per_epoch: Batches of one pass; what is left over waits for another pass.
        batch_size: Of all processes together.
        side_px: Side of the crops for each epoch.
        refined_from: First epoch of those that refine.
        seed: Of the training.
        phase: Its name, part of every seed.
        start: First step.
        rank: Of this process.
        world: Processes.
    """

    def __init__(
        self,
        *,
        count: int,
        steps: int,
        steps_per_epoch: int,
        batch_size: int,
        side_px: Sequence[int],
        refined_from: int,
        seed: int,
        phase: str,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._count, self._steps, self._per_epoch, self._batch = count, steps, steps_per_epoch, batch_size
        self._side_px, self._refined_from, self._seed, self._phase = side_px, refined_from, seed, phase
        self._start, self._rank, self._world = start, rank, world

    def __iter__(self) -> Iterator[list[Draw]]:
        """Lists of draws, this process' share of every batch."""
        order: list[int] = []
        for step in range(self._start, self._steps):
            epoch, position = divmod(step, self._per_epoch)
            if not order or position == 0:
                generator = torch.Generator().manual_seed(seed_from(self._seed, self._phase, epoch))
                order = torch.randperm(self._count, generator=generator).tolist()
            batch = order[position * self._batch : (position + 1) * self._batch]
            side_px, refining = self._side_px[epoch], epoch >= self._refined_from
            yield [
                Draw(index, seed_from(self._seed, self._phase, epoch, index), side_px, refining)
                for index in batch[self._rank :: self._world]
            ]

    def __len__(self) -> int:
        """The number of batches to come."""
        return self._steps - self._start


def mixer(recipe: Recipe, classes: int) -> v2.Transform | None:
    """Blends pictures of a batch and their classes into soft targets; None where the recipe does neither."""
    mixes: list[v2.Transform] = []
    if recipe.mixup:
        mixes.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        mixes.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    return v2.RandomChoice(mixes) if mixes else None


def draw_preview(images: ImageSet, labels: Labels, preprocess: Preprocess, recipe: Recipe, output: Path) -> None:
    """Draws a contact sheet: a row a picture, first as the device sees it, then as training at full size might.

    The last rows are a batch after MixUp and CutMix, where the recipe has them.

    Args:
        images: With labels; the first 8 in the order of `ImageSet.take`.
        labels: Names written above the rows.
        preprocess: Of the network.
        recipe: Whose augmentation it is.
        output: A PNG file.

    Raises:
        InputError: A picture cannot be read, or the file cannot be written; the message says which.
    """
    shown = images.take(_COLUMNS, seed=recipe.seed)
    drawn_px = (recipe.epochs and recipe.train_px) or preprocess.crop_px
    side = max(drawn_px, preprocess.crop_px)
    plain, augmented = DevicePictures(shown, preprocess), AugmentedPictures(shown, preprocess, recipe)
    rows: list[tuple[str, list[torch.Tensor]]] = []
    with untouched_rng():
        for index, image in enumerate(shown.images):
            draws = [Draw(index, seed_from(recipe.seed, "preview", index, n), drawn_px) for n in range(_COLUMNS - 1)]
            title = f"{labels.names[image.label or 0]}: as the device sees it, then augmented"
            rows.append((title, [plain[index][0], *(augmented[draw][0] for draw in draws)]))
        mix = mixer(recipe, len(labels))
        torch.manual_seed(seed_from(recipe.seed, "preview"))
        for _ in range(2 if mix is not None else 0):
            assert mix is not None
            batch = torch.stack([pictures[1] for _, pictures in rows[: len(shown)]]).float()
            mixed, _ = mix(batch, torch.tensor([image.label for image in shown.images]))
            rows.append(("a mixed batch", list(mixed.round().byte())))
    height = side + _MARGIN_PX + _TEXT_PX
    sheet = Image.new("RGB", (_COLUMNS * (side + _MARGIN_PX) + _MARGIN_PX, len(rows) * height + _MARGIN_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (title, pictures) in enumerate(rows):
        pen.text((_MARGIN_PX, row * height + 1), title, fill="black")
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(picture.permute(1, 2, 0).numpy())
            sheet.paste(tile, (_MARGIN_PX + column * (side + _MARGIN_PX), row * height + _TEXT_PX))
    with atomic_file(output) as file:
        sheet.save(file, "PNG")


def _mean_colour(preprocess: Preprocess) -> list[int]:
    mean = preprocess.mean if preprocess.colour == "rgb" else preprocess.mean[::-1]
    return [min(255, max(0, round(255 * value))) for value in mean]
