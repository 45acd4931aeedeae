"""The demo's data is honest, and the whole demo works."""

import hashlib
import json

import pytest

pytest.importorskip("sklearn")

from edgecls import cli, demo


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    demo.write_digits(folder, seed=0)
    return folder


def test_the_parts_are_disjoint_and_every_digit_has_its_share(digits):
    assert len(contents(digits)) == len(set(contents(digits).values())) == 1797
    for part, count in {"test": 45, "calibration": 16}.items():
        assert [len(list((digits / part / str(digit)).iterdir())) for digit in range(10)] == [count] * 10


def test_a_seed_gives_the_same_files(digits, tmp_path):
    demo.write_digits(tmp_path, seed=0)
    assert list(contents(tmp_path).values()) == list(contents(digits).values())


def test_another_seed_leaves_no_picture_in_two_parts(tmp_path):
    demo.write_digits(tmp_path, seed=0)
    (tmp_path / "test" / "mine.png").write_bytes(b"not ours")
    demo.write_digits(tmp_path, seed=1)
    assert len(list(tmp_path.rglob("[0-9]*.png"))) == 1797
    assert (tmp_path / "test" / "mine.png").exists()


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path, capfd):
    (tmp_path / "file").touch()
    assert cli.main(["demo", "-o", str(tmp_path / "file" / "demo"), "--quiet"]) == 2
    assert "-o" in capfd.readouterr().err


def test_pictures_that_no_demo_wrote_are_left_alone(tmp_path, capfd):
    mine = tmp_path / "data" / "train" / "7" / "0001.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert cli.main(["demo", "-o", str(tmp_path), "--quiet"]) == 2
    assert "holds files that no demo made" in capfd.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


@pytest.mark.slow
def test_the_whole_demo_passes_its_own_gate(tmp_path, capfd):
    assert cli.main(["demo", "-o", str(tmp_path), "--json", "--quiet"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["torch_top1"] >= 0.95
    assert document["gate"]["verdict"] == "pass"
    assert len(document["bundles"]) >= 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["valid"]
    assert report["tool"]["profile"]["name"] == "smoke"
    assert report["runs"][0]["accuracy"]["top1"] == pytest.approx(document["torch_top1"])
