"""`edgecls inspect`: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edgecls.console import Console, quoted, size_text
from edgecls.options import output_options
from edgecls.parameter_types import INPUT_FILE, output_file

if TYPE_CHECKING:
    from edgecls.runtime.bundle import Bundle

_BAR = 30
"""Characters of the longest bar."""

_NOT_READABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What becomes of a `plan.json` that is none."""

_WIDEST_NAME = 60
"""Characters of a block's name that a table makes room for; a longer one moves its own line."""


@click.command("inspect", short_help="What is in a bundle.")
@click.argument("bundle", type=INPUT_FILE)
@click.option("--sensitivity", is_flag=True, help="What each block loses by INT8, where that was measured.")
@click.option("--picture", type=output_file, metavar="FILE.png", help="Draw the bars of --sensitivity.")
@output_options
def command(console: Console, bundle: Path, sensitivity: bool, picture: Path | None) -> int:
    """Prints what BUNDLE says of itself, after checking every member's digest; no engine is loaded."""
    from edgecls.extra import needs_extra
    from edgecls.runtime import Bundle

    if picture is not None and not sensitivity:
        raise click.UsageError("--picture draws what --sensitivity prints: give both.")
    if picture is not None:
        from edgecls.runtime.atomic_file import refuse_overwriting

        refuse_overwriting(picture, [bundle])
    opened = Bundle(bundle)
    for member in opened.manifest.members:
        opened.read(member)
    document = {
        "path": bundle,
        "sha256": opened.sha256,
        "signed": opened.signature is not None,
        "size_bytes": opened.size_bytes,
        "manifest": opened.manifest,
    }
    if sensitivity:
        measured = _sensitivity(opened)
        title, *bars = _bars(measured)
        if picture is not None:
            with needs_extra("metrics", "Drawing the sensitivity"):
                from edgecls.bench.sensitivity_picture import draw_sensitivity
            draw_sensitivity(measured.blocks, title, picture)
        console.result({**document, "sensitivity": measured}, "\n".join((title, *bars)))
        return 0
    console.result(document, "\n".join(_lines(opened)))
    console.next(f"edgecls verify {quoted(bundle)}")
    return 0


def _lines(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    passport, origin, taken = manifest.passport, manifest.provenance, manifest.preprocess
    calibration = origin.calibration
    names = manifest.labels.names
    sides = "both sides" if taken.mode == "squash" else "shorter side"
    border = manifest.padding
    facts = {
        "target": f"{manifest.target} (checked with {passport.engine_version}), {manifest.precision}",
        "made for": passport.isa,
        "engine": _engine(bundle),
        "operations": f"{passport.nodes}, of them {passport.nodes_int8} on integers" if passport.nodes else None,
        "classes": f"{len(names)}{' with ids' if manifest.labels.ids else ''}: "
        f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
        "resize": f"{sides} to {taken.resize_px} px, {taken.interpolation}",
        "crop": f"{taken.crop_px} px",
        "border": f"{border.top_px}, {border.left_px}, {border.bottom_px}, {border.right_px} px of RGB {border.value}, "
        f"{border.pixel_bytes} bytes a pixel"
        if border
        else None,
        "mean, std": f"{_numbers(taken.mean)}; {_numbers(taken.std)}, {taken.colour}",
        "EXIF": "turns pictures" if taken.exif == "apply" else None,
        "JPEG files": "decoded scaled where they are large" if taken.scaled_decode else None,
        "as said by": _sources(origin.preprocess_source),
        "model": origin.model,
        "checkpoint": _short(origin.checkpoint_sha256),
        "calibrated": f"on {len(calibration.images)} pictures, seed {calibration.seed}, by {origin.quantizer}"
        if calibration
        else None,
        "plan": _plan(bundle),
        "made with": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        "signed": "yes (edgecls verify --key tells by whom)" if bundle.signature else None,
        "sha256": bundle.sha256,
    }
    members = [f"    {name}  {size_text(member.size_bytes)}" for name, member in manifest.members.items()]
    lines = [
        f"{manifest.name}  {size_text(bundle.size_bytes)}",
        *(f"  {key:<11} {value}" for key, value in facts.items() if value),
        "  members, digests checked",
        *members,
    ]
    return [line.replace("\n", "\\n") for line in lines]  # no bundle writes lines of its own


def _engine(bundle: Bundle) -> str | None:
    tensorrt = bundle.manifest.passport.tensorrt
    if tensorrt is None:
        return None
    if bundle.manifest.unbuilt:
        return f"is built on the device, by TensorRT {tensorrt.minimum_version} or newer"
    if (built := tensorrt.engine) is not None:
        return f"built for {built.gpu} ({built.compute_capability}), {built.library} {built.library_version}"
    return f"built for compute capability {', '.join(tensorrt.compute_capabilities)}"


class _Range(msgspec.Struct):
    minimum: float
    maximum: float
    asymmetric: tuple[float, float]

    @property
    def clipped(self) -> float:
        """How many times wider the seen values were than the range."""
        return (self.maximum - self.minimum) / max(self.asymmetric[1] - self.asymmetric[0], 1e-30)


class _Block(msgspec.Struct):
    name: str
    kl: float
    flips: int
    cost: float | None


class _Sensitivity(msgspec.Struct):
    target: str
    n: int
    kl: float
    flips: int
    ratio: float | None
    blocks: tuple[_Block, ...]


class _Plan(msgspec.Struct):
    """What is told of `plan.json`, whose own record needs the packages of a workstation."""

    ranges: str
    tensors: dict[str, _Range]
    float_nodes: dict[str, str]
    sensitivity: _Sensitivity | None = None


def _plan(bundle: Bundle) -> str | None:
    if "plan.json" not in bundle.manifest.members:
        return None
    try:
        plan = msgspec.json.decode(bundle.read("plan.json"), type=_Plan)
    except _NOT_READABLE as error:
        return f"not readable: {error}"
    text = f"{plan.ranges} ranges of {len(plan.tensors)} tensors"
    if plan.tensors:
        name, range_ = max(plan.tensors.items(), key=lambda item: item[1].clipped)
        low, high = range_.asymmetric
        text += (
            f" (most clipped: {name}, seen {range_.minimum:.3g} to {range_.maximum:.3g}, kept {low:.3g} to {high:.3g})"
        )
    text += f"; {len(plan.float_nodes)} operations kept in float by it"
    return f"{text} (unzip -p {quoted(Path(bundle.path))} plan.json)"


def _sensitivity(bundle: Bundle) -> _Sensitivity:
    from edgecls.runtime import BundleError, InputError

    plan = None
    if "plan.json" in bundle.manifest.members:
        try:
            plan = msgspec.json.decode(bundle.read("plan.json"), type=_Plan)
        except _NOT_READABLE as error:
            raise BundleError(f"the plan of {bundle.path} is not readable: {error}. Export it anew.") from error
    if plan is None or plan.sensitivity is None:
        raise InputError(
            f"{bundle.path} holds no sensitivity: it is measured by `edgecls export ... --int8 --sensitivity`, and on "
            "the way to a --max-drop."
        )
    return plan.sensitivity


def _bars(measured: _Sensitivity) -> list[str]:
    """A table of the blocks in the order of the graph, with a bar for the divergence that each alone causes."""
    largest = max((block.kl for block in measured.blocks), default=0.0)
    width = min(max((len(block.name) for block in measured.blocks), default=0), _WIDEST_NAME)
    pace = "" if measured.ratio is None else f", {measured.ratio:.2f} of float's time"
    lines = [
        f"{measured.target}, every block in INT8: KL {measured.kl:.4f}, {measured.flips} of {measured.n} answers "
        f"changed{pace}",
        f"  {'kept in float':<{width}}   KL less  answers back  time more",
    ]
    for block in measured.blocks:
        bar = "█" * round(_BAR * (max(block.kl, 0.0) / largest)) if largest > 0 else ""
        time = "" if block.cost is None else f"{100 * block.cost:+.1f} %"
        lines.append(f"  {block.name:<{width}}  {block.kl:+8.5f}  {block.flips:+12d}  {time:>9}  {bar}".rstrip())
    return [line.replace("\n", "\\n") for line in lines]  # as above


def _sources(sources: dict[str, str]) -> str:
    """Who said each field of the preprocessing, fields of one source together."""
    fields: dict[str, list[str]] = {}
    for field, source in sources.items():
        fields.setdefault(source, []).append(field.removesuffix("_px"))
    return "; ".join(f"{source} ({', '.join(names)})" for source, names in fields.items())


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _short(sha256: str | None) -> str | None:
    return None if sha256 is None else f"sha256 {sha256[:16]}..."
