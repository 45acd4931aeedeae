"""What `edgecls sweep` reads from its file, what it refuses, and what it prints."""

import json
import pickle

import pytest

from edgecls import cli
from edgecls.calibration.quantization import Quantization
from edgecls.export.sweep import Outcome, Recipe, SweepReport

WHOLE = """\
[bench]
data = "test"

[sweep]
target = ["onnxruntime", "openvino", "onnxruntime"]
precision = ["fp32", "int8"]
data = "test"
calibration = "pictures"
max-drop = "0.5pp"
jobs = 3
seed = 7
output = "results"

[sweep.models.a]
model = "net.py:make"
labels = "labels.txt"
resize = 36

[sweep.models.b]
model = "timm:net"
checkpoint = "b.pth"

[sweep.recipes.plain]

[sweep.recipes.coarse]
ranges = "minmax"
weights = "per-tensor"
without = ["smoothquant", "bias-correction"]
calibration-size = 64
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder below the working folder, with a sweep and what it names."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "project"
    for name in ("test", "pictures"):
        (folder / name).mkdir(parents=True)
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / "b.pth").touch()
    (folder / "edgecls.toml").write_text(WHOLE)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What `sweep` was called with; it gives back a report in which a point failed."""
    calls = []

    def sweep(grid, data, **options):
        calls.append((grid, data, options))
        place = {"model": "a", "target": "onnxruntime", "recipe": None, "role": "candidate"}
        points = (
            Outcome(name="a-onnxruntime-fp32", precision="fp32", bundle="a.edgecls", **{**place, "role": "reference"}),
            Outcome(name="a-onnxruntime-int8", precision="int8", bundle="b.edgecls", failure="it died", **place),
        )
        return SweepReport(max_drop="0.5pp", points=points, left_out=("a on onnxruntime in fp16: slow",))

    monkeypatch.setattr("edgecls.export.sweep.sweep", sweep)
    return calls


def run(*arguments):
    return cli.main(["sweep", "project/edgecls.toml", *arguments])


def test_everything_arrives(project, asked):
    assert run() == 1
    grid, data, options = asked[0]
    assert (grid.targets, grid.precisions, grid.seed) == (("onnxruntime", "openvino"), ("fp32", "int8"), 7)
    assert grid.recipes == (
        Recipe("plain"),
        Recipe(
            "coarse",
            Quantization(ranges="minmax", weights="per-tensor", without=frozenset({"smoothquant", "bias-correction"})),
            64,
        ),
    )
    assert data == project / "test"
    assert options["calibration"] == project / "pictures"
    assert options["output"] == project / "results"
    assert (str(options["max_drop"]), options["jobs"], options["ray"]) == ("0.5pp", 3, None)
    assert list(grid.models) == ["a", "b"]
    a, b = (pickle.loads(pickle.dumps(opened)) for opened in grid.models.values())
    assert a.args == (f"{project}/net.py:make",)
    assert a.keywords["labels"].names == ("cat", "dog")
    assert a.keywords["override"].resize_px == 36
    assert (b.args, b.keywords["checkpoint"]) == (("timm:net",), project / "b.pth")


def test_flags_win_and_the_file_of_the_working_folder_does_not_count(project, asked, tmp_path):
    (tmp_path / "edgecls.toml").write_text("[sweep]\nlimit = 3\n")
    assert run("--target", "openvino", "--precision", "int8", "--ray", "local", "-o", "other", "--isa", "arm64") == 1
    grid, _, options = asked[0]
    assert (grid.targets, grid.precisions, grid.isa) == (("openvino",), ("int8",), "arm64")
    assert (options["ray"], str(options["output"]), options["limit"]) == ("local", "other", None)


def test_failures_and_what_was_left_out_are_told(project, asked, capsys):
    assert run() == 1
    printed = capsys.readouterr().out
    assert "within 0.5pp" in printed
    assert "FAILED a-onnxruntime-int8: it died" in printed
    assert "note: left out a on onnxruntime in fp16: slow" in printed
    assert "no latency was timed" in printed
    assert "Next:" not in printed
    assert run("--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "edgecls.sweep/1"
    assert document["points"][1]["failure"] == "it died"
    assert "no latency was timed" in document["latency"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("jobs = 3", "job = 3", "[sweep] has no option 'job'. Did you mean 'jobs'"),
        ("[sweep.models.b]", "[sweep.model.b]", "[sweep] has no option 'model'. Did you mean 'models'"),
        ("checkpoint =", "chekpoint =", "[sweep.models.b] has no option 'chekpoint'. Did you mean 'checkpoint'"),
        ("ranges =", "range =", "[sweep.recipes.coarse] has no option 'range'. Did you mean 'ranges'"),
        ('"minmax"', '"minmaks"', "[sweep.recipes.coarse]: Invalid value for '--ranges': 'minmaks' is not one of"),
        ("size = 64", "size = 3", "[sweep.recipes.coarse]: Invalid value for '--calibration-size'"),
        ("resize = 36", 'resize = "36"', "a whole number is expected"),
        ('"b.pth"', '"c.pth"', "c.pth' does not exist"),
        ("[sweep.models.a]", '[sweep.models."a/b"]', "the name becomes part of file names"),
        ("[sweep.recipes.plain]", "[sweep.recipes]\nplain = 1", "sweep.recipes holds tables"),
        ('model = "timm:net"', "", "[sweep.models.b]: no MODEL"),
        ('model = "timm:net"', 'model = "timm:net"\ntemplate = ["x"]', "--classes and --template are for zero-shot"),
        ('["fp32", "int8"]', '["fp23"]', "Did you mean 'fp32'"),
        ('["onnxruntime", "openvino", "onnxruntime"]', "[]", "`target = [...]` under [sweep]"),
        ('max-drop = "0.5pp"', 'max-drop = "0.5"', "is no margin"),
        ("jobs = 3", 'jobs = 3\nray = "auto"', "a cluster knows its CPUs"),
    ],
)
def test_mistakes_are_refused(old, new, complaint, project, asked, capsys):
    assert old in WHOLE
    (project / "edgecls.toml").write_text(WHOLE.replace(old, new, 1))
    assert run() == 2
    assert complaint in capsys.readouterr().err
    assert asked == []


def test_there_must_be_a_model(project, asked, capsys):
    (project / "edgecls.toml").write_text('[sweep]\ndata = "test"\ntarget = ["openvino"]\n')
    assert run() == 2
    assert "has no [sweep.models.NAME]" in capsys.readouterr().err


def test_the_file_does_not_disturb_other_commands(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert cli.main(["targets", "--json"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
