"""The loop itself: resume, arithmetic, rates, averages, workers, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training_pictures import write_network, write_pictures
from trainings import INPUT, RECIPE, KilledError, Killer, fit

from edgecls.models import trainer, training_precision
from edgecls.models.recipe import Recipe
from edgecls.models.training_data import TrainingData
from edgecls.models.training_workers import begin_worker
from edgecls.runtime import ImageSet, InputError
from edgecls.runtime.progress import SilentProgress


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


def test_the_last_epochs_mix_no_pictures(
    network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: list[int] = []
    mixes = trainer.mixer(RECIPE, len(data.labels))
    monkeypatch.setattr(trainer, "mixer", lambda *_: lambda *batch: mixed.append(1) or mixes(*batch))
    fit(network, data, tmp_path / "mixed.safetensors")
    steps = len(mixed)
    mixed.clear()
    fit(network, data, tmp_path / "refined.safetensors", msgspec.structs.replace(RECIPE, refine_epochs=2))
    assert 2 * len(mixed) == steps > 0  # of the head's epoch and three of all layers two mix


def test_bfloat16_learns_and_is_resumed_to_the_same_bits(
    network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(
        training_precision, "cpu_flags", lambda: frozenset({"avx512_bf16"})
    )  # torch emulates what is missing
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
    monkeypatch.setattr(training_precision, "cpu_flags", lambda: frozenset({"avx512f"}))
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
    monkeypatch.setattr(training_precision, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    (tmp_path / "net.py").write_text(DECORATED)
    recipe = msgspec.structs.replace(RECIPE, epochs=1, bf16=bf16)
    result = fit(f"{tmp_path / 'net.py'}:make", data, tmp_path / "a.safetensors", recipe)
    assert [epoch.phase for epoch in result.record.epochs] == ["head", "all"]


def test_workers_begin_where_the_system_knows_no_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "nice")
    begin_worker(0)


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


FIRST = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.fc_before = nn.Linear(8, 3), nn.Linear(4, 8)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, pictures):
        return self.fc(self.fc_before(self.body(pictures)).relu())
"""


def test_a_head_that_is_registered_first_has_the_highest_rate_and_is_what_freezing_leaves(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, tuple[float, bool]]] = []
    original = trainer.Trainer._parameter_groups

    def spied(self):
        groups = original(self)
        scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        named = self._network.named_parameters()
        seen.append({name: (scale.get(id(p), 0.0), p.requires_grad) for name, p in named})
        return groups

    monkeypatch.setattr(trainer.Trainer, "_parameter_groups", spied)
    (tmp_path / "net.py").write_text(FIRST)
    recipe = Recipe(epochs=1, head_epochs=1, batch_size=8, layer_decay=0.5)
    fit(f"{tmp_path / 'net.py'}:Net", data, tmp_path / "net.safetensors", recipe)
    head, whole = seen
    assert {name for name, (_, learns) in head.items() if learns} == {"fc.weight", "fc.bias"}
    assert {name for name, (scale, _) in whole.items() if scale == 1} == {"fc.weight", "fc.bias"}


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
    rates = rates[1:]  # the first was the rehearsal's
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


def test_a_training_does_not_end_before_the_epochs_that_refine(
    network: str, data: TrainingData, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(
        RECIPE, epochs=30, refine_epochs=15, head_epochs=0, patience=2, learning_rate=1e-12
    )
    assert 15 < len(fit(network, data, tmp_path / "a.safetensors", recipe).record.epochs) < 25


def test_a_loss_that_is_no_number_is_told_at_once(network: str, data: TrainingData, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(RECIPE, learning_rate=1e30, clip_norm=1e30, head_epochs=0)
    with pytest.raises(InputError, match=r"the loss became (nan|inf) at step \d+"):
        fit(network, data, tmp_path / "a.safetensors", recipe)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("reason", ["(pid 12) is killed by signal: Killed. ", "(pid(s) 12) exited unexpectedly"])
def test_a_worker_that_is_killed_is_told_with_what_can_be_done(
    reason: str, saved: bool, network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self):
        if saved:
            self._state_file.touch()
        raise RuntimeError(f"DataLoader worker {reason}")

    monkeypatch.setattr(trainer.Trainer, "_rehearse", die)
    with pytest.raises(InputError, match="give fewer --workers") as told:
        fit(network, data, tmp_path / "a.safetensors")
    assert ("--resume" in str(told.value)) == saved


def test_an_error_in_a_worker_names_its_own_cause(
    network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_):
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: the pipe is broken")

    monkeypatch.setattr(trainer.Trainer, "_rehearse", fail)
    with pytest.raises(RuntimeError, match="the pipe is broken"):
        fit(network, data, tmp_path / "a.safetensors")


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
    monkeypatch.setattr(training_precision, "PartialState", lambda cpu: SimpleNamespace(device=torch.device("cuda")))
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
