"""Memory of an NVIDIA GPU and the stream that works on it, by whichever of two packages is installed.

PyCUDA comes with many Jetson images; NVIDIA itself has moved to cuda-python, whose `cuda-bindings` has wheels. Both
drive the primary context, the one that TensorRT uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.errors import EdgeclsError, EngineError, InputError, UnsupportedError

CHOICE = "EDGECLS_CUDA"
"""Environment variable that names the package to use: `pycuda` or `cuda-python`."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver says of the GPU."""

    name: str
    compute_capability: str
    """`8.7`."""
    cuda_version: str
    """That the driver offers: `12.6`."""
    driver_version: str
    """Of the kernel module; empty where the system does not tell."""


class DeviceMemory(Protocol):
    """One GPU, one stream, and buffers that are allocated once and freed together.

    All but `current` and `close` must be called inside `with memory.current()`.
    """

    package: str
    """`pycuda` or `cuda-python`."""
    gpu: Gpu
    stream: int
    """Handle of the stream, as TensorRT takes it."""

    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU the calling thread's for the block."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Address of new memory on the GPU.

        Raises:
            EngineError: The GPU has not enough of it.
        """
        ...

    def allocate_pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """New memory on the host that the GPU copies from and to without detour, `uint8 [size_bytes]`."""
        ...

    def upload(self, address: int, host: NDArray[Any]) -> None:
        """Enqueues a copy of a contiguous part of pinned memory to the GPU."""
        ...

    def download(self, host: NDArray[Any], address: int) -> None:
        """Enqueues a copy from the GPU to a contiguous part of pinned memory."""
        ...

    def synchronize(self) -> None:
        """Waits for everything that was enqueued."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """Records what a function enqueues, as a CUDA graph.

        Returns:
            A function that enqueues all of it at once; None where the package or the work cannot be captured.
        """
        ...

    def timed_ms(self, enqueue: Callable[[], None]) -> float:
        """Runs a function and returns the time between events before and after what it enqueued."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...


def open_device_memory(package: str | None = None) -> DeviceMemory:
    """The first GPU that this process may use (CUDA_VISIBLE_DEVICES), by an installed package, PyCUDA first.

    Args:
        package: `pycuda` or `cuda-python`; by default what EDGECLS_CUDA says, else what is installed.

    Raises:
        InputError: There is no package of that name.
        UnsupportedError: None is installed, or there is no CUDA driver or GPU here; the message says which.
    """
    wanted = package or os.environ.get(CHOICE)
    if wanted is not None and wanted not in _PACKAGES:
        raise InputError(f"{CHOICE} is {wanted!r}; it may be {' or '.join(_PACKAGES)}")
    problems = []
    for name in [wanted] if wanted else list(_PACKAGES):
        module, open_package = _PACKAGES[name]
        try:
            driver = importlib.import_module(module)
        except ModuleNotFoundError as error:
            problems.append(f"{name} is not installed ({error})")
        except Exception as error:  # PyCUDA links against the driver: without one, its import fails.
            raise _no_driver(name, error) from error
        else:
            return open_package(driver)
    raise UnsupportedError(
        f"TensorRT needs a package that manages the GPU's memory: {'; '.join(problems)}. Install one: pip install "
        "'cuda-bindings==12.*' where the driver offers CUDA 12 (JetPack 6), 'cuda-bindings==13.*' where it offers "
        "CUDA 13 (JetPack 7), or pycuda where the CUDA toolkit is."
    )


class CudaPythonMemory:
    """`DeviceMemory` by cuda-python (`cuda.bindings.driver`)."""

    package = "cuda-python"

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._free: list[tuple[Callable[[Any], Any], Any]] = []
        try:
            status = driver.cuInit(0)[0]
        except Exception as error:  # it looks for libcuda now
            raise _no_driver(self.package, error) from error
        if int(status) != 0:
            raise _no_gpu(self._text(status))
        device = self._call(driver.cuDeviceGet, 0)
        attribute = driver.CUdevice_attribute
        major, minor = (
            self._call(
                driver.cuDeviceGetAttribute,
                getattr(attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"),
                device,
            )
            for part in ("MAJOR", "MINOR")
        )
        name = self._call(driver.cuDeviceGetName, 128, device)
        self.gpu = _gpu(
            name.split(b"\0")[0].decode(errors="replace"), (major, minor), self._call(driver.cuDriverGetVersion)
        )
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, device)
        self._device = device
        with self.current():
            stream_flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._stream = self._call(driver.cuStreamCreate, int(stream_flag))
            self._free.append((driver.cuStreamDestroy, self._stream))
        self.stream = int(self._stream)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """As `DeviceMemory.current`."""
        self._call(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._call(self._driver.cuCtxPopCurrent)

    def allocate(self, size_bytes: int) -> int:
        """As `DeviceMemory.allocate`."""
        address = self._call(self._driver.cuMemAlloc, size_bytes, size_bytes=size_bytes)
        self._free.append((self._driver.cuMemFree, address))
        return int(address)

    def allocate_pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """As `DeviceMemory.allocate_pinned`."""
        address = self._call(self._driver.cuMemHostAlloc, size_bytes, 0, size_bytes=size_bytes)
        self._free.append((self._driver.cuMemFreeHost, address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(int(address)))

    def upload(self, address: int, host: NDArray[Any]) -> None:
        """As `DeviceMemory.upload`."""
        self._call(self._driver.cuMemcpyHtoDAsync, address, host.ctypes.data, host.nbytes, self._stream)

    def download(self, host: NDArray[Any], address: int) -> None:
        """As `DeviceMemory.download`."""
        self._call(self._driver.cuMemcpyDtoHAsync, host.ctypes.data, address, host.nbytes, self._stream)

    def synchronize(self) -> None:
        """As `DeviceMemory.synchronize`."""
        self._call(self._driver.cuStreamSynchronize, self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """As `DeviceMemory.capture`; None where something that was enqueued may not be captured."""
        driver = self._driver
        # Other threads may use the GPU meanwhile: only what this thread does can spoil the capture.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(driver.cuStreamBeginCapture, self._stream, mode)
        failure = None
        try:
            enqueue()
        except EdgeclsError as error:
            failure = error
        finally:
            status, graph = driver.cuStreamEndCapture(self._stream)
        if failure is not None or int(status) != 0:
            return None
        self._free.append((driver.cuGraphDestroy, graph))
        executable = self._call(driver.cuGraphInstantiate, graph, 0)
        self._free.append((driver.cuGraphExecDestroy, executable))
        return lambda: self._call(driver.cuGraphLaunch, executable, self._stream)

    def timed_ms(self, enqueue: Callable[[], None]) -> float:
        """As `DeviceMemory.timed_ms`."""
        driver = self._driver
        before, after = (self._call(driver.cuEventCreate, 0) for _ in range(2))
        try:
            self._call(driver.cuEventRecord, before, self._stream)
            enqueue()
            self._call(driver.cuEventRecord, after, self._stream)
            self._call(driver.cuEventSynchronize, after)
            return float(self._call(driver.cuEventElapsedTime, before, after))
        finally:
            for event in (before, after):
                self._call(driver.cuEventDestroy, event)

    def close(self) -> None:
        """As `DeviceMemory.close`."""
        if self._context is None:
            return
        with self.current():
            while self._free:
                free, what = self._free.pop()
                self._call(free, what)
        self._context = None
        self._call(self._driver.cuDevicePrimaryCtxRelease, self._device)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any, size_bytes: int | None = None) -> Any:
        status, *results = function(*arguments)
        if int(status) != 0:
            raise _failed(function.__name__, self._text(status), size_bytes)
        return results[0] if results else None

    def _text(self, status: Any) -> str:
        text = self._driver.cuGetErrorString(status)[1]
        return f"{getattr(status, 'name', status)}: {text.decode() if text else 'unknown error'}"


class PyCudaMemory:
    """`DeviceMemory` by PyCUDA, which cannot capture CUDA graphs."""

    package = "pycuda"

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        try:
            driver.init()
            device = driver.Device(0)
        except Exception as error:
            raise _no_gpu(str(error)) from error
        self.gpu = _gpu(device.name(), device.compute_capability(), driver.get_driver_version())
        self._context: Any = device.retain_primary_context()
        self._kept: list[Any] = []
        with self.current():
            self._stream: Any = driver.Stream()
        self.stream = int(self._stream.handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """As `DeviceMemory.current`."""
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, size_bytes: int) -> int:
        """As `DeviceMemory.allocate`."""
        with self._failures("mem_alloc", size_bytes):
            allocation = self._driver.mem_alloc(size_bytes)
        self._kept.append(allocation)
        return int(allocation)

    def allocate_pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """As `DeviceMemory.allocate_pinned`."""
        with self._failures("pagelocked_empty", size_bytes):
            array: NDArray[np.uint8] = self._driver.pagelocked_empty(size_bytes, np.uint8)
        return array

    def upload(self, address: int, host: NDArray[Any]) -> None:
        """As `DeviceMemory.upload`."""
        with self._failures("memcpy_htod_async"):
            self._driver.memcpy_htod_async(address, host, self._stream)

    def download(self, host: NDArray[Any], address: int) -> None:
        """As `DeviceMemory.download`."""
        with self._failures("memcpy_dtoh_async"):
            self._driver.memcpy_dtoh_async(host, address, self._stream)

    def synchronize(self) -> None:
        """As `DeviceMemory.synchronize`."""
        with self._failures("synchronize"):
            self._stream.synchronize()

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """None: PyCUDA cannot."""
        return None

    def timed_ms(self, enqueue: Callable[[], None]) -> float:
        """As `DeviceMemory.timed_ms`."""
        before, after = self._driver.Event(), self._driver.Event()
        before.record(self._stream)
        enqueue()
        after.record(self._stream)
        after.synchronize()
        return float(before.time_till(after))

    def close(self) -> None:
        """As `DeviceMemory.close`."""
        if self._context is None:
            return
        with self.current():
            while self._kept:
                self._kept.pop().free()
            self._stream = None
        self._context.detach()
        self._context = None

    @contextlib.contextmanager
    def _failures(self, what: str, size_bytes: int | None = None) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise _failed(what, f"{type(error).__name__}: {error}", size_bytes) from error


_PACKAGES: dict[str, tuple[str, Callable[[Any], DeviceMemory]]] = {
    "pycuda": ("pycuda.driver", PyCudaMemory),
    "cuda-python": ("cuda.bindings.driver", CudaPythonMemory),
}
"""In the order in which they are looked for: module, implementation."""


def _gpu(name: str, capability: tuple[int, int], cuda: int) -> Gpu:
    return Gpu(
        name=name,
        compute_capability=f"{capability[0]}.{capability[1]}",
        cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
        driver_version=driver_version(),
    )


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Version of NVIDIA's kernel module, `540.4.0`; empty where the system does not tell."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)*)\s", path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""


def _no_driver(package: str, error: Exception) -> UnsupportedError:
    said = str(error).strip(". ") or type(error).__name__
    return UnsupportedError(
        f"there is no CUDA driver here: {package} says {said}. TensorRT bundles "
        "run on machines with an NVIDIA GPU and its driver (in a container: start it with the NVIDIA runtime); export "
        "for onnxruntime or openvino to run on this CPU."
    )


def _no_gpu(text: str) -> UnsupportedError:
    return UnsupportedError(
        f"the CUDA driver finds no GPU that this process may use ({text}). Check nvidia-smi (tegrastats on a Jetson) "
        f"and CUDA_VISIBLE_DEVICES, which is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}."
    )


def _failed(what: str, text: str, size_bytes: int | None) -> EngineError:
    if "memory" in text.lower() and size_bytes is not None:
        return EngineError(
            f"the GPU has no {size_bytes / 1e6:.1f} MB left ({what}: {text}). Close what else uses it (a Jetson shares "
            "its memory with the CPU), or build for a smaller batch: edgecls build BUNDLE --max-batch 1 -o BUILT"
        )
    return EngineError(
        f"CUDA failed in {what}: {text}. Load the bundle again; if it happens again, restart the process."
    )
