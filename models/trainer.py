"""The training loop: two phases, averaged weights, validation on the device's pixels, resume at any step."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import torch
from torch import nn
from torch.utils.data import DataLoader

# isort: split
from edgecls.models import torchvision_operators  # noqa: F401 (must come before timm, which imports torchvision)

# isort: split
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from edgecls.models.augment import AugmentedPictures, DevicePictures, Draws, mixer, seed_from
from edgecls.models.checkpoint import StateDict
from edgecls.models.normalize import normalized_on_device
from edgecls.models.recipe import Recipe
from edgecls.models.small_maps import SmallMaps
from edgecls.models.training_data import TrainingData
from edgecls.models.training_memory import is_of_memory
from edgecls.models.training_phase import begin_phase, rehearse, set_mode
from edgecls.models.training_precision import precision
from edgecls.models.training_record import Epoch
from edgecls.models.training_workers import begin_worker, workers_context
from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.errors import InputError
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.progress import Advance, Progress

_SAVE_EVERY_S = 120.0
_KILLED_WORKER = re.compile(r"^DataLoader worker \(pid")


Condition: TypeAlias = tuple[str, str, str]
"""What it is called in a message, its value, and how to have another again, with `{}` for that."""


@dataclass
class _State:
    """Where a training is; everything that a later process needs to go on as if nothing had happened."""

    phase: int = 0
    step: int = 0
    """Steps done in the phase."""
    loss_sum: float = 0.0
    """Over the steps done in the epoch."""
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    best_weights: StateDict = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    """States of network, optimizer, average and scaler."""


class Trainer:
    """Trains one network.

    Args:
        network: With its new head; trained in place.
        head: Names of its last layers.
        data: What it learns from.
        preprocess: Its input.
        recipe: How.
        state_file: Where the training is kept from time to time; removed by `finish`.
        key: What must be equal for a state to be continued.
        conditions: What must be equal too, because the weights depend on it.
        workers: Processes that decode and augment; 0 does it in this one.
        progress: Told about epochs.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Sequence[str],
        data: TrainingData,
        preprocess: Preprocess,
        recipe: Recipe,
        *,
        state_file: Path,
        key: str,
        conditions: Sequence[Condition] = (),
        workers: int,
        progress: Progress,
    ) -> None:
        AcceleratorState._reset_state()  # it is global: the process's last training may have had another arithmetic
        self._accelerator = Accelerator(mixed_precision=precision(recipe))
        self._network = network.to(self._accelerator.device)
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.ndim == 4:  # `Module.to` would also take the five dimensions of a Conv3d, and fail
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self._head = [network.get_submodule(name) for name in head]
        self._data, self._preprocess, self._recipe = data, preprocess, recipe
        self._state_file, self._key = state_file, key
        processes = str(self._accelerator.num_processes)
        self._conditions = [*conditions, ("processes", processes, "launch {} processes")]
        self._workers, self._progress = workers, progress
        self._phases = [("head", recipe.head_epochs), ("all", recipe.epochs)]
        self._state = _State()
        self._batch = min(recipe.batch_size, len(data.train))
        self._share = -(-self._batch // self._accelerator.num_processes)
        self._steps_per_epoch = len(data.train) // self._batch
        self._loss = nn.CrossEntropyLoss(weight=self._class_weights(), label_smoothing=recipe.label_smoothing)
        self._mix = mixer(recipe, len(data.labels))
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
                module.momentum = max(module.momentum, 0.1)  # torchvision's 0.01 is for millions of pictures

    def resume(self) -> None:
        """Takes up the training that the state file holds.

        Raises:
            InputError: It is damaged, or belongs to another training; the message says what to do.
        """
        path = self._state_file
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            key, state, conditions = saved.pop("key"), saved.pop("state"), saved.pop("conditions", {})
        except Exception as error:  # a damaged pickle raises anything
            raise InputError(
                f"{path} is damaged ({type(error).__name__}): delete it and train from the start."
            ) from error
        if key != self._key:
            raise InputError(
                f"{path} belongs to another training (other pictures, weights or options): repeat the options of "
                "that one, or delete the file and train without --resume."
            )
        for name, value, remedy in self._conditions:
            if conditions.get(name, value) != value:
                raise InputError(
                    f"the training of {path} was begun with {name} {conditions[name]} and would go on with {value}, to "
                    f"other weights: {remedy.format(conditions[name])}, or delete the file and train without --resume."
                )
        best = state.pop("best")
        self._state = _State(
            **state,
            epochs=msgspec.convert(saved["epochs"], list[Epoch]),
            best=None if best is None else msgspec.convert(best, Epoch),
            best_weights=saved["best_weights"],
            tensors=saved["tensors"],
        )

    def run(self) -> tuple[StateDict, tuple[Epoch, ...], Epoch]:
        """Trains to the end.

        Returns:
            The averaged weights of the best epoch, on the CPU; the curves; the best epoch.

        Raises:
            InputError: The loss is no number any more, or memory runs out; the message names the option to change.
        """
        with self._memory_is_short_of():
            self._rehearse()
            for number, (phase, epochs) in enumerate(self._phases):
                if number >= self._state.phase and epochs:
                    with self._progress.stage(f"Training ({phase})", epochs) as advance:
                        self._learn(phase, epochs, advance)
                    self._state.phase, self._state.step, self._state.tensors = number + 1, 0, {}
        assert self._state.best is not None
        return self._state.best_weights, tuple(self._state.epochs), self._state.best

    def finish(self) -> None:
        """Removes the state file: its training has ended well."""
        if self._accelerator.is_main_process:
            self._state_file.unlink(missing_ok=True)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files: one of all that train together."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> str:
        """`cpu`, `cuda`, …, the number of processes and the arithmetic, in words."""
        accelerator = self._accelerator
        count = f"{accelerator.num_processes} x " if accelerator.num_processes > 1 else ""
        arithmetic = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
        return f"{count}{accelerator.device.type}, {arithmetic}"

    def validate(self, weights: StateDict) -> tuple[float, float, float]:
        """Loss, top-1 and balanced accuracy of certain weights on the validation pictures."""
        self._network.load_state_dict(weights)
        return self._validate(self._network.eval())

    def _rehearse(self) -> None:
        processes = self._accelerator.num_processes
        if self._batch // processes < 2:
            raise InputError(
                f"a step has {self._batch} pictures for {processes} processes, and batch normalisation needs two in "
                f"each: give a larger --batch-size (or more than the {len(self._data.train)} training pictures)."
            )
        rehearse(
            self._network,
            self._head,
            {phase: self._sides(phase, epochs) for phase, epochs in self._phases if epochs},
            self._preprocess,
            pictures=self._share,
            classes=len(self._data.labels),
            accelerator=self._accelerator,
        )

    def _learn(self, phase: str, epochs: int, advance_epochs: Advance) -> None:
        recipe, state, network = self._recipe, self._state, self._network
        begin_phase(network, self._head, phase)
        per_epoch, steps = self._steps_per_epoch, epochs * self._steps_per_epoch
        optimizer = torch.optim.AdamW(self._parameter_groups(), lr=recipe.learning_rate, fused=True)
        schedule = self._schedule(optimizer, steps)
        average = ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)
        own_forward = vars(network).get("forward")
        model, prepared = self._accelerator.prepare(network, optimizer)
        if state.tensors:
            self._restore(optimizer, average)
        sides = self._sides(phase, epochs)
        batches = self._batches(phase, steps, sides)
        began = time.monotonic() - state.seconds
        saved = time.monotonic()
        advance_epochs(state.step // per_epoch)
        while state.step < steps and not self._has_settled(phase):
            epoch = state.step // per_epoch
            set_mode(network, self._head, phase)
            with self._progress.stage(f"Epoch {epoch + 1} of {epochs}", per_epoch) as advance:
                advance(state.step % per_epoch)
                while state.step < (epoch + 1) * per_epoch:
                    schedule.step_update(state.step)
                    loss = self._step(phase, model, prepared, *next(batches))
                    state.step += 1
                    average.update(network, step=state.step)
                    self._add_loss(loss, optimizer.param_groups[-1]["lr"])
                    advance(1)
                    if time.monotonic() - saved > _SAVE_EVERY_S and state.step % per_epoch:
                        state.seconds = time.monotonic() - began
                        self._save(optimizer, average)
                        saved = time.monotonic()
            val_loss, val_top1, val_balanced = self._validate(average.module)
            state.seconds = time.monotonic() - began
            self._close_epoch(
                Epoch(
                    phase=phase,
                    epoch=epoch + 1,
                    side_px=sides[epoch],
                    learning_rate=optimizer.param_groups[-1]["lr"],
                    loss=state.loss_sum / per_epoch,
                    val_loss=val_loss,
                    val_top1=val_top1,
                    val_balanced=val_balanced,
                    seconds=round(state.seconds, 1),
                ),
                average,
            )
            self._save(optimizer, average)
            saved = time.monotonic()
            advance_epochs(1)
        # Not `unwrap_model`, which leaves a mark, so that the next phase would be in fp32, and takes off the network's
        # own decorators too.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(network).pop(name, None)
        if own_forward is not None:
            network.forward = own_forward

    def _sides(self, phase: str, epochs: int) -> list[int]:
        """Side of the crops for each epoch of the phase."""
        crop_px = self._preprocess.crop_px
        return [self._recipe.side_px(crop_px, epoch) if phase == "all" else crop_px for epoch in range(epochs)]

    def _refined_from(self, phase: str) -> int:
        """The first epoch of the phase whose pictures are cropped and flipped and nothing else; its end where none."""
        recipe = self._recipe
        return recipe.epochs - recipe.refine_epochs if phase == "all" else recipe.head_epochs

    def _schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> CosineLRScheduler:
        """Up to the learning rate in a line, and from there down to zero along a cosine."""
        recipe = self._recipe
        warmup = min(steps // 2, round(recipe.warmup_epochs * self._steps_per_epoch))
        return CosineLRScheduler(
            optimizer,
            t_initial=steps - warmup,
            warmup_t=warmup,
            warmup_lr_init=recipe.learning_rate / 100,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def _step(
        self, phase: str, model: nn.Module, optimizer: Any, pixels: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        device = self._accelerator.device
        # Dropout, stochastic depth and mixing: named by the step, as everything random.
        torch.manual_seed(
            seed_from(self._recipe.seed, phase, "step", self._state.step, self._accelerator.process_index)
        )
        pictures: Any = normalized_on_device(pixels.to(device, non_blocking=True), self._preprocess)
        targets: Any = labels.to(device, non_blocking=True)
        if self._mix is not None and self._state.step // self._steps_per_epoch < self._refined_from(phase):
            pictures, targets = self._mix(pictures, targets)
        with SmallMaps():
            logits = model(pictures)
        loss: torch.Tensor = self._loss(logits, targets)
        optimizer.zero_grad()
        self._accelerator.backward(loss)
        # Not the accelerator's clip_grad_norm_, which scales back for the optimizer of the phase before too.
        self._accelerator.unscale_gradients(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), self._recipe.clip_norm)
        optimizer.step()
        return loss.detach()

    def _add_loss(self, loss: torch.Tensor, learning_rate: float) -> None:
        value = float(loss)
        if value != value or value in {float("inf"), float("-inf")}:
            raise InputError(
                f"the loss became {value} at step {self._state.step} (learning rate {learning_rate:.2g}): the training "
                "diverged. Give a lower --lr, or a lower --clip-norm; look at the pictures with --preview."
            )
        self._state.loss_sum += value

    def _close_epoch(self, epoch: Epoch, average: ModelEmaV3) -> None:
        state = self._state
        state.epochs.append(epoch)
        state.loss_sum = 0.0
        if state.best is None or self._rank(epoch) > self._rank(state.best):
            state.best = epoch
            state.best_weights = {
                name: tensor.detach().cpu().clone() for name, tensor in average.module.state_dict().items()
            }
        if self.is_main_process:
            self._progress.note(
                f"{epoch.phase} {epoch.epoch}: loss {epoch.loss:.3f}, validation {100 * epoch.val_top1:.2f} % "
                f"(balanced {100 * epoch.val_balanced:.2f} %, loss {epoch.val_loss:.3f})"
            )

    def _rank(self, epoch: Epoch) -> tuple[float, float]:
        return (epoch.val_balanced if self._recipe.class_weights else epoch.val_top1), -epoch.val_loss

    def _has_settled(self, phase: str) -> bool:
        """Whether the last `patience` epochs of the phase were none of them the best; not before those that refine."""
        state, recipe = self._state, self._recipe
        first = self._refined_from(phase) if phase == "all" and recipe.refine_epochs else 0
        mine = [epoch for epoch in state.epochs if epoch.phase == phase][first:]
        at_boundary = state.step % self._steps_per_epoch == 0
        return at_boundary and len(mine) > recipe.patience and state.best not in mine[-recipe.patience :]

    def _validate(self, network: nn.Module) -> tuple[float, float, float]:
        accelerator, classes = self._accelerator, len(self._data.labels)
        network.eval()
        # Each process has the batch statistics of its own share, and the first one's are kept.
        if accelerator.num_processes > 1:
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)
        top1 = MulticlassAccuracy(classes, average="micro").to(accelerator.device)
        recalls = MulticlassAccuracy(classes, average="none").to(accelerator.device)
        loss = MeanMetric().to(accelerator.device)
        mine = range(accelerator.process_index, len(self._data.val), accelerator.num_processes)
        pictures, size = DevicePictures(self._data.val, self._preprocess), 2 * self._share
        # Threads, for Pillow leaves the interpreter to others: to start processes for every epoch would cost more.
        with ThreadPoolExecutor(max(1, self._workers)) as pool, torch.inference_mode():
            for start in range(0, len(mine), size):
                decoded = list(pool.map(pictures.__getitem__, mine[start : start + size]))
                pixels = torch.stack([picture for picture, _ in decoded]).to(accelerator.device)
                labels = torch.tensor([label for _, label in decoded]).to(accelerator.device)
                logits = network(normalized_on_device(pixels, self._preprocess)).float()
                loss.update(nn.functional.cross_entropy(logits, labels), weight=len(labels))
                top1.update(logits, labels)
                recalls.update(logits, labels)
        # Not torchmetrics' own mean, in which a class without pictures counts as soon as it is answered.
        present = sorted({image.label or 0 for image in self._data.val.images})
        return float(loss.compute()), float(top1.compute()), float(recalls.compute()[present].mean())

    def _batches(self, phase: str, steps: int, sides: Sequence[int]) -> Iterator[Any]:
        draws = Draws(
            count=len(self._data.train),
            steps=steps,
            steps_per_epoch=self._steps_per_epoch,
            batch_size=self._batch,
            side_px=sides,
            refined_from=self._refined_from(phase),
            seed=self._recipe.seed,
            phase=phase,
            start=self._state.step,
            rank=self._accelerator.process_index,
            world=self._accelerator.num_processes,
        )
        pictures: Any = AugmentedPictures(self._data.train, self._preprocess, self._recipe)
        loader = DataLoader(
            pictures,
            batch_sampler=draws,
            num_workers=self._workers,
            worker_init_fn=begin_worker,
            multiprocessing_context=workers_context(self._workers),
            pin_memory=self._accelerator.device.type == "cuda",
        )
        try:
            yield from loader
        except InputError as error:  # its message is put behind a traceback when it comes from a worker
            raise InputError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Groups with `lr_scale` by depth; biases and norms without decay."""
        recipe, network = self._recipe, self._network
        if recipe.layer_decay == 1:
            return list(param_groups_weight_decay(network, recipe.weight_decay))
        if hasattr(network, "group_matcher"):
            return list(param_groups_layer_decay(network, recipe.weight_decay, layer_decay=recipe.layer_decay))
        # timm tells the depth of layers of networks that are not its own, once it knows how names in the head begin.
        modules = {id(module): name for name, module in network.named_modules()}
        had = getattr(network, "pretrained_cfg", None)
        network.pretrained_cfg = {"classifier": tuple(f"{modules[id(layer)]}." for layer in self._head)}  # type: ignore[assignment]
        try:
            return list(param_groups_layer_decay(network, recipe.weight_decay, layer_decay=recipe.layer_decay))
        finally:
            if had is None:
                del network.pretrained_cfg
            else:
                network.pretrained_cfg = had

    def _class_weights(self) -> torch.Tensor | None:
        if not self._recipe.class_weights:
            return None
        labels = torch.tensor([image.label for image in self._data.train.images])
        counts = torch.bincount(labels, minlength=len(self._data.labels)).clamp(min=1)
        return (len(labels) / (len(counts) * counts)).to(self._accelerator.device)

    def _save(self, optimizer: torch.optim.Optimizer, average: ModelEmaV3) -> None:
        if not self.is_main_process:
            return
        state, scaler = self._state, self._accelerator.scaler
        document = {
            "key": self._key,
            "conditions": {name: value for name, value, _ in self._conditions},
            "state": {
                "phase": state.phase,
                "step": state.step,
                "loss_sum": state.loss_sum,
                "seconds": state.seconds,
                "best": None if state.best is None else msgspec.to_builtins(state.best),
            },
            "epochs": msgspec.to_builtins(state.epochs),
            "best_weights": state.best_weights,
            "tensors": {
                "network": self._network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.module.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            },
        }
        with atomic_file(self._state_file) as file:
            torch.save(document, file)

    def _restore(self, optimizer: torch.optim.Optimizer, average: ModelEmaV3) -> None:
        tensors = self._state.tensors
        self._network.load_state_dict(tensors["network"])
        optimizer.load_state_dict(tensors["optimizer"])
        average.module.load_state_dict(tensors["average"])
        if tensors["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(tensors["scaler"])
        self._state.tensors = {}

    @contextlib.contextmanager
    def _memory_is_short_of(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError, on a CPU a bare one
            text = str(error)
            if is_of_memory(error):
                raise InputError(
                    f"memory ran out with {self._batch} pictures of {self._preprocess.crop_px} px a step: "
                    f"give --batch-size {max(2, self._batch // 2)}, or smaller --resize and --crop."
                ) from error
            if _KILLED_WORKER.search(text):  # not an error in a worker, which names its cause itself
                go_on = ", and continue with --resume" if self._state_file.exists() else ""
                raise InputError(
                    f"a process that decodes pictures died ({text.splitlines()[0]}), mostly for want of memory: "
                    f"give fewer --workers (now {self._workers}){go_on}."
                ) from error
            raise
