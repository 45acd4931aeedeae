"""A classifier is judged by its own answers, on the device's pixels."""

import dataclasses
import json
import shutil

import numpy as np
import onnx.parser
import pytest
import torch
from networks import SmallNet, classifier, settle
from PIL import Image
from torch import nn

from edgecls.bench.metrics import has_scikit_learn
from edgecls.models.evaluate import evaluate, labelled_images, write_evaluation
from edgecls.models.normalize import normalized
from edgecls.runtime import InputError, Labels, Preprocess

BRIGHTEST = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[{batch}, 3, 32, 32] image) => (float[{batch}, 3] logits)
<int64[2] axes = {{2, 3}}>
{{
    logits = ReduceMean <keepdims = 0> (image, axes)
}}
"""


class Brightest(nn.Module):
    """Answers the channel with the largest mean."""

    def forward(self, x):
        return x.mean((2, 3))


class Broken(nn.Module):
    """Has no number for red pictures."""

    def forward(self, x):
        means = x.mean((2, 3))
        return torch.where(means.argmax(1, keepdim=True) == 0, torch.nan, means)


class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        self.batches, self.threads = [], set()

    def forward(self, x):
        self.batches.append(len(x))
        self.threads.add(torch.get_num_threads())
        return torch.zeros(len(x), 7)


@pytest.fixture
def colours(tmp_path):
    """12 red, 3 green and 3 blue pictures; one of the green ones is red."""
    rng = np.random.default_rng(0)
    for channel, (name, count) in enumerate({"red": 12, "green": 3, "blue": 3}.items()):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 90, (40, 36, 3), dtype=np.uint8)
            pixels[..., 0 if (name, number) == ("green", 0) else channel] += 120
            Image.fromarray(pixels).save(tmp_path / "colours" / name / f"{number}.png")
    return tmp_path / "colours"


def of_colours(source, **preprocess):
    opened = classifier(nn.Identity(), mean=(0.5,) * 3, std=(0.25,) * 3, **preprocess)
    return dataclasses.replace(opened, source=source, labels=Labels(("red", "green", "blue")))


def test_the_answers_are_the_networks_own_on_the_pixels_of_the_device(pictures):
    opened = classifier(settle(SmallNet()))
    images = labelled_images(pictures, opened.labels)
    evaluation, answers = evaluate(opened, images, batch_size=5, threads=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (opened.preprocess.mean, opened.preprocess.std))
    for image, top in zip(images.images, answers.top[0], strict=True):
        pixels = torch.from_numpy(opened.preprocess.pixels(pictures / image.path))
        logits = opened.source(((pixels.permute(2, 0, 1) / 255 - mean) / std)[None])[0]
        assert top.tolist() == logits.topk(5).indices.tolist()
    assert answers.images == images.images
    assert (evaluation.valid, evaluation.n, evaluation.metrics.n, evaluation.classes) == (True, 24, 24, 7)
    assert evaluation.metrics.auc_classes == 3


@pytest.mark.parametrize("batch", ["n", "1", "4"])
def test_an_onnx_file_is_judged_as_its_module_whatever_its_batch(batch, colours, tmp_path):
    onnx.save(onnx.parser.parse_model(BRIGHTEST.format(batch=batch)), tmp_path / "net.onnx")
    from_onnx, from_torch = of_colours(tmp_path / "net.onnx"), of_colours(Brightest())
    images = labelled_images(colours, from_onnx.labels)
    one, one_answers = evaluate(from_onnx, images, threads=1)
    two, two_answers = evaluate(from_torch, images, threads=1)
    assert one == two
    assert np.allclose(one_answers.scores, two_answers.scores, atol=1e-6)
    assert one.metrics.top1 == pytest.approx(17 / 18)
    assert one.metrics.confusion == ((12, 0, 0), (1, 2, 0), (0, 0, 3))
    assert one.metrics.balanced_accuracy == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert "flatters" in one.metrics.warnings[0]


def test_batches_are_full_but_for_the_last_and_threads_are_given_back(pictures):
    network, before = Recording(), torch.get_num_threads()
    opened = classifier(network)
    evaluate(opened, labelled_images(pictures, opened.labels, limit=20), batch_size=8, threads=3)
    assert (network.batches, network.threads) == ([8, 8, 4], {3})
    assert torch.get_num_threads() == before


def test_broken_pictures_and_answers_are_listed(colours, tmp_path):
    (colours / "red" / "3.png").write_bytes((colours / "red" / "3.png").read_bytes()[:300])
    opened = of_colours(Broken())
    evaluation, answers = evaluate(opened, labelled_images(colours, opened.labels), threads=1)
    assert not evaluation.valid
    assert (evaluation.n, evaluation.metrics.n) == (18, 17)
    assert evaluation.reasons[0].startswith("cannot read red/3.png: ")
    assert evaluation.reasons[1] == "12 pictures gave logits that are not finite numbers"
    assert evaluation.metrics.macro_auc is None
    write_evaluation(evaluation, answers, tmp_path / "e.json")
    document = json.loads((tmp_path / "e.json").read_text())
    assert document["schema"] == "edgecls.evaluation/1"
    assert document["metrics"]["confusion"] == [[0, 0, 0], [0, 2, 0], [0, 0, 3]]
    with np.load(tmp_path / "e.predictions.npz") as saved:
        assert (saved["run0_top"][:, 0] == -1).sum() == 12
        assert "run0_confusion" not in saved


def test_many_classes_have_their_matrix_beside_the_evaluation(pictures, tmp_path):
    opened = classifier(settle(SmallNet(150)), classes=150)
    evaluation, answers = evaluate(opened, labelled_images(pictures, opened.labels), threads=1)
    assert evaluation.metrics.confusion is None
    write_evaluation(evaluation, answers, tmp_path / "e.json")
    with np.load(tmp_path / "e.predictions.npz") as saved:
        assert saved["run0_confusion"].shape == (150, 150)
        assert np.trace(saved["run0_confusion"]) == sum(row.correct for row in evaluation.metrics.per_class)


def test_pictures_without_labels_or_content_are_refused(colours, tmp_path):
    opened = of_colours(Brightest())
    with pytest.raises(InputError, match=r"0\.png .* has no label.*sub-folders that are named after their classes"):
        labelled_images(colours / "red", opened.labels)
    shutil.copytree(colours / "blue", tmp_path / "empty" / "blue")
    for path in (tmp_path / "empty" / "blue").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 3 pictures"):
        evaluate(opened, labelled_images(tmp_path / "empty", opened.labels), threads=1)


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_normalisation_is_rounded_once(colour):
    preprocess = Preprocess(
        resize_px=4, crop_px=4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), colour=colour
    )
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels[..., 1] ^= 0xFF
    ordered = pixels[..., ::-1] if colour == "bgr" else pixels
    expected = ((ordered / 255.0 - preprocess.mean) / preprocess.std).transpose(0, 3, 1, 2).astype(np.float32)
    assert normalized(pixels, preprocess).dtype == np.float32
    assert np.array_equal(normalized(pixels, preprocess), expected)
    assert has_scikit_learn()  # what the other tests of this file rest on
