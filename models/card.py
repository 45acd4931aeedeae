"""What a file of trained weights says about itself, so that `edgecls export FILE` needs no other option."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from edgecls.models.preprocess_override import KnownPreprocess
from edgecls.runtime.errors import InputError
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess

KEY = "edgecls.model"
"""Under which the card lies in the metadata of a safetensors or an ONNX file."""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """The network that a file's weights belong to, what it sees and what it answers."""

    schema: Literal["edgecls.model/1"] = "edgecls.model/1"
    model: str
    """What MODEL would be on the command line: `torchvision:resnet18`, `timm:mobilenetv4_conv_small`, `hog-svm`."""
    preprocess: Preprocess
    labels: Labels

    @property
    def is_own_code(self) -> bool:
        """Whether the network is the user's factory, `net.py:make`: a file of weights must not decide to run it."""
        library, colon, _ = self.model.partition(":")
        return bool(colon) and library not in {"torchvision", "timm"}

    def known_preprocess(self) -> KnownPreprocess:
        """The input, as a model's library would describe it."""
        fields = msgspec.structs.asdict(self.preprocess)
        return KnownPreprocess(source="the metadata of the file of weights", fields=fields, unusable={})

    def metadata(self) -> dict[str, str]:
        """The entry that a file's metadata gets."""
        return {KEY: msgspec.json.encode(self).decode()}

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> ModelCard | None:
        """The card in a file's metadata; None where edgecls did not write the file.

        Args:
            path: Of the file; for messages.
            metadata: Of the file.

        Raises:
            InputError: The card is damaged, or newer than this edgecls.
        """
        if KEY not in metadata:
            return None
        try:
            return msgspec.json.decode(metadata[KEY], type=cls)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise InputError(
                f"{path} describes itself in a way that this edgecls does not read ({error}): "
                "update edgecls, or train it again."
            ) from error
