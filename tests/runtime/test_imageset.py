"""Picture folders: what is found, what it is called, how it is divided, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgecls.runtime.errors import InputError
from edgecls.runtime.imageset import ImageFile, ImageSet
from edgecls.runtime.labels import Labels

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=6)
SEEDS = st.none() | st.integers(0, 3)
LABELS = Labels(("cat", "dog", "great_ape"), ("n00000001", "n00000002", "n00000003"))


def put(root: Path, *paths: str) -> Path:
    """Writes files whose contents are their names: only hashing and listing are under test."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(Path(path).name)
    return root


def test_class_folders(tmp_path):
    put(tmp_path, "cat/b.JPG", "cat/a.jpeg", "n00000003/c.png", "cat/notes.txt", ".git/x.png", "cat/.hidden.jpg")
    put(tmp_path, "Thumbs.db", "dog/readme.md", "cat/deep/er/d.webp")
    images = ImageSet.from_folder(tmp_path, LABELS)
    assert images.root == tmp_path
    assert [(image.path, image.folder, image.label) for image in images.images] == [
        ("cat/a.jpeg", "cat", 0),
        ("cat/b.JPG", "cat", 0),
        ("cat/deep/er/d.webp", "cat", 0),
        ("n00000003/c.png", "n00000003", 2),
    ]
    assert images.images[0].sha256 == hashlib.sha256(b"a.jpeg").hexdigest()
    assert [image.label for image in ImageSet.from_folder(tmp_path).images] == [None] * 4


@pytest.mark.parametrize("labels", [None, LABELS])
def test_flat_folder(tmp_path, labels):
    put(tmp_path, "b.tiff", "a.bmp", "c.gif", "d.TIF", "e.svg")
    images = ImageSet.from_folder(str(tmp_path), labels).images
    assert [(image.path, image.folder, image.label) for image in images] == [
        (name, None, None) for name in ("a.bmp", "b.tiff", "c.gif", "d.TIF")
    ]


def test_mixed_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"beside its class folders \(1, first 'stray.png'; 1 folders, first 'cat'\)"):
        ImageSet.from_folder(put(tmp_path, "stray.png", "cat/a.png"))


def test_missing_folder_file_and_empty_folder(tmp_path):
    with pytest.raises(InputError, match="none: No such file"):
        ImageSet.from_folder(tmp_path / "none")
    with pytest.raises(InputError, match="Not a directory"):
        ImageSet.from_folder(put(tmp_path, "a.png") / "a.png")
    put(tmp_path / "empty", "cat/notes.txt", ".a.png")
    with pytest.raises(InputError, match=r"no picture in .*empty .*\.jpg"):
        ImageSet.from_folder(tmp_path / "empty")


def test_every_unknown_folder_is_named(tmp_path):
    put(tmp_path, "cat/a.png", "bird/a.png", "gog/a.png")
    with pytest.raises(InputError, match=r"2 of 3 folders .*'bird' is unknown.*'gog' is unknown") as caught:
        ImageSet.from_folder(tmp_path, LABELS)
    assert str(tmp_path) in str(caught.value)


def test_links_are_followed_and_loops_are_not(tmp_path):
    elsewhere = put(tmp_path / "elsewhere", "x.png", "pets/y.png")
    root = put(tmp_path / "root", "cat/a.png")
    (root / "cat" / "linked.png").symlink_to(elsewhere / "x.png")
    (root / "dog").symlink_to(elsewhere / "pets")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "self").symlink_to(root / "cat")
    assert [image.path for image in ImageSet.from_folder(root).images] == ["cat/a.png", "cat/linked.png", "dog/y.png"]


def test_files_that_cannot_be_hashed_are_listed(tmp_path):
    put(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.raises(
        InputError, match=r"2 of 3 pictures .*'cat/broken.png' \(No such file.*'cat/pipe.png' \(it is not"
    ):
        ImageSet.from_folder(tmp_path)


def test_names_that_are_not_utf8_are_listed(tmp_path):
    put(tmp_path, "a.png")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match="1 of 2 pictures") as caught:
        ImageSet.from_folder(tmp_path)
    assert str(caught.value).isprintable()
    str(caught.value).encode()
    ((path, reason),) = ImageSet.from_folder(tmp_path, tolerant=True).missing
    assert path == r"\udcff.png"
    assert "UTF-8" in reason


def test_a_tolerant_set_lists_what_is_missing(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    tolerant = ImageSet.from_folder(tmp_path, tolerant=True)
    assert [image.path for image in tolerant.images] == ["a.png", "b.png", "c.png"]
    assert tolerant.missing == (("gone.png", "No such file or directory"),)
    assert tolerant.take(1).missing == tolerant.missing
    for name in "abc":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(InputError, match="1 of 1 pictures"):
        ImageSet.from_folder(tmp_path, tolerant=True)


def test_digest_knows_content_and_labels_only(tmp_path):
    one = put(tmp_path / "one", "cat/a.png", "dog/b.png")
    shutil.copytree(one / "cat", tmp_path / "two" / "n00000001")
    shutil.copytree(one / "dog", tmp_path / "two" / "n00000002")
    (tmp_path / "two" / "n00000001" / "a.png").rename(tmp_path / "two" / "n00000001" / "zzz.jpg")
    first, second = ImageSet.from_folder(one, LABELS), ImageSet.from_folder(tmp_path / "two", LABELS)
    assert first.digest == second.digest
    assert first.digest != ImageSet.from_folder(one).digest
    (one / "dog" / "b.png").rename(one / "cat" / "b.png")
    assert first.digest != ImageSet.from_folder(one, LABELS).digest


def image_set(sizes: list[int], *, prefix: str = "", labelled: bool = True) -> ImageSet:
    images: list[ImageFile] = []
    for c, size in enumerate(sizes):
        hashes = [hashlib.sha256(f"{c} {n}".encode()).hexdigest() for n in range(size)]
        label = c if labelled else None
        images += [ImageFile(f"{prefix}{c}/{n}.png", sha256, f"{prefix}{c}", label) for n, sha256 in enumerate(hashes)]
    return ImageSet(Path("nowhere"), tuple(sorted(images, key=lambda image: image.path)))


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.integers(1, 45),
    st.none() | st.integers(0, 3),
    st.booleans(),
)
def test_take_is_even(sizes, count, seed, labelled):
    images = image_set(sizes, labelled=labelled)
    taken = images.take(count, seed=seed)
    assert len(taken) == min(count, sum(sizes))
    assert set(taken.images) <= set(images.images)
    assert [image.path for image in taken.images] == sorted(image.path for image in taken.images)
    per_class = [sum(image.folder == str(c) for image in taken.images) for c in range(len(sizes))]
    most = max(per_class)
    assert all(number >= most - 1 or number == size for number, size in zip(per_class, sizes, strict=True))
    if count < sum(sizes):  # a longer sample contains the shorter one
        assert set(taken.images) <= set(images.take(count + 1, seed=seed).images)


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.integers(1, 30),
    st.none() | st.integers(0, 3),
    st.booleans(),
)
def test_take_does_not_depend_on_names(sizes, count, seed, labelled):
    hashes = [
        {image.sha256 for image in image_set(sizes, prefix=prefix, labelled=labelled).take(count, seed=seed).images}
        for prefix in ("", "z")
    ]
    renamed = image_set(sizes, labelled=labelled).images
    reversed_names = tuple(
        ImageFile(f"{len(renamed) - number:03}.png", image.sha256, image.folder, image.label)
        for number, image in enumerate(renamed)
    )
    hashes.append({image.sha256 for image in ImageSet(Path(), reversed_names).take(count, seed=seed).images})
    assert hashes[0] == hashes[1] == hashes[2]


def test_take_depends_on_the_seed_and_is_pinned():
    images = image_set([20, 20])
    samples = [[image.path for image in images.take(4, seed=seed).images] for seed in (None, 0, 1)]
    assert samples[0] != samples[1] != samples[2]
    assert samples[1] == ["0/11.png", "0/12.png", "1/15.png", "1/18.png"]  # machines and versions must agree


def test_take_with_duplicates_is_deterministic():
    images = tuple(ImageFile(f"{name}.png", "0" * 64, None, None) for name in "abcd")
    assert ImageSet(Path(), images).take(2) == ImageSet(Path(), images[::-1]).take(2)


@pytest.mark.parametrize("count", [0, -1])
def test_take_nothing_is_refused(count):
    with pytest.raises(InputError, match=f"cannot take {count} pictures"):
        image_set([2]).take(count)


def test_overlap():
    images = image_set([2, 1])
    assert images.overlap(frozenset()) == ()
    assert images.overlap(frozenset({images.images[1].sha256, "f" * 64})) == (images.images[1],)


def test_unreadable(tmp_path):
    put(tmp_path, "cat/text.jpg")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "cat" / "good.png")
    Image.effect_noise((60, 60), 50).save(tmp_path / "cat" / "cut.jpg")
    with open(tmp_path / "cat" / "cut.jpg", "r+b") as file:
        file.truncate(900)
    bad = ImageSet.from_folder(tmp_path).unreadable()
    assert [image.path for image, _ in bad] == ["cat/cut.jpg", "cat/text.jpg"]
    assert "truncated" in bad[0][1]
    assert "not a JPEG" in bad[1][1]
