"""The names of the classes, and which class a folder of pictures stands for."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

import msgspec

from edgecls.runtime.errors import InputError, InvalidRecordError

_WORDNET_ID = re.compile(r"n\d{8}")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that a name may not hold: it is printed on terminals and written to reports."""

MAX_NAME_CHARACTERS = 1000
"""Of a name or an id: it is printed on terminals and stands in error messages."""

_MAX_LISTED = 5
_MAX_FILE_BYTES = 1 << 26
"""Of a labels file: a million classes with long names."""


class Labels(msgspec.Struct, frozen=True):
    """The classes of a classifier, in the order of its logits.

    Raises:
        InvalidRecordError: There is no class, a name is empty, too long or holds control characters, or the ids are not
            unique or not as many as the names (an `InputError`; when decoding JSON, msgspec's `ValidationError`).
    """

    names: tuple[str, ...]
    """One name a class; two classes may share one (ImageNet has two cranes)."""
    ids: tuple[str, ...] | None = None
    """One identifier a class (a WordNet id such as `n01440764`), unique; None where the labels file has none."""

    def __post_init__(self) -> None:
        for field, texts in (("name", self.names), ("id", self.ids or ())):
            for index, text in enumerate(texts):
                if not text.strip():
                    raise InvalidRecordError(f"class {index} (counted from 0) has an empty {field}")
                if len(text) > MAX_NAME_CHARACTERS:
                    raise InvalidRecordError(
                        f"class {index} (counted from 0) has {len(text)} characters in its {field}, which begins with "
                        f"{text[:20]!r}; at most {MAX_NAME_CHARACTERS} are read"
                    )
                if any(unicodedata.category(character) in _UNPRINTABLE for character in text):
                    raise InvalidRecordError(
                        f"class {index} (counted from 0) has a control character in its {field} {text!r}"
                    )
        if not self.names:
            raise InvalidRecordError("there are no classes")
        if self.ids is None:
            return
        if len(self.ids) != len(self.names):
            raise InvalidRecordError(f"there are {len(self.names)} names but {len(self.ids)} ids")
        first: dict[str, int] = {}
        for index, identifier in enumerate(self.ids):
            if first.setdefault(identifier, index) != index:
                raise InvalidRecordError(
                    f"classes {first[identifier]} and {index} (counted from 0) share the id {identifier!r}"
                )

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Labels:
        """Reads a labels file: UTF-8, one class a line in the order of the logits.

        A line is a name; or `id name` where the first word of every line looks like `n01440764`; or id, TAB, name on
        every line. Spaces around a name, a byte order mark, CRLF and empty lines at the end do not count.

        Raises:
            InputError: The file cannot be read, is empty, has an empty line in the middle, an id twice or a control
                character; the message says where.
        """
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
            if len(content) > _MAX_FILE_BYTES:
                raise InputError(f"the labels file {path} has more than {_MAX_FILE_BYTES} bytes: it is none")
            text = content.decode("utf-8-sig")
        except OSError as error:
            raise InputError(f"cannot read the labels file {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"the labels file {path} is not UTF-8 (byte {error.start}); convert it") from error
        lines = [line.removesuffix("\r").strip(" ") for line in text.split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        if "" in lines:
            line = lines.index("") + 1
            raise InputError(f"line {line} of the labels file {path} is empty; a line is a class: fill or remove it")
        try:
            return cls(*_names_and_ids(lines))
        except InvalidRecordError as error:
            raise InputError(f"the labels file {path} is wrong: {error}. Class 0 is the first line") from error

    def index_from_folder(self, folder: str) -> int:
        """The class that a folder name means.

        The first rule that finds any class decides: the id; the name; the name regardless of case and with `_` for
        spaces; one of the comma-separated parts of a name (`tench` for `tench, Tinca tinca`), likewise. How an accent
        is encoded makes no difference: folders from a Mac have it as a character of its own.

        Raises:
            InputError: No class, or more than one, goes by that name; rename the folder to an id or a name.
        """
        return self.indices_from_folders([folder])[folder]

    def indices_from_folders(self, folders: Iterable[str]) -> dict[str, int]:
        """As `index_from_folder`, for many folders: folder name to class.

        Raises:
            InputError: Names the folders that mean no class, or more than one.
        """
        rules = self._rules()
        indices: dict[str, int] = {}
        problems: list[str] = []
        total = 0
        for folder in folders:
            total += 1
            found = next((table[key] for table, key in zip(rules, _keys(folder), strict=True) if key in table), [])
            if len(found) == 1:
                indices[folder] = found[0]
            elif len(problems) < _MAX_LISTED:
                problems.append(self._ambiguous(folder, found) if found else self._unknown(folder))
        missing = total - len(indices)
        if problems:
            more = f" (and {missing - len(problems)} more)" if missing > len(problems) else ""
            raise InputError(
                f"{missing} of {total} folders cannot be matched to the {len(self)} classes: "
                f"{'; '.join(problems)}{more}. "
                "Name each folder by the id or the name of its class, or give other labels"
            )
        return indices

    def _rules(self) -> tuple[dict[str, list[int]], ...]:
        """For each rule of `index_from_folder`, in order: the classes by what a folder may be called."""
        by_id: dict[str, list[int]] = {}
        by_name: dict[str, list[int]] = {}
        loosely: dict[str, list[int]] = {}
        by_part: dict[str, list[int]] = {}
        for index, identifier in enumerate(self.ids or ()):
            by_id.setdefault(_composed(identifier), []).append(index)
        for index, name in enumerate(self.names):
            by_name.setdefault(_composed(name), []).append(index)
            loosely.setdefault(_loose(name), []).append(index)
            for part in {_loose(part) for part in name.split(",")}:
                by_part.setdefault(part, []).append(index)
        return by_id, by_name, loosely, by_part

    def _ambiguous(self, folder: str, found: list[int]) -> str:
        classes = [f"{self.ids[index] if self.ids else f'class {index}'} {self.names[index]}" for index in found]
        return f"{folder!r} means {' or '.join(classes)}"

    def _unknown(self, folder: str) -> str:
        import difflib  # here, for it is needed on the way to an error only

        known = dict.fromkeys([*self.names, *(self.ids or ())])
        close = difflib.get_close_matches(folder, known, n=3)
        return f"{folder!r} is unknown" + (f" (close: {', '.join(map(repr, close))})" if close else "")


def _names_and_ids(lines: list[str]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    if lines and all("\t" in line for line in lines):
        pairs = [line.split("\t", 1) for line in lines]
    elif lines and all(" " in line and _WORDNET_ID.fullmatch(line.split(" ", 1)[0]) for line in lines):
        pairs = [line.split(" ", 1) for line in lines]
    else:
        return tuple(lines), None
    return tuple(name.strip(" ") for _, name in pairs), tuple(identifier.strip(" ") for identifier, _ in pairs)


def _keys(folder: str) -> tuple[str, str, str, str]:
    exact, loose = _composed(folder), _loose(folder)
    return exact, exact, loose, loose


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _loose(name: str) -> str:
    return " ".join(_composed(name).casefold().replace("_", " ").split())
