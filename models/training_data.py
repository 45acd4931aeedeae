"""The pictures that a classifier learns from and those that judge it, checked before anything is learned."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageFile, ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.picture import EXTENSIONS
from edgecls.runtime.progress import Progress, SilentProgress

_TRAINING = frozenset({"train", "training"})
_VALIDATION = frozenset({"val", "valid", "validation"})
_PARTS = _TRAINING | _VALIDATION | {"test", "testing"}
"""What folders of a divided data set are called, in any case."""
_MAX_LISTED = 5


@dataclass(frozen=True)
class TrainingData:
    """Two sets of pictures with the same classes and no picture in common."""

    train: ImageSet
    val: ImageSet
    labels: Labels
    """The names of the class folders, in alphabetical order."""
    notes: tuple[str, ...] = ()
    """What the user should know."""
    limit: int | None = None
    """At most so many training pictures were taken."""

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        val_fraction: float | None = 0.1,
        limit: int | None = None,
        decode: bool = True,
        progress: Progress = SilentProgress(),  # noqa: B008 (stateless)
    ) -> TrainingData:
        """Opens a folder with `train/` and `val/` in it, or one folder of classes that is split.

        The split takes `val_fraction` of every class, at least one picture, by content hash: the same pictures on
        every machine, whatever the files are called.

        Args:
            root: The folder.
            val_fraction: Share that validates where there is no `val/`, 0..1; None validates nothing, and leaves a
                `val/` unread.
            limit: Take at most so many training pictures, spread over the classes.
            decode: Whether every picture is decoded once; without it, broken ones are found by who uses them.
            progress: Told about the decoding.

        Raises:
            InputError: A picture cannot be decoded; `val/` is missing beside `train/`, or the reverse, or empty; a
                class has too few pictures, or none; two folders spell one class; the two parts share a picture. The
                message lists them.
        """
        training, validation = _parts(root, needs_val=val_fraction is not None)
        notes: tuple[str, ...] = ()
        with progress.stage("Reading the pictures"):
            train, labels = _labelled(_composed(ImageSet.from_folder(training or root)))
            _refuse_empty(train)
            if val_fraction is None:
                val = _replaced(train, ())
            elif validation is not None:
                val, notes = _labelled_validation(validation, labels)
                _refuse_overlap(train, val)
                _refuse_lone(train, labels, "what it shares with others of its class cannot be learned from it")
            else:
                _refuse_lone(train, labels, "both training and validation need one")
                train, val = _split(train, val_fraction)
        if limit is not None:
            train = train.take(limit)
        _refuse_untaught(train, labels)
        if decode:
            with progress.stage("Decoding every picture once"):
                _refuse_unreadable(train, val)
        return cls(train, val, labels, (*notes, *_imbalance(train, labels)), limit)


def _parts(root: Path, *, needs_val: bool) -> tuple[Path | None, Path | None]:
    """The folders to learn from and to validate with; None twice where the folders are classes.

    A class may be called train as well: its folder holds pictures, and the others are called otherwise.
    """
    entries = sorted(root.iterdir()) if root.is_dir() else []
    folders = {entry: entry.name.casefold() for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    named = [[entry for entry, name in folders.items() if name in names] for names in (_TRAINING, _VALIDATION)]
    for found in named:
        if len(found) > 1:
            raise InputError(f"{root} holds {_listed([entry.name for entry in found])}: keep one of them.")
    training, validation = (found[0] if found else None for found in named)
    divided = bool(folders) and _PARTS.issuperset(folders.values())
    if training is None:
        if divided:
            raise InputError(
                f"{root} holds {_listed([entry.name for entry in folders])} and nothing to learn from: add train/, or "
                "give a folder of classes as --data."
            )
        return None, None
    has_classes = any(entry.is_dir() and not entry.name.startswith(".") for entry in training.iterdir())
    if validation is None and not divided and not has_classes:
        return None, None
    if validation is None and needs_val:
        raise InputError(
            f"{root} holds {training.name}/ but no val/: give --data {training} to split that, or add val/. "
            "(test/ is not looked at: it is for `edgecls evaluate`.)"
        )
    return training, validation


def _composed(images: ImageSet) -> ImageSet:
    """The set with the names of its folders as Unicode composes them (NFC): archives of macOS have them decomposed."""
    _refuse_spellings(images.root, sorted({image.folder for image in images.images if image.folder is not None}))
    return _replaced(
        images,
        [
            msgspec.structs.replace(image, folder=image.folder and unicodedata.normalize("NFC", image.folder))
            for image in images.images
        ],
    )


def _labelled(images: ImageSet, labels: Labels | None = None) -> tuple[ImageSet, Labels]:
    """The set with the index of each picture's folder as its label."""
    folders = sorted({image.folder for image in images.images if image.folder is not None})
    if not folders:
        raise InputError(
            f"{images.root} has no class folders: put the pictures of every class into a folder of its own."
        )
    if labels is None:
        if len(folders) < 2:
            raise InputError(f"{images.root} has one class, {folders[0]!r}: a classifier needs at least two.")
        labels = Labels(names=tuple(folders))
    index = {name: position for position, name in enumerate(labels.names)}
    return _replaced(images, [msgspec.structs.replace(i, label=index[i.folder or ""]) for i in images.images]), labels


def _labelled_validation(root: Path, labels: Labels) -> tuple[ImageSet, tuple[str, ...]]:
    try:
        images = ImageSet.from_folder(root)
    except InputError as error:
        raise InputError(
            f"nothing to validate with: {error}; or leave {root.name}/ out and train on one folder."
        ) from error
    images = _composed(images)
    present = {image.folder for image in images.images}
    unknown = sorted(folder for folder in present if folder is not None and folder not in labels.names)
    if unknown:
        raise InputError(
            f"{root} has classes that the training pictures lack: {_listed(unknown)}; "
            f"those have {_listed(labels.names)}. Folders must be called the same in both."
        )
    absent = [name for name in labels.names if name not in present]
    notes = (f"{root} has no picture of {_listed(absent)}: nothing will be known about them",) if absent else ()
    return _labelled(images, labels)[0], notes


def _split(images: ImageSet, val_fraction: float) -> tuple[ImageSet, ImageSet]:
    members: dict[int, dict[str, list[ImageFile]]] = {}
    for image in images.images:
        members.setdefault(image.label or 0, {}).setdefault(image.sha256, []).append(image)
    held_out = {
        content
        for contents in members.values()
        for content in sorted(contents)[: min(len(contents) - 1, max(1, round(val_fraction * len(contents))))]
    }
    # A picture that lies in two classes would otherwise teach in one what it asks in the other.
    train = [image for image in images.images if image.sha256 not in held_out]
    val = [image for image in images.images if image.sha256 in held_out]
    return _replaced(images, train), _replaced(images, val)


def _refuse_lone(images: ImageSet, labels: Labels, reason: str) -> None:
    counts = Counter(label for label, _ in {(image.label, image.sha256) for image in images.images})
    lone = [name for index, name in enumerate(labels.names) if counts[index] == 1]
    if lone:
        raise InputError(
            f"{images.root}: {_listed(lone)} has only one picture (copies count once), and {reason}. "
            "Add pictures or remove the class."
        )


def _replaced(images: ImageSet, files: Sequence[ImageFile]) -> ImageSet:
    return ImageSet(images.root, tuple(files))


def _refuse_spellings(root: Path, folders: Sequence[str]) -> None:
    spelled: dict[str, str] = {}
    for folder in folders:
        # A minus at the beginning is a sign.
        plain = re.sub(r"(?!^-)[\s_\-.]+", " ", unicodedata.normalize("NFKC", folder)).strip().casefold()
        if plain in spelled:
            raise InputError(
                f"{root} spells a class in two ways, {spelled[plain]!r} and {folder!r}: "
                "put both into one folder, or give them names that differ in letters."
            )
        spelled[plain] = folder


def _refuse_empty(images: ImageSet) -> None:
    """Refuses class folders that are no class, because nothing in them is a picture."""
    classes = {image.folder for image in images.images}
    without = []
    for entry in sorted(images.root.iterdir()):
        if (
            entry.is_dir()
            and not entry.name.startswith(".")
            and unicodedata.normalize("NFC", entry.name) not in classes
        ):
            kinds = sorted({path.suffix.lower() or path.name for path in entry.rglob("*") if path.is_file()})
            without.append(f"{entry.name!r} ({', '.join(kinds[:_MAX_LISTED]) or 'empty'})")
    if without:
        more = f" and {len(without) - _MAX_LISTED} more" if len(without) > _MAX_LISTED else ""
        raise InputError(
            f"{images.root} has class folders without a picture: {', '.join(without[:_MAX_LISTED])}{more}; looked for "
            f"{', '.join(sorted(EXTENSIONS))}. Convert what is in them, or remove them."
        )


def _refuse_untaught(train: ImageSet, labels: Labels) -> None:
    taught = {image.label for image in train.images}
    untaught = [name for index, name in enumerate(labels.names) if index not in taught]
    if untaught:
        raise InputError(
            f"no training picture is left of {_listed(untaught)}: give --limit {len(labels)} or more, if any, and take "
            "pictures that lie in two classes out of one."
        )


def _refuse_overlap(train: ImageSet, val: ImageSet) -> None:
    shared = val.overlap(frozenset(image.sha256 for image in train.images))
    if shared:
        raise InputError(
            f"{len(shared)} pictures of {val.root} are training pictures too, by content: "
            f"{_listed([image.path for image in shared])}. Remove them from one of the two."
        )


def _refuse_unreadable(*parts: ImageSet) -> None:
    broken = [f"{part.root / image.path} ({reason})" for part in parts for image, reason in part.unreadable()]
    if broken:
        shown = "\n  ".join(broken[:_MAX_LISTED])
        more = f"\n  and {len(broken) - _MAX_LISTED} more" if len(broken) > _MAX_LISTED else ""
        raise InputError(f"{len(broken)} pictures cannot be decoded:\n  {shown}{more}\nRepair or remove them.")


def _imbalance(train: ImageSet, labels: Labels) -> tuple[str, ...]:
    counts = Counter(image.label for image in train.images)
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    if high < 4 * low:
        return ()
    return (
        f"the classes are unequal: {high} training pictures of {labels.names[most or 0]}, {low} of "
        f"{labels.names[least or 0]}; for a network, --class-weights makes them count the same",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(map(repr, names[:_MAX_LISTED])) + more
