from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from training_pictures import write_pictures

from edgecls.models.training_data import TrainingData
from edgecls.runtime import InputError


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


def _only_train(root: Path) -> None:
    write_pictures(root / "train", 2)


def _empty_val(root: Path) -> None:
    write_pictures(root / "train", 2)
    (root / "val").mkdir()


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
        (_two_spellings, "'Red' and 'red'"),
        (_lone_picture, "'red' has only one picture"),
        (_only_copies, "'red' has only one picture"),
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
