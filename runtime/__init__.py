"""Ground floor: what a device installs. Importing it loads numpy, pillow and msgspec, and no engine."""

from edgecls.runtime.bundle import Bundle
from edgecls.runtime.errors import (
    BundleError,
    EdgeclsError,
    EngineError,
    InputError,
    MissingExtraError,
    UnsupportedError,
)
from edgecls.runtime.frame import Frame
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.picture_limits import PictureLimits
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.session import Prediction, Session, load

__all__ = [
    "Bundle",
    "BundleError",
    "EdgeclsError",
    "EngineError",
    "Frame",
    "ImageSet",
    "InputError",
    "Labels",
    "MissingExtraError",
    "PictureLimits",
    "Prediction",
    "Preprocess",
    "Session",
    "UnsupportedError",
    "load",
]
