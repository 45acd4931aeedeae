"""Labels files in every form, and folders that stand for classes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecls.runtime.errors import InputError, InvalidRecordError
from edgecls.runtime.labels import Labels

IMAGENET = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet_classes.txt"


def labels_from(tmp_path: Path, content: str | bytes) -> Labels:
    path = tmp_path / "labels.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Labels.from_file(path)


@pytest.mark.parametrize(
    ("content", "names", "ids"),
    [
        ("cat\ndog\n", ("cat", "dog"), None),
        ("cat\r\ngreat dane\r\n\r\n\n", ("cat", "great dane"), None),
        (b"\xef\xbb\xbfk\xc3\xa4se\nb\xc3\xa4r", ("käse", "bär"), None),
        ("  cat \ndog  ", ("cat", "dog"), None),
        ("n01440764 tench, T\nn01443537 goldfish\n", ("tench, T", "goldfish"), ("n01440764", "n01443537")),
        ("n01440764 tench\ngoldfish\n", ("n01440764 tench", "goldfish"), None),
        ("n01440764\nn01443537\n", ("n01440764", "n01443537"), None),
        ("a\tcat\nb\tgreat dane\n", ("cat", "great dane"), ("a", "b")),
        ("n0144 tench\nn0145 fish", ("n0144 tench", "n0145 fish"), None),
        ("one", ("one",), None),
    ],
)  # fmt: skip
def test_forms(tmp_path, content, names, ids):
    assert labels_from(tmp_path, content) == Labels(names, ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there are no classes"),
        ("\n\r\n \n", "there are no classes"),
        ("cat\n\ndog\n", r"line 2 .* is empty"),
        ("a\tcat\na\tdog\n", r"classes 0 and 1 .* share the id 'a'"),
        ("n01440764 tench\nn01440764 fish", "share the id 'n01440764'"),
        ("cat\tx\ndog\n", "class 0 .* control character"),
        ("cat\nd\x1b[31mog\n", "class 1 .* control character"),
        ("cat\rdog\n", "control character"),
        ("a\t\nb\tcat", "class 0 .* empty name"),
        ("\tcat\nb\tdog", "class 0 .* empty id"),
        (b"cat\nb\xe4r", "not UTF-8 .byte 5."),
        ("c\x00at\ndog".encode("utf-16"), "not UTF-8"),
        ("cat\n" + "\x1b" * 10_000_000, "class 1 .* has 10000000 characters in its name.*at most 1000"),
    ],
)
def test_refused_files(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        labels_from(tmp_path, content)
    assert "labels.txt" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        Labels.from_file(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("names", "ids"), [((), None), (("a", "b"), ("x",)), (("a", "b"), ("x", "x")), ((" ",), None), (("a\n",), None)]
)
def test_refused_records(names, ids):
    with pytest.raises(InvalidRecordError):
        Labels(names, ids)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"names": names, "ids": ids}), type=Labels)


def test_folder_rules():
    labels = Labels(
        ("tench, Tinca tinca", "great_white_shark", "Tench", "crane", "crane"), ("n1", "n2", "n3", "n4", "crane4")
    )
    assert labels.index_from_folder("n2") == 1
    assert labels.index_from_folder("great_white_shark") == 1
    assert labels.index_from_folder("Great White  Shark") == 1
    assert labels.index_from_folder("Tench") == 2
    assert labels.index_from_folder("tench") == 2  # the whole name wins over a part of another
    assert labels.index_from_folder("tinca_tinca") == 0
    assert labels.index_from_folder("crane4") == 4


def test_accents_are_compared_however_they_are_encoded():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for name, folder in ((composed, decomposed), (decomposed, composed)):
        labels = Labels((f"{name} crème, bar", name, "tea"), ("x", f"{name}-1", name))
        assert labels.index_from_folder(folder) == 2
        assert labels.index_from_folder(f"{folder}-1") == 1
        assert labels.index_from_folder(f"{folder.upper()}_crème, bar") == 0
        assert Labels(("Café", name)).index_from_folder(folder) == 1
    with pytest.raises(InputError, match="means x .* or y"):
        Labels((composed, decomposed), ("x", "y")).index_from_folder(composed)


def test_id_wins_over_name():
    assert Labels(("b", "a"), ("a", "b")).index_from_folder("a") == 0


def test_ambiguous_folder_lists_the_ids():
    labels = Labels(("crane", "tench", "crane"), ("n02012849", "n01440764", "n03126707"))
    with pytest.raises(InputError, match=r"'crane' means n02012849 crane or n03126707 crane"):
        labels.index_from_folder("crane")
    with pytest.raises(InputError, match="'CAT' means class 0 cat or class 1 Cat"):
        Labels(("cat", "Cat")).index_from_folder("CAT")


def test_unknown_folder_suggests_and_never_takes():
    with pytest.raises(InputError, match=r"1 of 1 folders .* 2 classes: 'goldfsh' is unknown \(close: 'goldfish'\)"):
        Labels(("tench", "goldfish")).index_from_folder("goldfsh")


def test_all_problems_in_one_error():
    folders = ["cat", *(f"zzz{number}" for number in range(9))]
    with pytest.raises(InputError, match=r"9 of 10 folders .*zzz0.*zzz4.*\(and 4 more\)") as caught:
        Labels(("cat", "dog")).indices_from_folders(folders)
    assert "zzz5" not in str(caught.value)


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).filter(
    lambda name: name == name.strip() and not name.startswith("\ufeff")
)


@given(st.lists(NAMES, min_size=1, max_size=8))
def test_tab_file_round_trip(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("labels") / "labels.tsv"
    path.write_text("".join(f"id{index}\t{name}\n" for index, name in enumerate(names)), "utf-8", newline="\n")
    labels = Labels.from_file(path)
    assert labels.names == tuple(names)
    assert [labels.index_from_folder(f"id{index}") for index in range(len(names))] == list(range(len(names)))
    assert msgspec.json.decode(msgspec.json.encode(labels), type=Labels) == labels


@pytest.mark.skipif(not IMAGENET.exists(), reason="the ImageNet class list is not here")
def test_imagenet():
    labels = Labels.from_file(IMAGENET)
    assert len(labels) == 1000
    assert labels.ids is not None
    assert labels.indices_from_folders(labels.ids) == {identifier: n for n, identifier in enumerate(labels.ids)}
    assert labels.index_from_folder("great white shark") == 2
    with pytest.raises(InputError, match="4 of 1000 folders"):
        labels.indices_from_folders(labels.names)
