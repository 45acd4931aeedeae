"""From a folder of pictures to a file of weights that `edgecls export` takes as it is."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgecls.models.card import ModelCard
from edgecls.models.preprocess_override import PreprocessOverride, resolve_preprocess
from edgecls.models.recipe import Recipe
from edgecls.models.training_data import TrainingData
from edgecls.models.training_record import Start, TrainingRecord, library_versions
from edgecls.runtime.atomic_file import atomic_file, refuse_unwritable
from edgecls.runtime.errors import InputError
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from torch import nn

    from edgecls.models.architecture import Architecture
    from edgecls.models.checkpoint import Checkpoint, StateDict
    from edgecls.models.trainer import Condition


@dataclass(frozen=True)
class TrainResult:
    """What a training made."""

    path: Path
    record_path: Path
    record: TrainingRecord
    card: ModelCard


def train(
    arch: str,
    data: TrainingData,
    *,
    preprocess: Preprocess,
    output: Path,
    recipe: Recipe,
    from_scratch: bool = False,
    checkpoint: Path | None = None,
    match: Literal["name", "order"] = "name",
    half: bool = False,
    resume: bool = False,
    workers: int = 0,
    threads: int | None = None,
    progress: Progress = SilentProgress(),  # noqa: B008 (stateless)
) -> TrainResult:
    """Fine-tunes a network, or trains it from scratch, and writes its weights.

    On a CPU, a training that was killed and resumed gives the same weights, bit for bit, as one that was not. What else
    they depend on, such as the number of threads, must be as it was.

    Args:
        arch: A torchvision or timm name, or a factory; see `open_classifier`.
        data: What it learns from and what judges it.
        preprocess: What the pictures become; see `input_of`.
        output: A safetensors file with a `ModelCard`; `NAME.train.json` is written beside it. While it is not
            finished, its state lies beside it: `unfinished_training`.
        recipe: How.
        from_scratch: Begin with random weights.
        checkpoint: Begin with the weights of a file, whatever its number of classes; None takes the library's.
        match: How the file's tensors find their places.
        half: Store 16-bit floats.
        resume: Go on with a training that was killed.
        workers: Processes that decode and augment pictures; 0 does it in this one.
        threads: Of the arithmetic; None leaves torch's number.
        progress: Told about the epochs.

    Raises:
        InputError: The architecture, weights and options do not fit together; there is an unfinished training at
            `output`, none to resume, or one that would go on otherwise; the loss is no number; memory runs out; a
            weight is too large for 16 bits. The message names the remedy.
    """
    import torch

    from edgecls.models.architecture import find_architecture
    from edgecls.models.rng import untouched_rng
    from edgecls.models.trainer import Trainer

    refuse_output(output, resume=resume)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        with untouched_rng():
            torch.manual_seed(recipe.seed)
            architecture = find_architecture(arch)
            network, start, start_sha256 = _starting_network(
                architecture, arch, preprocess, len(data.labels), from_scratch, checkpoint, match
            )
            trainer = Trainer(
                network,
                architecture.head(network, preprocess.crop_px),
                data,
                preprocess,
                recipe,
                state_file=unfinished_training(output),
                key=_key(arch, data, preprocess, recipe, start_sha256),
                conditions=_conditions(architecture, network),
                workers=workers,
                progress=progress,
            )
            if resume:
                trainer.resume()
            weights, epochs, best = trainer.run()
            if half:
                weights = _halved(weights)
            _, val_top1, val_balanced = trainer.validate(weights)
            card = ModelCard(model=arch, preprocess=preprocess, labels=data.labels)
            content = _safetensors(weights, card)
            record = TrainingRecord(
                **_facts_of(arch, data, preprocess, recipe),
                start=start,
                start_sha256=start_sha256,
                match=match,
                half=half,
                device=trainer.device,
                best=best,
                val_top1=val_top1,
                val_balanced=val_balanced,
                seconds=epochs[-1].seconds,
                weights_sha256=hashlib.sha256(content).hexdigest(),
                epochs=epochs,
            )
            result = TrainResult(output, output.with_suffix(".train.json"), record, card)
            if trainer.is_main_process:
                _write(result, content)
            trainer.finish()
    finally:
        torch.set_num_threads(threads_before)
    return result


def refuse_output(output: Path, *, resume: bool) -> None:
    """Refuses an output that cannot be written or exported, or whose unfinished training is not what was asked for.

    Raises:
        InputError: See there; the message says whether to give `--resume`.
    """
    if output.suffix.lower() != ".safetensors":
        raise InputError(
            f"the output is {output.name}, and weights are written as safetensors: call it "
            f"{output.with_suffix('.safetensors').name}."
        )
    refuse_unwritable(output)
    state_file = unfinished_training(output)
    if state_file.exists() and not resume:
        raise InputError(
            f"{state_file} is an unfinished training of {output.name}: go on with --resume, or delete it to begin anew."
        )
    if resume and not state_file.exists():
        raise InputError(f"there is nothing to resume: {state_file} does not exist. Leave out --resume.")


def refuse_start(
    arch: str,
    preprocess: Preprocess,
    *,
    from_scratch: bool = False,
    checkpoint: Path | None = None,
    match: Literal["name", "order"] = "name",
) -> None:
    """Refuses weights to begin with that `train`, with the same options, could not have; costs no picture.

    Raises:
        InputError: See there.
    """
    from edgecls.models.architecture import find_architecture
    from edgecls.models.rng import untouched_rng

    with untouched_rng():
        _starting_weights(find_architecture(arch), arch, preprocess, from_scratch, checkpoint, match)


def unfinished_training(output: Path) -> Path:
    """Where a training keeps its state until `output` is written."""
    return output.with_name(f".{output.name}.training")


def input_of(arch: str, override: PreprocessOverride, checkpoint: Path | None = None) -> Preprocess:
    """What a training prepares its pictures with: what flags say, else what the checkpoint says, else the library.

    Raises:
        InputError: Nothing says it; the message names the flags.
    """
    from edgecls.models.architecture import find_architecture
    from edgecls.models.checkpoint import card_of

    card = None if checkpoint is None else card_of(checkpoint)
    known = find_architecture(arch).known_preprocess() if card is None else card.known_preprocess()
    return resolve_preprocess(arch, known, override)[0]


def _starting_network(
    architecture: Architecture,
    arch: str,
    preprocess: Preprocess,
    classes: int,
    from_scratch: bool,
    checkpoint: Path | None,
    match: Literal["name", "order"],
) -> tuple[nn.Module, Start, str | None]:
    """The network with a new head, where its other weights came from, and the sha256 of their file."""
    from edgecls.models.open import count_classes

    network, start, sha256 = _starting_weights(architecture, arch, preprocess, from_scratch, checkpoint, match)
    network = network.cpu().float().requires_grad_(True)
    architecture.fit_classes(network, classes)
    answers = count_classes(arch, network.eval(), preprocess.crop_px)
    if answers != classes:
        raise InputError(
            f"{arch} answers with {answers} classes and the pictures have {classes}: let it return logits of "
            f"{classes} classes."
        )
    if not architecture.head(network, preprocess.crop_px):
        raise InputError(
            f"which layer of {arch} makes its {classes} logits cannot be told, and that layer learns first: let them "
            f"come from a torch.nn.Linear or Conv2d with {classes} outputs."
        )
    return network, start, sha256


def _starting_weights(
    architecture: Architecture,
    arch: str,
    preprocess: Preprocess,
    from_scratch: bool,
    checkpoint: Path | None,
    match: Literal["name", "order"],
) -> tuple[nn.Module, Start, str | None]:
    """The same with the head of the weights, or with the library's where they have none."""
    from edgecls.models.checkpoint import read_checkpoint, sha256_of
    from edgecls.models.open import load_checkpoint

    if from_scratch:
        if checkpoint is not None:
            raise InputError(f"--from-scratch begins without weights: leave out --checkpoint {checkpoint}, or it.")
        return architecture.build(preprocess.crop_px), "scratch", None
    if checkpoint is not None:
        weights = read_checkpoint(checkpoint)
        network = architecture.build(preprocess.crop_px)
        if match == "name":
            weights = _with_head(weights, architecture, network, preprocess.crop_px)
        load_checkpoint(architecture, arch, network, weights, match)
        return network, "checkpoint", weights.sha256
    try:
        network, file = architecture.trained(preprocess.crop_px, headless=True)
    except InputError as error:
        raise InputError(f"{error} Or train without: --from-scratch.") from error
    return network, "library", None if file is None else sha256_of(file)


def _with_head(weights: Checkpoint, architecture: Architecture, network: nn.Module, crop_px: int) -> Checkpoint:
    """The weights; those of a backbone, of which the head alone is missing, with the network's own."""
    from edgecls.models.matching import Differences

    own = network.state_dict()
    layers = tuple(f"{layer}." for layer in architecture.head(network, crop_px))
    head = {name: own[name] for name in own if name.startswith(layers)}
    named = weights.renamed(own.keys()).without(architecture.ignores)
    for tensors in filter(None, (named.tensors, architecture.converted(network, named.tensors))):
        differences = Differences.between(tensors, network)
        if differences and set(differences.missing) == head.keys() and not differences.unexpected + differences.shapes:
            return replace(named, tensors={**tensors, **head})
    return weights


def _key(arch: str, data: TrainingData, preprocess: Preprocess, recipe: Recipe, start_sha256: str | None) -> str:
    """Equal for two trainings that go the same way; pictures are drawn by their places in the order of their names."""
    pictures = [[(image.sha256, image.label) for image in part.images] for part in (data.train, data.val)]
    parts = (arch, pictures, preprocess, recipe, start_sha256)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _conditions(architecture: Architecture, network: nn.Module) -> list[Condition]:
    """What decides about the weights beside what was asked for."""
    import torch

    return [
        *((name, version, f"install {name} {{}}") for name, version in library_versions().items()),
        ("--threads", str(torch.get_num_threads()), "give --threads {}"),
        ("code of the network", _code_sha256(architecture, network), "put the code back as it was"),
    ]


def _code_sha256(architecture: Architecture, network: nn.Module) -> str:
    """Of the files that define the network's layers and its factory, and of its tensors' names and shapes."""
    from edgecls.models.checkpoint import sha256_of
    from edgecls.models.factory import FactoryModel

    names = {type(layer).__module__ for layer in network.modules()}
    if isinstance(architecture, FactoryModel):
        names.add(architecture.imported_as)
    files = [Path(getattr(sys.modules.get(name), "__file__", None) or "") for name in names]
    shapes = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]
    parts = (sorted(sha256_of(file) for file in files if file.is_file()), shapes)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]


def _halved(weights: StateDict) -> StateDict:
    """The weights as 16-bit floats.

    Raises:
        InputError: One of them is too large.
    """
    import torch

    halved = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    endless = [name for name, tensor in halved.items() if not torch.isfinite(tensor).all()]
    if endless:
        raise InputError(
            f"'{endless[0]}' holds {weights[endless[0]].abs().max():.3g}, and 16-bit floats end at 65504: leave out "
            "--half, and give --resume, which writes the weights without training again."
        )
    return halved


def _facts_of(arch: str, data: TrainingData, preprocess: Preprocess, recipe: Recipe) -> dict[str, Any]:
    """What the record says of the question, before any answer."""
    import torch

    return {
        "model": arch,
        "preprocess": preprocess,
        "recipe": recipe,
        **library_versions(),
        "threads": torch.get_num_threads(),
        "classes": len(data.labels),
        "limit": data.limit,
        "train_images": len(data.train),
        "train_sha256": data.train.digest,
        "val_images": len(data.val),
        "val_sha256": data.val.digest,
    }


def _safetensors(weights: StateDict, card: ModelCard) -> bytes:
    from safetensors.torch import save

    # Tied weights are stored twice: loading by name then needs to know nothing.
    tensors = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    content: bytes = save(tensors, metadata=card.metadata())
    return content


def _write(result: TrainResult, weights: bytes) -> None:
    record = msgspec.json.format(msgspec.json.encode(result.record), indent=1) + b"\n"
    for path, content in ((result.path, weights), (result.record_path, record)):
        with atomic_file(path) as file:
            file.write(content)
