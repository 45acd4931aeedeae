"""Floor 2: the instrument. It sees bundles only and never imports torch."""
