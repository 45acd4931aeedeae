from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from training_pictures import write_pictures

from edgecls.models.training_data import TrainingData
from edgecls.runtime import ImageSet, InputError


def test_one_folder_is_split_by_content_whatever_the_files_are_called(tmp_path: Path) -> None:
    first = TrainingData.open(write_pictures(tmp_path / "a", 10), val_fraction=0.2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for number, path in enumerate(sorted((tmp_path / "b").glob("*/*"))):
        path.rename(path.with_name(f"renamed{29 - number}.png"))
    second = TrainingData.open(tmp_path / "b", val_fraction=0.2)
    assert [len(part) for part in (first.train, first.val)] == [24, 6]
    assert first.val.digest == second.val.digest
    assert first.train.digest == second.train.digest
    assert {image.label for image in first.val.images} == {0, 1, 2}
    assert first.labels.names == ("blue", "green", "red")


def test_copies_of_a_picture_stay_on_one_side(tmp_path: Path) -> None:
    root = write_pictures(tmp_path, 4)
    for path in list(root.glob("*/*")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
        shutil.copy(path, root / "red" / f"also-{path.parent.name}-{path.name}")
    data = TrainingData.open(root, val_fraction=0.3)
    assert not {image.sha256 for image in data.train.images} & {image.sha256 for image in data.val.images}


def test_train_and_val_are_taken_as_they_are(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 5)
    write_pictures(tmp_path / "val", 2, seed=1)
    data = TrainingData.open(tmp_path)
    assert (len(data.train), len(data.val), data.notes) == (15, 6, ())


def test_a_class_that_nobody_validates_is_told(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 3)
    shutil.rmtree(write_pictures(tmp_path / "val", 2, seed=1) / "red")
    assert "no picture of 'red'" in TrainingData.open(tmp_path).notes[0]


def test_unequal_classes_are_told(tmp_path: Path) -> None:
    root = write_pictures(tmp_path, 12)
    for path in sorted((root / "red").iterdir())[2:]:
        path.unlink()
    (note,) = TrainingData.open(root).notes
    assert "red" in note
    assert "--class-weights" in note


@pytest.mark.parametrize(("train", "val"), [("training", "validation"), ("Train", "Val"), ("TRAIN", "Valid")])
def test_parts_are_known_however_they_are_spelled(train: str, val: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / train, 3)
    write_pictures(tmp_path / val, 2, seed=1)
    data = TrainingData.open(tmp_path)
    assert (len(data.train), len(data.val)) == (9, 6)
    assert data.labels.names == ("blue", "green", "red")


@pytest.mark.parametrize("names", [("valid", "invalid"), ("Train", "Bus"), ("test", "other")])
def test_classes_may_be_called_like_parts(names: tuple[str, str], tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    shutil.rmtree(tmp_path / "blue")
    for old, new in zip(("green", "red"), names, strict=True):
        (tmp_path / old).rename(tmp_path / new)
    assert TrainingData.open(tmp_path).labels.names == tuple(sorted(names))


def test_without_validation_everything_teaches(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", 3)
    assert [len(part) for part in _parts_of(root)] == [9, 0]
    write_pictures(tmp_path / "b" / "train", 3)
    assert [len(part) for part in _parts_of(tmp_path / "b")] == [9, 0]
    write_pictures(tmp_path / "b" / "val", 2, seed=1)
    assert [len(part) for part in _parts_of(tmp_path / "b")] == [9, 0]


def _parts_of(root: Path) -> tuple[ImageSet, ImageSet]:
    data = TrainingData.open(root, val_fraction=None)
    return data.train, data.val


def test_negative_numbers_are_classes_of_their_own(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    for old, new in (("blue", "-1"), ("green", "0"), ("red", "1")):
        (tmp_path / old).rename(tmp_path / new)
    assert TrainingData.open(tmp_path).labels.names == ("-1", "0", "1")


def test_names_match_however_accents_are_composed(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (write_pictures(tmp_path / "train", 3) / "red").rename(tmp_path / "train" / decomposed)
    (write_pictures(tmp_path / "val", 2, seed=1) / "red").rename(tmp_path / "val" / composed)
    data = TrainingData.open(tmp_path)
    assert data.labels.names == ("blue", composed, "green")
    assert sorted(image.label for image in data.val.images) == [0, 0, 1, 1, 2, 2]


def test_a_limit_that_leaves_a_class_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no training picture is left of '\w+': give --limit 3 or more"):
        TrainingData.open(write_pictures(tmp_path, 3), limit=2)


def _only_train(root: Path) -> None:
    write_pictures(root / "train", 2)


def _empty_val(root: Path) -> None:
    write_pictures(root / "train", 2)
    (root / "val").mkdir()


def _no_train(root: Path) -> None:
    write_pictures(root / "valid", 2)
    write_pictures(root / "test", 2, seed=1)


def _two_train(root: Path) -> None:
    write_pictures(root / "train", 2)
    write_pictures(root / "training", 2, seed=1)


def _flat_val(root: Path) -> None:
    write_pictures(root / "train", 2)
    (root / "val").mkdir()
    Image.new("RGB", (8, 8)).save(root / "val" / "a.png")


def _empty_class(root: Path) -> None:
    (write_pictures(root, 2) / "yellow").mkdir()


def _other_kind(root: Path) -> None:
    (write_pictures(root / "train", 2) / "yellow").mkdir()
    (root / "train" / "yellow" / "IMG_1.HEIC").write_bytes(b"ftyp")
    write_pictures(root / "val", 2, seed=1)


def _two_compositions(root: Path) -> None:
    write_pictures(root, 2)
    (root / "red").rename(root / "caf\u00e9")
    (root / "green").rename(root / "cafe\u0301")


def _two_spellings(root: Path) -> None:
    write_pictures(root, 2)
    shutil.copytree(root / "red", root / "Red")


def _lone_picture(root: Path) -> None:
    write_pictures(root, 2)
    next((root / "red").iterdir()).unlink()


def _only_copies(root: Path) -> None:
    write_pictures(root, 2)
    one, other = (root / "red").iterdir()
    shutil.copy(one, other)


def _lone_to_learn_from(root: Path) -> None:
    _lone_picture(root / "train")
    write_pictures(root / "val", 2, seed=1)


def _broken(root: Path) -> None:
    path = next(write_pictures(root, 2).glob("green/*"))
    path.write_bytes(path.read_bytes()[:-200])


def _one_class(root: Path) -> None:
    write_pictures(root, 2)
    for name in ("red", "green"):
        shutil.rmtree(root / name)


def _flat(root: Path) -> None:
    Image.new("RGB", (8, 8)).save(root / "a.png")


def _unknown_class(root: Path) -> None:
    write_pictures(root / "train", 2)
    (write_pictures(root / "val", 2, seed=1) / "red").rename(root / "val" / "crimson")


def _shared(root: Path) -> None:
    write_pictures(root / "train", 2)
    write_pictures(root / "val", 1, seed=1)
    shutil.copy(next((root / "train" / "red").iterdir()), root / "val" / "red" / "same.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_only_train, "no val/"),
        (_empty_val, "nothing to validate with"),
        (_no_train, "holds 'test', 'valid' and nothing to learn from: add train/"),
        (_two_train, "holds 'train', 'training': keep one"),
        (_flat_val, "val has no class folders"),
        (_empty_class, r"without a picture: 'yellow' \(empty\)"),
        (_other_kind, r"without a picture: 'yellow' \(\.heic\); looked for .*\.jpg"),
        (_two_compositions, "spells a class in two ways"),
        (_two_spellings, "'Red' and 'red'"),
        (_lone_picture, "'red' has only one picture"),
        (_only_copies, "'red' has only one picture"),
        (_lone_to_learn_from, "train: 'red' has only one picture"),
        (_broken, "1 pictures cannot be decoded"),
        (_one_class, "has one class, 'blue'"),
        (_flat, "no class folders"),
        (_unknown_class, "'crimson'"),
        (_shared, "same.png"),
    ],
)
def test_bad_data_are_refused_before_anything_is_learned(spoil, message: str, tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        TrainingData.open(tmp_path)
