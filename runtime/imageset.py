"""Folders of pictures with a content digest: what calibrates, what evaluates, and whether they overlap."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.errors import InputError
from edgecls.runtime.labels import Labels
from edgecls.runtime.picture import EXTENSIONS, open_picture

_HASH_CHUNK_BYTES = 1 << 20
_MAX_LISTED = 5


class ImageFile(msgspec.Struct, frozen=True):
    """One picture of a set."""

    path: str
    """Relative to the set's root, with forward slashes."""
    sha256: str
    """Of the file's bytes, hex."""
    folder: str | None
    """The class sub-folder's name; None in a flat folder."""
    label: int | None
    """Index of the class; None where the set was opened without labels."""


class ImageSet(msgspec.Struct, frozen=True):
    """Pictures in a folder, sorted by path."""

    root: Path
    images: tuple[ImageFile, ...]
    missing: tuple[tuple[str, str], ...] = ()
    """Path and reason of the pictures whose files cannot be read; only `from_folder(tolerant=True)` has any."""

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.images)

    @classmethod
    def from_folder(
        cls, root: str | os.PathLike[str], labels: Labels | None = None, *, tolerant: bool = False
    ) -> ImageSet:
        """Lists and hashes the pictures of a folder with class sub-folders, or of a flat one.

        Pictures are known by their extension (JPEG, PNG, WebP, BMP, GIF, TIFF, in any case). The sub-folders of `root`
        are the classes, any subset of them; what lies deeper belongs to its class. Links are followed, except back
        into a folder on the way. Hidden files and folders and files of other kinds are passed over.

        Args:
            root: The folder.
            labels: Gives each picture the class that its sub-folder names; the pictures of a flat folder have none.
            tolerant: Files that cannot be read are listed in `missing`, as long as others can be.

        Raises:
            InputError: There is no such folder or no picture in it; pictures lie both in it and in its sub-folders; a
                sub-folder names no class, or several; a file cannot be read. The message lists them.
        """
        base = Path(root)
        try:
            found = sorted(_picture_paths(base))
        except OSError as error:
            raise InputError(
                f"cannot list the pictures of {base}: {error.strerror or error} ({error.filename})"
            ) from error
        if not found:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise InputError(
                f"no picture in {base} or its sub-folders; looked for {kinds} in files that are not hidden"
            )
        folders = {path: path.split("/", 1)[0] if "/" in path else None for path in found}
        classes = sorted({folder for folder in folders.values() if folder is not None})
        flat = [path for path in found if folders[path] is None]
        if classes and flat:
            raise InputError(
                f"{base} holds pictures beside its class folders ({len(flat)}, first {flat[0]!r}; "
                f"{len(classes)} folders, first {classes[0]!r}); move them into the folder of their class or elsewhere"
            )
        indices: dict[str | None, int] = {}
        if labels is not None:
            indices.update(_indices_from_folders(base, classes, labels))
        hashes, missing = _hashes(base, found)
        if missing and not (tolerant and hashes):
            raise _not_readable(base, len(found), missing)
        return cls(
            base,
            tuple(ImageFile(path, hashes[path], folders[path], indices.get(folders[path])) for path in hashes),
            missing,
        )

    @property
    def digest(self) -> str:
        """sha256 over the sorted content hashes (and labels, where known), hex; independent of names and order."""
        lines = sorted(f"{image.sha256} {'-' if image.label is None else image.label}\n" for image in self.images)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def take(self, count: int, *, seed: int | None = None) -> ImageSet:
        """At most `count` pictures, spread evenly over the classes (the folders, where no labels are known).

        Each class in turn gives one picture until there are enough; a class that runs out is passed over. Within a
        class the order is that of the content hash (`seed` None) or of a hash of seed and content hash, and so is the
        order of the classes by their first picture. The result is the same on every machine and whatever the files
        are called; only of files with the same content in the same class, the first path is taken.

        Raises:
            InputError: `count` is not positive.
        """
        if count < 1:
            raise InputError(f"cannot take {count} pictures; give a number from 1")
        if count >= len(self.images):
            return self
        classes: dict[int | str | None, list[tuple[str, ImageFile]]] = {}
        for image in self.images:
            key = image.sha256
            if seed is not None:
                key = hashlib.sha256(f"{seed} {key}".encode()).hexdigest()
            classes.setdefault(image.folder if image.label is None else image.label, []).append((key, image))
        # (turn, key, path): every class's first picture, then every class's second, …
        turns: list[tuple[int, str, ImageFile]] = []
        for members in classes.values():
            members.sort(key=lambda member: (member[0], member[1].path))
            turns += [(turn, members[0][0], image) for turn, (_, image) in enumerate(members)]
        turns.sort(key=lambda entry: (entry[0], entry[1], entry[2].label or 0, entry[2].path))
        taken = sorted((image for _, _, image in turns[:count]), key=lambda image: image.path)
        return ImageSet(self.root, tuple(taken), self.missing)

    def labelled(self, labels: Labels) -> ImageSet:
        """The same pictures, each with the class that its folder names; those of a flat folder have none.

        Raises:
            InputError: A folder names no class, or several; the message lists them.
        """
        folders = sorted({image.folder for image in self.images if image.folder is not None})
        indices: dict[str | None, int] = {}
        indices.update(_indices_from_folders(self.root, folders, labels))
        images = (msgspec.structs.replace(image, label=indices.get(image.folder)) for image in self.images)
        return ImageSet(self.root, tuple(images), self.missing)

    def without(self, sha256s: frozenset[str]) -> ImageSet:
        """The pictures whose content hash is not among `sha256s`."""
        return ImageSet(self.root, tuple(image for image in self.images if image.sha256 not in sha256s), self.missing)

    def overlap(self, sha256s: frozenset[str]) -> tuple[ImageFile, ...]:
        """The pictures whose content hash is among `sha256s`."""
        return tuple(image for image in self.images if image.sha256 in sha256s)

    def unreadable(self) -> tuple[tuple[ImageFile, str], ...]:
        """Decodes every picture in full; those that fail, each with the reason."""
        from concurrent.futures import ThreadPoolExecutor  # slow to import, and a device never calls this

        with ThreadPoolExecutor(cpu_count()) as pool:
            reasons = pool.map(lambda image: _reason_unreadable(self.root / image.path), self.images)
            return tuple((image, reason) for image, reason in zip(self.images, reasons, strict=True) if reason)


def _reason_unreadable(path: Path) -> str | None:
    try:
        open_picture(path)
    except InputError as error:
        return str(error)
    return None


def _picture_paths(root: Path) -> Iterator[str]:
    """Paths of the pictures below a folder, relative to it, with forward slashes, in no order."""
    stack = [(root, "", frozenset[tuple[int, int]]())]
    while stack:
        folder, prefix, above = stack.pop()
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link back to a folder that we are in
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append((Path(entry.path), f"{prefix}{entry.name}/", above | {identity}))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    yield prefix + entry.name


def _indices_from_folders(root: Path, folders: list[str], labels: Labels) -> dict[str, int]:
    try:
        return labels.indices_from_folders(folders)
    except InputError as error:
        raise InputError(f"{root}: {error}") from error


def _hashes(root: Path, paths: list[str]) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """Content hashes by path, and path and reason of the files that cannot be read."""
    hashes: dict[str, str] = {}
    missing: list[tuple[str, str]] = []
    for path in paths:
        try:
            hashes[path] = _sha256_of_file(root / path)
        except OSError as error:
            shown = path.encode("utf-8", "backslashreplace").decode()
            missing.append((shown, getattr(error, "strerror", None) or str(error)))
    return hashes, tuple(missing)


def _not_readable(root: Path, count: int, missing: tuple[tuple[str, str], ...]) -> InputError:
    listed = ", ".join(f"{path!r} ({reason})" for path, reason in missing[:_MAX_LISTED])
    more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
    return InputError(
        f"{len(missing)} of {count} pictures of {root} cannot be read: {listed}{more}; "
        "make them readable or remove them"
    )


def _sha256_of_file(path: Path) -> str:
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise OSError("its name is not UTF-8 and could not be written to a report") from error
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its writer for ever
        raise OSError("it is not a file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
