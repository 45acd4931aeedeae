from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training_pictures import write_network, write_pictures

from edgecls.models import open_classifier, timm_zoo, trainer
from edgecls.models.architecture import find_architecture
from edgecls.models.recipe import Recipe
from edgecls.models.train import TrainResult, train
from edgecls.models.training_data import TrainingData
from edgecls.models.training_record import Epoch, TrainingRecord
from edgecls.runtime import ImageSet, InputError, Labels, Preprocess
from edgecls.runtime.progress import SilentProgress

import timm  # isort: skip

INPUT = Preprocess(resize_px=36, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RECIPE = Recipe.from_scratch(
    epochs=3, head_epochs=1, batch_size=8, learning_rate=0.02, trivial_augment=False, mixup=0.2, cutmix=1.0, seed=5
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return TrainingData.open(write_pictures(tmp_path_factory.mktemp("pictures"), 20))


@pytest.fixture
def network(tmp_path: Path) -> str:
    return write_network(tmp_path)


def fit(network: str, data: TrainingData, output: Path, recipe: Recipe = RECIPE, **options) -> TrainResult:
    options = {"preprocess": INPUT, "from_scratch": True, "threads": 1, **options}
    return train(network, data, output=output, recipe=recipe, **options)


EPOCH = Epoch(
    phase="head", epoch=1, side_px=32, learning_rate=0.0, loss=0.0, val_loss=0.0, val_top1=0.0, val_balanced=0.0,
    seconds=0.0,
)  # fmt: skip
"""Of a training that did nothing."""


class KilledError(BaseException):
    pass


class Killer(SilentProgress):
    """Dies at a step, as a killed process does: nobody catches it and nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self._left = step

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator:
        def advance(steps: int) -> None:
            self._left -= steps
            if self._left < 0:
                raise KilledError

        yield advance


def test_it_learns_and_the_file_needs_nothing_else(network: str, data: TrainingData, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=14, mixup=0.0, cutmix=0.0)
    result = fit(network, data, tmp_path / "colours.safetensors", recipe)
    assert result.record.val_top1 > 0.8
    assert result.record.best in result.record.epochs
    with safe_open(result.path, "pt") as file:
        assert "edgecls.model" in file.metadata()
    classifier = open_classifier(network, checkpoint=result.path)
    assert classifier.labels == Labels(names=("blue", "green", "red"))
    assert (classifier.preprocess.crop_px, classifier.preprocess.mean) == (32, (0.5, 0.5, 0.5))
    written = msgspec.json.decode(result.record_path.read_bytes(), type=TrainingRecord)
    assert written == result.record
    assert written.recipe == recipe
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("step", [3, 6, 9, 17])
def test_killed_at_any_step_and_resumed_gives_the_same_bits(
    step: int, network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    original = trainer.Trainer._step
    monkeypatch.setattr(trainer.Trainer, "_step", lambda self, *given: done.append(1) or original(self, *given))
    monkeypatch.setattr(trainer, "_SAVE_EVERY_S", 0.0)
    whole = fit(network, data, tmp_path / "whole.safetensors")
    steps = len(done)
    with pytest.raises(KilledError):
        fit(network, data, tmp_path / "killed.safetensors", progress=Killer(step))
    assert not (tmp_path / "killed.safetensors").exists()
    done.clear()
    resumed = fit(network, data, tmp_path / "killed.safetensors", resume=True)
    assert 0 < len(done) <= steps - step + 2  # it went on, and did not begin anew
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "killed.safetensors").read_bytes()
    curves = [[msgspec.structs.replace(e, seconds=0.0) for e in r.record.epochs] for r in (whole, resumed)]
    assert curves[0] == curves[1]


def test_bfloat16_learns_and_is_resumed_to_the_same_bits(
    network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(trainer, "cpu_flags", lambda: frozenset({"avx512_bf16"}))  # torch emulates what is missing
    recipe = msgspec.structs.replace(RECIPE, epochs=8, mixup=0.0, cutmix=0.0, bf16=True)
    whole = fit(network, data, tmp_path / "whole.safetensors", recipe)
    assert whole.record.device == "cpu, bf16"
    assert whole.record.val_top1 > 0.6
    with pytest.raises(KilledError):
        fit(network, data, tmp_path / "killed.safetensors", recipe, progress=Killer(17))
    with pytest.raises(InputError, match="another training"):
        fit(network, data, tmp_path / "killed.safetensors", msgspec.structs.replace(recipe, bf16=False), resume=True)
    fit(network, data, tmp_path / "killed.safetensors", recipe, resume=True)
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "killed.safetensors").read_bytes()
    assert {tensor.dtype for tensor in load_file(tmp_path / "whole.safetensors").values()} <= {
        torch.float32, torch.int64
    }  # fmt: skip


def test_bfloat16_is_refused_where_it_would_be_emulated(
    network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "cpu_flags", lambda: frozenset({"avx512f"}))
    with pytest.raises(InputError, match="leave out --bf16"):
        fit(network, data, tmp_path / "a.safetensors", msgspec.structs.replace(RECIPE, bf16=True))
    assert not list(tmp_path.glob("*.safetensors"))


DECORATED = """
from functools import wraps

from torch import nn


def first(forward):
    @wraps(forward)
    def inner(self, pictures):
        return forward(self, pictures)[0]

    return inner


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.times = nn.Conv3d(3, 3, (1, 1, 1), groups=3)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 3)

    @first
    def forward(self, pictures):
        return self.head(self.layers(self.times(pictures[:, :, None])[:, :, 0])), "more"


make = Net
"""


@pytest.mark.parametrize("bf16", [False, True])
def test_a_decorated_forward_and_five_dimensions_survive_both_phases(
    bf16: bool, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    (tmp_path / "net.py").write_text(DECORATED)
    recipe = msgspec.structs.replace(RECIPE, epochs=1, bf16=bf16)
    result = fit(f"{tmp_path / 'net.py'}:make", data, tmp_path / "a.safetensors", recipe)
    assert [epoch.phase for epoch in result.record.epochs] == ["head", "all"]


def test_workers_begin_where_the_system_knows_no_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "nice")
    trainer._begin_worker(0)


def test_workers_change_nothing(tmp_path: Path) -> None:
    # In processes of their own: torch's loader leaves a handler of SIGCHLD behind in the process that starts workers,
    # and a process in which this whole suite ran does not survive its next call.
    pictures, network = write_pictures(tmp_path / "pictures", 8), write_network(tmp_path)
    for workers in ("0", "2"):
        command = [
            sys.executable, "-m", "edgecls", "train", "--data", str(pictures), "--arch", network, "--from-scratch",
            "--resize", "36", "--crop", "32", "--mean", "0.5", "--std", "0.5", "--batch-size", "8", "--epochs", "2",
            "--workers", workers, "--threads", "1", "-o", str(tmp_path / f"{workers}.safetensors"),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def _processes_of(folder: Path) -> list[str]:
    """Command lines that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_text(errors="replace").replace("\0", " "))
    return [line for line in found if str(folder) in line]


def test_a_process_that_is_killed_can_be_resumed(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 20)
    command = [
        sys.executable, "-m", "edgecls", "train", "--data", str(pictures), "--arch", write_network(tmp_path),
        "--from-scratch", "--resize", "36", "--crop", "32", "--mean", "0.5", "--std", "0.5", "--batch-size", "8",
        "--epochs", "6", "--workers", "1", "--threads", "1",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    state = tmp_path / ".killed.safetensors.training"
    subprocess.run([*command, "-o", str(whole)], check=True, capture_output=True, cwd=tmp_path)
    process = subprocess.Popen([*command, "-o", str(killed)], stderr=subprocess.DEVNULL, cwd=tmp_path)
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 300
    while left := _processes_of(tmp_path):
        assert time.monotonic() < deadline, f"workers outlive their training: {left}"
        time.sleep(0.1)
    again = subprocess.run([*command, "-o", str(killed)], capture_output=True, text=True, cwd=tmp_path)
    if state.exists():  # else it was done before the signal came
        assert again.returncode == 2
        assert "--resume" in again.stderr
        subprocess.run([*command, "-o", str(killed), "--resume"], check=True, capture_output=True, cwd=tmp_path)
    assert whole.read_bytes() == killed.read_bytes()


def test_another_training_is_not_resumed(network: str, data: TrainingData, tmp_path: Path) -> None:
    output = tmp_path / "a.safetensors"
    with pytest.raises(KilledError):
        fit(network, data, output, progress=Killer(8))
    with pytest.raises(InputError, match="unfinished training"):
        fit(network, data, output)
    with pytest.raises(InputError, match="another training"):
        fit(network, data, output, msgspec.structs.replace(RECIPE, seed=6), resume=True)
    (tmp_path / ".a.safetensors.training").write_bytes(b"PK not really")
    with pytest.raises(InputError, match="damaged"):
        fit(network, data, output, resume=True)
    with pytest.raises(InputError, match="nothing to resume"):
        fit(network, data, tmp_path / "b.safetensors", resume=True)


def test_a_training_is_not_resumed_once_its_pictures_are_drawn_in_another_order(network: str, tmp_path: Path) -> None:
    root, output = write_pictures(tmp_path / "pictures", 5), tmp_path / "a.safetensors"
    data = TrainingData.open(root)
    with pytest.raises(KilledError):
        fit(network, data, output, progress=Killer(3))
    first = root / data.train.images[0].path
    last = first.rename(first.with_name("z.png"))
    renamed = TrainingData.open(root)
    assert renamed.train.digest == data.train.digest
    with pytest.raises(InputError, match="another training"):
        fit(network, renamed, output, resume=True)
    last.rename(first.with_name("0-.png"))
    fit(network, TrainingData.open(root), output, resume=True)


def test_a_frozen_backbone_keeps_every_bit(network: str, data: TrainingData, tmp_path: Path) -> None:
    base = fit(network, data, tmp_path / "base.safetensors")
    recipe = Recipe(epochs=0, head_epochs=2, batch_size=8, seed=1)
    tuned = fit(network, data, tmp_path / "tuned.safetensors", recipe, from_scratch=False, checkpoint=base.path)
    before, after = load_file(base.path), load_file(tuned.path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"9.weight", "9.bias"}
    assert tuned.record.start == "checkpoint"
    assert tuned.record.start_sha256 == base.record.weights_sha256


@pytest.mark.parametrize("arch", ["timm:test_vit", "timm:test_resnet", "torchvision:resnet18"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_backbone_without_a_head_gets_a_new_one(
    arch, prefix, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = find_architecture(arch).build(32)
    head = find_architecture(arch).head(network)
    backbone = {name: t for name, t in network.state_dict().items() if not name.startswith(f"{head[0]}.")}
    torch.save({f"{prefix}{name}": tensor for name, tensor in backbone.items()}, tmp_path / "headless.pth")
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: (self._network.state_dict(), (EPOCH,), EPOCH))
    recipe = Recipe(epochs=1, batch_size=8)
    result = fit(
        arch, data, tmp_path / "a.safetensors", recipe, from_scratch=False, checkpoint=tmp_path / "headless.pth"
    )
    weights = load_file(result.path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.items())
    assert weights[f"{head[0]}.weight"].shape[0] == 3


def test_a_backbone_with_other_gaps_is_refused(data: TrainingData, tmp_path: Path) -> None:
    weights = find_architecture("timm:test_vit").build(32).state_dict()
    del weights["head.weight"], weights["head.bias"], weights["norm.weight"]
    torch.save(weights, tmp_path / "gaps.pth")
    with pytest.raises(InputError, match=r"3 missing in the checkpoint: norm\.weight"):
        fit("timm:test_vit", data, tmp_path / "a.safetensors", from_scratch=False, checkpoint=tmp_path / "gaps.pth")


def test_weights_of_timm_without_a_classifier_get_one(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = timm.create_model("test_vit", num_classes=0, img_size=32)
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    config = {"file": str(tmp_path / "model.safetensors"), "num_classes": 0}
    known = timm_zoo.TimmModel("test_vit")._config
    monkeypatch.setattr(timm_zoo.TimmModel, "_config", {**known, **config})
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: (self._network.state_dict(), (EPOCH,), EPOCH))
    with pytest.raises(InputError, match="have no classifier"):
        open_classifier("timm:test_vit")
    result = fit("timm:test_vit", data, tmp_path / "a.safetensors", Recipe(batch_size=8), from_scratch=False)
    weights = load_file(result.path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
    assert weights["head.weight"].shape == (3, 64)
    assert result.record.start == "library"


def test_half_precision_halves_the_file_and_is_validated_as_stored(
    network: str, data: TrainingData, tmp_path: Path
) -> None:
    result = fit(network, data, tmp_path / "half.safetensors", half=True)
    weights = load_file(result.path)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16, torch.int64}
    classifier = open_classifier(network, checkpoint=result.path)
    right = 0
    for image in data.val.images:
        pixels = classifier.preprocess.pixels(data.val.root / image.path)
        logits = classifier.source(torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float())
        right += int(np.argmax(logits.numpy()) == image.label)
    assert right / len(data.val) == pytest.approx(result.record.val_top1)


def test_a_library_network_is_exported_from_its_file_alone(data: TrainingData, tmp_path: Path) -> None:
    recipe = Recipe.from_scratch(epochs=1, batch_size=16)
    result = fit("torchvision:mobilenet_v3_small", data, tmp_path / "net.safetensors", recipe)
    classifier = open_classifier(str(result.path))
    assert (classifier.name, len(classifier.labels)) == ("net", 3)
    assert classifier.preprocess == result.record.preprocess


def test_a_file_of_weights_never_decides_which_code_runs(network: str, data: TrainingData, tmp_path: Path) -> None:
    result = fit(network, data, tmp_path / "own.safetensors")
    with pytest.raises(InputError, match=r"code of your own.*--checkpoint"):
        open_classifier(str(result.path))


def test_discriminative_rates_fall_with_depth(data: TrainingData, tmp_path: Path, monkeypatch) -> None:
    scales: list[list[float]] = []
    original = trainer.Trainer._parameter_groups

    def spied(self):
        groups = original(self)
        scales.append([group["lr_scale"] for group in groups])
        return groups

    monkeypatch.setattr(trainer.Trainer, "_parameter_groups", spied)
    recipe = Recipe(epochs=1, head_epochs=0, batch_size=32, layer_decay=0.5)
    for arch in ("torchvision:mobilenet_v3_small", "timm:lcnet_035"):
        fit(arch, data, tmp_path / "net.safetensors", recipe)
    for found in scales:
        assert max(found) == 1
        assert len(set(found)) > 4
        assert found[0] == min(found)


def test_the_rates_that_the_optimizer_takes_rise_fall_and_are_lower_for_early_layers(
    data: TrainingData, tmp_path: Path
) -> None:
    rates: list[list[float]] = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: rates.append([group["lr"] for group in o.param_groups]))
    recipe = Recipe(epochs=4, head_epochs=0, batch_size=8, layer_decay=0.5, learning_rate=0.01)
    try:
        fit("timm:lcnet_035", data, tmp_path / "net.safetensors", recipe)
    finally:
        hook.remove()
    highest = [max(step) for step in rates]
    peak = highest.index(max(highest))
    assert 0 < peak < len(rates) / 2
    assert highest[peak] == pytest.approx(0.01, rel=0.05)
    assert highest[0] < 0.2 * highest[peak] > highest[-1]
    assert all(min(step) < 0.3 * max(step) for step in rates)


def test_averaged_weights_are_what_is_kept(network: str, data: TrainingData, tmp_path: Path) -> None:
    found = [
        fit(network, data, tmp_path / f"{decay}.safetensors", msgspec.structs.replace(RECIPE, ema_decay=decay)).path
        for decay in (0.0, 0.9)
    ]
    plain, averaged = map(load_file, found)
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)


def test_rare_classes_weigh_more_and_balance_chooses_the_epoch(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pictures(tmp_path / "pictures", 20)
    for colour, left in {"red": 5, "blue": 10}.items():
        for path in sorted((root / colour).iterdir())[left:]:
            path.unlink()
    seen = []
    original = trainer.Trainer._class_weights
    monkeypatch.setattr(trainer.Trainer, "_class_weights", lambda self: seen.append(original(self)) or seen[-1])
    pictures = TrainingData.open(root)
    recipe = msgspec.structs.replace(RECIPE, class_weights=True)
    record = fit(network, pictures, tmp_path / "a.safetensors", recipe).record
    counts = np.bincount([image.label for image in pictures.train.images])
    np.testing.assert_allclose(seen[0], counts.sum() / (3 * counts), rtol=1e-6)
    assert record.best.val_balanced == max(epoch.val_balanced for epoch in record.epochs)


def test_the_training_ends_when_nothing_gets_better(network: str, data: TrainingData, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=30, head_epochs=0, patience=2, learning_rate=1e-12)
    assert len(fit(network, data, tmp_path / "a.safetensors", recipe).record.epochs) < 10


def test_a_loss_that_is_no_number_is_told_at_once(network: str, data: TrainingData, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(RECIPE, learning_rate=1e30, clip_norm=1e30, head_epochs=0)
    with pytest.raises(InputError, match=r"the loss became (nan|inf) at step \d+"):
        fit(network, data, tmp_path / "a.safetensors", recipe)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_names_a_smaller_batch_before_the_first_epoch(
    error: BaseException, network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.autograd, "backward", fails)
    with pytest.raises(InputError, match="--batch-size 4"):
        fit(network, data, tmp_path / "a.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_network_with_other_classes_than_the_pictures_is_refused(network: str, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", 3)
    (root / "red").rename(tmp_path / "red")
    with pytest.raises(InputError, match="answers with 3 classes and the pictures have 2"):
        fit(network, TrainingData.open(root), tmp_path / "a.safetensors")


def test_weights_that_cannot_be_had_name_the_file_and_the_other_way(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    with pytest.raises(InputError, match=r"mobilenet_v3_small.*--checkpoint.*--from-scratch"):
        fit("torchvision:mobilenet_v3_small", data, tmp_path / "a.safetensors", from_scratch=False)


class HalfPrecision(trainer.Accelerator):
    """Computes as on a GPU without bfloat16: float16, and a loss that is scaled."""

    mixed_precision = "fp16"

    def __init__(self, mixed_precision: str) -> None:
        super().__init__(mixed_precision=mixed_precision)
        self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", 1024.0)


def test_gradients_of_half_precision_are_scaled_back_once(
    network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (head,) = (p for group in optimizer.param_groups for p in group["params"] if p.shape == (3, 16))
        norms.append(float(head.grad.norm()))

    recipe = msgspec.structs.replace(RECIPE, epochs=1, learning_rate=1e-6)
    hook = register_optimizer_step_pre_hook(record)
    try:
        fit(network, data, tmp_path / "whole.safetensors", recipe)
        monkeypatch.setattr(trainer, "Accelerator", HalfPrecision)
        fit(network, data, tmp_path / "half.safetensors", recipe)
    finally:
        hook.remove()
    whole, half = np.split(np.array(norms), 2)
    np.testing.assert_allclose(half, whole, rtol=0.05)


@pytest.mark.parametrize(("real", "precision"), [(True, "bf16"), (False, "fp16")])
def test_bfloat16_that_is_emulated_is_not_taken(real, precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "PartialState", lambda cpu: SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: real or including_emulation)
    asked = []

    def accelerator(mixed_precision: str) -> None:
        asked.append(mixed_precision)
        raise KilledError

    monkeypatch.setattr(trainer, "Accelerator", accelerator)
    with pytest.raises(KilledError):
        trainer.Trainer(
            torch.nn.Flatten(), (), None, INPUT, RECIPE, state_file=Path(), key="", workers=0, progress=SilentProgress()
        )
    assert asked == [precision]


@pytest.mark.parametrize(
    ("arch", "crop_px", "sides"),
    [
        ("timm:vit_tiny_patch16_224", 32, {"train_px": 48}),
        ("timm:vit_tiny_patch16_224", 32, {"start_px": 24}),
        ("torchvision:squeezenet1_1", 32, {"start_px": 8}),
    ],
)
def test_sides_that_the_network_cannot_take_are_told_before_the_first_epoch(
    arch, crop_px, sides, data: TrainingData, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=2, head_epochs=1, batch_size=4, **sides)
    with pytest.raises(InputError, match=rf"takes pictures of 32 px and none of {min(sides.values())} px.*--train-px"):
        fit(arch, data, tmp_path / "a.safetensors", recipe)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("(logits, logits)", r"returns a tuple, not logits \[8, 3\].*aux_logits=False"),
        ("logits[:, :2]", r"returns \[8, 2\], not logits \[8, 3\]"),
        ("logits.no_such_method()", "AttributeError: .*no_such_method.*: its forward must"),
        ("logits.detach()", "RuntimeError: .*does not require grad.*: its forward must"),
    ],
)
def test_networks_that_fail_in_training_mode_only(answer, message, data: TrainingData, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"""
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        logits = self.last(x.mean((2, 3)))
        return {answer} if self.training else logits
""")
    with pytest.raises(InputError, match=message):
        fit(f"{tmp_path / 'own.py'}:Own", data, tmp_path / "a.safetensors")


class TakesTurns(torch.nn.Module):
    """Answers 0, 1, 2, 0, ... whatever it sees."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.eye(3)[torch.arange(len(pictures)) % 3]


def test_classes_without_validation_pictures_do_not_lower_the_balanced_accuracy(data: TrainingData) -> None:
    two = ImageSet(data.val.root, tuple(image for image in data.val.images if image.label != 2))
    assert [image.label for image in two.images] == [0, 0, 1, 1]
    judge = trainer.Trainer(
        TakesTurns(), (), replace(data, val=two), INPUT, RECIPE,
        state_file=Path(), key="", workers=0, progress=SilentProgress(),
    )  # fmt: skip
    assert judge.validate({})[1:] == (0.25, 0.25)


BREAKS = """
import sys
from pathlib import Path
from edgecls.models.recipe import Recipe
from edgecls.models.train import train
from edgecls.models.training_data import TrainingData
from edgecls.runtime import InputError, Preprocess

pictures, network, output = sys.argv[1:]
data = TrainingData.open(Path(pictures))
(data.train.root / data.train.images[0].path).write_bytes(b"nothing")
size = Preprocess(resize_px=36, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
recipe = Recipe.from_scratch(epochs=1, batch_size=8)
try:
    train(network, data, preprocess=size, output=Path(output), recipe=recipe, from_scratch=True, workers=1)
except InputError as error:
    print(error)
"""


def test_a_picture_that_breaks_during_the_training_is_told_alone(tmp_path: Path) -> None:
    pictures, network = write_pictures(tmp_path / "pictures", 4), write_network(tmp_path)
    command = [sys.executable, "-c", BREAKS, str(pictures), network, str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(f"'{pictures}"), done.stderr
    assert len(done.stdout.splitlines()) == 1


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network")


@pytest.mark.slow
def test_two_processes_learn_together(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 20)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m",
            "edgecls", "train", "--data", str(pictures), "--arch", write_network(tmp_path), "--from-scratch",
            "--resize", "36", "--crop", "32", "--mean", "0.5", "--std", "0.5", "--batch-size", "8", "--epochs", "2",
            "--workers", "0", "--threads", "1", "--json", "-o", str(tmp_path / "a.safetensors"),
        ],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Reading the pictures: done") == 1  # one process speaks for both
    record = json.loads((tmp_path / "a.train.json").read_text())
    assert json.loads(done.stdout)["record"] == record
    assert record["device"].startswith("2 x cpu")
    assert len(record["epochs"]) == 2
