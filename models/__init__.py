"""Floor 3: checkpoints become a Classifier."""
