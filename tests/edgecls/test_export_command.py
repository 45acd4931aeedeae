"""What `edgecls export` passes on, and what it refuses before anything heavy is loaded."""

import json
from types import SimpleNamespace

import pytest

from edgecls import cli
from edgecls.calibration.quantization import Quantization
from edgecls.export.recover import Certificate, Recovery
from edgecls.export.targets import Gpu
from edgecls.runtime import InputError


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What `open_classifier` and `export_bundle` were called with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "plan.json").touch()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    calls = {}

    def open_classifier(model, **options):
        calls["model"] = {"model": model, **options}
        return SimpleNamespace(name="net")

    def export_bundle(classifier, **options):
        calls["export"] = options
        passport = SimpleNamespace(engine_version="1.0", isa="x86-vnni", nodes=9, nodes_int8=8)
        manifest = SimpleNamespace(
            name="net-x", target=options["target"], precision=options["precision"], passport=passport, unbuilt=False
        )
        return SimpleNamespace(
            path=options["output"],
            manifest=manifest,
            size_bytes=2_000_000,
            parity_max_abs=1e-6,
            notes=("look here",),
            recovery=calls.get("recovery"),
        )

    monkeypatch.setattr("edgecls.models.open_classifier", open_classifier)
    monkeypatch.setattr("edgecls.export.job.export_bundle", export_bundle)
    monkeypatch.setattr("edgecls.runtime.ImageSet.from_folder", lambda folder: f"pictures of {folder}")
    return calls


def test_the_name_says_what_it_is(asked, capsys):
    assert cli.main(["export", "timm:net", "--target", "openvino"]) == 0
    assert str(asked["export"]["output"]) == "net-openvino-fp32.edgecls"
    assert asked["export"]["calibration"] is None
    printed = capsys.readouterr().out
    assert "2.00 MB" in printed
    assert "Next: edgecls classify net-openvino-fp32.edgecls" in printed


def test_everything_arrives(asked):
    arguments = "net.py:make --target onnxruntime --int8 --calibration pictures --calibration-size 64 --isa arm64"
    arguments += " --quantizer nncf --ranges mse --weights per-tensor --without equalization --without smoothquant"
    arguments += " --sensitivity --seed 3 --threads 1 --check -o a.edgecls --match order --resize 40 --crop 32"
    arguments += " --mean 0,0.5,1 --std 2 --resize-mode squash --colour bgr --exif apply --interpolation bicubic"
    assert cli.main(["export", *arguments.split(), "--quiet"]) == 0
    export, model = asked["export"], asked["model"]
    assert (export["precision"], export["calibration"], export["calibration_size"]) == (
        "int8",
        "pictures of pictures",
        64,
    )
    assert (export["isa"], export["sensitivity"], export["seed"], export["threads"]) == ("arm64", True, 3, 1)
    without = frozenset({"equalization", "smoothquant"})
    assert export["quantization"] == Quantization("nncf", "mse", "per-tensor", without)
    assert export["check"] is True
    assert (model["model"], model["match"], model["labels"]) == ("net.py:make", "order", None)
    override = model["override"]
    assert (override.resize_px, override.crop_px, override.mode) == (40, 32, "squash")
    assert (override.mean, override.std) == ((0.0, 0.5, 1.0), (2.0, 2.0, 2.0))
    assert (override.colour, override.exif, override.interpolation) == ("bgr", "apply", "bicubic")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--target openvino", "no MODEL"),
        ("net", "Missing option '--target'"),
        ("net --target openvino --int8", "--calibration DIR"),
        ("net --target openvino --int8 --fp16", "exclude each other"),
        ("net --target openvino --plan plan.json", "--plan is for --int8"),
        ("net --target openvino --int8 --plan plan.json --quantizer nncf", "leave out --plan"),
        ("net --target openvino --ranges mse", "--ranges is for --int8"),
        ("net --target openvino --max-drop 1pp --eval pictures", "--max-drop is for --int8, and this export is fp32"),
        ("net --target openvino --fp16 --calibration-size 64", "--calibration-size is for --int8"),
        ("net --target openvino --int8 --plan plan.json --without smoothquant", "plan.json is made"),
        ("net --target openvino --int8 --calibration pictures --max-drop 1pp", "--max-drop needs --eval DIR"),
        ("net --target openvino --int8 --calibration pictures --eval pictures", "--eval judges --max-drop"),
        ("net --target openvino --int8 --calibration absent", "absent"),
        ("net --target openvino --checkpoint absent.pth", "absent.pth"),
        ("net --target openvino --mean 1,2", "three numbers"),
        ("net --target openvino --mean 1,2,nan", "three numbers"),
        ("net --target openvino --crop 0", "--crop"),
        ("net --target openvino -o absent/net.edgecls", "does not exist"),
        ("net --target openvino -o pictures", "is a folder"),
        ("net --target openvino --classes classes.txt", "MODEL is net: leave them out"),
        ("net --target openvino --template {}", "What names the classes of a trained classifier is --labels FILE"),
        ("clip:ViT-B-32 --target openvino", "name them with --classes FILE"),
        ("clip:ViT-B-32 --target openvino --classes absent.txt", "absent.txt"),
        ("clip:ViT-B-32 --target openvino --classes classes.txt --labels classes.txt", "leave --labels out"),
        ("clip:ViT-B-32 --target openvino --classes classes.txt --template {}{}", "must hold one {}"),
    ],
)
def test_usage_errors_come_before_the_work(arguments, complaint, asked, capsys):
    assert cli.main(["export", *arguments.split()]) == 2
    assert complaint in capsys.readouterr().err
    assert asked == {}


@pytest.mark.parametrize(
    ("arguments", "gpu"),
    [
        ("tensorrt", Gpu(None, ())),
        ("tensorrt --device jetson-orin", Gpu("10.3", ())),
        ("tensorrt --device jetson-orin --tensorrt-version 8.6", Gpu("8.6", ())),
        ("tensorrt-rtx --compute-capabilities 8.6,12.0", Gpu(None, ("8.6", "12.0"))),
    ],
)
def test_a_board_or_a_gpu_arrives(arguments, gpu, asked):
    assert cli.main(["export", "net", "--target", *arguments.split()]) == 0
    assert asked["export"]["gpu"] == gpu


def test_a_zero_shot_model(asked, tmp_path):
    arguments = ["--template", "a photo of a {}", "--template", "art of a {}"]
    (tmp_path / "edgecls.toml").write_text('[export]\nmodel = "clip:ViT-B-32"\nclasses = "classes.txt"\n')
    assert cli.main(["export", "--target", "openvino", *arguments]) == 0
    assert asked["model"]["classes"].names == ("cat", "dog")
    assert asked["model"]["templates"] == ("a photo of a {}", "art of a {}")
    (tmp_path / "edgecls.toml").write_text('[export]\nclasses = "classes.txt"\ntemplate = ["the {}"]\n')
    assert cli.main(["export", "clip:ViT-B-32", "--target", "openvino"]) == 0
    assert asked["model"]["templates"] == ("the {}",)


def test_a_configured_project_needs_no_arguments(asked, tmp_path):
    (tmp_path / "edgecls.toml").write_text(
        '[export]\nmodel = "net.py:make"\ntarget = "openvino"\nint8 = true\ncalibration = "pictures"\n'
        "mean = [0.5, 0.5, 0.5]\nstd = '1,1,1'\n"
    )
    assert cli.main(["export"]) == 0
    assert asked["export"]["precision"] == "int8"
    assert asked["model"]["model"] == "net.py:make"
    assert asked["model"]["override"].mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("model", "resolved"),
    [
        ("net.onnx", "project/net.onnx"),
        ("net.ONNX", "project/net.ONNX"),
        ("net.py:make", "project/net.py:make"),
        ("runs/best.safetensors", "project/runs/best.safetensors"),
        ("clip:best.safetensors", "clip:project/best.safetensors"),
        ("clip:weights.pt", "clip:project/weights.pt"),
        ("clip:ViT-B-32/laion2b", "clip:ViT-B-32/laion2b"),
        ("package.module:make", "package.module:make"),
        ("timm:resnet18", "timm:resnet18"),
    ],
)
def test_a_model_file_is_relative_to_the_configuration(model, resolved, asked, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "weights.pt").touch()
    classes = '\nclasses = "../classes.txt"' if model.startswith("clip:") else ""
    (tmp_path / "project" / "edgecls.toml").write_text(f'[export]\nmodel = "{model}"\ntarget = "openvino"{classes}\n')
    assert cli.main(["--config", "project/edgecls.toml", "export"]) == 0
    assert asked["model"]["model"] == resolved


def test_a_configured_plan_is_for_int8_alone(asked, tmp_path):
    (tmp_path / "edgecls.toml").write_text('[export]\ntarget = "openvino"\nplan = "plan.json"\n')
    assert cli.main(["export", "net"]) == 0
    assert asked["export"]["plan"] is None
    assert cli.main(["export", "net", "--int8"]) == 0
    assert asked["export"]["plan"].name == "plan.json"


@pytest.mark.parametrize("flag", ["--fp32", "--fp16"])
def test_the_precision_of_the_command_line_wins(flag, asked, tmp_path):
    (tmp_path / "edgecls.toml").write_text('[export]\nint8 = true\ncalibration = "pictures"\n')
    assert cli.main(["export", "net", "--target", "openvino", flag]) == 0
    assert asked["export"]["precision"] == flag[2:]


def test_json_is_one_document(asked, capfd):
    assert cli.main(["export", "net", "--target", "openvino", "--int8", "--plan", "plan.json", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["path"] == "net-openvino-int8.edgecls"
    assert document["precision"] == "int8"
    assert document["notes"] == ["look here"]


def test_a_failed_export_says_why(asked, monkeypatch, capfd):
    def refuse(*args, **options):
        raise InputError("no such architecture")

    monkeypatch.setattr("edgecls.models.open_classifier", refuse)
    assert cli.main(["export", "net", "--target", "openvino", "--quiet"]) == 2
    printed = capfd.readouterr()
    assert printed.err == "error: no such architecture\n"
    assert printed.out == ""


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 3)])
def test_the_verdict_of_a_budget_is_the_exit_code(asked, monkeypatch, capsys, verdict, code):
    monkeypatch.setattr("edgecls.runtime.ImageSet.from_folder", lambda folder, labels=None: f"pictures of {folder}")
    monkeypatch.setattr("edgecls.models.open_classifier", lambda *_, **__: SimpleNamespace(name="net", labels=None))
    certificate = Certificate(verdict=verdict, n=100, b=2, c=1, upper_pp=3.4, alpha=0.05 / 3, images_needed=None)
    asked["recovery"] = Recovery(None, ("blocks.3",), certificate, (), ())
    arguments = "export net --target openvino --int8 --calibration pictures --max-drop 4pp --eval pictures"
    assert cli.main(arguments.split()) == code
    assert str(asked["export"]["budget"].max_drop) == "4pp"
    assert f"{verdict}: drop +1.00 pp on 100 pictures, below 3.40 pp" in (said := capsys.readouterr().out)
    assert "blocks.3 in float" in said
