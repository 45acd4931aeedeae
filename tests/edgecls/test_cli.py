"""Every ending of the command line is one message and one exit code."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgecls import cli, commands
from edgecls.calibration.plan import BlockSensitivity, Sensitivity
from edgecls.runtime import Labels, errors
from edgecls.runtime.bundle_writer import members_of, write_bundle
from edgecls.runtime.verify import VerifyResult

VERBS = sorted(path.stem for path in Path(commands.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGECLS_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def bundle(working_folder):
    path = working_folder / "net.edgecls"
    path.write_bytes(b"opened by nobody here")
    return path


def raising(error):
    def function(*args, **options):
        raise error

    return function


def test_the_verbs_are_the_modules_of_the_folder(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: edgecls {verb}" in text
    assert "--json" in text


def test_without_a_verb_there_is_help(capsys):
    assert cli.main([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgecls, version ")


@pytest.mark.parametrize("arguments", [["--help"], ["nonsense"], ["export", "--nonsense"]])
def test_what_needs_no_numbers_imports_no_numbers(arguments, tmp_path):
    code = (
        "import sys; from edgecls.cli import main; main(sys.argv[1:]); "
        "print([name for name in ('numpy', 'PIL', 'torch', 'onnx', 'onnxruntime', 'openvino', 'rich') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["exprt"], "export"),
        (["export", "resnet18", "--targt", "openvino"], "--target"),
        (["export", "resnet18", "--target", "openvinno"], "openvino"),
        (["export", "resnet18", "--target", "openvino", "--quantizer", "nncv"], "nncf"),
    ],
)
def test_close_names_are_suggested_and_never_taken(arguments, suggestion, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert f"Did you mean '{suggestion}'?" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.InputError("bad picture"), 2),
        (errors.MissingExtraError("openvino", "This bundle"), 5),
        (errors.UnsupportedError("no fp16 here"), 5),
        (errors.BundleError("bad bundle"), 6),
        (errors.EngineError("bad engine"), 7),
        (ValueError("bad code"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
@pytest.mark.parametrize("json_wanted", [False, True])
def test_each_kind_of_error_has_its_exit_code(error, exit_code, json_wanted, bundle, monkeypatch, capfd):
    monkeypatch.setattr("edgecls.runtime.load", raising(error))
    assert cli.main(["classify", str(bundle), "a.png", *["--json"] * json_wanted]) == exit_code
    printed = capfd.readouterr()
    assert "error: " in printed.err
    assert "Traceback" not in printed.err
    if json_wanted:
        document = json.loads(printed.out)["error"]
        assert document["exit_code"] == exit_code
        assert str(error) in document["message"]
    else:
        assert printed.out == ""


def test_a_bug_says_how_to_see_more_and_shows_it_when_asked(bundle, monkeypatch, capfd):
    monkeypatch.setattr("edgecls.runtime.load", raising(ValueError("bad\ncode")))
    assert cli.main(["classify", str(bundle), "a.png"]) == 70
    message = capfd.readouterr().err
    assert message.count("\n") == 1
    assert "ValueError: bad code" in message
    assert "EDGECLS_DEBUG=1" in message
    monkeypatch.setenv("EDGECLS_DEBUG", "1")
    assert cli.main(["classify", str(bundle), "a.png"]) == 70
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify"],
        ["classify", "absent.edgecls", "a.png"],
        ["classify", "net.edgecls", "a.png", "--threads", "3000000000"],
        ["bench", "net.edgecls"],
        ["bench", "net.edgecls", "--data", "absent"],
        ["bench", "net.edgecls", "--data", ".", "-o", "absent/report.json"],
        ["bench", "net.edgecls", "--data", ".", "--profile", "fast"],
        ["bench", "net.edgecls", "--data", ".", "--limit", "0"],
        ["bench", "net.edgecls", "--data", ".", "--cores", "2-"],
        ["bench", "net.edgecls", "--data", ".", "--cores", "3-2"],
        ["bench", "net.edgecls", "--data", ".", "--cores", "1,0-1"],
        ["gate", "absent.json", "--max-drop", "1pp"],
        ["gate", "net.edgecls", "--max-drop", "1"],
        ["gate", "net.edgecls", "--max-drop", "1pp"],
    ],
)
def test_usage_errors_are_2(arguments, bundle, capfd):
    assert cli.main(arguments) == 2
    assert capfd.readouterr().err.startswith("error: ")


def test_usage_errors_are_json_when_json_is_wanted(capsys):
    assert cli.main(["classify", "absent.edgecls", "a.png", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["kind"] == "UsageError"
    assert "absent.edgecls" in document["error"]["message"]


def test_a_reader_that_goes_away_is_no_bug(bundle, monkeypatch, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = "import sys; from edgecls.cli import main; sys.exit(main(sys.argv[1:]))"
    with os.fdopen(write_end, "wb") as pipe:
        done = subprocess.run([sys.executable, "-c", code, "--help"], stdout=pipe, stderr=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.parametrize(("passed", "exit_code"), [(True, 0), (False, 1)])
def test_what_libraries_print_never_reaches_standard_output(passed, exit_code, bundle, monkeypatch, capfd):
    def noisy(session):
        print("from Python")
        os.write(1, b"from C\n")
        return VerifyResult(samples=(), tolerance=0.0, passed=passed)

    monkeypatch.setattr("edgecls.runtime.verify.verify_bundle", noisy)
    monkeypatch.setattr("edgecls.runtime.load", lambda path, **options: contextlib.nullcontext())
    assert cli.main(["verify", str(bundle), "--json"]) == exit_code
    printed = capfd.readouterr()
    assert json.loads(printed.out)["passed"] is passed
    assert "from Python" in printed.err
    assert "from C" in printed.err


CODE = "import sys; from edgecls.cli import main; sys.exit(main(sys.argv[1:]))"


def run(arguments, **environment):
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **environment}
    return subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, env=environment)


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_no_locale_is_too_poor(environment, bundle_parts, bundle_path):
    manifest, files = bundle_parts
    names = ("Ärger", "нейрон", "日本語 🎌", *manifest.labels.names[3:])
    labelled = msgspec.structs.replace(manifest, labels=Labels(names))
    write_bundle(bundle_path, labelled, files)
    done = run(["inspect", str(bundle_path)], **environment)
    assert done.returncode == 0, done.stderr
    assert b"classes" in done.stdout
    done = run(["inspect", str(bundle_path), "--json"], **environment)
    assert json.loads(done.stdout.decode("utf-8"))["manifest"]["labels"]["names"][:3] == list(names[:3])


def test_what_a_bundle_says_does_not_speak_to_the_terminal(bundle_parts, bundle_path, capsys):
    manifest, files = bundle_parts
    write_bundle(bundle_path, msgspec.structs.replace(manifest, name="net\x1b]0;title\x07\n  target  trusted"), files)
    assert cli.main(["inspect", str(bundle_path)]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(r"net\x1b]0;title\x07\n  target  trusted  ")
    assert "onnxruntime" in second
    write_bundle(bundle_path, msgspec.structs.replace(manifest, target="\x1b[2J"), files)
    assert cli.main(["verify", str(bundle_path)]) == 6
    assert "\x1b" not in capsys.readouterr().err


def test_a_name_that_is_no_text_is_escaped(bundle_path):
    odd = os.path.join(os.fsencode(bundle_path.parent), b"\xff.edgecls")
    try:
        os.rename(bundle_path, odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    done = run(["inspect", odd, "--json"])
    assert json.loads(done.stdout)["path"].endswith(r"\udcff.edgecls")
    done = run(["inspect", odd + b".not", "--json"])
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_bug(closed, bundle_path):
    command = shlex.join([sys.executable, "-c", CODE, "verify", str(bundle_path)])
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


def test_inspect_tells_what_an_engineer_asks(bundle_path, capsys):
    assert cli.main(["inspect", str(bundle_path)]) == 0
    text = capsys.readouterr().out
    for words in ("onnxruntime", "fp32", "classes     7: class 0", "digests checked", "model.onnx"):
        assert words in text


NESTED = b'{"ranges":"a","tensors":{},"float_nodes":{},"x":' + b"[" * 100_000


@pytest.mark.parametrize(
    ("plan", "words"), [(None, "mse ranges of"), (b"{}", "not readable"), (NESTED, "not readable")]
)
def test_inspect_sums_up_the_plan(plan, words, small, bundle_parts, bundle_path, capsys):
    manifest, files = bundle_parts
    files = {**files, "plan.json": plan or small[2].to_json()}
    write_bundle(bundle_path, msgspec.structs.replace(manifest, members=members_of(files)), files)
    assert cli.main(["inspect", str(bundle_path)]) == 0
    assert words in capsys.readouterr().out
    if plan is not None:
        assert cli.main(["inspect", str(bundle_path), "--sensitivity"]) == 6
        assert "not readable" in capsys.readouterr().err


@pytest.mark.parametrize("ratio", [None, 0.8], ids=["untimed", "timed"])
def test_inspect_shows_the_sensitivity_as_a_table_and_a_picture(ratio, small, bundle_parts, bundle_path, capsys):
    cost = None if ratio is None else 0.02
    blocks = (
        BlockSensitivity("stem", ("stem.0",), 0.004, 3, cost),
        BlockSensitivity("head $x", ("h",), -0.001, 0, cost),
    )
    measured = Sensitivity("onnxruntime", 100, 0.01, 5, ratio, blocks)
    manifest, files = bundle_parts
    files = {**files, "plan.json": msgspec.structs.replace(small[2], sensitivity=measured).to_json()}
    write_bundle(bundle_path, msgspec.structs.replace(manifest, members=members_of(files)), files)
    picture = bundle_path.with_name("bars.png")
    assert cli.main(["inspect", str(bundle_path), "--sensitivity", "--picture", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "KL 0.0100, 5 of 100 answers changed" in lines[0]
    assert lines[2].endswith("█" * 30)
    assert ("+2.0 %" in lines[2]) == (ratio is not None)
    assert not lines[3].endswith("█")
    with Image.open(picture) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    blue, orange = ((pixels - colour == 0).all(-1).any() for colour in ((31, 119, 180), (255, 127, 14)))
    assert blue
    assert orange == (ratio is not None)


def test_inspect_shows_any_sensitivity(small, bundle_parts, bundle_path, capsys):
    blocks = (BlockSensitivity("a\nb" * 999, ("a",), 1e308, 3, 1e308), BlockSensitivity("c", ("c",), 5e-324, 0, None))
    measured = Sensitivity("onnxruntime", 100, 1e308, 5, None, blocks)
    manifest, files = bundle_parts
    files = {**files, "plan.json": msgspec.structs.replace(small[2], sensitivity=measured).to_json()}
    write_bundle(bundle_path, msgspec.structs.replace(manifest, members=members_of(files)), files)
    assert cli.main(["inspect", str(bundle_path), "--sensitivity"]) == 0
    _, _, first, second = capsys.readouterr().out.splitlines()
    assert r"a\nba\nb" in first
    assert first.endswith("█" * 30)
    assert len(second) < 150


def test_inspect_refuses_what_it_cannot_show(bundle_path, tmp_path, capsys):
    assert cli.main(["inspect", str(bundle_path), "--sensitivity"]) == 2
    assert "holds no sensitivity" in capsys.readouterr().err
    assert cli.main(["inspect", str(bundle_path), "--picture", str(tmp_path / "bars.png")]) == 2
    assert "give both" in capsys.readouterr().err
