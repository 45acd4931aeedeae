"""What `edgecls diagnose` prints."""

import json

import pytest

from edgecls import cli
from edgecls.export.diagnosis import Diagnosis, Stage
from edgecls.export.layer_noise import LayerNoise

NOT_RUN = {"ran": False, "kl_mean": None, "disagreement": None, "top1": None}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What `diagnose` was called with; it gives back a diagnosis that nobody made."""
    monkeypatch.chdir(tmp_path)
    for name in ("int8.edgecls", "fp32.edgecls"):
        (tmp_path / name).touch()
    calls = []

    def diagnose(*arguments, **options):
        calls.append((arguments, options))
        layer = LayerNoise(
            name="Add_0", sqnr_in_db=None, sqnr_out_db=3.21, lost_db=26.79, kept=(0.0, 0.6), seen=(0.0, 6.0)
        )
        return Diagnosis(
            bundle="int8",
            reference="fp32",
            n=40,
            reference_top1=0.9,
            drop_pp=12.5,
            drop_ci95_pp=(3.0, 22.0),
            stages=(
                Stage(name="ranges", ran=True, kl_mean=0.51, disagreement=0.125, top1=0.775, note="cut off"),
                Stage(name="engine", note="not run: nobody has it", **NOT_RUN),
            ),
            repaired_kl=None,
            golden=None,
            causes=("ranges",),
            layers=(layer,),
            verdict="Values are cut off.",
        )

    monkeypatch.setattr("edgecls.export.diagnose.diagnose", diagnose)
    return calls


ARGUMENTS = ["diagnose", "int8.edgecls", "--reference", "fp32.edgecls", "--data", "."]


def test_a_table_the_layers_and_a_sentence(asked, capsys):
    assert cli.main([*ARGUMENTS, "--limit", "40", "--threads", "1"]) == 0
    (paths, options), text = asked[0], capsys.readouterr().out
    assert [path.name for path in paths[:2]] == ["int8.edgecls", "fp32.edgecls"]
    assert (options["limit"], options["threads"]) == (40, 1)
    cells = [line.split() for line in text.splitlines()]
    assert ["nothing", "(the", "reference)", "0", "0.0", "%", "90.0", "%"] in cells
    assert ["+", "ranges", "0.51", "12.5", "%", "77.5", "%"] in cells
    assert ["+", "engine", "not", "run", "-", "-"] in cells
    assert "  engine: not run: nobody has it" in text
    assert "drop of top-1: +12.50 pp [+3.00, +22.00]" in text
    assert ["Add_0", "-", "3.2", "26.8", "0", "to", "0.6", "0", "to", "6"] in cells
    assert text.endswith("\nValues are cut off.\n")


def test_json_is_the_diagnosis(asked, capsys):
    assert cli.main([*ARGUMENTS, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "edgecls.diagnosis/1"
    assert document["causes"] == ["ranges"]
    assert document["stages"][1]["kl_mean"] is None


def test_it_needs_a_reference(asked, capsys):
    assert cli.main(["diagnose", "int8.edgecls", "--data", "."]) == 2
    assert "--reference" in capsys.readouterr().err
