"""Floor 5: checkpoint to graph to artifact to bundle."""
