"""The instrument: measures bundles on this device and judges the result. It never imports torch.

Nothing is imported here, so that the processes that are timed (`latency_worker`) load only what a device loads.
"""
