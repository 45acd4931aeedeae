"""What NVIDIA's boards carry."""

from __future__ import annotations

TENSORRT: dict[str, str] = {"jetson-orin": "10.3", "jetson-thor": "10.13"}
"""Board to the TensorRT of its usual JetPack: 6.1 and 6.2 on Orin, 7.0 and 7.1 on Thor. JetPack 6.0 has 8.6."""
