"""What a rehearsal finds before the first epoch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from trainings import RECIPE, KilledError, fit

from edgecls.models import trainer, training_phase
from edgecls.models.recipe import Recipe
from edgecls.models.training_data import TrainingData
from edgecls.runtime import InputError


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


@pytest.mark.parametrize(
    ("fields", "steps", "pictures"),
    [
        ({"head_epochs": 1, "epochs": 2}, [2, 8], [(8, 32), (8, 32)]),
        ({"head_epochs": 1, "epochs": 0}, [2], [(8, 32)]),
        ({"head_epochs": 0, "epochs": 2, "train_px": 24}, [8], [(8, 24)]),
        ({"head_epochs": 0, "epochs": 9, "train_px": 40, "start_px": 32}, [8], [(2, 32), (8, 40)]),
    ],
)
def test_the_rehearsal_needs_the_memory_of_the_training_and_leaves_no_trace(
    fields, steps, pictures, network: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    seen: list[tuple[int, int]] = []
    moments: list[int] = []
    rehearse, normalized = trainer.Trainer._rehearse, training_phase.normalized_on_device

    def keep(self):
        weights.append({name: tensor.clone() for name, tensor in self._network.state_dict().items()})
        generator = torch.random.get_rng_state()
        rehearse(self)
        assert torch.equal(generator, torch.random.get_rng_state())

    def stop(self, *_):
        weights.append(self._network.state_dict())
        raise KilledError

    def note(pixels, preprocess):
        seen.append((len(pixels), pixels.shape[-1]))
        return normalized(pixels, preprocess)

    monkeypatch.setattr(trainer.Trainer, "_rehearse", keep)
    monkeypatch.setattr(training_phase, "normalized_on_device", note)
    monkeypatch.setattr(trainer.Trainer, "_learn", stop)
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: moments.append(len(optimizer.state)))
    try:
        with pytest.raises(KilledError):
            fit(network, data, tmp_path / "a.safetensors", msgspec.structs.replace(RECIPE, **fields))
    finally:
        hook.remove()
    assert (moments, seen) == (steps, pictures)
    before, after = weights
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


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
