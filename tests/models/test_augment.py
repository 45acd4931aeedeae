from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_pictures import write_pictures

from edgecls.models.augment import AugmentedPictures, DevicePictures, Draw, Draws, draw_preview
from edgecls.models.recipe import Recipe
from edgecls.models.training_data import TrainingData
from edgecls.runtime import Preprocess

PREPROCESS = Preprocess(resize_px=36, crop_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return TrainingData.open(write_pictures(tmp_path_factory.mktemp("pictures"), 6))


def test_the_same_draw_gives_the_same_pixels_and_another_seed_others(data: TrainingData) -> None:
    pictures = AugmentedPictures(data.train, PREPROCESS, Recipe(erasing=0.5))
    first, label = pictures[Draw(1, 7, 32)]
    torch.rand(3)
    again, _ = AugmentedPictures(data.train, PREPROCESS, Recipe(erasing=0.5))[Draw(1, 7, 32)]
    assert torch.equal(first, again)
    assert not torch.equal(first, pictures[Draw(1, 8, 32)][0])
    assert (first.shape, first.dtype, label) == ((3, 32, 32), torch.uint8, data.train.images[1].label)
    assert pictures[Draw(1, 7, 24)][0].shape == (3, 24, 24)


def test_without_flips_nothing_is_mirrored(tmp_path: Path) -> None:
    for shade, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for number in range(2):
            picture = Image.new("RGB", (40, 40), (number, 100 * shade, 0))
            picture.paste((255, 255, 255), (0, 0, 10, 40))  # white on the left alone
            picture.save(tmp_path / name / f"{number}.png")
    images = TrainingData.open(tmp_path, val_fraction=0.5).train
    plain = Recipe(flip=False, trivial_augment=False, erasing=0.0, crop_scale=1.0)
    flipping = Recipe(flip=True, trivial_augment=False, erasing=0.0, crop_scale=1.0)
    found = {}
    for recipe in (plain, flipping):
        pictures = AugmentedPictures(images, PREPROCESS, recipe)
        draws = [pictures[Draw(index, seed, 32)][0].float() for index in range(len(images)) for seed in range(40)]
        found[recipe.flip] = any(bool(p[..., -4:].mean() > p[..., :4].mean() + 50) for p in draws)
    assert found == {False: False, True: True}


def test_a_shift_moves_the_pixels_of_the_device_and_nothing_else(data: TrainingData) -> None:
    recipe = Recipe(shift=0.125, flip=False, trivial_augment=False, erasing=0.0)
    pictures = AugmentedPictures(data.train, PREPROCESS, recipe)
    whole = torch.from_numpy(PREPROCESS.pixels(data.train.root / data.train.images[2].path)).permute(2, 0, 1)
    places = set()
    for seed in range(20):
        shifted = pictures[Draw(2, seed, 32)][0]
        inner = shifted[:, 4:-4, 4:-4]
        found = [(y, x) for y in range(9) for x in range(9) if torch.equal(inner, whole[:, y : y + 24, x : x + 24])]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 10
    assert pictures[Draw(2, 0, 24)][0].shape == (3, 24, 24)


def test_the_last_epochs_crop_and_flip_and_change_nothing_else(data: TrainingData) -> None:
    everything = AugmentedPictures(data.train, PREPROCESS, Recipe(erasing=0.9))
    plain = AugmentedPictures(data.train, PREPROCESS, Recipe(erasing=0.0, trivial_augment=False))
    changed = 0
    for seed in range(20):
        draw = Draw(1, seed, 32)
        refined = everything[draw._replace(refining=True)][0]
        assert torch.equal(refined, plain[draw][0])
        changed += not torch.equal(refined, everything[draw][0])
    assert changed > 10  # the others drew no change


def test_validation_sees_the_pixels_of_the_device(data: TrainingData) -> None:
    pixels, label = DevicePictures(data.val, PREPROCESS)[0]
    expected = PREPROCESS.pixels(data.val.root / data.val.images[0].path)
    assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(expected))
    assert label == data.val.images[0].label


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_what_is_trained_on_is_what_the_graph_does(colour: str) -> None:
    preprocess = Preprocess(resize_px=8, crop_px=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), colour=colour)
    pixels = torch.arange(3 * 64, dtype=torch.uint8).reshape(1, 3, 8, 8)
    from edgecls.models.normalize import normalized, normalized_on_device

    expected = normalized(pixels.permute(0, 2, 3, 1).numpy(), preprocess)
    torch.testing.assert_close(normalized_on_device(pixels, preprocess), torch.from_numpy(expected))


@given(
    count=st.integers(2, 30), batch=st.integers(2, 8), epochs=st.integers(1, 4), start=st.integers(0, 40),
    world=st.integers(1, 2),
)  # fmt: skip
def test_draws_from_a_step_on_are_those_of_the_whole_and_cover_every_epoch(count, batch, epochs, start, world) -> None:
    batch = min(batch, count)
    per_epoch = count // batch
    steps = epochs * per_epoch
    shared = {
        "count": count, "steps": steps, "steps_per_epoch": per_epoch, "batch_size": batch, "side_px": [32] * epochs,
        "refined_from": epochs - 1, "seed": 3, "phase": "all",
    }  # fmt: skip
    whole = list(Draws(**shared))
    start = min(start, steps)
    assert list(Draws(**shared, start=start)) == whole[start:]
    for epoch in range(epochs):
        seen = [index for draws in whole[epoch * per_epoch : (epoch + 1) * per_epoch] for index, *_ in draws]
        assert len(seen) == len(set(seen)) == per_epoch * batch
    assert [draws[0].refining for draws in whole] == [step >= steps - per_epoch for step in range(steps)]
    shares = [list(Draws(**shared, rank=rank, world=world)) for rank in range(world)]
    joined = [sorted(draw for share in shares for draw in share[step]) for step in range(steps)]
    assert joined == [sorted(batch) for batch in whole]


def test_the_preview_is_a_page_of_pictures(data: TrainingData, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    draw_preview(data.train, data.labels, PREPROCESS, Recipe(mixup=0.2, cutmix=1.0), tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as page:
        assert page.width == 8 * 36 + 4
        assert page.height == 10 * (32 + 18) + 4
        assert len(page.getcolors(1 << 20) or ()) > 1000
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_preview_shows_the_side_that_training_crops_to(data: TrainingData, tmp_path: Path) -> None:
    sheets = []
    for name, recipe in {"all": Recipe(train_px=16), "head": Recipe(train_px=16, epochs=0)}.items():
        draw_preview(data.train, data.labels, PREPROCESS, recipe, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as page:
            sheets.append(np.asarray(page.convert("RGB"))[14:46, 4 + 36 : 4 + 36 + 32])
    at_16, at_32 = sheets
    assert (at_16[16:] == 255).all()
    assert (at_16[:, 16:] == 255).all()
    assert not (at_32[:, 16:] == 255).all()
