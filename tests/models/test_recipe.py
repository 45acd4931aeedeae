from __future__ import annotations

import pytest

from edgecls.models.recipe import Recipe
from edgecls.runtime import InputError


@pytest.mark.parametrize(
    "field",
    [
        {"batch_size": 1},
        {"epochs": 0, "head_epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"label_smoothing": 1.0},
        {"crop_scale": 1.5},
        {"layer_decay": 2.0},
        {"ema_decay": 1.0},
        {"patience": 0},
        {"start_px": 4},
        {"refine_epochs": 21},
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(field: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(field))):
        Recipe(**field)


def test_from_scratch_differs_where_it_must_and_gives_way_to_what_is_asked() -> None:
    recipe = Recipe.from_scratch(epochs=5)
    assert (recipe.epochs, recipe.head_epochs, recipe.layer_decay) == (5, 0, 1.0)


def test_crops_grow_by_two_thirds_of_the_epochs_and_never_past_the_end() -> None:
    recipe = Recipe.from_scratch(epochs=12, start_px=32)
    sides = [recipe.side_px(64, epoch) for epoch in range(12)]
    assert sides == sorted(sides)
    assert sides[0] == 32
    assert set(sides[8:]) == {64}
    assert all((side - 32) % 8 == 0 for side in sides)


def test_without_growth_every_crop_is_the_networks() -> None:
    assert {Recipe().side_px(224, epoch) for epoch in range(20)} == {224}
    assert {Recipe(train_px=176).side_px(224, epoch) for epoch in range(20)} == {176}
