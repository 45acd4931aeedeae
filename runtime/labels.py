"""The names of the classes, and which class a folder of pictures stands for."""

from __future__ import annotations

import os

import msgspec


class Labels(msgspec.Struct, frozen=True):
    """The classes of a classifier, in the order of its logits."""

    names: tuple[str, ...]
    """One name a class; two classes may share one (ImageNet has two cranes)."""
    ids: tuple[str, ...] | None = None
    """One identifier a class (a WordNet id such as `n01440764`), unique; None where the labels file has none."""

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Labels:
        """Reads a labels file: a name a line; `id name` where every line looks so; or id, TAB, name."""
        raise NotImplementedError

    def index_from_folder(self, folder: str) -> int:
        """The class that a folder name means, by id first, then by name.

        Raises:
            InputError: No class, or more than one, goes by that name.
        """
        raise NotImplementedError
