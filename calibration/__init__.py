"""Floor 4: calibration sets, histograms, ranges and the quantization plan."""
