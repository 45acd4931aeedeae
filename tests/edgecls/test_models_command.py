"""What `edgecls models` prints."""

import json

import pytest

from edgecls import cli


def test_a_table_with_the_doubt_below_it(capsys):
    assert cli.main(["models", "mobilenet_v3_sm*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "model"
    assert lines[2].split() == [
        *("mobilenet_v3_small", "2.54", "M", "0.057", "G", "224", "px"),
        *("onnxruntime", "onnxruntime", "openvino", "tensorrt", "bsd-3-clause,", "ImageNet", "terms"),
    ]
    assert any("rule of thumb" in line for line in lines)
    assert lines[-1] == "Next: edgecls train --data DIR --arch mobilenet_v3_small"
    assert max(map(len, lines)) <= 140


def test_the_curated_list_names_what_is_no_network_too(capsys, monkeypatch):
    monkeypatch.setattr("edgecls.models.catalogue.CURATED", ("mobilenet_v3_small",))
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "hog-svm" in printed
    assert "clip:NAME" in printed


def test_json_has_numbers(capfd):
    assert cli.main(["models", "mobilenet_v3_small", "--json"]) == 0
    (entry,) = json.loads(capfd.readouterr().out)["models"]
    assert (entry["parameters"], entry["input_px"]) == (2542856, 224)
    assert entry["macs"] == pytest.approx(5.7e7, rel=0.02)


def test_no_match_is_an_error_of_the_user(capsys):
    assert cli.main(["models", "resnet"]) == 2
    assert "Try '*resnet*'" in capsys.readouterr().err
