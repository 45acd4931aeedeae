"""A stand-in for an NVIDIA GPU, and for the two packages that drive it.

Work on the stream is done when it is waited for, and every call outside the GPU's context fails.
"""

# ruff: noqa: N802, N815 - the names are those of the real ones

from __future__ import annotations

import ctypes
import enum
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np


class Gpu:
    """Memory by address, one stream, and the threads that have made it theirs."""

    def __init__(self, name: str = "Orin", capability: tuple[int, int] = (8, 7), capacity_bytes: int = 1 << 30) -> None:
        self.name, self.capability, self.capacity_bytes = name, capability, capacity_bytes
        self.memory: dict[int, np.ndarray] = {}
        self.allocations = 0
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.replays = 0
        self.retained = 0
        self._next = 0x1000
        self._threads = threading.local()

    @property
    def depth(self) -> int:
        return getattr(self._threads, "depth", 0)

    def push(self) -> None:
        self._threads.depth = self.depth + 1

    def pop(self) -> None:
        assert self.depth > 0
        self._threads.depth -= 1

    def allocate(self, size: int) -> int | None:
        if sum(len(part) for part in self.memory.values()) + size > self.capacity_bytes:
            return None
        address, self._next = self._next, self._next + size + 256
        self.memory[address] = np.zeros(size, np.uint8)
        self.allocations += 1
        return address

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        queue, self.queue = self.queue, []
        for work in queue:
            work()


class CudaPython:
    """`cuda.bindings.driver`."""

    class Status(enum.IntEnum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_OUT_OF_MEMORY = 2
        CUDA_ERROR_NO_DEVICE = 100
        CUDA_ERROR_INVALID_CONTEXT = 201
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900

    CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )
    CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, gpu: Gpu | None, cuda: int = 12060) -> None:
        self.gpu, self.cuda = gpu, cuda
        self.pinned: dict[int, Any] = {}
        self.capture_works = True

    def _in_context(self, *results: Any) -> tuple[Any, ...]:
        assert self.gpu is not None
        ok = self.Status.CUDA_SUCCESS if self.gpu.depth else self.Status.CUDA_ERROR_INVALID_CONTEXT
        return (ok, *results)

    def cuInit(self, flags):
        return (self.Status.CUDA_SUCCESS if self.gpu else self.Status.CUDA_ERROR_NO_DEVICE,)

    def cuGetErrorString(self, status):
        return (self.Status.CUDA_SUCCESS, status.name.removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode())

    def cuDeviceGet(self, ordinal):
        return (self.Status.CUDA_SUCCESS, ordinal)

    def cuDeviceGetAttribute(self, attribute, device):
        return (self.Status.CUDA_SUCCESS, self.gpu.capability[attribute - 75])

    def cuDeviceGetName(self, length, device):
        return (self.Status.CUDA_SUCCESS, self.gpu.name.encode().ljust(length, b"\0"))

    def cuDriverGetVersion(self):
        return (self.Status.CUDA_SUCCESS, self.cuda)

    def cuDevicePrimaryCtxRetain(self, device):
        self.gpu.retained += 1
        return (self.Status.CUDA_SUCCESS, "context")

    def cuDevicePrimaryCtxRelease(self, device):
        self.gpu.retained -= 1
        return (self.Status.CUDA_SUCCESS,)

    def cuCtxPushCurrent(self, context):
        self.gpu.push()
        return (self.Status.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self):
        self.gpu.pop()
        return (self.Status.CUDA_SUCCESS, "context")

    def cuStreamCreate(self, flags):
        return self._in_context(77)

    def cuStreamDestroy(self, stream):
        return self._in_context()

    def cuMemAlloc(self, size):
        address = self.gpu.allocate(size)
        return self._in_context(address) if address else (self.Status.CUDA_ERROR_OUT_OF_MEMORY, None)

    def cuMemFree(self, address):
        del self.gpu.memory[address]
        return self._in_context()

    def cuMemHostAlloc(self, size, flags):
        buffer = (ctypes.c_uint8 * size)()
        self.pinned[ctypes.addressof(buffer)] = buffer
        self.gpu.allocations += 1
        return self._in_context(ctypes.addressof(buffer))

    def cuMemFreeHost(self, address):
        del self.pinned[address]
        return self._in_context()

    def cuMemcpyHtoDAsync(self, to, source, size, stream):
        self.gpu.enqueue(lambda: ctypes.memmove(self.gpu.memory[to].ctypes.data, source, size))
        return self._in_context()

    def cuMemcpyDtoHAsync(self, to, source, size, stream):
        self.gpu.enqueue(lambda: ctypes.memmove(to, self.gpu.memory[source].ctypes.data, size))
        return self._in_context()

    def cuStreamSynchronize(self, stream):
        self.gpu.synchronize()
        return self._in_context()

    def cuStreamBeginCapture(self, stream, mode):
        self.gpu.captured = []
        return self._in_context()

    def cuStreamEndCapture(self, stream):
        graph, self.gpu.captured = self.gpu.captured, None
        if not self.capture_works:
            return (self.Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None)
        return self._in_context(graph)

    def cuGraphInstantiate(self, graph, flags):
        return self._in_context(list(graph))

    def cuGraphLaunch(self, executable, stream):
        self.gpu.replays += 1
        self.gpu.queue.extend(executable)
        return self._in_context()

    def cuGraphDestroy(self, graph):
        return self._in_context()

    cuGraphExecDestroy = cuGraphDestroy

    def cuEventCreate(self, flags):
        return self._in_context("event")

    def cuEventRecord(self, event, stream):
        return self._in_context()

    def cuEventSynchronize(self, event):
        self.gpu.synchronize()
        return self._in_context()

    def cuEventElapsedTime(self, before, after):
        return self._in_context(1.25)

    def cuEventDestroy(self, event):
        return self._in_context()


def pycuda_driver(gpu: Gpu | None) -> types.SimpleNamespace:
    """`pycuda.driver`, which knows no CUDA graphs."""

    class Error(Exception):
        pass

    class LogicError(Error):
        pass

    class MemoryError(Error):
        pass

    def in_context() -> None:
        if not gpu.depth:
            raise LogicError("invalid device context")

    class Context:
        def push(self):
            gpu.push()

        @staticmethod
        def pop():
            gpu.pop()

        def detach(self):
            gpu.retained -= 1

    class Device:
        def __init__(self, ordinal):
            if gpu is None:
                raise LogicError("cuDeviceGet failed: no CUDA-capable device is detected")

        def name(self):
            return gpu.name

        def compute_capability(self):
            return gpu.capability

        def retain_primary_context(self):
            gpu.retained += 1
            return Context()

    class Stream:
        handle = 77

        def __init__(self):
            in_context()

        def synchronize(self):
            in_context()
            gpu.synchronize()

    class Event:
        def record(self, stream):
            in_context()

        def synchronize(self):
            gpu.synchronize()

        def time_till(self, other):
            return 1.25

    class Allocation:
        def __init__(self, address):
            self.address = address

        def __int__(self):
            return self.address

        def free(self):
            in_context()
            del gpu.memory[self.address]

    def mem_alloc(size):
        in_context()
        address = gpu.allocate(size)
        if address is None:
            raise MemoryError("cuMemAlloc failed: out of memory")
        return Allocation(address)

    def pagelocked_empty(shape, dtype):
        in_context()
        gpu.allocations += 1
        return np.empty(shape, dtype)

    def to_device(to, host, stream):
        in_context()
        gpu.enqueue(lambda: ctypes.memmove(gpu.memory[to].ctypes.data, host.ctypes.data, host.nbytes))

    def to_host(host, source, stream):
        in_context()
        gpu.enqueue(lambda: ctypes.memmove(host.ctypes.data, gpu.memory[source].ctypes.data, host.nbytes))

    return types.SimpleNamespace(
        init=lambda: None,
        Device=Device,
        Context=Context,
        Stream=Stream,
        Event=Event,
        Error=Error,
        LogicError=LogicError,
        MemoryError=MemoryError,
        get_driver_version=lambda: 12060,
        mem_alloc=mem_alloc,
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=to_device,
        memcpy_dtoh_async=to_host,
    )


def install_cuda(monkeypatch: Any, **gpus: Gpu | None) -> None:
    """Makes `pycuda` and `cuda_python` installed or not; a package with the GPU None finds none."""
    monkeypatch.delenv("EDGECLS_CUDA", raising=False)
    drivers = {
        "pycuda.driver": pycuda_driver(gpus["pycuda"]) if "pycuda" in gpus else None,
        "cuda.bindings.driver": CudaPython(gpus["cuda_python"]) if "cuda_python" in gpus else None,
    }
    for name, driver in drivers.items():
        monkeypatch.setitem(sys.modules, name, driver)
