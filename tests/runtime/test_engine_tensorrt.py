"""The TensorRT engine against stand-ins of TensorRT 8.6, 10.3 and 11, from the unbuilt bundle to the answer."""

from __future__ import annotations

import sys
import threading

import msgspec
import numpy as np
import pytest
from cuda_stand_in import Gpu, install_cuda
from tensorrt_stand_in import STRONG, WEAK, expected_logits, graph_bytes, install, write_unbuilt_bundle

from edgecls.runtime import (
    Bundle,
    BundleError,
    EngineError,
    MissingExtraError,
    UnsupportedError,
    load,
)
from edgecls.runtime.bundle_writer import members_of, write_bundle
from edgecls.runtime.device_memory import driver_version
from edgecls.runtime.engine_build import BuildOptions, build_bundle
from edgecls.runtime.engines import engine_module
from edgecls.runtime.progress import SilentProgress

VERSIONS = ["8.6", "10.3", "11"]


class Heard(SilentProgress):
    """Keeps what was said."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGECLS_CACHE", str(folder))
    return folder


@pytest.fixture
def gpu():
    return Gpu()


@pytest.fixture
def make_bundle(tmp_path):
    def make(dialect=STRONG, graph=None, target="tensorrt", name="net"):
        return write_unbuilt_bundle(tmp_path / f"{name}.edgecls", dialect, graph, target)

    return make


def crops(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def called(trt, name):
    return [call[1:] for call in trt.calls if call[0] == name]


@pytest.mark.parametrize("package", ["pycuda", "cuda-python"])
@pytest.mark.parametrize(("version", "dialect"), [("8.6", WEAK), ("10.3", WEAK), ("10.3", STRONG), ("11", STRONG)])
def test_an_unbuilt_bundle_is_built_and_answers(version, dialect, package, gpu, make_bundle, monkeypatch):
    trt = install(monkeypatch, version, gpu, package)
    path, heard = make_bundle(dialect), Heard()
    with load(path, progress=heard) as session:
        for count in (1, 3, 1, 5, 40):
            np.testing.assert_array_equal(session.logits(crops(count, count)), expected_logits(crops(count, count)))
        assert session.engine.max_batch == 32
        assert session.engine_info.name == "tensorrt"
        assert session.engine_info.version == trt.__version__
        assert session.engine_info.provider_requested == session.engine_info.provider_used == "TensorRT"
        assert session.engine_info.device == f"Orin, driver {driver_version() or 'unknown'}, CUDA 12.6"
    assert any("building the engine of net for Orin: this takes minutes, once" in note for note in heard.notes)
    assert gpu.memory == {}
    assert gpu.retained == 0
    with load(path, progress=heard) as session:
        np.testing.assert_array_equal(session.logits(crops(2)), expected_logits(crops(2)))
    assert trt.builds == 1


@pytest.mark.parametrize(
    ("version", "dialect", "network", "builder"),
    [
        ("8.6", WEAK, {"EXPLICIT_BATCH"}, {"FP16", "INT8"}),
        ("8.6", ("weak", "8.6", ()), {"EXPLICIT_BATCH"}, set()),
        ("10.3", WEAK, set(), {"FP16", "INT8"}),
        ("10.3", STRONG, {"STRONGLY_TYPED"}, set()),
        ("11", STRONG, {"STRONGLY_TYPED"}, set()),
        ("11", ("weak", "8.6", ()), set(), set()),
    ],
)
def test_flags_are_those_of_the_version_and_the_dialect(
    version, dialect, network, builder, gpu, make_bundle, monkeypatch
):
    trt = install(monkeypatch, version, gpu)
    load(make_bundle(dialect)).close()
    assert called(trt, "create_network") == [(network,)]
    assert called(trt, "build") == [(builder,)]
    assert called(trt, "set_memory_pool_limit") == [("WORKSPACE", 1 << 30)]
    assert called(trt, "deserialize_cuda_engine") == [(False,)]


def test_no_memory_is_allocated_per_call_and_single_pictures_replay_a_graph(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    with load(make_bundle()) as session:
        session.logits(crops(5))
        before, replays = gpu.allocations, gpu.replays
        for count in (1, 4, 1, 32, 1):
            session.logits(crops(count))
        assert gpu.allocations == before
        assert session.engine.cuda_graph
        assert gpu.replays == replays + 3


def test_without_capture_single_pictures_run_all_the_same(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    sys.modules["cuda.bindings.driver"].capture_works = False
    with load(make_bundle()) as session:
        assert not session.engine.cuda_graph
        np.testing.assert_array_equal(session.logits(crops(1)), expected_logits(crops(1)))


@pytest.mark.parametrize("capturable", [True, False])
def test_rtx_specializes_kernels_before_they_are_captured(capturable, gpu, make_bundle, monkeypatch):
    trt = install(monkeypatch, "rtx", gpu)
    dialect = ("strong", trt.__version__, ())
    with load(make_bundle(dialect, graph_bytes(capturable=capturable), "tensorrt-rtx")) as session:
        for count in (1, 3):
            np.testing.assert_array_equal(session.logits(crops(count)), expected_logits(crops(count)))
        assert session.engine.cuda_graph == capturable
    assert called(trt, "create_execution_context") == [("EAGER",), (None,)]
    assert called(trt, "set_timing_cache") == []  # deprecated there, and without effect


def test_threads_take_turns(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    with load(make_bundle()) as session:
        right = []

        def work(seed):
            batches = [crops(count, seed) for count in (1, 2, 1, 3)]
            right.extend(np.array_equal(session.logits(batch), expected_logits(batch)) for batch in batches)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 24


def test_a_closed_engine_says_so(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    session = load(make_bundle())
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed; load the bundle again"):
        session.logits(crops(1))


def test_the_first_load_says_so_on_standard_error(gpu, make_bundle, monkeypatch, capsys):
    install(monkeypatch, "10.3", gpu)
    load(make_bundle()).close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "this takes minutes, once" in err


def test_build_false_refuses_an_unbuilt_bundle_and_takes_a_built_one(gpu, make_bundle, monkeypatch):
    trt = install(monkeypatch, "10.3", gpu)
    path = make_bundle()
    with pytest.raises(UnsupportedError, match=r"no engine for Orin yet.*edgecls build BUNDLE"):
        load(path, build=False)
    assert trt.builds == 0
    load(path).close()
    load(path, build=False).close()
    assert trt.builds == 1


def test_a_built_bundle_carries_its_engine(gpu, make_bundle, monkeypatch, tmp_path, cache_folder):
    trt = install(monkeypatch, "10.3", gpu)
    built = tmp_path / "built.edgecls"
    result = build_bundle(Bundle(make_bundle()), BuildOptions(max_batch=4), built, SilentProgress())
    assert (result.cached, result.passport.max_batch, result.passport.flags) == (False, 4, ("STRONGLY_TYPED",))
    for file in cache_folder.iterdir():
        file.unlink()
    with load(built, build=False) as session:
        assert session.engine.max_batch == 4
        np.testing.assert_array_equal(session.logits(crops(9)), expected_logits(crops(9)))
    assert trt.builds == 1
    again = build_bundle(Bundle(built), BuildOptions(max_batch=8), tmp_path / "again.edgecls", SilentProgress())
    assert again.passport.max_batch == 8
    assert sorted(Bundle(again.path).manifest.members) == ["golden/a.png", "model.engine", "model.onnx"]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"name": "NVIDIA GeForce RTX 4070"}, "GPU Orin there, NVIDIA GeForce RTX 4070 here"),
        ({"capability": (8, 9)}, r"compute capability 8\.7 there, 8\.9 here"),
    ],
)
def test_an_engine_of_another_gpu_is_refused_before_it_is_parsed(
    other, difference, gpu, make_bundle, monkeypatch, tmp_path
):
    install(monkeypatch, "10.3", gpu)
    built = tmp_path / "built.edgecls"
    build_bundle(Bundle(make_bundle()), BuildOptions(), built, SilentProgress())
    elsewhere = install(monkeypatch, "10.3", Gpu(**other))
    with pytest.raises(BundleError, match=f"does not fit this machine: {difference}.*edgecls build BUNDLE -o BUILT"):
        load(built)
    assert elsewhere.calls == []
    assert elsewhere.gpu.retained == 0


def test_an_engine_of_another_tensorrt_is_refused_with_both_versions(gpu, make_bundle, monkeypatch, tmp_path):
    install(monkeypatch, "10.3", gpu)
    built = tmp_path / "built.edgecls"
    build_bundle(Bundle(make_bundle()), BuildOptions(), built, SilentProgress())
    install(monkeypatch, "11", gpu)
    with pytest.raises(BundleError, match=r"tensorrt 10\.3\.0\.30 there, 11\.4\.1\.7 here"):
        load(built)


def test_an_update_of_the_driver_builds_anew(gpu, make_bundle, monkeypatch):
    trt = install(monkeypatch, "10.3", gpu)
    path = make_bundle()
    load(path).close()
    sys.modules["cuda.bindings.driver"].cuda = 13000
    load(path).close()
    assert trt.builds == 2


def test_an_engine_built_ahead_of_time_is_checked_for_gpu_and_version(gpu, make_bundle, monkeypatch, tmp_path):
    trt = install(monkeypatch, "10.3", gpu)
    source = Bundle(make_bundle(target="tensorrt-rtx"))
    data = build_bundle(source, BuildOptions(), tmp_path / "built.edgecls", SilentProgress())
    plan = Bundle(data.path).read("model.engine")

    def ahead(version, capabilities):
        files = {"model.engine": plan, "golden/a.png": source.read("golden/a.png")}
        replace = msgspec.structs.replace
        passport = replace(
            source.manifest.passport,
            engine_version=version,
            tensorrt=replace(
                source.manifest.passport.tensorrt, build="ahead-of-time", compute_capabilities=capabilities
            ),
        )
        path = tmp_path / "ahead.edgecls"
        changed = {"artifact": ("model.engine",), "passport": passport, "members": members_of(files)}
        write_bundle(path, replace(source.manifest, **changed), files)
        return path

    with load(ahead(trt.__version__, ("8.6", "8.7"))) as session:
        np.testing.assert_array_equal(session.logits(crops(2)), expected_logits(crops(2)))
        assert session.engine_info.name == "tensorrt-rtx"
    with pytest.raises(BundleError, match=r"compute capability 8\.6, 12\.0, Orin has 8\.7.*--target tensorrt-rtx"):
        load(ahead(trt.__version__, ("8.6", "12.0")))
    with pytest.raises(BundleError, match=r"TensorRT-RTX 1\.0 there, 10\.3\.0\.30 here"):
        load(ahead("1.0", ("8.7",)))


def test_a_cache_file_cut_in_half_is_built_anew_and_told(gpu, make_bundle, monkeypatch, cache_folder):
    trt = install(monkeypatch, "10.3", gpu)
    path, heard = make_bundle(), Heard()
    load(path).close()
    (engine,) = cache_folder.glob("*.engine")
    (timings,) = cache_folder.glob("*.timings")
    for file in (engine, timings):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with load(path, progress=heard) as session:
        np.testing.assert_array_equal(session.logits(crops(2)), expected_logits(crops(2)))
    assert trt.builds == 2
    assert any(f"{engine} is damaged" in note and "built anew" in note for note in heard.notes)
    assert any(f"{timings} is damaged" in note for note in heard.notes)


def test_timings_of_one_build_serve_the_next(gpu, make_bundle, monkeypatch):
    trt = install(monkeypatch, "10.3", gpu)
    load(make_bundle(name="one")).close()
    load(make_bundle(graph=graph_bytes(crop=32, other=1), name="two")).close()
    assert called(trt, "set_timing_cache") == [(b"",), (b"+timed",)]


def test_timings_that_tensorrt_refuses_are_measured_anew(gpu, make_bundle, monkeypatch, cache_folder):
    from edgecls.runtime.engine_cache import CacheFolder

    trt = install(monkeypatch, "10.3", gpu)
    load(make_bundle(name="one")).close()
    (timings,) = cache_folder.glob("*.timings")
    CacheFolder().write(timings.name, b"of another age")
    load(make_bundle(graph=graph_bytes(other=1), name="two")).close()
    assert called(trt, "set_timing_cache")[-1] == (b"",)


def test_threads_that_load_at_once_build_once(gpu, make_bundle, monkeypatch):
    trt = install(monkeypatch, "10.3", gpu)
    path = make_bundle()
    building, waiting = threading.Event(), threading.Event()

    class Waiting(SilentProgress):
        def note(self, message):
            if "waiting for it" in message:
                waiting.set()

    def second():
        building.wait(30)
        load(path, progress=Waiting()).close()

    def before_build():
        building.set()
        assert waiting.wait(30)

    trt.before_build = before_build
    thread = threading.Thread(target=second)
    thread.start()
    load(path, progress=SilentProgress()).close()
    thread.join(30)
    assert trt.builds == 1


def test_a_cache_on_a_full_disk_does_not_waste_the_build(gpu, make_bundle, monkeypatch):
    from edgecls.runtime.engine_cache import CacheFolder
    from edgecls.runtime.errors import InputError

    install(monkeypatch, "10.3", gpu)
    write = CacheFolder.write

    def full(self, name, data):
        if name.endswith(".engine"):
            raise InputError("No space left on device")
        write(self, name, data)

    monkeypatch.setattr(CacheFolder, "write", full)
    heard = Heard()
    with load(make_bundle(), progress=heard) as session:
        np.testing.assert_array_equal(session.logits(crops(2)), expected_logits(crops(2)))
    assert any("must be built again next time: No space left" in note for note in heard.notes)


def test_progress_hears_the_builders_steps_where_the_version_tells_them(gpu, make_bundle, monkeypatch):
    from contextlib import contextmanager

    steps = []

    class Counting(SilentProgress):
        @contextmanager
        def stage(self, title, total=None):
            yield steps.append

    for version, expected in (("8.6", []), ("10.3", [1, 1, 1]), ("11", [1, 1, 1])):
        steps.clear()
        install(monkeypatch, version, gpu)
        load(make_bundle(WEAK if version == "8.6" else STRONG), progress=Counting()).close()
        assert steps == expected


def test_an_interrupted_build_stops_and_leaves_nothing(gpu, make_bundle, monkeypatch, cache_folder):
    from contextlib import contextmanager

    class Interrupting(SilentProgress):
        @contextmanager
        def stage(self, title, total=None):
            def advance(steps):
                raise KeyboardInterrupt

            yield advance

    install(monkeypatch, "10.3", gpu)
    with pytest.raises(KeyboardInterrupt):
        load(make_bundle(), progress=Interrupting())
    assert list(cache_folder.glob("*.engine")) == []
    assert (gpu.memory, gpu.retained, gpu.depth) == ({}, 0, 0)


def test_a_graph_too_new_for_the_device_names_the_version_to_export_for(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "8.6", gpu)
    message = r"needs TensorRT 10\.0 or newer, and this machine has TensorRT 8\.6\.2\.3.*--tensorrt-version 8\.6"
    with pytest.raises(UnsupportedError, match=message):
        load(make_bundle(STRONG))


def test_a_weak_graph_on_tensorrt_11_names_the_flags_that_are_gone(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "11", gpu)
    with pytest.raises(UnsupportedError, match=r"has no FP16, INT8.*--tensorrt-version 11\.4"):
        load(make_bundle(WEAK))


@pytest.mark.parametrize(("version", "place"), [("8.6", "node number 17"), ("10.3", r"node 'layer3\.conv' \(Conv\)")])
def test_what_the_parser_refuses_is_one_message_with_the_node(version, place, gpu, make_bundle, monkeypatch):
    install(monkeypatch, version, gpu)
    dialect = WEAK if version == "8.6" else STRONG
    path = make_bundle(dialect, graph_bytes(bad_node="QuantizeLinear: zero point must be zero"))
    with pytest.raises(
        BundleError, match=f"refuses the graph of net: {place}: QuantizeLinear: zero point must be zero"
    ):
        load(path)


def test_a_build_that_fails_says_why(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    with pytest.raises(EngineError, match="cannot build an engine of net: no implementation for node"):
        load(make_bundle(graph=graph_bytes(build_error="no implementation for node")))
    with pytest.raises(EngineError, match=r"not enough memory to build net.*--max-batch 1 --workspace 256MB"):
        load(make_bundle(graph=graph_bytes(build_error="Requested amount of GPU memory: OutOfMemory (no.2)")))


def test_a_gpu_without_room_says_so(make_bundle, monkeypatch):
    install(monkeypatch, "10.3", Gpu(capacity_bytes=50_000))
    with pytest.raises(EngineError, match=r"the GPU has no 0\.1 MB left"):
        load(make_bundle())
    install(monkeypatch, "10.3", Gpu())
    with pytest.raises(EngineError, match=r"not enough memory: TensorRT .* cannot create an execution context"):
        load(make_bundle(graph=graph_bytes(context_error="Error Code 2: OutOfMemory")))


def test_an_engine_that_fails_while_running_says_why(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    with pytest.raises(EngineError, match="failed on a batch of 1: illegal memory access"):
        load(make_bundle(graph=graph_bytes(run_error="illegal memory access")))
    assert (gpu.memory, gpu.retained, gpu.depth) == ({}, 0, 0)


def test_an_engine_with_other_types_is_refused(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    with pytest.raises(BundleError, match="where one UINT8 and one FLOAT are expected"):
        load(make_bundle(graph=graph_bytes(input_type="FLOAT")))


def test_a_bundle_that_wants_another_engine_to_build_is_refused(make_bundle):
    with pytest.raises(BundleError, match="wants openvino to build an engine"):
        load(make_bundle(target="openvino"))


def test_bytes_that_are_no_engine_are_refused(gpu, make_bundle, monkeypatch, tmp_path):
    install(monkeypatch, "10.3", gpu)
    built = tmp_path / "built.edgecls"
    build_bundle(Bundle(make_bundle()), BuildOptions(), built, SilentProgress())
    bundle = Bundle(built)
    files = {name: bundle.read(name) for name in bundle.manifest.members} | {"model.engine": b"garbage"}
    write_bundle(built, msgspec.structs.replace(bundle.manifest, members=members_of(files)), files)
    with pytest.raises(BundleError, match=r"refuses the engine of net: Serialization assertion.*edgecls build"):
        load(built)


def test_host_code_runs_only_when_asked(gpu, make_bundle, monkeypatch):
    monkeypatch.setenv("EDGECLS_ENGINE_HOST_CODE", "1")
    trt = install(monkeypatch, "11", gpu)
    load(make_bundle()).close()
    assert called(trt, "deserialize_cuda_engine") == [(True,)]


def test_without_tensorrt_nothing_takes_its_place(make_bundle, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: pytest.fail("ONNX Runtime was asked"))
    for name in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match=r"--system-site-packages.*No other engine takes its place"):
        load(make_bundle())
    with pytest.raises(MissingExtraError, match="tensorrt-rtx"):
        load(make_bundle(target="tensorrt-rtx"))
    assert engine_module("tensorrt").version() is None
    assert engine_module("tensorrt-rtx").version() is None


def test_a_folder_of_type_stubs_is_no_tensorrt(tmp_path, monkeypatch):
    (tmp_path / "site" / "tensorrt").mkdir(parents=True)
    (tmp_path / "site" / "tensorrt" / "__init__.pyi").touch()
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert engine_module("tensorrt").version() is None


def test_no_driver_is_one_message(gpu, make_bundle, monkeypatch):
    install(monkeypatch, "10.3", gpu)
    install_cuda(monkeypatch, cuda_python=None)
    with pytest.raises(UnsupportedError, match="finds no GPU"):
        load(make_bundle())
    install_cuda(monkeypatch)
    with pytest.raises(UnsupportedError, match="cuda-bindings"):
        load(make_bundle())
