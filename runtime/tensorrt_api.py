"""What we use of TensorRT's Python API: names that every version from 8.6 to 11 has, and TensorRT-RTX too.

Everything else (flags above all, which moved and were removed) is asked for by name and may be absent.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgecls.runtime.errors import MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    import tensorrt


class TensorRt(Protocol):
    """The module `tensorrt`, or `tensorrt_rtx_bindings`."""

    def __hash__(self) -> int: ...
    @property
    def __version__(self) -> str: ...
    @property
    def Builder(self) -> type[tensorrt.Builder]: ...  # noqa: D102, N802
    @property
    def OnnxParser(self) -> type[tensorrt.OnnxParser]: ...  # noqa: D102, N802
    @property
    def Runtime(self) -> type[tensorrt.Runtime]: ...  # noqa: D102, N802
    @property
    def ILogger(self) -> type[tensorrt.ILogger]: ...  # noqa: D102, N802
    @property
    def BuilderFlag(self) -> type[tensorrt.BuilderFlag]: ...  # noqa: D102, N802
    @property
    def NetworkDefinitionCreationFlag(self) -> type[tensorrt.NetworkDefinitionCreationFlag]: ...  # noqa: D102, N802
    @property
    def Dims(self) -> type[tensorrt.Dims]: ...  # noqa: D102, N802
    @property
    def MemoryPoolType(self) -> type[tensorrt.MemoryPoolType]: ...  # noqa: D102, N802
    @property
    def TensorIOMode(self) -> type[tensorrt.TensorIOMode]: ...  # noqa: D102, N802


@dataclass(frozen=True)
class Library:
    """One of the two libraries that speak this API."""

    name: str
    """Name of the engine: `tensorrt`, `tensorrt-rtx`."""
    title: str
    """For people."""
    module: str
    """Module of the Python API."""
    before: tuple[str, ...]
    """Modules that must be imported first."""
    distributions: tuple[str, ...]
    """Distributions whose version is the library's, the first that is installed."""
    extra: str | None
    """The pip extra that brings it; None where the operating system does."""
    timing_cache: bool
    """Whether builds get faster by the timings of earlier ones."""

    def version(self) -> str | None:
        """Version of the installed library without importing it; None where it is not installed."""
        # A folder of type stubs alone also passes for a package, but has no __init__.py and hence no origin.
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            return None
        found = (part.version for name in self.distributions for part in metadata.distributions(name=name))
        return next(found, "unknown")

    def export_again(self, trt: TensorRt) -> str:
        """The command that makes a bundle for the version that is here."""
        numbers = ".".join(trt.__version__.split(".")[:2])
        if self.extra is None:
            return f"Export it again with --tensorrt-version {numbers}"
        return f"Export it again where {self.title} {numbers} is installed"

    def load(self, purpose: str) -> TensorRt:
        """Imports the library.

        Args:
            purpose: What it is needed for, as the beginning of a sentence.

        Raises:
            MissingExtraError: It is not installed, and an extra brings it.
            UnsupportedError: It is not installed, and comes with the system.
        """
        found = "it is not installed"
        try:
            if self.version() is not None:
                for name in self.before:
                    importlib.import_module(name)
                return cast(TensorRt, importlib.import_module(self.module))
        except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
            found = str(error)
        if self.extra is not None:
            raise MissingExtraError(self.extra, purpose, found)
        raise UnsupportedError(
            f"{purpose} needs {self.title}, which Python does not find here ({found}). On a Jetson it comes with "
            "JetPack: sudo apt install nvidia-jetpack, and make the virtual environment with --system-site-packages. "
            "On a PC: pip install tensorrt. No other engine takes its place: export for onnxruntime or openvino to run "
            "without it."
        )


def version_tuple(version: str) -> tuple[int, ...]:
    """`10.3.0.26` as numbers, for comparing; what is no number ends it."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def member(enumeration: Any, name: str) -> Any | None:
    """The member of an enumeration, or None where this version has none of that name."""
    return getattr(enumeration, name, None)


def sides(dims: tensorrt.Dims) -> tuple[int, ...]:
    """A shape as numbers; -1 is a dimension that is not fixed."""
    return tuple(int(dims[index]) for index in range(len(dims)))


@functools.cache
def error_log(trt: TensorRt) -> Any:
    """The logger of a library, with the list `errors` of what went wrong.

    TensorRT returns None or False where something fails; the reason stands in the log alone. It has one logger in a
    process, the first that it is given, so there is one for all builders and runtimes. Warnings are about our own
    graphs: no news to the user.
    """
    errors: list[str] = []

    def create(self: tensorrt.ILogger) -> None:
        trt.ILogger.__init__(self)

    def log(self: tensorrt.ILogger, severity: tensorrt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            errors.append(" ".join(msg.split()))

    # `class Log(trt.ILogger)` would need the library, or its type stubs, wherever the types are checked.
    return type("ErrorLog", (trt.ILogger,), {"__init__": create, "log": log, "errors": errors})()


class Reasons:
    """Why an operation failed: what the log heard since it began."""

    def __init__(self, trt: TensorRt) -> None:
        self._errors: list[str] = error_log(trt).errors
        self._begin = len(self._errors)

    def text(self, error: BaseException | None = None) -> str:
        """The reasons, and what was raised, without repetitions and at most the first five."""
        said = list(dict.fromkeys([*self._errors[self._begin :], *([str(error)] if error and str(error) else [])]))
        more = f" (and {len(said) - 5} more)" if len(said) > 5 else ""
        return ("; ".join(said[:5]) + more) or "it gives no reason"


def is_out_of_memory(text: str) -> bool:
    """Whether a reason of TensorRT's is a lack of memory."""
    text = text.lower()
    return any(
        sign in text for sign in ("out of memory", "outofmemory", "cudaerrormemoryallocation", "insufficient memory")
    )
