"""Which preprocessing a model gets: what its library says, unless a flag says otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from edgecls.runtime.errors import InputError
from edgecls.runtime.preprocess import Preprocess

_FLAGS = {
    "mode": "--resize-mode",
    "resize_px": "--resize",
    "crop_px": "--crop",
    "interpolation": "--interpolation",
    "mean": "--mean",
    "std": "--std",
    "colour": "--colour",
    "exif": "--exif",
    "scaled_decode": "--scaled-decode",
}


class PreprocessOverride(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of `Preprocess` that flags decide; None leaves the field to the model's library.

    `crop_px` alone leaves the resize as it is, so the crop must not be the larger of the two.
    """

    mode: Literal["shorter", "squash"] | None = None
    resize_px: int | None = None
    crop_px: int | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    colour: Literal["rgb", "bgr"] | None = None
    exif: Literal["ignore", "apply"] | None = None
    scaled_decode: bool | None = None


@dataclass(frozen=True)
class KnownPreprocess:
    """What a model's library says about its input."""

    source: str
    """For people: `torchvision MobileNet_V3_Small_Weights.IMAGENET1K_V1`; empty where nothing is known."""
    fields: Mapping[str, Any]
    """Fields of `Preprocess`."""
    unusable: Mapping[str, str]
    """Fields that the library sets to what `Preprocess` cannot express: name to its value, in words."""


NOTHING_KNOWN = KnownPreprocess(source="", fields={}, unusable={})


def resolve_preprocess(
    model: str, known: KnownPreprocess, override: PreprocessOverride
) -> tuple[Preprocess, dict[str, str]]:
    """Joins what the library says with what the flags say.

    Args:
        model: As it was asked for; only for messages.
        known: What the library says.
        override: What the flags say.

    Returns:
        The preprocessing, and for each of its fields where it came from: a flag such as `--resize`, the library's
        description, or `default`.

    Raises:
        InputError: A field is neither known nor given, or its value is senseless; the message names the flags.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    missing: list[str] = []
    for field in msgspec.structs.fields(Preprocess):
        given = getattr(override, field.name)
        if given is not None:
            values[field.name], sources[field.name] = given, _FLAGS[field.name]
        elif field.name in known.unusable:
            raise InputError(
                f"{known.source} asks for {known.unusable[field.name]}, which edgecls does not do. "
                f"Say what to do instead with {_FLAGS[field.name]}."
            )
        elif field.name in known.fields:
            values[field.name], sources[field.name] = known.fields[field.name], known.source
        elif field.required:
            missing.append(_FLAGS[field.name])
        else:
            values[field.name], sources[field.name] = field.default, "default"
    if missing:
        raise InputError(
            f"nothing says how pictures are prepared for {model}: give {' '.join(missing)} as it was trained "
            "(ImageNet models mostly use --resize 256 --crop 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)."
        )
    _check(values, sources)
    return Preprocess(**values), sources


def _check(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Refuses numbers that no preprocessing has."""
    for name in ("resize_px", "crop_px"):
        if not isinstance(values[name], int) or values[name] < 1:
            raise InputError(f"{_FLAGS[name]} is {values[name]!r}: it must be a whole number of pixels, 1 or more.")
    if values["crop_px"] > values["resize_px"]:
        raise InputError(
            f"the crop of {values['crop_px']} px ({sources['crop_px']}) is larger than the resize of "
            f"{values['resize_px']} px ({sources['resize_px']}): give --resize and --crop together."
        )
    for name in ("mean", "std"):
        numbers = values[name]
        if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
            raise InputError(f"{_FLAGS[name]} is {numbers!r}: it must be three finite numbers R,G,B in 0..1.")
    if min(values["std"]) <= 0:
        raise InputError(f"--std is {values['std']!r}: every number must be above 0.")
    if max(values["std"]) > 2 or max(map(abs, values["mean"])) > 2:
        raise InputError(
            f"--mean {values['mean']!r} --std {values['std']!r} look like numbers for pixels in 0..255: "
            "give them for 0..1 (divide by 255)."
        )
