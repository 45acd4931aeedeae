"""A bundle that is ready to classify pictures."""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.runtime import fast
from edgecls.runtime.bundle import Bundle, Manifest, Padding, ReplacedError
from edgecls.runtime.canvas import Canvas
from edgecls.runtime.cpu import cpu_count, cpu_isa, saturates
from edgecls.runtime.engine_build import BuildOptions, built_artifact
from edgecls.runtime.engines import Engine, EngineInfo, engine_module, engine_names
from edgecls.runtime.errors import BundleError, EngineError, InputError, UnsupportedError
from edgecls.runtime.forked import ForkedEngine, skip_exit_handlers
from edgecls.runtime.picture_limits import DEFAULT_LIMITS, PictureLimits
from edgecls.runtime.preprocess import Picture, Preprocess
from edgecls.runtime.progress import PlainProgress, Progress


class Prediction(msgspec.Struct, frozen=True):
    """One class of a ranked answer."""

    index: int
    label: str
    score: float
    """Softmax probability, 0..1."""


MAX_THREADS = 1024
"""Of one inference, or that classify a stream: engines start as many as they are told, and the system runs out."""

_KEPT_BATCH = 64
"""Buffers for larger batches are not kept for the next call."""


class Session:
    """Runs one bundle. A context manager; safe to use from several threads, useless in a forked child.

    Attributes:
        bundle: What runs.
        preprocess: How pictures become crops.
        engine: The loaded graph; it wants crops that are padded as the manifest says.
        engine_info: What runs it, as the engine reports.
        limits: Which pictures are taken.
    """

    def __init__(self, bundle: Bundle, engine: Engine, limits: PictureLimits = DEFAULT_LIMITS) -> None:
        self.bundle = bundle
        self.preprocess: Preprocess = bundle.manifest.preprocess
        self.limits = limits
        self.engine = engine
        self._padding = bundle.manifest.padding
        self._idle: deque[Canvas] = deque()
        self._classes = len(bundle.manifest.labels)
        _sessions.add(self)

    @property
    def engine_info(self) -> EngineInfo:
        """What actually runs the graph."""
        return self.engine.info

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the graph on crops `uint8 [batch, crop, crop, 3]`, RGB (or one `[crop, crop, 3]`).

        Returns:
            `float32 [batch, classes]`.

        Raises:
            InputError: The array has another type or shape.
        """
        if not isinstance(crops, np.ndarray):
            raise InputError(f"logits() takes a numpy array, not a {type(crops).__name__}: np.asarray(crops, np.uint8)")
        crops = crops[None] if crops.ndim == 3 else crops
        side = self.preprocess.crop_px
        if crops.dtype != np.uint8 or crops.shape[1:] != (side, side, 3) or not len(crops):
            raise InputError(
                f"logits() takes uint8 [batch, {side}, {side}, 3], got {crops.dtype} {list(crops.shape)}; "
                "use session.preprocess.pixels(picture), or classify()."
            )
        if self._padding is None:
            return self._infer(np.ascontiguousarray(crops))
        with self._canvas(len(crops)) as canvas:
            return self._infer(canvas.fill(crops))

    def _infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `logits`, of what the engine takes."""
        logits = self.engine.infer(images)
        if logits.shape != (len(images), self._classes):
            raise BundleError(
                f"{self.bundle.path}: the graph gives logits {list(logits.shape)} where {len(images)} × "
                f"{self._classes} labels are expected; export it again"
            )
        return logits

    @staticmethod
    def pad(crops: NDArray[np.uint8], border: Padding | None) -> NDArray[np.uint8]:
        """What an engine takes: crops `uint8 [batch, height, width, 3]`, contiguous, with the border around them."""
        return np.ascontiguousarray(crops) if border is None else Canvas(crops.shape, border).fill(crops)

    @contextlib.contextmanager
    def _canvas(self, count: int) -> Iterator[Canvas]:
        """A buffer for so many crops, no other thread's for the block; as many are kept as were used at once."""
        idle = self._idle
        try:
            canvas = idle.pop()
        except IndexError:
            canvas = None
        if canvas is None or canvas.capacity < count:
            side = self.preprocess.crop_px
            canvas = Canvas((count, side, side, 3), self._padding)
        try:
            yield canvas
        finally:
            if canvas.capacity <= _KEPT_BATCH:
                idle.append(canvas)

    def _logits_of(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Logits `float32 [pictures, classes]`; the pixels are written where the engine reads them."""
        count, direct = len(pictures), fast.kernel() is not None
        with self._canvas(count) as canvas:
            for place, picture in zip(canvas.inside if direct else canvas.crops, pictures, strict=False):
                self.preprocess.pixels(picture, out=place, limits=self.limits)
            return self._infer(canvas.images[:count] if direct else canvas.painted(count))

    def classify(self, picture: Picture, *, top: int = 5) -> tuple[Prediction, ...]:
        """The best classes of one picture, best first.

        Args:
            picture: Path, encoded bytes, `uint8 [height, width, 3]` RGB array or Pillow image.
            top: How many classes; at most all.

        Raises:
            InputError: The picture cannot be read, or is past the limits.
        """
        _check_whole("top", top)
        return self.rank(self._logits_of([picture])[0], top)

    def classify_batch(self, pictures: Iterable[Picture], *, top: int = 5) -> tuple[tuple[Prediction, ...], ...]:
        """As `classify`, with one engine call for all pictures."""
        _check_whole("top", top)
        pictures = list(pictures)
        return tuple(self.rank(row, top) for row in self._logits_of(pictures)) if pictures else ()

    def classify_stream(
        self,
        pictures: Iterable[Picture],
        *,
        top: int = 5,
        errors: Literal["raise", "yield"] = "raise",
        workers: int = 2,
        ahead: int | None = None,
    ) -> Generator[tuple[Prediction, ...] | InputError, None, None]:
        """As `classify` of every picture, in their order; one is decoded while another is in the engine.

        Threads take the pictures, decode and classify them, while the caller works on earlier answers. Closing the
        generator (or leaving its `for`, or an error) ends the threads; pictures that they have taken by then are lost.

        Args:
            pictures: May be endless and slow, a camera for example; it is asked by one thread at a time.
            top: How many classes; at most all.
            errors: What becomes of a picture that cannot be read: `raise` ends the stream in its place, `yield` gives
                the `InputError` in place of the answer, and the stream goes on.
            workers: Threads that classify. Two overlap decoding with inference; for the most pictures a second on N
                CPUs, N of them on a session of one thread.
            ahead: Pictures that may be taken from `pictures` before their answers were asked for; by default two for
                each worker.

        Raises:
            InputError: A picture cannot be read, or an argument is out of its range.
            EngineError: The engine fails, or was opened before a fork.
        """
        _check_whole("top", top)
        _check_whole("workers", workers, MAX_THREADS)
        ahead = 2 * workers if ahead is None else ahead
        _check_whole("ahead", ahead)
        if errors not in ("raise", "yield"):
            raise InputError(f"errors is {errors!r}; choose 'raise' or 'yield'")
        return self._stream(pictures, top, errors == "yield", workers, ahead)

    def _stream(
        self, pictures: Iterable[Picture], top: int, tolerant: bool, workers: int, ahead: int
    ) -> Generator[tuple[Prediction, ...] | InputError, None, None]:
        from edgecls.runtime.ordered import in_order  # threads and futures, which single pictures do without

        def classify(picture: Picture) -> tuple[Prediction, ...]:
            return self.classify(picture, top=top)

        with contextlib.closing(in_order(classify, pictures, workers=workers, ahead=ahead)) as answers:
            for answer in answers:
                error = answer.exception()
                yield _without_frames(error) if tolerant and isinstance(error, InputError) else answer.result()
                del answer, error

    def rank(self, logits: NDArray[np.float32], top: int) -> tuple[Prediction, ...]:
        """The best classes of one row of logits, `float32 [classes]`; equal ones in the order of the classes.

        Raises:
            EngineError: A logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise EngineError(
                f"{self.bundle.path} answers with logits that are not finite, {logits.min()} to {logits.max()}: "
                "check it with edgecls verify, or export it again"
            )
        top = min(top, len(logits))
        # Of equal logits a partition takes any, other ones on other CPUs: all that may be among the best are sorted.
        best = np.flatnonzero(logits >= np.partition(logits, -top)[-top])
        best = best[np.argsort(-logits[best], kind="stable")][:top]
        shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
        scores = shifted[best] / shifted.sum()
        names = self.bundle.manifest.labels.names
        return tuple(Prediction(int(i), names[i], float(score)) for i, score in zip(best, scores, strict=True))

    def close(self) -> None:
        """Frees the engine and the buffers, once the calls that other threads are in have ended."""
        self.engine.close()
        self._idle = deque()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _lose_engines() -> None:
    if _sessions:
        skip_exit_handlers()
    for session in _sessions:
        session.engine = ForkedEngine(session.engine)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_engines)


def _without_frames(error: InputError) -> InputError:
    """The error without its traceback and those of its causes, whose frames hold the picture's bytes and pixels."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


def _check_whole(name: str, value: int, most: int | None = None) -> None:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if most is not None and value > most:
        raise InputError(f"{name} is {value}; it must be at most {most}")


def load(
    path: str | os.PathLike[str] | Bundle,
    *,
    threads: int | None = None,
    build: bool = True,
    progress: Progress | None = None,
    key: str | os.PathLike[str] | None = None,
    limits: PictureLimits = DEFAULT_LIMITS,
) -> Session:
    """Opens a bundle on the engine that it was made for, and on no other.

    Where the device has to build the engine first (TensorRT), the first call says so and takes minutes; later ones find
    it in the user's cache folder.

    Args:
        path: The `.edgecls` file, or an open bundle.
        threads: Threads of one inference; by default the CPUs that this process may use.
        build: Whether an engine may be built now; otherwise one that was not built yet is an error.
        progress: Hears of a build; by default it is told on standard error.
        key: PEM file of an Ed25519 public key: only a bundle that was signed with the private one is loaded.
        limits: Which pictures the session takes.

    Raises:
        BundleError: The bundle is damaged, its engine unknown to this edgecls, or it was not signed with the key.
        MissingExtraError: Its engine (or, with a key, cryptography) is not installed; the message names the extra.
        UnsupportedError: Its INT8 graph would saturate on this CPU, or it needs another GPU or library; or its engine
            was not built yet and `build` is False.
        EngineError: Its engine cannot be built here, or is OpenVINO in the forked child of a process that has used it.
        InputError: There is no such file or key, or `threads` is not from 1 to `MAX_THREADS`.
    """
    if threads is not None:
        _check_whole("threads", threads, MAX_THREADS)
    progress = progress or PlainProgress()
    if isinstance(path, Bundle):
        if key is not None:
            raise InputError(f"{path.path} is open already: give the key where it is opened, Bundle(path, key=...)")
        return _session(path, threads, build, progress, limits)
    try:
        return _session(Bundle(path, key=key), threads, build, progress, limits)
    except ReplacedError:  # a new one was put in its place at this very moment
        return _session(Bundle(path, key=key), threads, build, progress, limits)


def _session(bundle: Bundle, threads: int | None, build: bool, progress: Progress, limits: PictureLimits) -> Session:
    manifest = bundle.manifest
    check_isa(manifest)
    if manifest.target not in engine_names():
        raise BundleError(
            f"{bundle.path} is for the engine {manifest.target!r}, this edgecls knows {', '.join(engine_names())}: "
            "upgrade edgecls here, or export for one of those"
        )
    if manifest.unbuilt:
        manifest, artifact = built_artifact(bundle, BuildOptions(cached_only=not build), progress)
    else:
        artifact = [bundle.read(member) for member in manifest.artifact]
    engine = engine_module(manifest.target).open_engine(artifact, manifest, threads or cpu_count())
    return Session(bundle, engine, limits)


def check_isa(manifest: Manifest) -> None:
    """Compares the instruction set of an INT8 graph with this CPU.

    Raises:
        UnsupportedError: The graph was made for other CPUs, and this x86 CPU has no VNNI: sums would saturate and
            answers would silently be wrong.
    """
    made_for, here = manifest.passport.isa, cpu_isa()
    # ONNX Runtime's engine computes what was made for ARM in floats there; OpenVINO would take the integers.
    exact = manifest.target == "onnxruntime" and made_for == "arm64"
    if made_for is not None and saturates(made_for) and not exact:
        raise UnsupportedError(
            f"{manifest.name} was quantized for {made_for}, and this x86 CPU has no VNNI: its INT8 sums would saturate "
            "and the answers be wrong. Export it again with --isa x86."
        )
    if manifest.passport.activations == "int8" and here in {"x86", "x86-vnni"} and manifest.target == "onnxruntime":
        warnings.warn(
            f"{manifest.name!r} was quantized for {made_for}: its int8 activations are right here but slow. Export it "
            f"again with --isa {here} for this machine.",
            stacklevel=4,
        )
