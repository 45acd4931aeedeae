"""Stand-ins for TensorRT 8.6, 10.3, 11 and RTX, which record what is called.

They know what the real ones know and no more: a name that a version lacks raises AttributeError. "Graphs" are JSON; the
"network" multiplies the sum of the pixels.
"""

# ruff: noqa: N818 - the names are those of the real ones

from __future__ import annotations

import enum
import hashlib
import importlib.machinery
import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda_stand_in import Gpu, install_cuda
from PIL import Image

from edgecls.runtime import Labels, Preprocess
from edgecls.runtime.bundle import GoldenSample, Manifest, Passport, Provenance, TensorRtPassport
from edgecls.runtime.bundle_writer import members_of, write_bundle

MAGIC = b"stand-in plan\n"

NETWORK_FLAGS = {
    "8.6": {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
    "10.3": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "11": {"STRONGLY_TYPED": 0},
    "rtx": {"STRONGLY_TYPED": 0},
}
BUILDER_FLAGS = {
    "8.6": ("FP16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "VERSION_COMPATIBLE"),
    "10.3": ("FP16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "TF32", "VERSION_COMPATIBLE", "BF16", "FP8"),
    "11": ("DEBUG", "GPU_FALLBACK", "REFIT", "TF32", "VERSION_COMPATIBLE"),
    "rtx": ("DEBUG", "GPU_FALLBACK", "REFIT", "TF32", "VERSION_COMPATIBLE"),
}
FULL_VERSIONS = {"8.6": "8.6.2.3", "10.3": "10.3.0.30", "11": "11.4.1.7", "rtx": "1.7.1.116"}


def graph_bytes(classes: int = 7, crop: int = 32, **trouble: Any) -> bytes:
    """A graph for the stand-in; `bad_node`, `build_error` make it fail."""
    return json.dumps({"classes": classes, "crop": crop, **trouble}).encode()


def expected_logits(images: np.ndarray, classes: int = 7) -> np.ndarray:
    """What the network answers."""
    sums = images.reshape(len(images), -1).sum(1, dtype=np.float64)
    return ((sums[:, None] % 1000) * np.arange(1, classes + 1)).astype(np.float32)


class TensorRt(types.ModuleType):
    """The module `tensorrt` of one version. `calls` has the names and arguments of what was called."""

    def __init__(self, version: str, gpu: Gpu) -> None:
        super().__init__("tensorrt")
        self.__version__ = FULL_VERSIONS[version]
        self.gpu = gpu
        self.calls: list[tuple[Any, ...]] = []
        self.builds = 0
        self.before_build: Callable[[], None] = lambda: None
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", NETWORK_FLAGS[version])
        self.BuilderFlag = enum.IntEnum("BuilderFlag", {name: i for i, name in enumerate(BUILDER_FLAGS[version])})
        self.MemoryPoolType = enum.IntEnum("MemoryPoolType", {"WORKSPACE": 0})
        self.TensorIOMode = enum.IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
        self.DataType = enum.IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2, "UINT8": 5})
        self.ILogger, self.Dims = _Logger, tuple
        self.Builder = lambda logger: _Builder(self, logger)
        self.OnnxParser = lambda network, logger: _Parser(self, network, logger)
        self.Runtime = lambda logger: _Runtime(self, logger)
        if version != "8.6":
            self.IProgressMonitor = _Monitor
        if version == "rtx":
            self.DynamicShapesKernelSpecializationStrategy = enum.IntEnum(
                "Strategy", {"LAZY": 0, "EAGER": 1, "NONE": 2}
            )
        self.version = version

    def error(self, logger: Any, text: str) -> None:
        """What the real one says in its log before it returns None."""
        assert logger.constructed, "ILogger.__init__ was not called"
        logger.log(_Logger.ERROR, text)


def install(monkeypatch: Any, version: str, gpu: Gpu, package: str = "cuda-python") -> TensorRt:
    """Makes this machine one with a GPU, one CUDA package, and TensorRT of a version (TensorRT-RTX too)."""
    trt = TensorRt(version, gpu)
    for name in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, trt)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", types.ModuleType("tensorrt_rtx_libs"))
    trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None, origin="a stand-in")
    install_cuda(monkeypatch, **{package.replace("-", "_"): gpu})
    return trt


WEAK, STRONG = ("weak", "8.6", ("FP16", "INT8")), ("strong", "10.0", ())
"""Dialect, oldest version, flags."""


def write_unbuilt_bundle(
    path: Path, dialect: Any = STRONG, graph: bytes | None = None, target: str = "tensorrt"
) -> Path:
    """A bundle as a workstation exports it, whose golden sample the stand-in answers right."""
    kind, minimum, flags = dialect
    preprocess = Preprocess(resize_px=32, crop_px=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(png, "PNG")
    pixels = preprocess.pixels(png.getvalue())
    logits = tuple(float(logit) for logit in expected_logits(pixels[None])[0])
    files = {"model.onnx": graph or graph_bytes(), "golden/a.png": png.getvalue()}
    tensorrt = TensorRtPassport(dialect=kind, minimum_version=minimum, build="on-device", flags=flags)
    manifest = Manifest(
        name=path.stem,
        target=target,
        precision="int8",
        preprocess=preprocess,
        labels=Labels(tuple(f"class {index}" for index in range(7))),
        padding=None,
        artifact=("model.onnx",),
        passport=Passport(
            engine_version="onnx", isa=None, activations="int8", nodes=0, nodes_int8=0, tensorrt=tensorrt
        ),
        provenance=Provenance(
            model="net",
            checkpoint_sha256=None,
            graph_sha256="0",
            plan_sha256=None,
            quantizer=None,
            calibration=None,
            preprocess_source={},
            versions={},
        ),
        golden=(GoldenSample("golden/a.png", hashlib.sha256(pixels.tobytes()).hexdigest(), logits),),
        golden_tolerance=1.0,
        members=members_of(files),
    )
    write_bundle(path, manifest, files)
    return path


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
    constructed = False

    def __init__(self) -> None:
        self.constructed = True


class _Monitor:
    def __init__(self) -> None:
        self.constructed = True


class _Builder:
    def __init__(self, trt: TensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int) -> _Network:
        known = {1 << int(flag): flag.name for flag in self._trt.NetworkDefinitionCreationFlag}
        names = {name for bit, name in known.items() if flags & bit}
        assert flags == sum(bit for bit, name in known.items() if name in names), "a bit without a flag"
        self._trt.calls.append(("create_network", frozenset(names)))
        return _Network()

    def create_builder_config(self) -> Any:
        return (_Config if self._trt.version == "8.6" else _ConfigWithMonitor)(self._trt)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        trt = self._trt
        assert trt.gpu.depth, "built outside the GPU's context"
        assert config.profile is not None, "a dynamic network without an optimization profile"
        trt.builds += 1
        trt.calls.append(("build", frozenset(config.flags)))
        trt.before_build()
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building", None, 3)
            finished = all(monitor.step_complete("Building", step) for step in range(3))
            monitor.phase_finish("Building")
            if not finished:
                return None
        if "build_error" in network.content:
            trt.error(self._logger, network.content["build_error"])
            return None
        if config.timing is not None:
            config.timing.data += b"+timed"
        plan = {**network.content, "max_batch": config.profile[2][0], "version": trt.version}
        return MAGIC + json.dumps(plan).encode()


class _Network:
    content: dict[str, Any]

    def get_input(self, index: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(name="image", shape=(-1, self.content["crop"], self.content["crop"], 3))


class _Profile:
    def set_shape(self, name, smallest, usual, largest):
        assert name == "image"
        self.shapes = (smallest, usual, largest)


class _Timing:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class _Config:
    __slots__ = ("_trt", "flags", "profile", "timing")

    def __init__(self, trt: TensorRt) -> None:
        self._trt, self.flags, self.profile, self.timing = trt, {"TF32"}, None, None

    def set_memory_pool_limit(self, pool, size):
        self._trt.calls.append(("set_memory_pool_limit", pool.name, size))

    def set_flag(self, flag):
        self.flags.add(self._trt.BuilderFlag(flag).name)

    def clear_flag(self, flag):
        self.flags.discard(self._trt.BuilderFlag(flag).name)

    def add_optimization_profile(self, profile):
        self.profile = profile.shapes
        return 0

    def create_timing_cache(self, data):
        return _Timing(data) if data in (b"",) or data.endswith(b"+timed") else None

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self._trt.calls.append(("set_timing_cache", cache.data))
        self.timing = cache
        return True

    def get_timing_cache(self):
        return self.timing


class _ConfigWithMonitor(_Config):
    __slots__ = ("progress_monitor",)

    def __init__(self, trt: TensorRt) -> None:
        super().__init__(trt)
        self.progress_monitor = None


class _ParserError:
    def __init__(self, text: str, node: int) -> None:
        self._text, self._node = text, node

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return self._node


class _ParserErrorWithName(_ParserError):
    def node_name(self) -> str:
        return "layer3.conv"

    def node_operator(self) -> str:
        return "Conv"


class _Parser:
    def __init__(self, trt: TensorRt, network: _Network, logger: Any) -> None:
        self._trt, self._network, self._logger = trt, network, logger
        self._errors: list[_ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]

    def parse(self, model: bytes) -> bool:
        self._network.content = json.loads(model)
        if text := self._network.content.get("bad_node"):
            self._trt.error(self._logger, f"ModelImporter.cpp:1: {text}")
            self._errors.append((_ParserError if self._trt.version == "8.6" else _ParserErrorWithName)(text, 17))
        return not self._errors


class _Runtime:
    def __init__(self, trt: TensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        trt = self._trt
        assert trt.gpu.depth, "deserialised outside the GPU's context"
        trt.calls.append(("deserialize_cuda_engine", self.engine_host_code_allowed))
        if not plan.startswith(MAGIC):
            trt.error(self._logger, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        return _Engine(trt, json.loads(plan.removeprefix(MAGIC)), self._logger)


class _Engine:
    num_io_tensors = 2

    def __init__(self, trt: TensorRt, content: dict[str, Any], logger: Any) -> None:
        self.trt, self.content, self.logger = trt, content, logger
        side = content["crop"]
        self.shapes = {"image": (-1, side, side, 3), "logits": (-1, content["classes"])}

    def get_tensor_name(self, index):
        return ("image", "logits")[index]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name == "image" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.trt.DataType[self.content.get("input_type", "UINT8") if name == "image" else "FLOAT"]

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def get_tensor_profile_shape(self, name, profile):
        assert name == "image"
        return [(batch, *self.shapes["image"][1:]) for batch in (1, 1, self.content["max_batch"])]

    def create_execution_context(self, config=None):
        strategy = None if config is None else config.dynamic_shapes_kernel_specialization_strategy.name
        self.trt.calls.append(("create_execution_context", strategy))
        if "context_error" in self.content:
            self.trt.error(self.logger, self.content["context_error"])
            return None
        return (_CapturableContext if self.trt.version == "rtx" else _Context)(self)

    def create_runtime_config(self):
        assert self.trt.version == "rtx"
        return types.SimpleNamespace()


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._addresses, self._batch = engine, {}, 0

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        self._batch = shape[0]
        return 1 <= shape[0] <= self._engine.content["max_batch"]

    def execute_async_v3(self, stream):
        gpu, content, batch = self._engine.trt.gpu, self._engine.content, self._batch
        assert stream == 77
        assert gpu.depth, "run outside the GPU's context"
        if "run_error" in content:
            self._engine.trt.error(self._engine.logger, content["run_error"])
            return False
        if gpu.captured is not None and batch != 1:
            raise AssertionError("a batch whose shape changes was captured")
        source, to = gpu.memory[self._addresses["image"]], gpu.memory[self._addresses["logits"]]

        def run() -> None:
            size = batch * content["crop"] ** 2 * 3
            logits = expected_logits(source[:size].reshape(batch, -1), content["classes"]).tobytes()
            to[: len(logits)] = np.frombuffer(logits, np.uint8)

        gpu.enqueue(run)
        return True


class _CapturableContext(_Context):
    def is_stream_capturable(self, stream):
        return self._engine.content.get("capturable", True)
