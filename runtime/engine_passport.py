"""What a built engine fits: one GPU, one set of libraries, one graph."""

from __future__ import annotations

import hashlib

import msgspec


class EnginePassport(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine was built, and from what.

    An engine holds machine code and timings of one GPU; the libraries promise nothing for another GPU or version.
    """

    library: str
    """`tensorrt` or `tensorrt-rtx`."""
    library_version: str
    gpu: str
    """As the driver calls it: `Orin`, `NVIDIA GeForce RTX 4070`."""
    compute_capability: str
    """`8.7`."""
    cuda_version: str
    """That the driver offers: `12.6`."""
    driver_version: str
    """Of the kernel module; empty where the system does not tell."""
    graph_sha256: str
    """Of the bytes of `model.onnx`."""
    flags: tuple[str, ...]
    """Names of the flags that the engine was built with, sorted; `STRONGLY_TYPED` among them where it was."""
    max_batch: int
    """Largest batch of the optimization profile."""

    def differences(self, here: EnginePassport) -> tuple[str, ...]:
        """What stands in the way of running the engine where `here` would be built, both sides named.

        The largest batch and the flags are the engine's own business: they are not compared.
        """
        compared = {
            "GPU": (self.gpu, here.gpu),
            "compute capability": (self.compute_capability, here.compute_capability),
            self.library: (self.library_version, here.library_version),
            "CUDA": (self.cuda_version, here.cuda_version),
            "driver": (self.driver_version, here.driver_version),
            "graph": (self.graph_sha256[:16], here.graph_sha256[:16]),
        }
        return tuple(
            f"{what} {theirs or 'unknown'} there, {ours or 'unknown'} here"
            for what, (theirs, ours) in compared.items()
            if theirs != ours
        )

    @property
    def key(self) -> str:
        """Name of the engine in a cache: the digest of the whole record, hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]
