"""`edgecls inspect`: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecls.console import Console, size_text
from edgecls.options import output_options
from edgecls.parameter_types import INPUT_FILE

if TYPE_CHECKING:
    from edgecls.runtime.bundle import Bundle


@click.command("inspect", short_help="What is in a bundle.")
@click.argument("bundle", type=INPUT_FILE)
@output_options
def command(console: Console, bundle: Path) -> int:
    """Prints what BUNDLE says of itself; no engine is loaded."""
    from edgecls.runtime import Bundle

    opened = Bundle(bundle)
    document = {
        "path": opened.path,
        "sha256": opened.sha256,
        "size_bytes": opened.size_bytes,
        "manifest": opened.manifest,
    }
    console.result(document, "\n".join(_lines(opened)))
    console.next(f"edgecls verify {bundle}")
    return 0


def _lines(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    passport, origin, taken = manifest.passport, manifest.provenance, manifest.preprocess
    calibration = origin.calibration
    names = manifest.labels.names
    sides = "both sides" if taken.mode == "squash" else "shorter side"
    facts = {
        "target": f"{manifest.target} (checked with {passport.engine_version}), {manifest.precision}",
        "made for": passport.isa,
        "engine": _engine(bundle),
        "operations": f"{passport.nodes}, of them {passport.nodes_int8} on integers" if passport.nodes else None,
        "classes": f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
        "resize": f"{sides} to {taken.resize_px} px, {taken.interpolation}",
        "crop": f"{taken.crop_px} px",
        "mean, std": f"{_numbers(taken.mean)}; {_numbers(taken.std)}, {taken.colour}",
        "model": origin.model,
        "checkpoint": _short(origin.checkpoint_sha256),
        "calibrated": f"on {len(calibration.images)} pictures, seed {calibration.seed}, by {origin.quantizer}"
        if calibration
        else None,
        "made with": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        "sha256": bundle.sha256,
    }
    members = [f"    {name}  {size_text(member.size_bytes)}" for name, member in manifest.members.items()]
    return [
        f"{manifest.name}  {size_text(bundle.size_bytes)}",
        *(f"  {key:<11} {value}" for key, value in facts.items() if value),
        "  members",
        *members,
    ]


def _engine(bundle: Bundle) -> str | None:
    tensorrt = bundle.manifest.passport.tensorrt
    if tensorrt is None:
        return None
    if bundle.manifest.unbuilt:
        return f"is built on the device, by TensorRT {tensorrt.minimum_version} or newer"
    if (built := tensorrt.engine) is not None:
        return f"built for {built.gpu} ({built.compute_capability}), {built.library} {built.library_version}"
    return f"built for compute capability {', '.join(tensorrt.compute_capabilities)}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _short(sha256: str | None) -> str | None:
    return None if sha256 is None else f"sha256 {sha256[:16]}..."
