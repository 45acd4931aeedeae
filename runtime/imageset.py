"""Folders of pictures with a content digest: what calibrates, what evaluates, and whether they overlap."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgecls.runtime.labels import Labels


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

    @classmethod
    def from_folder(cls, root: str | os.PathLike[str], labels: Labels | None = None) -> ImageSet:
        """Lists and hashes the pictures of a folder with class sub-folders, or of a flat one."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """sha256 over the sorted content hashes (and labels, where known), hex; independent of names and order."""
        raise NotImplementedError

    def take(self, count: int, *, seed: int | None = None) -> ImageSet:
        """At most `count` pictures, spread evenly over the class folders.

        Within a class the order is that of the content hash (`seed` None) or of a hash of seed and content hash.
        The result is the same on every machine and whatever the files are called.
        """
        raise NotImplementedError

    def overlap(self, sha256s: frozenset[str]) -> tuple[ImageFile, ...]:
        """The pictures whose content hash is among `sha256s`."""
        raise NotImplementedError

    def unreadable(self) -> tuple[tuple[ImageFile, str], ...]:
        """Decodes every picture in full; those that fail, each with the reason."""
        raise NotImplementedError
