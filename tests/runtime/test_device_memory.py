"""Both CUDA packages behind one Protocol, on a stand-in GPU; on a real one where there is one."""

from __future__ import annotations

import contextlib
import sys
import threading

import numpy as np
import pytest
from cuda_stand_in import Gpu, install_cuda

from edgecls.runtime.device_memory import driver_version, open_device_memory
from edgecls.runtime.errors import EngineError, InputError, UnsupportedError

PACKAGES = ["pycuda", "cuda-python"]


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture(params=PACKAGES)
def memory(request, gpu, monkeypatch):
    install_cuda(monkeypatch, **{request.param.replace("-", "_"): gpu})
    opened = open_device_memory()
    assert opened.package == request.param
    yield opened
    opened.close()


@pytest.fixture(params=PACKAGES)
def real_memory(request):
    try:
        opened = open_device_memory(request.param)
    except UnsupportedError as error:
        pytest.skip(f"no GPU that {request.param} can use here: {str(error)[:100]}")
    yield opened
    opened.close()


def round_trip(memory) -> None:
    with memory.current():
        address = memory.allocate(1000)
        there, back = memory.allocate_pinned(1000), memory.allocate_pinned(1000)
        assert there.dtype == np.uint8
        assert there.shape == (1000,)
        there[:] = np.arange(1000) % 251
        back[:] = 0
        memory.upload(address, there[:600])
        memory.download(back[:600], address)
        memory.synchronize()
    np.testing.assert_array_equal(back[:600], there[:600])
    assert not back[600:].any()


def test_bytes_survive_the_round_trip(memory):
    round_trip(memory)


def test_bytes_survive_the_round_trip_through_a_real_gpu(real_memory):
    round_trip(real_memory)
    assert real_memory.gpu.name
    with real_memory.current():
        assert real_memory.timed_ms(lambda: None) >= 0


def test_a_real_gpu_replays_a_captured_copy(real_memory):
    with real_memory.current():
        address, host = real_memory.allocate(4), real_memory.allocate_pinned(4)
        replay = real_memory.capture(lambda: real_memory.upload(address, host))
        assert (replay is None) == (real_memory.package == "pycuda")
        if replay is not None:
            host[:] = 7
            replay()
            back = real_memory.allocate_pinned(4)
            real_memory.download(back, address)
            real_memory.synchronize()
            assert list(back) == [7, 7, 7, 7]


def test_the_gpu_is_described(memory):
    assert memory.gpu.name == "Orin"
    assert memory.gpu.compute_capability == "8.7"
    assert memory.gpu.cuda_version == "12.6"


def test_any_thread_may_use_the_gpu(memory):
    thread = threading.Thread(target=round_trip, args=(memory,))
    thread.start()
    thread.join()
    round_trip(memory)


def test_closing_frees_everything_and_twice_is_fine(memory, gpu):
    with memory.current():
        memory.allocate(100)
        memory.allocate_pinned(100)
    memory.close()
    memory.close()
    assert gpu.memory == {}
    assert gpu.retained == 0
    assert gpu.depth == 0


def test_a_failure_leaves_the_context_as_it_was(memory, gpu):
    def interrupted():
        with memory.current():
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        interrupted()
    assert gpu.depth == 0


def test_too_little_memory_is_told_with_the_size_and_what_to_do(memory):
    with memory.current(), pytest.raises(EngineError, match=r"no 5000\.0 MB left.*--max-batch 1"):
        memory.allocate(5_000_000_000)


def test_what_is_captured_runs_when_it_is_replayed(gpu, monkeypatch):
    install_cuda(monkeypatch, cuda_python=gpu)
    memory = open_device_memory()
    with memory.current():
        address, host = memory.allocate(4), memory.allocate_pinned(4)
        replay = memory.capture(lambda: memory.upload(address, host))
        memory.synchronize()
        host[:] = 9
        assert not gpu.memory[address].any()
        replay()
        memory.synchronize()
        assert list(gpu.memory[address]) == [9, 9, 9, 9]
    memory.close()


def test_work_that_cannot_be_captured_is_none(gpu, monkeypatch):
    install_cuda(monkeypatch, cuda_python=gpu)
    sys.modules["cuda.bindings.driver"].capture_works = False
    memory = open_device_memory()
    with memory.current():
        assert memory.capture(lambda: None) is None
    memory.close()


def test_pycuda_comes_first_and_the_environment_overrides(gpu, monkeypatch):
    install_cuda(monkeypatch, pycuda=gpu, cuda_python=gpu)
    assert open_device_memory().package == "pycuda"
    assert open_device_memory("cuda-python").package == "cuda-python"
    monkeypatch.setenv("EDGECLS_CUDA", "cuda-python")
    assert open_device_memory().package == "cuda-python"
    monkeypatch.setenv("EDGECLS_CUDA", "cupy")
    with pytest.raises(InputError, match="EDGECLS_CUDA is 'cupy'; it may be pycuda or cuda-python"):
        open_device_memory()


def test_no_package_names_what_to_install(monkeypatch):
    install_cuda(monkeypatch)
    with pytest.raises(UnsupportedError, match=r"pip install 'cuda-bindings==12\.\*'.*JetPack 6.*pycuda"):
        open_device_memory()


def test_the_package_that_was_asked_for_is_not_swapped(gpu, monkeypatch):
    install_cuda(monkeypatch, cuda_python=gpu)
    with pytest.raises(UnsupportedError, match="pycuda is not installed"):
        open_device_memory("pycuda")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_gpu_is_told(package, monkeypatch):
    install_cuda(monkeypatch, **{package.replace("-", "_"): None})
    with pytest.raises(UnsupportedError, match=r"finds no GPU that this process may use.*CUDA_VISIBLE_DEVICES"):
        open_device_memory()


def test_no_driver_is_told(gpu, monkeypatch):
    install_cuda(monkeypatch, cuda_python=gpu)

    def look_for_libcuda(flags):
        raise RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search.')

    monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuInit", look_for_libcuda)
    with pytest.raises(UnsupportedError, match=r"there is no CUDA driver here: cuda-python says .*NVIDIA runtime"):
        open_device_memory()


def test_the_real_cuda_bindings_tell_of_a_missing_driver():
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed here")
    with contextlib.suppress(Exception):
        driver.cuInit(0)
        pytest.skip("there is a CUDA driver here")
    with pytest.raises(UnsupportedError, match="there is no CUDA driver here"):
        open_device_memory("cuda-python")


def test_the_driver_version_comes_from_the_kernel_module(tmp_path):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain@mobile)\nGCC"
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == "540.4.0"
    assert driver_version(tmp_path / "absent") == ""
