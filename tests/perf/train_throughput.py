"""Pictures a second of `edgecls train` against a bare PyTorch loop with the same decoding and augmentation.

    python tests/perf/train_throughput.py FOLDER [--arch torchvision:mobilenet_v3_small] [--crop 64] [--rounds 4]

FOLDER holds class folders. The two take turns in one process each round; every figure is a ratio of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from edgecls.models import PreprocessOverride
from edgecls.models.architecture import find_architecture
from edgecls.models.augment import AugmentedPictures, Draw
from edgecls.models.normalize import normalized_on_device
from edgecls.models.recipe import Recipe
from edgecls.models.train import input_of, train
from edgecls.models.training_data import TrainingData


class _Bare(AugmentedPictures):
    """The same decoding and augmentation, drawn as a map-style data set usually is."""

    def __getitem__(self, index):
        return super().__getitem__(Draw(index, int(torch.randint(2**31, ())), self._preprocess.crop_px))


def bare_loop(arch, data, recipe, preprocess, workers):
    """What a practitioner writes: no average, no validation, no clipping, no state."""
    architecture = find_architecture(arch)
    network = architecture.build(preprocess.crop_px)
    architecture.fit_classes(network, len(data.labels))
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, fused=True)
    pictures = _Bare(data.train, preprocess, recipe)
    loader = DataLoader(pictures, recipe.batch_size, shuffle=True, drop_last=True, num_workers=workers)
    began, seen = time.perf_counter(), 0
    for pixels, labels in loader:
        logits = network(normalized_on_device(pixels, preprocess))
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        seen += len(labels)
    return seen / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="torchvision:mobilenet_v3_small")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = TrainingData.open(arguments.folder, limit=arguments.images, val_fraction=0.005)
    recipe = Recipe.from_scratch(epochs=1)
    preprocess = input_of(arguments.arch, PreprocessOverride(resize_px=arguments.crop, crop_px=arguments.crop))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            began = time.perf_counter()
            output = Path(folder) / f"{number}.safetensors"
            result = train(
                arguments.arch, data, preprocess=preprocess, output=output, recipe=recipe, from_scratch=True,
                workers=arguments.workers, threads=arguments.threads,
            )  # fmt: skip
            # The clock of the curves: the epoch with its validation, without reading, rehearsal and the file.
            ours = len(data.train) // recipe.batch_size * recipe.batch_size / result.record.seconds
            bare = bare_loop(arguments.arch, data, recipe, preprocess, arguments.workers)
            ratios.append(ours / bare)
            print(
                f"edgecls {ours:.0f} pictures/s (validation of {len(data.val)} included), bare loop {bare:.0f}, "
                f"ratio {ratios[-1]:.3f}; train() took {time.perf_counter() - began:.1f} s with the bare loop",
                flush=True,
            )
    print(f"ratio, median of {len(ratios)}: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
