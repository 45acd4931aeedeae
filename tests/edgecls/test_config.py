"""`edgecls.toml`: what it may say, and who wins."""

from types import SimpleNamespace

import pytest

from edgecls import cli


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What `edgecls bench` was asked to measure, in a folder with a bundle and pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.edgecls").touch()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pictures").mkdir()
    calls = []

    def measure(bundles, data, **options):
        calls.append({"bundles": bundles, "data": data, **options})
        conditions = SimpleNamespace(warnings=())
        return SimpleNamespace(runs=(), valid=True, reasons=(), reference=None, conditions=conditions, exit_code=0)

    monkeypatch.setattr("edgecls.bench.measure.measure", measure)
    return calls


def bench(*arguments, config=None):
    return cli.main([*(["--config", str(config)] if config else []), "bench", "net.edgecls", *arguments])


def test_the_file_of_the_working_folder_fills_in_options(measured, tmp_path):
    (tmp_path / "edgecls.toml").write_text('[bench]\ndata = "pictures"\nthreads = 3\nno-latency = true\nlimit = 7\n')
    assert bench() == 0
    assert measured[0]["data"].samefile("pictures")
    assert (measured[0]["threads"], measured[0]["latency"], measured[0]["limit"]) == (3, False, 7)
    assert measured[0]["accuracy"] is True


def test_cpus_are_lists_and_ranges(measured, tmp_path):
    (tmp_path / "edgecls.toml").write_text('[bench]\ndata = "pictures"\ncores = "1-2"\nthroughput = true\n')
    assert bench() == bench("--cores", "0,2-3") == 0
    assert [call["cores"] for call in measured] == [(1, 2), (0, 2, 3)]
    assert measured[0]["throughput"] is True


def test_flags_win(measured, tmp_path):
    (tmp_path / "edgecls.toml").write_text('[bench]\ndata = "project"\nthreads = 3\nno-latency = true\n')
    assert bench("--data", "pictures", "--threads", "1", "--latency") == 0
    assert measured[0]["data"].samefile("pictures")
    assert (measured[0]["threads"], measured[0]["latency"]) == (1, True)


def test_paths_are_relative_to_the_file(measured, tmp_path):
    config = tmp_path / "project" / "other.toml"
    config.write_text('[bench]\ndata = "pictures"\noutput = "r.json"\n')
    assert bench(config=config) == 0
    assert measured[0]["data"].samefile(tmp_path / "project" / "pictures")
    assert measured[0]["output"] == tmp_path / "project" / "r.json"


def test_a_named_file_replaces_that_of_the_working_folder(measured, tmp_path):
    (tmp_path / "edgecls.toml").write_text("[bench]\nthreads = 3\n")
    config = tmp_path / "other.toml"
    config.write_text("[bench]\nseed = 4\n")
    assert bench("--data", "pictures", config=config) == 0
    assert (measured[0]["threads"], measured[0]["seed"]) == (None, 4)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[bensh]\n", "Did you mean 'bench'"),
        ("[bench]\nthread = 1\n", "Did you mean 'threads'"),
        ("threads = 1\n", "no command is called [threads]"),
        ("bench = 1\n", "outside a table"),
        ("[bench]\nbundles = ['a']\n", "no option 'bundles'"),
        ("[bench]\nthreads = '2'\n", "a whole number is expected"),
        ("[bench]\nthreads = true\n", "a whole number is expected"),
        ("[bench]\nthreads = 2.0\n", "a whole number is expected"),
        ("[bench]\nno-latency = 1\n", "true or false is expected"),
        ("[bench]\nlatency = true\nno-latency = true\n", "twice"),
        ("[bench]\ndata = 1\n", "a string is expected"),
        ("[gate]\nmax-drop = 1\n", "a string is expected"),
        ("[gate]\nmax-latency-ratio = '1'\n", "a number is expected"),
        ("[export]\nmean = [0.5, '0.5', 0.5]\n", "numbers are expected"),
        ("[bench\n", "cannot read"),
        ("[export]\nint8 = 'yes'\n", "true or false is expected"),
    ],
)
def test_mistakes_are_errors_whatever_command_runs(text, complaint, measured, tmp_path, capsys):
    (tmp_path / "edgecls.toml").write_text(text)
    assert bench("--data", "pictures") == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert "edgecls.toml" in message
    assert measured == []


@pytest.mark.parametrize("line", ["threads = 0", 'profile = "fast"', 'data = "absent"'])
def test_a_value_out_of_range_is_traced_to_the_file(line, measured, tmp_path, capsys):
    (tmp_path / "edgecls.toml").write_text(f"[bench]\n{line}\n")
    assert bench(*([] if line.startswith("data") else ["--data", "pictures"])) == 2
    assert "It comes from [bench] in edgecls.toml." in capsys.readouterr().err


def test_help_works_beside_a_broken_file(measured, tmp_path, capsys):
    (tmp_path / "edgecls.toml").write_text("[bensh]\n")
    assert bench("--help") == 0
    assert "Usage: edgecls bench" in capsys.readouterr().out


def test_underscores_are_hyphens(measured, tmp_path):
    (tmp_path / "edgecls.toml").write_text("[bench]\nno_latency = true\n")
    assert bench("--data", "pictures") == 0
    assert measured[0]["latency"] is False


def test_json_may_be_configured_and_then_errors_are_json_too(measured, tmp_path, capsys):
    (tmp_path / "edgecls.toml").write_text("[bench]\njson = true\n")
    assert bench("--data", "absent") == 2
    assert '"UsageError"' in capsys.readouterr().out
