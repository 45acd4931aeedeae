"""What `edgecls evaluate` prints and writes."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from edgecls import cli

NET = """
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.pad(x.mean((2, 3)), (0, 2), value=-9.0)

def make():
    return Net()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A network that answers the brightest channel, its labels, and pictures: 9 red, 3 green (2 look red), 1 blue."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\ngold\ngrey\n")
    for name, channels in {"red": [0] * 9, "green": [1, 0, 0], "blue": [2]}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, channel in enumerate(channels):
            pixels = np.full((20, 20, 3), number, np.uint8)
            pixels[..., channel] = 200
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "edgecls.toml").write_text(
        '[evaluate]\nmodel = "net.py:make"\nlabels = "labels.txt"\nresize = 16\ncrop = 16\nmean = [0.5, 0.5, 0.5]\n'
        'std = "1"\nthreads = 1\n'
    )
    return tmp_path


def test_the_figures_the_worst_classes_and_the_doubt(project, capsys):
    assert cli.main(["evaluate", "--data", "data", "-o", "e.json", "--confusion", "c.png"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].split("  ")[0] == "pictures"
    metrics = json.loads((project / "e.json").read_text())["metrics"]
    assert metrics["top1"] == pytest.approx(11 / 13)
    auc = f"{metrics['macro_auc']:.3f}"
    assert lines[2].split() == ["13", "84.62", "%", "100.00", "%", "100.00", "%", "77.78", "%", "0.800", auc]
    worst = next(line for line in lines if line.startswith("green"))
    assert worst.split() == ["green", "3", "1", "1.000", "0.333", "0.500", "red", "(2)"]
    assert lines.index(worst) < min(lines.index(line) for line in lines if line.startswith(("red", "blue")))
    assert "warning: top-1 of 84.62 % flatters: classes have 1 to 9 pictures" in printed
    assert lines[-1] == "Next: edgecls export net.py:make ... --target onnxruntime --int8 --calibration DIR"
    assert (project / "e.predictions.npz").is_file()
    with Image.open(project / "c.png") as picture:
        assert picture.format == "PNG"


def test_thousands_of_classes_need_no_matrix(project, capsys, monkeypatch):
    monkeypatch.setattr("edgecls.bench.metrics.confusion_matrix", lambda *_: pytest.fail("nobody asked for it"))
    (project / "net.py").write_text(NET.replace("(0, 2)", "(0, 98)"))
    (project / "labels.txt").write_text("red\ngreen\nblue\n" + "".join(f"more {n}\n" for n in range(98)))
    assert cli.main(["evaluate", "--data", "data"]) == 0
    assert "red (2)" in capsys.readouterr().out


def test_json_is_the_evaluation(project, capfd):
    assert cli.main(["evaluate", "--data", "data", "--json", "--limit", "5", "-o", "e.json"]) == 0
    printed = capfd.readouterr().out
    document = json.loads(printed)
    assert document == json.loads((project / "e.json").read_text())
    assert document["schema"] == "edgecls.evaluation/1"
    assert (document["model"], document["metrics"]["n"]) == ("net.py:make", 5)


def test_a_broken_picture_makes_it_invalid(project, capsys):
    (project / "data" / "red" / "3.png").write_bytes(b"nothing")
    assert cli.main(["evaluate", "--data", "data", "--quiet"]) == 4
    printed = capsys.readouterr().out
    assert "NOT VALID:\n  cannot read red/3.png: " in printed
    assert "Next:" not in printed


def test_a_flat_folder_is_refused(project, capsys):
    assert cli.main(["evaluate", "--data", "data/red"]) == 2
    assert "put the pictures into sub-folders" in capsys.readouterr().err


def test_a_missing_extra_is_told_before_the_work(project, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("edgecls.models.open_classifier", lambda *args, **options: pytest.fail("too late"))
    assert cli.main(["evaluate", "--data", "data", "--confusion", "c.png"]) == 5
    assert "pip install 'edgecls[metrics]'" in capsys.readouterr().err


def test_without_scikit_learn_it_counts(project, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["evaluate", "--data", "data"]) == 0
    printed = capsys.readouterr().out
    assert "84.62 %" in printed
    assert "note: precision, recall, F1, balanced accuracy and AUC need scikit-learn" in printed
    assert "pip install 'edgecls[metrics]'" in printed


def test_the_next_command_of_a_model_that_needs_options_says_so(project, capsys):
    (project / "edgecls.toml").write_text("")
    (project / "net.py").write_text(NET.replace("(0, 2)", "(0, 0)"))
    for index, name in enumerate(("red", "green", "blue")):
        (project / "data" / name).rename(project / "data" / str(index))
    size = ["--resize", "16", "--crop", "16", "--mean", "0.5", "--std", "1"]
    assert cli.main(["evaluate", "net.py:make", "--data", "data", *size, "--threads", "1"]) == 0
    assert "Next: edgecls export net.py:make ... --target onnxruntime" in capsys.readouterr().out
