"""JPEG bytes to the best five classes: a bundle, and what people would otherwise write, in turns on the same pictures.

    python tests/perf/against/pipelines.py [--bundles FOLDER] [--seconds 60] [--pictures 40]

EfficientNet-Lite0 with its ImageNet weights, one thread, pictures of 500×375. In every round each way classifies the
same three pictures, in an order of ways drawn anew, and their median counts: a device runs one way, and none of them
begins with the caches that another has left. Printed are its p50, the median over rounds of its time over that of the
first way, and how often its best class is the one of timm's own evaluation. The ways:

- edgecls: INT8 on ONNX Runtime and OpenVINO, and the former without compiled helpers;
- torchvision: its transforms and fp32 ONNX Runtime on the network as torch exports it;
- model-api: Intel's openvino-model-api on what NNCF quantizes with its defaults, on 128 pictures;
- timm: its evaluation transforms and the network, eager and by torch.compile;
- transformers: the image-classification pipeline around the same timm network.

Needs the extra `peers`. Bundles are made as by tests/perf/main_job.py, which may have left them in FOLDER.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import edgecls  # noqa: F401 - before tests/ is on the path, where a folder has its name

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
import lite
import main_job
import turns

from edgecls.bench.device import device
from edgecls.runtime import Preprocess, load
from edgecls.runtime.fast import versions

Classify = Callable[[bytes], list[int]]
"""JPEG bytes to the indices of the best five classes."""

TOP = 5


def edgecls_ways(folder: Path, calibration: Path) -> dict[str, Classify]:
    """Two engines, and one without the compiled helpers."""
    sessions = {}
    for target in ("onnxruntime", "openvino"):
        path = folder / f"lite0-{target}-int8.edgecls"
        if not path.exists():
            main_job.export(folder, target, "int8", calibration)
        sessions[target] = load(path, threads=1)

    def way(target: str, fast: str) -> Classify:
        def classify(data: bytes) -> list[int]:
            with environment("EDGECLS_FAST", fast):
                return [prediction.index for prediction in sessions[target].classify(data, top=TOP)]

        return classify

    return {
        "edgecls int8 openvino": way("openvino", "1"),
        "edgecls int8 onnxruntime": way("onnxruntime", "1"),
        "edgecls int8 openvino, pure": way("openvino", "0"),
        "edgecls int8 onnxruntime, pure": way("onnxruntime", "0"),
    }


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable for a moment."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def torchvision_way() -> Classify:
    """Torchvision's transforms and fp32 ONNX Runtime."""
    import onnxruntime
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(lite.exported(), options)

    def classify(data: bytes) -> list[int]:
        tensor = transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return best_of(session.run(None, {"x": tensor[None].numpy()})[0][0])

    return classify


def model_api_way(calibration: Path, scratch: Path) -> Classify:
    """Intel's wrapper around OpenVINO, with the preprocessing that it has; it has no centre crop of a larger resize."""
    import cv2
    import nncf
    import openvino
    from model_api.adapters import OpenvinoAdapter
    from model_api.models import ClassificationModel

    core = openvino.Core()
    pictures = [path for path in sorted(calibration.rglob("*")) if path.is_file()]
    crops = Preprocess(
        resize_px=256, crop_px=224, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )  # fmt: skip
    tensors = [((crops.pixels(path).astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None] for path in pictures]
    model = str(scratch / "nncf.xml")
    openvino.save_model(nncf.quantize(core.read_model(lite.exported()), nncf.Dataset(tensors)), model)
    cv2.setNumThreads(1)
    wrapper = ClassificationModel(
        OpenvinoAdapter(core, model, device="CPU", plugin_config={"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}),
        {
            "resize_type": "crop",
            "mean_values": [127.5] * 3,
            "scale_values": [127.5] * 3,
            "reverse_input_channels": True,
            "topk": TOP,
        },
        preload=True,
    )

    def classify(data: bytes) -> list[int]:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return [int(label.id) for label in wrapper(picture).top_labels]

    return classify


def timm_way(network: Any) -> Classify:
    """Timm's evaluation, as its documentation shows it."""
    import timm.data
    import torch

    transform = timm.data.create_transform(input_size=224, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)

    @torch.inference_mode()
    def classify(data: bytes) -> list[int]:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return network(transform(picture)[None]).topk(TOP).indices[0].tolist()

    return classify


def transformers_way(network: Any) -> Classify:
    """Hugging Face's pipeline for a timm network."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperImageProcessor, pipeline

    config = TimmWrapperConfig(
        architecture="tf_efficientnet_lite0",
        do_pooling=True,
        num_labels=1000,
        pretrained_cfg=network.pretrained_cfg | {"num_classes": 1000},
    )
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(network.state_dict())
    processor = TimmWrapperImageProcessor(config.pretrained_cfg)
    classifier = pipeline("image-classification", model=model.eval(), image_processor=processor, device="cpu")
    indices = {label: index for index, label in config.id2label.items()}

    def classify(data: bytes) -> list[int]:
        answers = classifier(Image.open(io.BytesIO(data)).convert("RGB"), top_k=TOP)
        return [indices[answer["label"]] for answer in answers]

    return classify


def best_of(logits: np.ndarray) -> list[int]:
    """Indices of the best five, best first."""
    return [int(index) for index in np.argsort(-logits)[:TOP]]


def all_ways(folder: Path, calibration: Path, scratch: Path) -> dict[str, Classify]:
    """Every way; the first is what the others are divided by."""
    import torch

    from edgecls.models import torchvision_operators  # noqa: F401 (must come before torchvision)

    torch.set_num_threads(1)
    network = lite.opened().source.eval()
    return {
        **edgecls_ways(folder, calibration),
        "torchvision + fp32 onnxruntime": torchvision_way(),
        "model-api + nncf int8 openvino": model_api_way(calibration, scratch),
        "timm eager": timm_way(network),
        "timm torch.compile": timm_way(torch.compile(network)),
        "transformers pipeline": transformers_way(network),
    }


def one_after_another(classify: Classify, pictures: list[bytes]) -> Callable[[], object]:
    """Classifies the next picture with every call."""
    endless = itertools.cycle(pictures)
    return lambda: classify(next(endless))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, help="where bundles of an earlier run are, or shall be kept")
    parser.add_argument("--seconds", type=float, default=60, help="of timing")
    parser.add_argument("--pictures", type=int, default=40)
    given = parser.parse_args()
    if reason := lite.missing():
        sys.exit(f"cannot measure: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.bundles or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        calibration, evaluation = lite.split(Path(scratch))
        files = [path for path in sorted(evaluation.rglob("*")) if path.is_file()]
        pictures = [path.read_bytes() for path in files if main_job.size_of(str(path)) == (500, 375)][: given.pictures]
        machine = device()
        print(f"{machine.cpu}, {machine.isa}, one thread, {len(pictures)} pictures of 500×375, {versions()}")
        ways = all_ways(folder, calibration, Path(scratch))
        truth = [ways["timm eager"](picture)[0] for picture in pictures]
        answers = {name: [way(picture)[0] for picture in pictures] for name, way in ways.items()}
        calls = {name: one_after_another(way, pictures) for name, way in ways.items()}
        with turns.one_cpu():
            times = turns.in_turns(calls, given.seconds, calls=3)
    first = next(iter(ways))
    print(f"{'':32} {'p50 ms':>8} {'ratio':>6} {'best class of timm':>19}")
    for name, values in times.items():
        same = sum(answer == true for answer, true in zip(answers[name], truth, strict=True))
        ratio = np.median(np.divide(values, times[first]))
        print(f"{name:32} {np.median(values):8.2f} {ratio:6.2f} {same:>12} of {len(truth)}")


if __name__ == "__main__":
    main()
