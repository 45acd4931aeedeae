"""ONNX files as classifiers: what is accepted, and what each refusal says."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgecls.models import PreprocessOverride, open_classifier
from edgecls.models.onnx_file import digest_of
from edgecls.runtime import InputError, Labels

FLAGS = PreprocessOverride(resize_px=40, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


BODY = "pooled = GlobalAveragePool(image)\nflat = Flatten(pooled)\nlogits = MatMul(flat, weight)"


def graph(given="float[batch, 3, 32, 32] image", made="float[batch, 7] logits", body=BODY):
    """A classifier of 7 classes as ONNX text."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> net ({given}) => ({made}) <float[3, 7] weight> {{\n{body}\n}}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 7), np.float32), "weight"))
    return model


def write(folder, model, name="net.onnx"):
    onnx.save(model, folder / name)
    return str(folder / name)


@pytest.mark.parametrize("shape", ["batch, 3, 32, 32", "1, 3, 32, 32", "4, 3, 32, 32", "batch, 3, h, w", "a, b, c, d"])
def test_static_and_dynamic_shapes(tmp_path, shape):
    batch = shape.partition(",")[0]
    path = write(tmp_path, graph(f"float[{shape}] image", f"float[{batch}, classes] logits"))
    opened = open_classifier(path, override=FLAGS)
    assert str(opened.source) == opened.model == path
    assert len(opened.labels) == 7
    assert opened.name == "net"
    assert len(opened.checkpoint_sha256) == 64
    assert (opened.preprocess_source["crop_px"], opened.preprocess_source["mode"]) == ("--crop", "default")
    assert opened.notes == ()


def test_labels_must_be_as_many(tmp_path):
    path = write(tmp_path, graph())
    assert open_classifier(path, override=FLAGS, labels=Labels(names=tuple("abcdefg"))).labels.names[6] == "g"
    with pytest.raises(InputError, match=r"2 names.*7 classes"):
        open_classifier(path, override=FLAGS, labels=Labels(names=("a", "b")))


def test_probabilities_are_noted(tmp_path):
    body = "pooled = GlobalAveragePool(image)\nflat = Flatten(pooled)\nx = MatMul(flat, weight)\nlogits = Softmax(x)"
    opened = open_classifier(write(tmp_path, graph(body=body)), override=FLAGS)
    assert "Softmax" in opened.notes[0]


@pytest.mark.parametrize("flag", ["resize_px", "crop_px", "mean", "std"])
def test_preprocessing_must_be_given(tmp_path, flag):
    given = {name: getattr(FLAGS, name) for name in ("resize_px", "crop_px", "mean", "std") if name != flag}
    with pytest.raises(InputError, match=f"give --{flag.removesuffix('_px')} as it was trained"):
        open_classifier(write(tmp_path, graph()), override=PreprocessOverride(**given))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph("uint8[batch, 3, 32, 32] pixels", body=f"image = Cast<to = 1>(pixels)\n{BODY}"),
         r"uint8 \[\?, 3, 32, 32\]; it must be float32"),
        (graph("float[batch, 32, 32, 3] nhwc", body=f"image = Transpose<perm = [0, 3, 1, 2]>(nhwc)\n{BODY}"),
         r"seems to be \[batch, height, width, 3\]"),
        (graph("float[batch, 1, 32, 32] image"), "axis 1 must be 3 channels"),
        (graph("float[batch, 3072] image", body="logits = MatMul(image, weight)"), "must have 4 axes"),
        (graph("float[batch, 3, 64, 64] image"), "--crop is 32: they must agree"),
        (graph("float[batch, 3, 32, 32] image, float[1] extra"), r"has 2 inputs \(image, extra\)"),
        (graph(made="float[batch, 7] logits, float[batch, 3] flat"), r"has 2 outputs \(logits, flat\)"),
        (graph(made="float[batch, 3, 1, 1] pooled"), r"must be float32 \[batch, classes\]"),
        (graph(made="float[batch, 1] logits", body=f"{BODY.replace('logits', 'x')}\nlogits = ReduceMax<axes = [1]>(x)"),
         r"has one output.*they are 0 and x"),
        (graph(body="logits = MatMul(image, weight)"), "does not run on a 32x32 px picture"),
    ],
    ids=["uint8", "nhwc", "grey", "flat", "size", "inputs", "outputs", "features", "sigmoid", "fails"],
)  # fmt: skip
def test_what_is_no_classifier_is_refused(tmp_path, model, message):
    with pytest.raises(InputError, match=message):
        open_classifier(write(tmp_path, model), override=FLAGS)


@pytest.mark.parametrize("content", [b"", b"not a graph at all", b"<!DOCTYPE html>", b"\xff" * 64])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no ONNX file"):
        open_classifier(str(path), override=FLAGS)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        open_classifier(str(tmp_path / "net.onnx"), override=FLAGS)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        open_classifier(str(tmp_path / "folder.onnx"), override=FLAGS)


def test_a_checkpoint_beside_an_onnx_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds its own weights"):
        open_classifier("net.onnx", checkpoint=tmp_path / "net.pth", override=FLAGS)


def external(location):
    model = graph()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return model


def test_weights_beside_the_file(tmp_path):
    (tmp_path / "net.data").write_bytes(np.ones((3, 7), np.float32).tobytes())
    assert len(open_classifier(write(tmp_path, external("net.data")), override=FLAGS).labels) == 7


@pytest.mark.parametrize("location", ["../net.data", "/etc/passwd", "link.data", "sub/../../net.data"])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "net.data").write_bytes(b"\0" * 84)
    (folder / "link.data").symlink_to(tmp_path / "net.data")
    with pytest.raises(InputError, match="outside its own folder"):
        open_classifier(write(folder, external(location)), override=FLAGS)


def test_weights_that_are_missing(tmp_path):
    with pytest.raises(InputError, match=r"keeps weights in net\.data, which is not beside it"):
        open_classifier(write(tmp_path, external("net.data")), override=FLAGS)


def test_weights_beside_the_file_are_part_of_its_digest(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> net (float[n, 3, 8, 8] x) => (float[n, 3, 8, 8] y) { y = Mul(x, w) }'
    )
    digests = []
    for value in (1.0, 1.0, 2.0):
        model.graph.ClearField("initializer")
        model.graph.initializer.append(numpy_helper.from_array(np.full((8, 8), value, np.float32), "w"))
        path = tmp_path / "net.onnx"
        onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
        digests.append(digest_of(path))
        (tmp_path / "net.data").unlink()
    assert digests[0] == digests[1] != digests[2]
