"""Measure artefacts on the device: latency, the machine's state while it was taken, and accuracy."""
