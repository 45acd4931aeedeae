"""Floor 3: checkpoints become a Classifier."""

from edgecls.models.classifier import Classifier
from edgecls.models.open import PreprocessOverride, open_classifier

__all__ = ["Classifier", "PreprocessOverride", "open_classifier"]
