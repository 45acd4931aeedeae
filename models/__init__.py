"""Floor 3: checkpoints become a Classifier."""

from edgecls.models.classifier import Classifier, model_file
from edgecls.models.open import PreprocessOverride, check_zero_shot, open_classifier

__all__ = ["Classifier", "PreprocessOverride", "check_zero_shot", "model_file", "open_classifier"]
