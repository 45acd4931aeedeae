"""The first stage: a name, a checkpoint, a factory or an ONNX file becomes a `Classifier`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgecls.models.classifier import CLIP, Classifier
from edgecls.models.preprocess_override import NOTHING_KNOWN, PreprocessOverride, resolve_preprocess
from edgecls.runtime.errors import InputError, MissingExtraError
from edgecls.runtime.labels import Labels

if TYPE_CHECKING:
    from torch import nn

    from edgecls.models.architecture import Architecture
    from edgecls.models.card import ModelCard
    from edgecls.models.checkpoint import Checkpoint

__all__ = ["PreprocessOverride", "check_zero_shot", "open_classifier"]

_TEMPLATE = "a photo of a {}"
_EXTRA = frozenset({"torch", "torchvision", "timm", "onnx", "onnxruntime", "safetensors", "huggingface_hub"})


def open_classifier(
    model: str,
    *,
    checkpoint: Path | None = None,
    match: Literal["name", "order"] = "name",
    labels: Labels | None = None,
    override: PreprocessOverride = PreprocessOverride(),  # noqa: B008 (frozen)
    classes: Labels | None = None,
    templates: tuple[str, ...] = (),
) -> Classifier:
    """Opens a trained image classifier.

    Args:
        model: A torchvision or timm name (`resnet18`; `timm:resnet18` and `torchvision:resnet18` where both have it, a
            bare name then means torchvision's; `timm:NAME.tag` for certain weights of timm), `path/to/file.py:factory`,
            `package.module:factory`, an `.onnx` file, a `.safetensors` file that `edgecls train` wrote, or a CLIP of
            open_clip's: `clip:ViT-B-32` with a checkpoint,
            `clip:ViT-B-32/TAG` for a set of its weights, `clip:FILE` beside an `open_clip_config.json`.
        checkpoint: A file of weights, torch or safetensors, recognised by content. Wrappers of training scripts are
            opened; averaged (EMA) weights are taken where the file has both. The head takes the file's number of
            classes. None takes the library's weights, from its cache or the network.
        match: How the file's tensors find their places: by `name`, or by `order` where another code base named them.
        labels: Names of the classes; by default those that the library's weights have, else `0`, `1`, …
        override: Preprocessing that flags decide; the rest comes from torchvision's weights or timm's `pretrained_cfg`.
        classes: What a `clip:` model is to tell apart; they are its labels.
        templates: Texts that a `clip:` model's classes are put into, each with one `{}`; the embeddings of several are
            averaged. By default `a photo of a {}`.

    Returns:
        The classifier; its torch module is float32, on the CPU, in evaluation mode, without gradients. The random
        number generators of the caller are as before.

    Raises:
        InputError: The model, checkpoint, labels or flags do not exist or do not fit together; the message says what
            to pass instead.
        MissingExtraError: torch and its companions are not installed.
    """
    check_zero_shot(model, classes, templates, labels)
    try:
        if classes is not None:
            return _open_clip(model, checkpoint, match, classes, templates, override)
        if Path(model).suffix.lower() == ".onnx":
            return _open_onnx(model, checkpoint, labels, override)
        if Path(model).suffix.lower() == ".safetensors":
            return _open_trained(model, checkpoint, match, labels, override)
        return _open_torch(model, checkpoint, match, labels, override)
    except ModuleNotFoundError as error:
        if error.name == "open_clip":
            raise MissingExtraError("clip", f"Opening {model}", "open_clip is not installed") from error
        if error.name in _EXTRA:
            raise MissingExtraError("export", "Opening a trained model", f"{error.name} is not installed") from error
        raise


def check_zero_shot(model: str, classes: Labels | None, templates: tuple[str, ...], labels: Labels | None) -> None:
    """Refuses classes, templates and labels that the model cannot have; costs no import.

    Raises:
        InputError: A `clip:` model has no classes, one, two that read the same, or labels beside them; another model
            has classes or templates; or a template does not have one place for a class.
    """
    if not model.startswith(CLIP):
        if classes is not None or templates:
            raise InputError(
                f"--classes and --template are for zero-shot models, clip:NAME, and MODEL is {model}: leave them out. "
                "What names the classes of a trained classifier is --labels FILE."
            )
        return
    if classes is None:
        raise InputError(f"{model} has no classes of its own: name them with --classes FILE, one a line.")
    if labels is not None:
        raise InputError(f"--classes are the labels of {model}: leave --labels out.")
    if len(classes) == 1:
        raise InputError(
            f"--classes has one class, {classes.names[0]!r}, which every picture would show with 100 %: add another, "
            "such as what is to be seen where it is not."
        )
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"--template {template!r} must hold one {{}}, where the class goes: 'a photo of a {{}}'.")
    seen: dict[str, str] = {}
    for name in classes.names:
        first = seen.setdefault(" ".join(name.casefold().split()), name)
        if first is not name:
            raise InputError(f"--classes has {first!r} and {name!r}, which read the same: keep one of the two.")


def _open_onnx(model: str, checkpoint: Path | None, labels: Labels | None, override: PreprocessOverride) -> Classifier:
    from edgecls.models.card import ModelCard
    from edgecls.models.hog_onnx import FLOAT32_ONLY, MODEL
    from edgecls.models.onnx_file import check_onnx, digest_of, metadata_of

    path = Path(model)
    if checkpoint is not None:
        raise InputError(f"{model} holds its own weights: leave --checkpoint {checkpoint} out.")
    if not path.exists():
        raise InputError(f"there is no file {model}.")
    card = ModelCard.from_metadata(path, metadata_of(path))
    known = NOTHING_KNOWN
    if card is not None:
        _refuse_other_input(path, card, override)
        known = card.known_preprocess()
    preprocess, sources = resolve_preprocess(model, known, override)
    classes, notes = check_onnx(path, preprocess.crop_px)
    if card is not None and len(card.labels) != classes:
        raise InputError(f"{path} names {len(card.labels)} classes but answers {classes}: train it again.")
    return Classifier(
        name=_file_name(path.stem),
        model=model,
        source=path,
        preprocess=preprocess,
        preprocess_source=sources,
        labels=_labels(labels, classes, None if card is None else card.labels),
        checkpoint_sha256=digest_of(path),
        notes=notes,
        float32_only=FLOAT32_ONLY if card is not None and card.model == MODEL else None,
    )


def _refuse_other_input(path: Path, card: ModelCard, override: PreprocessOverride) -> None:
    """How pictures are resized may be overridden; what a fixed graph takes may not."""
    for name, flag in (("crop_px", "--crop"), ("mean", "--mean"), ("std", "--std"), ("colour", "--colour")):
        given, trained = getattr(override, name), getattr(card.preprocess, name)
        if given not in (None, trained):
            raise InputError(f"{path} was trained with {flag} {trained}, it takes no {given}: leave {flag} out.")


def _open_trained(
    model: str,
    checkpoint: Path | None,
    match: Literal["name", "order"],
    labels: Labels | None,
    override: PreprocessOverride,
) -> Classifier:
    """A file of weights that says which network they belong to."""
    from edgecls.models.checkpoint import card_of

    path = Path(model)
    if checkpoint is not None or match != "name":
        raise InputError(f"{model} holds its own weights, by name: leave --checkpoint and --match out.")
    if not path.exists():
        raise InputError(f"there is no file {model}.")
    card = card_of(path)
    if card is None:
        raise InputError(
            f"{model} does not say which network its weights belong to: give that as MODEL, and --checkpoint {model}."
        )
    if card.is_own_code:
        raise InputError(
            f"the network of {model} is code of your own, {card.model}: give that as MODEL, and --checkpoint {model}."
        )
    classifier = _open_torch(card.model, path, "name", labels, override)
    return replace(classifier, name=_file_name(path.stem), model=model)


def _open_torch(
    model: str,
    checkpoint: Path | None,
    match: Literal["name", "order"],
    labels: Labels | None,
    override: PreprocessOverride,
) -> Classifier:
    from edgecls.models.architecture import find_architecture
    from edgecls.models.checkpoint import card_of, read_checkpoint, sha256_of
    from edgecls.models.rng import untouched_rng

    if match not in {"name", "order"}:
        raise InputError(f"--match is {match!r}: it is name or order.")
    if match == "order" and checkpoint is None:
        raise InputError("--match order says how a file's tensors find their places: give --checkpoint FILE with it.")
    with untouched_rng():
        architecture = find_architecture(model)
        card = None if checkpoint is None else card_of(checkpoint)
        known = architecture.known_preprocess() if card is None else card.known_preprocess()
        preprocess, sources = resolve_preprocess(model, known, override)
        notes: tuple[str, ...] = ()
        if checkpoint is None:
            module, file = architecture.trained(preprocess.crop_px)
            sha256 = None if file is None else sha256_of(file)
        else:
            weights = read_checkpoint(checkpoint)
            module = architecture.build(preprocess.crop_px)
            notes = (*weights.notes, *load_checkpoint(architecture, model, module, weights, match))
            sha256 = weights.sha256
        module = module.cpu().float().eval().requires_grad_(False)
        classes = count_classes(model, module, preprocess.crop_px)
    default = architecture.default_labels(classes) if card is None else card.labels
    if checkpoint is not None and card is None and labels is None and default is not None:
        notes = (
            *notes,
            f"{checkpoint.name} does not name its {classes} classes, which are taken for {model}'s own "
            f"({default.names[0]}, ...): name others with --labels FILE",
        )
    return Classifier(
        name=_file_name(architecture.name),
        model=model,
        source=module,
        preprocess=preprocess,
        preprocess_source=sources,
        labels=_labels(labels, classes, default),
        checkpoint_sha256=sha256,
        notes=notes,
    )


def _open_clip(
    model: str,
    checkpoint: Path | None,
    match: Literal["name", "order"],
    classes: Labels,
    templates: tuple[str, ...],
    override: PreprocessOverride,
) -> Classifier:
    from edgecls.models.checkpoint import read_checkpoint
    from edgecls.models.clip_zero_shot import ClipModel
    from edgecls.models.rng import untouched_rng

    if match != "name":
        raise InputError(f"--match {match} is not for {model}: its weights are found by name. Leave it out.")
    with untouched_rng():
        clip = ClipModel.find(model)
        if clip.file is not None and checkpoint is not None:
            raise InputError(f"{model} holds its own weights: leave --checkpoint {checkpoint} out.")
        preprocess, sources = resolve_preprocess(model, clip.known_preprocess(), override)
        weights = read_checkpoint(checkpoint or clip.weights_file())
        towers = clip.build(preprocess.crop_px)
        notes = (*weights.notes, *clip.load(towers, weights))
        if not templates:
            templates = (_TEMPLATE,)
            notes = (*notes, f"no --template: the classes are read as '{_TEMPLATE}'")
        module = clip.zero_shot(towers, classes, templates)
        count_classes(model, module, preprocess.crop_px)
    return Classifier(
        name=_file_name(clip.name),
        model=model,
        source=module,
        preprocess=preprocess,
        preprocess_source=sources,
        labels=classes,
        checkpoint_sha256=weights.sha256,
        notes=notes,
    )


def load_checkpoint(
    architecture: Architecture,
    model: str,
    module: nn.Module,
    checkpoint: Checkpoint,
    match: Literal["name", "order"],
) -> tuple[str, ...]:
    """Loads all of a checkpoint into a module, in place, whose head takes the checkpoint's number of classes.

    Returns:
        What the user should know.

    Raises:
        InputError: The checkpoint does not fit; the message lists where they differ.
    """
    from edgecls.models.checkpoint import recognise
    from edgecls.models.matching import Differences, load_by_name, mismatch, names_from_order

    ordered = recognise(checkpoint.path) != "safetensors"
    weights = checkpoint.renamed(module.state_dict().keys()).without(architecture.ignores)
    if match == "order" and not ordered:
        raise InputError(
            f"{checkpoint.path} is a safetensors file, which sorts its tensors by name, so that their order means "
            "nothing: leave out --match order, or pass the file of torch.save that it was made from."
        )
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
        order_works = ordered
    except InputError:
        order_works = False
    raise mismatch(model, checkpoint, differences, reason, order_works=order_works)


def _rows_of_last(checkpoint: Checkpoint) -> int:
    """Length of the last tensor that is a weight: the number of classes in any order-preserving code base."""
    rows = [len(t) for name, t in checkpoint.tensors.items() if t.ndim and not name.endswith("num_batches_tracked")]
    if not rows:
        raise InputError(f"{checkpoint.path} holds no weights, only scalars: pass the model's checkpoint.")
    return rows[-1]


def count_classes(model: str, module: nn.Module, crop_px: int) -> int:
    """Runs a module in evaluation mode once on two black pictures; the width of its answer.

    Raises:
        InputError: It does not take them, or returns no logits, or those of one class.
    """
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
    if logits.shape[1] == 1:
        raise InputError(
            f"{model} has one output, of which softmax always makes 100 %: give it two. Where x is the logit of yes, "
            "before any sigmoid, pass a factory whose module returns torch.cat([torch.zeros_like(x), x], 1), "
            "the logits of no and yes."
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
