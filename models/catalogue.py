"""What can be trained or exported, and how big it is: counted on networks without weights, which costs no memory."""

from __future__ import annotations

import contextlib
import fnmatch
import warnings
from collections.abc import Iterator, Sequence

import msgspec
import torch

# isort: split
from edgecls.models import torchvision_operators  # noqa: F401 (must come before torchvision and timm)

# isort: split
import timm
import torchvision
from timm.models import get_pretrained_cfg
from torch.utils.flop_counter import FlopCounterMode

from edgecls.models.architecture import find_architecture
from edgecls.models.rng import untouched_rng
from edgecls.models.timm_zoo import TimmModel
from edgecls.models.torchvision_zoo import TorchvisionModel
from edgecls.runtime.errors import InputError
from edgecls.runtime.progress import Progress, SilentProgress

CURATED = (
    "alexnet",
    "vgg16",
    "googlenet",
    "resnet18",
    "resnet50",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mobilenetv4_conv_small",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
    "efficientnet_b0",
    "efficientnet_b2",
    "efficientnet_b4",
    "efficientnet_v2_s",
    "vit_b_16",
    "convnext_tiny",
    "convnext_base",
)
"""What is listed where nobody asks for more."""

BOARDS = {
    "Pi 4": ("onnxruntime", 1.0),
    "Pi 5": ("onnxruntime", 5.0),
    "mini PC": ("openvino", 10.0),
    "Orin Nano": ("tensorrt", 25.0),
}
"""Raspberry Pi 4 and 5, a PC with VNNI, Jetson Orin Nano: the target that suits the board, and up to how many 10⁹ MACs
a picture we would give it.

A rule of thumb and no measurement: the steps are those of NEON without dot products, with them, VNNI and tensor cores.
"""

_TORCHVISION_LICENCE = "bsd-3-clause, ImageNet terms"
_UNKNOWN = "unknown"


class CatalogueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One architecture; null is what could not be found out."""

    model: str
    """As MODEL and `--arch` take it."""
    input_px: int | None = None
    """Side of the square picture that its weights were made for."""
    parameters: int | None = None
    """With the library's head, of 1,000 classes mostly."""
    macs: int | None = None
    """Multiplications and additions for one such picture, in convolutions, linear layers and attention."""
    licence: str = _UNKNOWN
    """Of the library's default weights, as the library states it."""
    targets: dict[str, str] = {}
    """Board to target, where `BOARDS` finds it light enough."""
    note: str | None = None
    """Why something is null."""


def catalogue(pattern: str | None = None, progress: Progress = SilentProgress()) -> list[CatalogueEntry]:  # noqa: B008
    """Describes architectures of torchvision and timm.

    Args:
        pattern: Names with `*`, `?` and `[...]`, such as `*mobilenet*` or `timm:resnet*`; by default `CURATED`.
        progress: Told about the stages; everything that timm has takes minutes.

    Raises:
        InputError: Nothing matches; give another pattern.
    """
    names = CURATED if pattern is None else _matching(pattern)
    entries = []
    with progress.stage("Counting parameters and MACs", len(names)) as advance, untouched_rng():
        for name in names:
            entries.append(describe(name))
            advance(1)
    return entries


def _matching(pattern: str) -> Sequence[str]:
    """Names that MODEL takes, sorted; a bare name that both libraries have is torchvision's."""
    ours, theirs = TorchvisionModel.names(), timm.list_models()
    names = [*ours, *(f"timm:{name}" if name in ours else name for name in theirs)]
    spelled = {
        name: {name, f"torchvision:{name}" if name in ours else f"timm:{name.removeprefix('timm:')}"} for name in names
    }
    found = sorted(name for name, forms in spelled.items() if fnmatch.filter(forms, pattern))
    if not found:
        hint = f" Try '*{pattern}*'." if not any(character in pattern for character in "*?[") else ""
        raise InputError(f"neither torchvision nor timm has an architecture that matches {pattern!r}.{hint}")
    return found


def describe(model: str) -> CatalogueEntry:
    """Describes one architecture.

    Args:
        model: A name of torchvision or timm, as `find_architecture` takes it.

    Raises:
        InputError: There is no such architecture. One that cannot be counted has a note instead.
    """
    architecture = find_architecture(model)
    licence = _licence(architecture)
    try:
        input_px = int(architecture.known_preprocess().fields["crop_px"])
    except (InputError, KeyError) as error:
        return CatalogueEntry(model=model, licence=licence, note=str(error))
    try:
        with _quiet(), torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            module = architecture.build(input_px).eval()
            module(torch.zeros(1, 3, input_px, input_px))
    except Exception as error:  # a network of hundreds, in its own code
        return CatalogueEntry(model=model, input_px=input_px, licence=licence, note=f"cannot be counted: {error}")
    macs = int(counter.get_total_flops()) // 2
    return CatalogueEntry(
        model=model,
        input_px=input_px,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs,
        licence=licence,
        targets={board: target for board, (target, most) in BOARDS.items() if macs <= most * 1e9},
    )


def _licence(architecture: object) -> str:
    if isinstance(architecture, TorchvisionModel):
        weights = torchvision.models.get_model_weights(architecture.name).DEFAULT
        return str(weights.meta.get("license", _TORCHVISION_LICENCE))
    assert isinstance(architecture, TimmModel)
    config = get_pretrained_cfg(architecture.name)
    return str((config and config.license) or _UNKNOWN)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries say of networks that nobody is going to run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
