"""Flags against what the library says."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecls.models.preprocess_override import NOTHING_KNOWN, KnownPreprocess, PreprocessOverride, resolve_preprocess
from edgecls.runtime import InputError, Preprocess

LIBRARY = KnownPreprocess(
    source="the library",
    fields={
        "mode": "shorter",
        "resize_px": 256,
        "crop_px": 224,
        "interpolation": "bicubic",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.2),
        "colour": "rgb",
        "exif": "ignore",
        "scaled_decode": False,
    },
    unusable={},
)
FLAGS = {
    "mode": ("--resize-mode", "squash"),
    "resize_px": ("--resize", 300),
    "crop_px": ("--crop", 200),
    "interpolation": ("--interpolation", "bilinear"),
    "mean": ("--mean", (0.0, 0.0, 0.0)),
    "std": ("--std", (1.0, 1.0, 1.0)),
    "colour": ("--colour", "bgr"),
    "exif": ("--exif", "apply"),
    "scaled_decode": ("--scaled-decode", True),
}


def test_every_field_of_preprocess_has_a_flag():
    assert set(FLAGS) == set(Preprocess.__struct_fields__) == set(PreprocessOverride.__struct_fields__)


@given(st.sets(st.sampled_from(sorted(FLAGS))))
def test_flags_win_and_every_field_says_where_it_came_from(given_fields):
    override = PreprocessOverride(**{name: FLAGS[name][1] for name in given_fields})
    preprocess, sources = resolve_preprocess("net", LIBRARY, override)
    for name, value in msgspec.structs.asdict(preprocess).items():
        assert value == (FLAGS[name][1] if name in given_fields else LIBRARY.fields[name])
        assert sources[name] == (FLAGS[name][0] if name in given_fields else "the library")


@given(st.sets(st.sampled_from(["resize_px", "crop_px", "mean", "std"])))
def test_unknown_fields_without_a_flag_are_named(given_fields):
    override = PreprocessOverride(**{name: FLAGS[name][1] for name in given_fields})
    missing = {"resize_px", "crop_px", "mean", "std"} - given_fields
    if not missing:
        assert resolve_preprocess("net", NOTHING_KNOWN, override)[1]["mode"] == "default"
        return
    with pytest.raises(InputError) as error:
        resolve_preprocess("net", NOTHING_KNOWN, override)
    asked = str(error.value).partition("(")[0]
    assert {FLAGS[name][0] for name in missing} == {word for word in asked.split() if word.startswith("--")}


def test_what_cannot_be_expressed_needs_its_flag():
    known = KnownPreprocess(
        source="timm", fields={k: v for k, v in LIBRARY.fields.items() if k != "interpolation"},
        unusable={"interpolation": "'lanczos' interpolation"},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"lanczos.*--interpolation"):
        resolve_preprocess("net", known, PreprocessOverride())
    preprocess, _ = resolve_preprocess("net", known, PreprocessOverride(interpolation="bilinear"))
    assert preprocess.interpolation == "bilinear"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"crop_px": 320}, "larger than the resize of 256"),
        ({"resize_px": 200}, "give --resize and --crop together"),
        ({"crop_px": 0}, "--crop is 0"),
        ({"resize_px": -1}, "--resize is -1"),
        ({"std": (0.2, 0.0, 0.2)}, "--std"),
        ({"std": (0.2, float("nan"), 0.2)}, "--std"),
        ({"mean": (0.2, float("inf"), 0.2)}, "--mean"),
        ({"mean": (0.2, 0.3)}, "three finite numbers"),
        ({"mean": (123.7, 116.3, 103.5)}, "divide by 255"),
        ({"std": (58.4, 57.1, 57.4)}, "divide by 255"),
    ],
)
def test_senseless_numbers_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        resolve_preprocess("net", LIBRARY, PreprocessOverride(**override))
