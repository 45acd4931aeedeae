from __future__ import annotations

import json
from pathlib import Path

import cifar10
import pytest
from PIL import Image
from training_pictures import write_network, write_pictures

from edgecls import cli
from edgecls.models.training_data import TrainingData
from edgecls.runtime import ImageSet


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 8)


INPUT = ["--resize", "36", "--crop", "32", "--mean", "0.5", "--std", "0.5"]
QUICK = ["--from-scratch", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--threads", "1"]


def run(*arguments: object) -> int:
    return cli.main(["train", *map(str, arguments)])


def test_train_export_and_classify_need_no_word_about_the_network(pictures, tmp_path, capfd) -> None:
    weights, bundle = tmp_path / "net.safetensors", tmp_path / "net.edgecls"
    size = ["--resize", "36", "--crop", "32"]
    assert run("--data", pictures, "--arch", "timm:lcnet_035", *size, *QUICK, "-o", weights, "--json", "--quiet") == 0
    document = json.loads(capfd.readouterr().out)
    assert document["record"]["recipe"]["epochs"] == 1
    assert cli.main(["export", str(weights), "--target", "onnxruntime", "-o", str(bundle), "--quiet"]) == 0
    capfd.readouterr()
    image = next((pictures / "red").iterdir())
    assert cli.main(["classify", str(bundle), str(image), "--json", "--quiet"]) == 0
    (answer,) = json.loads(capfd.readouterr().out)["results"]
    assert {prediction["label"] for prediction in answer["predictions"]} == {"blue", "green", "red"}


def test_the_result_says_what_comes_next(pictures, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--data", pictures, "--arch", write_network(tmp_path), *INPUT, *QUICK) == 0
    shown = capfd.readouterr()
    assert "model.train.json" in shown.out
    assert "--checkpoint model.safetensors --target" in shown.out  # the network is the user's own code
    assert "Epoch 1 of 1" in shown.err


def test_a_preview_trains_nothing(pictures, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.png"
    assert run("--data", pictures, "--arch", write_network(tmp_path), *INPUT, "--preview", page) == 0
    with Image.open(page) as sheet:
        assert sheet.width == 8 * 36 + 4
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_preview_decodes_what_it_draws_and_is_drawn_elsewhere(pictures, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(ImageSet, "unreadable", lambda _: pytest.fail("every picture is decoded"))
    common = ["--data", pictures, "--arch", write_network(tmp_path), *INPUT, "--json"]
    assert run(*common, "--preview", tmp_path / "page.png") == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out) == {"path": str(tmp_path / "page.png")}
    assert "Reading the pictures" in shown.err
    monkeypatch.setattr(TrainingData, "open", lambda *_, **__: pytest.fail("too late"))
    assert run(*common, "--preview", pictures / "red" / "page.png") == 2
    assert "give --preview another folder" in capfd.readouterr().err
    assert run(*common, "--preview", tmp_path / "absent" / "page.png") == 2
    assert "absent" in capfd.readouterr().err


def test_freeze_is_the_head_alone(pictures, tmp_path, capfd) -> None:
    network = write_network(tmp_path)
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    common = ["--data", pictures, "--arch", network, *INPUT, "--batch-size", "8", "--workers", "0", "--threads", "1"]
    assert run(*common, "--from-scratch", "--epochs", "1", "-o", base) == 0
    assert run(*common, "--freeze", "--head-epochs", "1", "--checkpoint", base, "-o", tuned) == 0
    phases = [epoch["phase"] for epoch in json.loads((tmp_path / "tuned.train.json").read_text())["epochs"]]
    assert phases == ["head"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnet18", "--freeze", "--epochs", "3"], "--head-epochs"),
        (["--arch", "resnet18", "--crop-scale", "2"], "crop_scale is 2.0"),
        (["--arch", "resnet8"], "resnet18"),
        (["--arch", "hog-svm", "--epochs", "3"], "--kernel"),
        (["--arch", "resnet18", "--from-scratch", "--checkpoint", str(cifar10.TRAINED)], "leave out --checkpoint"),
        (["--arch", "resnet18", "--resume"], "nothing to resume"),
        (["--arch", "resnet18", "--kernel", "linear"], "--kernel linear is for --arch hog-svm, and this is resnet18"),
        (["--arch", "hog-svm", "--resize", "64"], "leave out --resize"),
        (["--arch", "hog-svm", "--crop", "64", "--colour", "bgr"], "leave out --crop, --colour"),
        (["--arch", "hog-svm", "--exif", "apply", "--match", "order"], "leave out --match, --exif"),
        (["--arch", "hog-svm"], "call the output a.onnx"),
        (["--arch", "hog-svm", "--workers", "0", "--threads", "1"], "leave out --workers, --threads"),
        (["--arch", "resnet18", "--checkpoint", str(cifar10.TRAINED)], "does not fit resnet18"),
        (["--arch", "timm:test_vit4"], "no trained weights"),
    ],
)
def test_senseless_options_are_refused_before_anything_is_read(
    arguments, message, pictures, tmp_path, capfd, monkeypatch
) -> None:
    monkeypatch.setattr(TrainingData, "open", lambda *_, **__: pytest.fail("too late"))
    output = tmp_path / "a.safetensors"
    extra = ["--from-scratch"] if "--resume" in arguments else []
    assert run("--data", pictures, *arguments, *extra, "-o", output) == 2
    assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flags_win_over_what_a_project_trains_otherwise(pictures, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgecls.toml").write_text("[train]\nepochs = 30\nkernel = 'linear'\nresize = 36\ncrop = 32\n")
    assert run("--data", pictures, "--arch", "hog-svm", "--quiet") == 0
    assert (tmp_path / "model.onnx").exists()
    capfd.readouterr()
    frozen = ["--arch", write_network(tmp_path), "--from-scratch", "--mean", "0.5", "--std", "0.5", "--workers", "0"]
    assert run("--data", pictures, *frozen, "--freeze", "--head-epochs", "1", "--batch-size", "8", "--json") == 0
    recipe = json.loads(capfd.readouterr().out)["record"]["recipe"]
    assert (recipe["epochs"], recipe["head_epochs"]) == (0, 1)


@pytest.mark.parametrize("name", ["a.pth", "a"])
def test_weights_that_could_not_be_exported_are_refused(name, pictures, tmp_path, capfd) -> None:
    assert run("--data", pictures, "--arch", "resnet18", *QUICK, "-o", tmp_path / name) == 2
    assert "call it a.safetensors" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_hog_svm_learns_from_every_picture_and_tells_what_is_odd(tmp_path, capfd) -> None:
    root = write_pictures(tmp_path / "pictures", 12)
    for path in sorted((root / "red").iterdir())[3:]:
        path.unlink()
    assert run("--data", root, "--arch", "hog-svm", "-o", tmp_path / "a.onnx", "--json") == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["pictures"] == 27
    assert "classes are unequal" in shown.err


def test_hog_svm_decodes_once_and_tells_what_cannot_be(tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(ImageSet, "unreadable", lambda _: pytest.fail("decoded twice"))
    root = write_pictures(tmp_path / "pictures", 4)
    broken = next((root / "red").iterdir())
    broken.write_bytes(broken.read_bytes()[:-200])
    assert run("--data", root, "--arch", "hog-svm", "-o", tmp_path / "a.onnx") == 2
    assert f"1 of 12 pictures of {root} cannot be read" in capfd.readouterr().err


def test_hog_svm_makes_a_file_that_exports(pictures, tmp_path, capfd) -> None:
    weights, bundle = tmp_path / "colours.onnx", tmp_path / "colours.edgecls"
    assert run("--data", pictures, "--arch", "hog-svm", "--kernel", "linear", "-o", weights, "--quiet", "--json") == 0
    assert json.loads(capfd.readouterr().out)["kernel"] == "linear"
    assert cli.main(["export", str(weights), "--target", "onnxruntime", "-o", str(bundle), "--quiet"]) == 0
    assert bundle.exists()
