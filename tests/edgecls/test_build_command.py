"""`edgecls build`, on a stand-in of a Jetson."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from cuda_stand_in import Gpu
from tensorrt_stand_in import graph_bytes, install, write_unbuilt_bundle

from edgecls.runtime import Bundle, load
from edgecls.runtime.bundle_writer import write_bundle


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGECLS_CACHE", str(tmp_path / "cache"))
    return write_unbuilt_bundle(tmp_path / "net.edgecls")


@pytest.fixture
def run(capfd):
    """Runs a command; returns its exit code, standard output and standard error."""
    from edgecls.cli import main

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


def test_the_command_fills_the_cache_or_writes_a_bundle(run, bundle, monkeypatch, tmp_path):
    trt = install(monkeypatch, "10.3", Gpu())
    path, built = bundle, tmp_path / "built.edgecls"
    code, out, err = run("build", path)
    assert code == 0
    assert "for Orin, compute capability 8.7, tensorrt 10.3.0.30, CUDA 12.6" in out
    assert f"Next: edgecls verify {path}" in out
    assert "this takes minutes, once" in err
    assert "taken from the cache" in run("build", path)[1]
    assert run("build", path, "--max-batch", "2", "--workspace", "256MB", "-o", built)[0] == 0
    assert ("set_memory_pool_limit", "WORKSPACE", 256_000_000) in trt.calls
    document = msgspec.json.decode(run("build", path, "--json")[1])
    assert document["passport"]["graph_sha256"] == hashlib.sha256(graph_bytes()).hexdigest()
    with load(built) as session:
        assert session.engine.max_batch == 2


def test_the_command_refuses_what_makes_no_sense(run, bundle, monkeypatch, tmp_path):
    install(monkeypatch, "10.3", Gpu())
    path = bundle
    code, _, err = run("build", path, "--max-batch", "2")
    assert (code, "need -o FILE" in err) == (2, True)
    code, _, err = run("build", path, "--workspace", "256", "-o", tmp_path / "b")
    assert (code, "no size such as" in err) == (2, True)
    opened = Bundle(path)
    replace = msgspec.structs.replace
    other = replace(opened.manifest, target="onnxruntime", passport=replace(opened.manifest.passport, tensorrt=None))
    write_bundle(path, other, {name: opened.read(name) for name in other.members})
    code, _, err = run("build", path)
    assert (code, "has nothing to build: onnxruntime loads it as it is" in err) == (2, True)
