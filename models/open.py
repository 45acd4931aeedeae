"""The first stage: a name, a checkpoint, a factory or an ONNX file becomes a `Classifier`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgecls.models.classifier import Classifier
from edgecls.models.preprocess_override import NOTHING_KNOWN, PreprocessOverride, resolve_preprocess
from edgecls.runtime.errors import InputError, MissingExtraError
from edgecls.runtime.labels import Labels

if TYPE_CHECKING:
    from torch import nn

    from edgecls.models.architecture import Architecture
    from edgecls.models.checkpoint import Checkpoint

__all__ = ["PreprocessOverride", "open_classifier"]

_EXTRA = frozenset({"torch", "torchvision", "timm", "onnx", "onnxruntime", "safetensors", "huggingface_hub"})


def open_classifier(
    model: str,
    *,
    checkpoint: Path | None = None,
    match: Literal["name", "order"] = "name",
    labels: Labels | None = None,
    override: PreprocessOverride = PreprocessOverride(),  # noqa: B008 (frozen)
) -> Classifier:
    """Opens a trained image classifier.

    Args:
        model: A torchvision or timm name (`resnet18`; `timm:resnet18` and `torchvision:resnet18` where both have it, a
            bare name then means torchvision's; `timm:NAME.tag` for certain weights of timm), `path/to/file.py:factory`,
            `package.module:factory`, or an `.onnx` file.
        checkpoint: A file of weights, torch or safetensors, recognised by content. Wrappers of training scripts are
            opened; averaged (EMA) weights are taken where the file has both. The head takes the file's number of
            classes. None takes the library's weights, from its cache or the network.
        match: How the file's tensors find their places: by `name`, or by `order` where another code base named them.
        labels: Names of the classes; by default those that the library's weights have, else `0`, `1`, …
        override: Preprocessing that flags decide; the rest comes from torchvision's weights or timm's `pretrained_cfg`.

    Returns:
        The classifier; its torch module is float32, on the CPU, in evaluation mode, without gradients. The random
        number generators of the caller are as before.

    Raises:
        InputError: The model, checkpoint, labels or flags do not exist or do not fit together; the message says what
            to pass instead.
        MissingExtraError: torch and its companions are not installed.
    """
    try:
        if Path(model).suffix.lower() == ".onnx":
            return _open_onnx(model, checkpoint, labels, override)
        return _open_torch(model, checkpoint, match, labels, override)
    except ModuleNotFoundError as error:
        if error.name in _EXTRA:
            raise MissingExtraError("export", "Opening a trained model", f"{error.name} is not installed") from error
        raise


def _open_onnx(model: str, checkpoint: Path | None, labels: Labels | None, override: PreprocessOverride) -> Classifier:
    from edgecls.models.checkpoint import sha256_of
    from edgecls.models.onnx_file import check_onnx

    path = Path(model)
    if checkpoint is not None:
        raise InputError(f"{model} holds its own weights: leave --checkpoint {checkpoint} out.")
    if not path.exists():
        raise InputError(f"there is no file {model}.")
    preprocess, sources = resolve_preprocess(model, NOTHING_KNOWN, override)
    classes, notes = check_onnx(path, preprocess.crop_px)
    return Classifier(
        name=_file_name(path.stem),
        model=model,
        source=path,
        preprocess=preprocess,
        preprocess_source=sources,
        labels=_labels(labels, classes, None),
        checkpoint_sha256=sha256_of(path),
        notes=notes,
    )


def _open_torch(
    model: str,
    checkpoint: Path | None,
    match: Literal["name", "order"],
    labels: Labels | None,
    override: PreprocessOverride,
) -> Classifier:
    from edgecls.models.architecture import find_architecture
    from edgecls.models.checkpoint import read_checkpoint, sha256_of
    from edgecls.models.rng import untouched_rng

    if match not in {"name", "order"}:
        raise InputError(f"--match is {match!r}: it is name or order.")
    if match == "order" and checkpoint is None:
        raise InputError("--match order says how a file's tensors find their places: give --checkpoint FILE with it.")
    with untouched_rng():
        architecture = find_architecture(model)
        preprocess, sources = resolve_preprocess(model, architecture.known_preprocess(), override)
        notes: tuple[str, ...] = ()
        if checkpoint is None:
            module, file = architecture.trained(preprocess.crop_px)
            sha256 = None if file is None else sha256_of(file)
        else:
            weights = read_checkpoint(checkpoint)
            module = architecture.build(preprocess.crop_px)
            notes = (*weights.notes, *_load(architecture, model, module, weights, match))
            sha256 = weights.sha256
        module = module.cpu().float().eval().requires_grad_(False)
        classes = _classes(model, module, preprocess.crop_px)
    return Classifier(
        name=_file_name(architecture.name),
        model=model,
        source=module,
        preprocess=preprocess,
        preprocess_source=sources,
        labels=_labels(labels, classes, architecture.default_labels(classes)),
        checkpoint_sha256=sha256,
        notes=notes,
    )


def _load(
    architecture: Architecture,
    model: str,
    module: nn.Module,
    checkpoint: Checkpoint,
    match: Literal["name", "order"],
) -> tuple[str, ...]:
    """Loads all of a checkpoint into a module, in place; what the user should know."""
    from edgecls.models.matching import Differences, load_by_name, mismatch, names_from_order

    weights = checkpoint.renamed(module.state_dict().keys()).without(architecture.ignores)
    if match == "order":
        architecture.fit_classes(module, _rows_of_last(weights))
        try:
            tensors = names_from_order(module, weights.tensors)
        except InputError as error:
            raise InputError(f"{checkpoint.path} does not fit {model} by order: {error}.") from error
        if reason := load_by_name(module, tensors, None):
            raise InputError(f"{checkpoint.path} does not fit {model}, although order and shapes agree: {reason}")
        return ()
    note = architecture.fit_head(module, weights.tensors)
    notes = () if note is None else (note,)
    reason = load_by_name(module, weights.tensors, weights.metadata)
    if reason is None:
        return notes
    converted = architecture.converted(module, weights.tensors)
    if converted is not None:
        note = architecture.fit_head(module, converted)
        if load_by_name(module, converted, weights.metadata) is None:
            return () if note is None else (note,)
    differences = Differences.between(weights.tensors, module)
    try:
        architecture.fit_classes(module, _rows_of_last(weights))
        names_from_order(module, weights.tensors)
        order_works = True
    except InputError:
        order_works = False
    raise mismatch(model, checkpoint, differences, reason, order_works=order_works)


def _rows_of_last(checkpoint: Checkpoint) -> int:
    """Length of the last tensor that is a weight: the number of classes in any order-preserving code base."""
    rows = [len(t) for name, t in checkpoint.tensors.items() if t.ndim and not name.endswith("num_batches_tracked")]
    if not rows:
        raise InputError(f"{checkpoint.path} holds no weights, only scalars: pass the model's checkpoint.")
    return rows[-1]


def _classes(model: str, module: nn.Module, crop_px: int) -> int:
    """Runs the module once on two black pictures; the width of its answer."""
    import torch

    try:
        with torch.no_grad():
            logits = module(torch.zeros(2, 3, crop_px, crop_px))
    except Exception as error:  # the network's own code
        raise InputError(
            f"{model} does not take float32 [2, 3, {crop_px}, {crop_px}]: {type(error).__name__}: {error}. "
            "Give --resize and --crop as it was trained; for a network of your own see that it takes RGB pictures."
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise InputError(
            f"{model} returned a {type(logits).__name__}, not a tensor of logits [batch, classes]: "
            "pass a factory whose module returns the logits alone in evaluation mode."
        )
    if logits.ndim != 2 or logits.shape[0] != 2 or not logits.is_floating_point():
        raise InputError(
            f"{model} returned {logits.dtype} {list(logits.shape)} for two pictures: a classifier returns float logits "
            "[2, classes]. Pass the whole classifier, not its backbone."
        )
    return int(logits.shape[1])


def _labels(given: Labels | None, classes: int, default: Labels | None) -> Labels:
    if given is not None:
        if len(given) != classes:
            raise InputError(
                f"--labels has {len(given)} names, but the model's head has {classes} classes: "
                "pass the labels, in order, that it was trained with."
            )
        return given
    return default or Labels(names=tuple(str(index) for index in range(classes)))


def _file_name(name: str) -> str:
    """The name with only letters, digits, `-`, `_` and `.`, not hidden, not empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "model"
